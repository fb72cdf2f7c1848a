"""The import of the compiled extension: what it accepts, and the words it fails with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import rnnfused
from rnnfused._load import _C, build_info, check_torch, import_built


@pytest.mark.parametrize("installed", ["2.13.0", "2.13.1+cu130", torch.__version__])
def test_same_minor_is_accepted(installed: str) -> None:
    built = build_info.torch if installed == torch.__version__ else "2.13.0+cpu"
    check_torch(built, installed)


@pytest.mark.parametrize("installed", ["2.12.1", "2.14.0+cpu", "3.13.0", "2.1.0"])
def test_other_minor_is_refused(installed: str) -> None:
    with pytest.raises(ImportError, match=rf"built for torch 2\.13\.0\+cpu, but torch {installed[:3]}"):
        check_torch("2.13.0+cpu", installed)


def test_missing_extension_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rnnfused._C", None)
    with pytest.raises(ImportError, match=r"rnnfused\._C is not built for this Python .*pip install"):
        import_built("_C")


def test_one_libstdcxx_in_the_process() -> None:
    # A static one beside torch's ends the process at the first number that is printed.
    assert b"\0libstdc++.so.6\0" in Path(rnnfused.library_path()).read_bytes()


def test_build_info_is_complete() -> None:
    assert _C.isa() in build_info.isas
    assert all((build_info.version, build_info.torch, build_info.compiler))
