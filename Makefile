# make demo | test | lint | format | bench | clean
#
#   PYTHON=python3.12   the interpreter to start from
#   VENV=none           use that interpreter's environment as it is: nothing is installed (no network needed)
#   MAX_JOBS=4          parallel compiles

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
PACKAGES := $(TORCH) numpy "setuptools>=77" "cmake>=3.22" ninja pytest matplotlib tqdm \
            "ruff>=0.17,<0.18" "mypy>=2.4,<3" "clang-format>=23,<24"

ifeq ($(VENV),none)
  python := $(PYTHON)
  environment :=
  install := $(python) setup.py build_ext --inplace
  lint := tools/lint --if-available
  export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
else
  python := $(VENV)/bin/python
  environment := $(VENV)/.installed
  install := $(python) -m pip install --quiet --no-build-isolation --no-deps -e .
  lint := tools/lint
  export PATH := $(abspath $(VENV))/bin:$(PATH)
endif

widest_isa = $(shell grep -qw avx512f /proc/cpuinfo && echo avx512 || echo avx2)
sanitized_isas = scalar$(if $(filter x86_64,$(shell uname -m)),;$(widest_isa))
CPP_SOURCES = $(shell find csrc tests/cpp bench -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.NOTPARALLEL:
.PHONY: demo test build emulated cuda lint format ctest ctest-asan ctest-tsan ctest-aarch64 bench clean

demo: build
	$(python) examples/char_lm.py --output demo-output

# pytest comes last, so that its summary is what the output ends with.
test: export CMAKE_ARGS := $(CMAKE_ARGS) -DRNNFUSED_WERROR=ON
test: lint ctest ctest-asan cuda build emulated
	$(python) -m pytest

build: $(environment)
	$(install)

# Every CUDA kernel, compiled; none may spill registers.
cuda: $(environment)
	tools/check_cuda

# The extension whose GPU is emulated, for tests/test_emulated.py.
emulated: $(environment)
	cmake -S . -B build/emulated -G Ninja -DCMAKE_MAKE_PROGRAM="$$(command -v ninja)" \
	  -DPython_EXECUTABLE="$$($(python) -c 'import sys; print(sys.executable)')" -DRNNFUSED_BUILD_EMULATED=ON \
	  -DRNNFUSED_BUILD_CPP_TESTS=OFF -DRNNFUSED_CUDA=OFF -DRNNFUSED_ISAS=scalar $(CMAKE_ARGS)
	cmake --build build/emulated --target rnnfused_emulated

lint: $(environment)
	$(lint)

format: $(environment)
	ruff check --fix .
	ruff format .
	clang-format -i $(CPP_SOURCES)

ctest: $(environment)
	tools/run_ctest ctest

# std::thread here, OpenMP in plain ctest: both backends are tested. One ISA of vectors will do: their sources
# are the same, and sanitizers take minutes to compile each.
ctest-asan: $(environment)
	tools/run_ctest ctest-asan -DRNNFUSED_SANITIZE=address,undefined -DRNNFUSED_STD_THREADS=ON \
	  "-DRNNFUSED_ISAS=$(sanitized_isas)"

ctest-tsan: $(environment)
	tools/run_ctest ctest-tsan -DRNNFUSED_SANITIZE=thread "-DRNNFUSED_ISAS=$(sanitized_isas)"

# NEON, run by an emulator. What is scalar runs without one in plain ctest.
ctest-aarch64: export CTEST_ONLY := neon
ctest-aarch64: export RNNFUSED_EMULATED := 1
ctest-aarch64: $(environment)
	tools/run_ctest ctest-aarch64 -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/tools/aarch64.cmake

bench: build
	$(python) -m bench.cpu

clean:
	rm -rf build dist demo-output rnnfused.egg-info rnnfused/_build_info.py rnnfused/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.installed: Makefile
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet $(PACKAGES)
	touch $@
