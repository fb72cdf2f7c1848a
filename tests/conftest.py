"""Every test starts from the same seed, and memory that is not written holds NaN."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from collections.abc import Iterator

import pytest
import torch

# The extension whose GPU is emulated takes the place of the installed one: test_emulated.py starts such runs.
if _path := os.environ.get("RNNFUSED_TEST_EXTENSION"):
    _spec = importlib.util.spec_from_file_location("rnnfused._C", _path)
    assert _spec is not None and _spec.loader is not None
    sys.modules["rnnfused._C"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["rnnfused._C"])


# cuBLAS is deterministic only if it is told so before it starts (torch.use_deterministic_algorithms asks).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# float32 is tested as such; test_resident.py allows recurrent layers TF32.
torch.backends.cudnn.allow_tf32 = False


# Files in which tests share what takes long to make: one process runs them all.
TOGETHER = ("test_demo_distributed", "test_distributed", "test_threads")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For sizes that give a second thread nothing to do but wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU, an emulated one will not do")
    config.addinivalue_line("markers", "cpu: of the CPU's drivers alone, where an emulated GPU has none")
    config.addinivalue_line("markers", "xdist_group: runs in the same process as the others of its name")
    config.addinivalue_line(
        "markers", "long: left to `make check`; begins first, so that no process ends long after the other"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in TOGETHER:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    # What is there by now stays: whenever garbage is collected it need not be looked through again. And
    # torch's compiler makes so many objects that looking for garbage as often as usual takes a tenth of its
    # time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 50)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not has_gpu():
        pytest.skip(NO_GPU)
    if item.get_closest_marker("cpu") and "RNNFUSED_TEST_EXTENSION" in os.environ:
        pytest.skip("the CPU plays the GPU")


NO_GPU = "there is no CUDA device, or rnnfused was built without CUDA kernels"


def has_gpu() -> bool:
    if "RNNFUSED_TEST_EXTENSION" in os.environ:
        return False  # torch may have one, but not this extension
    from rnnfused._load import build_info

    return torch.cuda.is_available() and build_info.cuda is not None


@pytest.fixture
def gpu() -> str:
    """The device of the CUDA drivers: the first GPU, or the CPU where it plays one."""
    if "RNNFUSED_TEST_EXTENSION" in os.environ:
        return "cpu"
    if not has_gpu():
        pytest.skip(NO_GPU)
    return "cuda"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """torch fills what torch.empty returns with NaN: whatever the kernels forget to write shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
