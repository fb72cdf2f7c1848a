"""Every test starts from the same seed, and memory that is not written holds NaN."""

from __future__ import annotations

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
