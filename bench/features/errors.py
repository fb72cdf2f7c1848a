"""What is refused, in which words, and what is left after it."""

from __future__ import annotations

import gc
import resource
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from bench.features.check import flat, raises, same
from bench.features.layers import CELLS, KINDS, Layers
from bench.features.probes import probe

Cases = dict[str, Callable[[Any], Any]]


# Words that are not torch.nn's but those of the operation that it happens to reach, which differs between
# layers and builds: there the type of the exception is compared.
_INNER = (
    "mat1 and mat2",
    "The size of tensor a",
    "get_mkldnn_dtype",
    "received an invalid combination of arguments",
    "(): argument",
)


def _first(error: Exception) -> tuple[type, str]:
    return type(error), str(error).split("\n")[0]


def _outcome(call: Callable[[Any], Any], module: Any) -> Any:
    try:
        return flat(call(module))
    except Exception as error:
        return _first(error)


def _alike(layer: Any, twin: Any, cases: Cases) -> None:
    """Each case raises what torch.nn raises, type and words, or gives what torch.nn gives."""
    different = []
    for name, call in cases.items():
        got, want = _outcome(call, layer), _outcome(call, twin)
        if isinstance(want, tuple):
            inner = any(part in want[1] for part in _INNER)
            if got != want and not (inner and isinstance(got, tuple) and got[0] is want[0]):
                shown = "nothing" if isinstance(got, list) else f"{got[0].__name__}: {got[1]}"
                different.append(f"{name} [{shown} | torch.nn {want[0].__name__}: {want[1]}]")
        elif isinstance(got, tuple):
            different.append(f"{name} [{got[0].__name__}: {got[1]} | torch.nn takes it]")
        else:
            same(got, want)
    assert not different, f"{len(different)} of {len(cases)}: " + "; ".join(different)


def _hx(kind: str, *shape: int, dtype: torch.dtype = torch.float32) -> Any:
    h = torch.zeros(*shape, dtype=dtype)
    return (h, h.clone()) if kind.startswith("LSTM") else h


@probe("errors: dimensions", "of input and states: type and words", each=KINDS)
def dimensions(layers: Layers, kind: str) -> None:
    x = torch.randn(5, 2, 3)
    cases: Cases = {
        "input of 1": lambda m: m(x[0, 0]),
        "input of 4": lambda m: m(x[None]),
        "input of 0": lambda m: m(x[0, 0, 0]),
        "hx of 2 for input of 3": lambda m: m(x, _hx(kind, 2, 4)),
        "hx of 4 for input of 3": lambda m: m(x, _hx(kind, 1, 1, 2, 4)),
        "hx of 3 for input of 2": lambda m: m(x[:, 0], _hx(kind, 1, 2, 4)),
        "hx of 1 for input of 2": lambda m: m(x[:, 0], _hx(kind, 4)),
    }
    if kind == "LSTM":
        cases["c of 2"] = lambda m: m(x, (torch.zeros(1, 2, 4), torch.zeros(2, 4)))
    _alike(*layers.pair(kind, 3, 4), cases)


@probe("errors: sizes", "of input and states: type and words", each=KINDS)
def sizes(layers: Layers, kind: str) -> None:
    x = torch.randn(5, 2, 3)
    ragged = pack_padded_sequence(x, torch.tensor([5, 3]))
    wide = pack_padded_sequence(torch.randn(5, 2, 7), torch.tensor([5, 3]))
    cases: Cases = {
        "input": lambda m: m(torch.randn(5, 2, 7)),
        "unbatched input": lambda m: m(torch.randn(5, 7)),
        "packed input": lambda m: m(wide),
        "batch of hx": lambda m: m(x, _hx(kind, 1, 3, 4)),
        "layers of hx": lambda m: m(x, _hx(kind, 2, 2, 4)),
        "hidden size of hx": lambda m: m(x, _hx(kind, 1, 2, 5)),
        "packed, batch of hx": lambda m: m(ragged, _hx(kind, 1, 3, 4)),
        "packed, hidden size of hx": lambda m: m(ragged, _hx(kind, 1, 2, 5)),
        "unbatched, hidden size of hx": lambda m: m(x[:, 0], _hx(kind, 1, 5)),
    }
    if kind == "LSTM":
        cases["batch of c"] = lambda m: m(x, (torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)))
        cases["hidden size of c"] = lambda m: m(x, (torch.zeros(1, 2, 4), torch.zeros(1, 2, 5)))
    _alike(*layers.pair(kind, 3, 4), cases)


@probe("errors: dtypes", "of input and states: type and words", each=KINDS)
def dtypes(layers: Layers, kind: str) -> None:
    x = torch.randn(5, 2, 3)
    cases: Cases = {
        "int64 input": lambda m: m(torch.ones(5, 2, 3, dtype=torch.int64)),
        "bool input": lambda m: m(torch.ones(5, 2, 3, dtype=torch.bool)),
        "float64 input": lambda m: m(x.double()),
        "float16 input": lambda m: m(x.half()),
        "complex input": lambda m: m(x.to(torch.complex64)),
        "int64 unbatched input": lambda m: m(torch.ones(5, 3, dtype=torch.int64)),
        "packed float64 input": lambda m: m(pack_padded_sequence(x.double(), torch.tensor([5, 3]))),
        "packed int64 input": lambda m: m(pack_padded_sequence(x.long(), torch.tensor([5, 3]))),
    }
    _alike(*layers.pair(kind, 3, 4), cases)


@probe("errors: dtypes of states", "type and words", each=KINDS)
def dtypes_states(layers: Layers, kind: str) -> None:
    x = torch.randn(5, 2, 3)
    cases: Cases = {
        "float64 hx": lambda m: m(x, _hx(kind, 1, 2, 4, dtype=torch.float64)),
        "int64 hx": lambda m: m(x, _hx(kind, 1, 2, 4, dtype=torch.int64)),
    }
    if kind == "LSTM":
        cases["float64 c"] = lambda m: m(x, (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4, dtype=torch.float64)))
    _alike(*layers.pair(kind, 3, 4), cases)


@probe("errors: states", "too few, too many, of another kind: type and words", each=KINDS)
def states(layers: Layers, kind: str) -> None:
    x, h = torch.randn(5, 2, 3), torch.zeros(1, 2, 4)
    cases: Cases = {
        "a pair": lambda m: m(x, (h, h)),
        "a list": lambda m: m(x, [h, h]),
        "three": lambda m: m(x, (h, h, h)),
        "one in a tuple": lambda m: m(x, (h,)),
        "none in a tuple": lambda m: m(x, ()),
        "a tensor": lambda m: m(x, h),
        "a tensor of two": lambda m: m(x, torch.zeros(2, 1, 2, 4)),
        "a tensor of two, unbatched": lambda m: m(x[:, 0], torch.zeros(2, 1, 4)),
        "None in a pair": lambda m: m(x, (h, None)),
        "a number": lambda m: m(x, 1),
    }
    _alike(*layers.pair(kind, 3, 4), cases)


@probe("errors: not a tensor", "a list, None, an array: type and words", each=KINDS + CELLS)
def not_tensors(layers: Layers, kind: str) -> None:
    values = ([1.0, 2.0], None, np.zeros((5, 2, 3), np.float32), 1)
    cases: Cases = {type(value).__name__: lambda m, value=value: m(value) for value in values}
    _alike(*layers.pair(kind, 3, 4), cases)


@probe("errors: constructor", "type and words; warnings too", each=KINDS + CELLS)
def constructor(layers: Layers, kind: str) -> None:
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "no sizes": ((), {}),
        "an unknown option": ((3, 4), {"depth": 2}),
    }
    if kind not in CELLS:
        calls |= {
            "hidden size of 0": ((3, 0), {}),
            "hidden size not an int": ((3, 4.0), {}),
            "no layers": ((3, 4), {"num_layers": 0}),
            "dropout above 1": ((3, 4), {"dropout": 1.5}),
            "dropout not a number": ((3, 4), {"dropout": True}),
            "dropout of one layer": ((3, 4), {"dropout": 0.5}),
            "projection": ((3, 4), {"proj_size": 4}),
            "negative projection": ((3, 4), {"proj_size": -1}),
            "nonlinearity": ((3, 4), {"nonlinearity": "sine"}),
        }

    def outcome(made: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                made(*arguments, **options)
            except Exception as error:
                # The method that Python names is the class's own affair.
                kind, words = _first(error)
                return kind.__name__, words.split("__init__()")[-1]
        return [str(warning.message) for warning in caught]

    different = []
    for name, (arguments, options) in calls.items():
        got, want = (outcome(getattr(p, kind), arguments, options) for p in (layers, torch.nn))
        if got != want:
            different.append(f"{name} [{got} | torch.nn {want}]")
    assert not different, f"{len(different)} of {len(calls)}: " + "; ".join(different)


@probe("errors: cells, dimensions and sizes", "type and words", each=CELLS)
def cells(layers: Layers, kind: str) -> None:
    x = torch.randn(2, 3)
    cases: Cases = {
        "input of 3": lambda m: m(x[None]),
        "input of 0": lambda m: m(x[0, 0]),
        "hx of 3": lambda m: m(x, _hx(kind, 1, 2, 4)),
        "size of input": lambda m: m(torch.randn(2, 7)),
        "size of hx": lambda m: m(x, _hx(kind, 2, 5)),
        "batch of hx": lambda m: m(x, _hx(kind, 3, 4)),
    }
    _alike(*layers.pair(kind, 3, 4), cases)


@probe("errors: cells, dtypes", "type and words", each=CELLS)
def cells_dtypes(layers: Layers, kind: str) -> None:
    x = torch.randn(2, 3)
    cases: Cases = {
        "int64 input": lambda m: m(x.long()),
        "float64 input": lambda m: m(x.double()),
        "float64 hx": lambda m: m(x, _hx(kind, 2, 4, dtype=torch.float64)),
    }
    _alike(*layers.pair(kind, 3, 4), cases)


@probe("errors: cells, states", "too few, too many, of another kind: type and words", each=CELLS)
def cells_states(layers: Layers, kind: str) -> None:
    x, h = torch.randn(2, 3), torch.zeros(2, 4)
    cases: Cases = {
        "a pair": lambda m: m(x, (h, h)),
        "a list": lambda m: m(x, [h, h]),
        "three": lambda m: m(x, (h, h, h)),
        "one in a tuple": lambda m: m(x, (h,)),
        "a tensor": lambda m: m(x, h),
        "a tensor of two": lambda m: m(x, torch.zeros(2, 2, 4)),
        "a number": lambda m: m(x, 1),
    }
    _alike(*layers.pair(kind, 3, 4), cases)


@probe(
    "after a caught error the input is freed", "at once, without the garbage collector", each=KINDS + CELLS
)
def freed(layers: Layers, kind: str) -> None:
    layer = layers.make(kind, 3, 4)
    bad: tuple[Callable[[], Any], ...] = (
        lambda: layer(x),
        lambda: layer(x, _hx(kind, 7, 7) if kind in CELLS else _hx(kind, 7, 7, 7)),
        lambda: layer(x.long()),
    )
    gc.disable()
    try:
        for index, call in enumerate(bad):
            width = 7 if index == 0 else 3
            x: Tensor | None = torch.randn(*((2, width) if kind in CELLS else (5, 2, width)))
            held = weakref.ref(x)
            try:
                call()
            except Exception:
                pass
            else:
                raise AssertionError("nothing was raised")
            x = None
            assert held() is None, f"call {index + 1} keeps its input"
    finally:
        gc.enable()


@probe("after a call the input is freed", "at once, inference and training", each=KINDS + CELLS)
def freed_after_call(layers: Layers, kind: str) -> None:
    layer = layers.make(kind, 3, 4)
    gc.disable()
    try:
        for train in (False, True):
            with torch.set_grad_enabled(train):
                x: Tensor | None = torch.randn(*((2, 3) if kind in CELLS else (5, 2, 3)))
                held = weakref.ref(x)
                result: Any = flat(layer(x))
                if train:
                    result[0].sum().backward()
                x = result = None
                assert held() is None, "the input is kept"
    finally:
        gc.enable()


def _knows_memory(error: Exception) -> None:
    """By these words, and by the type, batch-size finders know what happened."""
    assert isinstance(error, RuntimeError), f"{error!r}"
    assert "DefaultCPUAllocator: can't allocate memory" in str(error), str(error)


@probe("out of memory, sizes beyond any machine", "a RuntimeError with the allocator's words", each=KINDS)
def endless(layers: Layers, kind: str) -> None:
    layer = layers.make(kind, 1, 1)
    for steps, batch in ((2**46, 1), (1, 2**46), (2**23, 2**23)):
        for train in (False, True):
            with torch.set_grad_enabled(train):
                x = torch.zeros(1, 1, 1).expand(
                    steps, batch, 1
                )  # 256 TiB and more: there are no such addresses
                _knows_memory(raises(lambda x=x: layer(x)))


def _virtual_memory() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmSize"))


@probe(
    "out of memory, a process with a limit",
    "the same, wherever memory runs out; the layer goes on",
    each=KINDS,
)
def limited(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 8, 256)
    x = torch.randn(1000, 64, 8)  # 64 MiB of output, some hundred of gates
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    caught = []
    for train in (False, True):
        for mebibytes in (1, 16, 40, 80, 150, 250):
            resource.setrlimit(resource.RLIMIT_AS, (_virtual_memory() + mebibytes * 2**20, hard))
            try:
                with torch.set_grad_enabled(train):
                    result = flat(layer(x))
                    if train:
                        result[0].sum().backward()
            except Exception as error:
                caught.append(error)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
            result = []
            layer.zero_grad()
    assert caught, "nothing was raised"
    for error in caught:
        _knows_memory(error)
    same(layer(x[:9, :2]), twin(x[:9, :2]))
