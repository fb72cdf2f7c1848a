# make demo | data | test | check | lint | format | bench | docs | clean
#
#   PYTHON=python3.12   the interpreter to start from
#   VENV=none           use that interpreter's environment as it is: nothing is installed (no network needed)
#   MAX_JOBS=4          parallel compiles
#   TEST_JOBS=4         parallel processes of pytest

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# To build rnnfused and to run the demo; to test it, too.
PACKAGES := $(TORCH) numpy "setuptools>=77" "cmake>=3.22" ninja matplotlib tqdm
TEST_PACKAGES := pytest pytest-xdist hypothesis onnx onnxscript onnxruntime \
                 "ruff>=0.17,<0.18" "mypy>=2.4,<3" "clang-format>=23,<24"
# For the documentation site alone.
DOCS_PACKAGES := "mkdocs>=1.6,<2" "mkdocs-material>=9.7,<10" "mkdocstrings[python]>=1,<2"

ifeq ($(VENV),none)
  python := $(PYTHON)
  environment :=
  test_environment :=
  docs_environment :=
  install := $(python) setup.py --quiet build_ext --inplace
  lint := tools/lint --if-available
  docs := tools/build_docs $(python) --if-available
  export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
  python := $(VENV)/bin/python
  environment := $(VENV)/.installed
  test_environment := $(VENV)/.test-installed
  docs_environment := $(VENV)/.docs-installed
  # First where its progress shows; pip would hide it.
  install := $(python) setup.py --quiet build_ext --inplace && \
             $(python) -m pip install --quiet --no-build-isolation --no-deps -e .
  lint := tools/lint
  docs := tools/build_docs $(python)
  export PATH := $(abspath $(VENV))/bin:$(PATH)
endif

# setup.py's folder under build/: the extension, the one whose GPU is emulated and the C++ tests share their objects.
tree = $(shell $(python) -c 'import sys, sysconfig; print(sys.implementation.cache_tag, sysconfig.get_platform(), sep="-")')
with_python = -DRNNFUSED_BUILD_PYTHON=ON -DPython_EXECUTABLE="$$($(python) -c 'import sys; print(sys.executable)')" \
  "-DRNNFUSED_ISAS=$(RNNFUSED_ISAS)" $(CMAKE_ARGS)
without_python = -DRNNFUSED_BUILD_PYTHON=OFF -DRNNFUSED_CUDA=OFF $(CMAKE_ARGS)

machine := $(shell uname -m)
has = $(shell grep -qw $(1) /proc/cpuinfo && echo yes)
widest_isa := $(if $(filter x86_64,$(machine)),$(if $(call has,avx512_bf16),avx512_bf16,$(if $(call has,avx512f),avx512,avx2)))
# Paths of vectors that run here, of which C++ tests are built; and of these what sanitizers watch, or scalar.
and_where = $(if $(call has,$(2)),;$(1))
x86_isas = avx2$(call and_where,avx512,avx512f)$(call and_where,avx512_vnni,avx512_vnni)$(call and_where,avx512_bf16,avx512_bf16)$(call and_where,avx512_amx,amx_bf16)
arm_isas = neon$(call and_where,neon_dot,asimddp)$(call and_where,neon_bf16,bf16)
vector_isas := $(if $(filter x86_64,$(machine)),$(x86_isas),$(if $(filter aarch64 arm64,$(machine)),$(arm_isas),scalar))
sanitized_isas := $(or $(patsubst avx512_bf16,avx512;avx512_vnni;avx512_bf16,$(widest_isa)),scalar)
emulated_isas := $(if $(filter avx512_bf16,$(widest_isa)),;avx512_amx)
CPP_SOURCES = $(shell find csrc tests/cpp bench examples -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.NOTPARALLEL:
.PHONY: demo data test-data test check build emulated lint format bench docs clean
.PHONY: ctest ctest-rest ctest-asan ctest-tsan ctest-aarch64 cuda cuda-all pytest-asan pytest-long

# Nobody need wait for kernels of a GPU that is not there: `make check` compiles them all the same, for one.
export RNNFUSED_CUDA ?= $(if $(wildcard /dev/nvidia[0-9]*),,0)
# Nor for the paths of other processors: those are built once `make check` or RNNFUSED_ISAS=ALL asked for them.
export RNNFUSED_ISAS ?= $(if $(shell grep -ls RNNFUSED_ISAS:STRING=ALL build/cpython-*/CMakeCache.txt),ALL,NATIVE)

demo: build
	$(python) examples/char_lm.py --output demo-output

# Once, into a cache outside the repository: what examples/ and their tests read.
data: $(environment)
	$(python) examples/fetch_data.py

# For the tests of the examples, which skip where there is no network; RNNFUSED_REQUIRE_DATA=1 makes that a failure.
test-data: $(environment)
	$(python) examples/fetch_data.py $(if $(RNNFUSED_REQUIRE_DATA),,|| true)

# pytest comes last, so that its summary is what the output ends with.
test: $(test_environment) test-data lint build ctest
	tools/run_pytest $(python) -m "not long"

# What takes longer than a change should wait for: all that `make test` leaves out.
check: export RNNFUSED_ISAS := ALL
check: $(test_environment) docs ctest-rest ctest-aarch64 ctest-tsan cuda ctest-asan pytest-asan pytest-long

# Tests that take long: those of the layers on the emulated GPU, a cell added to a copy of the project, graphs traced, processes, ...
pytest-long: $(test_environment) test-data build emulated
	tools/run_pytest $(python) -m long

build: $(environment)
	@echo "Building rnnfused in build/$(tree): a minute or two on two cores, seconds where little has changed"
	$(install)

# The extension whose GPU is emulated, for tests/test_emulated.py.
emulated: $(environment)
	tools/build $(tree) rnnfused_emulated $(with_python) -DRNNFUSED_BUILD_EMULATED=ON
	cmake --install build/$(tree) --component emulated --prefix build/emulated

lint: $(test_environment)
	$(lint)

format: $(test_environment)
	ruff check --fix .
	ruff format .
	clang-format -i $(CPP_SOURCES)

# The vectors' ISAs that are built.
ctest: $(environment)
	tools/run_ctest $(tree) $(with_python) "-DRNNFUSED_TEST_ISAS=$(if $(filter ALL,$(RNNFUSED_ISAS)),$(vector_isas))" \
	  -DRNNFUSED_TEST_ARCHS=

# The paths that `make test` leaves out, and the CUDA kernels: on an emulated GPU, and instruction by instruction.
ctest-rest: export RNNFUSED_ISAS := ALL
ctest-rest: $(environment)
	tools/run_ctest $(tree) $(with_python) -DRNNFUSED_TEST_ISAS=scalar "-DRNNFUSED_TEST_ARCHS=80;86;90a;100;120"

# std::thread here, OpenMP in plain ctest: both backends are tested. One ISA of vectors will do: their sources
# are the same, and sanitizers take minutes to compile each. The C++ tests and the extension share a folder. Tile
# registers are emulated, since few processors have them.
with_asan = $(with_python) -DRNNFUSED_CUDA=OFF -DRNNFUSED_SANITIZE=address,undefined -DRNNFUSED_STD_THREADS=ON \
  "-DRNNFUSED_ISAS=$(sanitized_isas)$(emulated_isas)" -DRNNFUSED_TEST_ISAS= -DRNNFUSED_AMX_EMULATED=ON

# Memory is what it is at fewer points of exp, sigmoid and tanh, too.
ctest-asan: export RNNFUSED_EMULATED := 1
ctest-asan: $(environment)
	tools/run_ctest asan $(with_asan)

# The tests that reach the native code in many ways, the walk and the mutations at length.
# Without those in which torch's compiler or much memory takes long, and ours little.
asan_tests := walk varied layouts states fuzz recompute native_checks sequence stack functional autograd tangents modules memory frozen stepper quantized attend
without_large_memory := $(addprefix --deselect=tests/test_memory.py::, \
  test_no_more_is_kept_than_the_limit test_small_results_in_use_do_not_hold_large_memory)
pytest-asan: $(test_environment)
	tools/build asan _C $(with_asan)
	RNNFUSED_ISA=$(or $(widest_isa),scalar) RNNFUSED_WALK_CASES=1000 RNNFUSED_FUZZ_CALLS=10000 \
	  tools/pytest_asan $(python) $(asan_tests:%=tests/test_%.py) -m "not long" -k "not compiled" \
	  $(without_large_memory)

# Who waits for whom is the same on every path: one will do.
ctest-tsan: $(environment)
	tools/run_ctest ctest-tsan $(without_python) -DRNNFUSED_SANITIZE=thread "-DRNNFUSED_ISAS=$(sanitized_isas)" \
	  -DRNNFUSED_TEST_ISAS=$(patsubst avx512_bf16,avx512,$(or $(widest_isa),scalar))

# NEON, run by an emulator. What is scalar is tested without one in ctest-rest.
ctest-aarch64: export RNNFUSED_EMULATED := 1
ctest-aarch64: $(environment)
	tools/run_ctest ctest-aarch64 $(without_python) -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/tools/aarch64.cmake \
	  "-DRNNFUSED_ISAS=neon;neon_dot;neon_bf16"

# Every CUDA kernel, compiled for one architecture, or for each generation; none may spill registers.
cuda: $(environment)
	tools/check_cuda $(tree) $(with_python)

cuda-all: $(environment)
	RNNFUSED_CUDA_ARCHS="80;90a-real;100-real;120" tools/check_cuda cuda -DRNNFUSED_BUILD_PYTHON=OFF -DRNNFUSED_WERROR=ON

bench: build
	$(python) -m bench.cpu

# The documentation site, in build/site; a broken link is an error.
docs: $(docs_environment)
	$(docs)

clean:
	rm -rf build dist demo-output examples-output rnnfused.egg-info rnnfused/_build_info.py rnnfused/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.installed: Makefile
	@echo "Installing what the build and the demo need into $(VENV): PyTorch and some smaller packages"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check $(PACKAGES)
	touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(TEST_PACKAGES)
	touch $@

$(VENV)/.docs-installed: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet $(DOCS_PACKAGES)
	touch $@
