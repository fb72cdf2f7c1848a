"""Calls of the native code with one or two arguments changed: each raises an error or gives the right result.

A run is a process of its own, so that a crash is a failure like any other: it writes down a call's number
before it makes the call. The number decides everything; `python tests/test_fuzz.py TARGET NUMBER` repeats it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import rnnfused
from rnnfused._load import _C

CALLS = int(os.environ.get("RNNFUSED_FUZZ_CALLS", "2000"))  # of all targets together
ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError)
HUGE = 1 << 50

Arguments = Mapping[str, Any]
Pick = random.Random


# ---- What a tensor may become


def other_dtype(t: Tensor, pick: Pick) -> Tensor:
    names = "float32 float64 float16 bfloat16 int64 int32 uint8 bool complex64 complex128 float8_e4m3fn"
    return t.to(getattr(torch, pick.choice(names.split())))


def dimension(t: Tensor, pick: Pick) -> int:
    return pick.randrange(t.dim()) if t.dim() else 0


def other_shape(t: Tensor, pick: Pick) -> Tensor:
    if t.dim() == 0:
        return t.unsqueeze(0)
    d = dimension(t, pick)
    kind = pick.choice(("dropped", "added", "none", "shorter", "longer", "scalar", "twice", "flat"))
    if kind == "dropped":
        return t.select(d, 0) if t.size(d) else t.flatten()
    if kind == "added":
        return t.unsqueeze(pick.randint(0, t.dim()))
    if kind == "none":
        return t.narrow(d, 0, 0)
    if kind == "shorter":
        return t.narrow(d, 0, max(0, t.size(d) - 1))
    if kind == "longer":
        return torch.cat((t, torch.ones_like(t).narrow(d, 0, min(1, t.size(d)))), d)
    if kind == "twice":
        return torch.cat((t, t), d)
    return t.flatten() if kind == "flat" else t.new_ones(())


def huge(t: Tensor, pick: Pick) -> Tensor:
    sizes = list(t.shape) or [1]
    sizes[pick.randrange(len(sizes))] = HUGE
    return t.new_ones((1,) * len(sizes)).expand(sizes)


def other_layout(t: Tensor, pick: Pick) -> Tensor:
    """The same sizes and, but for the expanded one, the same values, elsewhere in memory."""
    kind = pick.choice(("transposed", "sliced", "offset", "expanded", "overlapping", "conjugate", "negative"))
    if kind == "transposed":
        order = pick.sample(range(t.dim()), t.dim())
        return t.permute(order).contiguous().permute([order.index(d) for d in range(t.dim())])
    if kind == "sliced":
        return torch.stack((t, t), -1)[..., 1]
    if kind == "offset":  # no longer aligned to anything but its own elements
        room = t.new_empty(t.numel() + 1)
        room[1:] = t.flatten()
        return room[1:].view(t.shape)
    if kind == "expanded":
        return t.new_ones((1,) * t.dim()).expand(t.shape)
    if kind == "overlapping":
        return t.new_ones(max(1, sum(t.shape))).as_strided(t.shape, (1,) * t.dim())
    if not t.is_floating_point():
        return t
    complex_type = torch.complex128 if t.dtype == torch.float64 else torch.complex64
    if kind == "conjugate":  # a complex tensor that is conjugated when it is read
        return t.to(complex_type).conj()
    return torch.complex(t.neg(), t.neg()).to(complex_type).conj().imag  # lazily negated


def other_kind(t: Tensor, pick: Pick) -> Any:
    """What is no plain tensor in this machine's memory."""
    kind = pick.choice(("meta", "sparse", "csr", "freed", "fake", "quantized", "nested", "none", "number"))
    if kind == "meta":
        return t.to("meta")
    if kind == "sparse":
        return t.to_sparse()
    if kind == "csr":
        return t.to_sparse_csr() if t.dim() == 2 else t.to_sparse()
    if kind == "freed":
        t = t.clone()
        t.untyped_storage().resize_(0)
        return t
    if kind == "fake":
        return FakeTensorMode().from_tensor(t)
    if kind == "quantized":
        return torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8)
    if kind == "nested":
        return torch.nested.nested_tensor(list(t.unbind()) if t.dim() else [t])
    return None if kind == "none" else pick.choice((0, 1.5, "x", [t], {}))


def other_values(t: Tensor, pick: Pick) -> Tensor:
    t = t.clone()
    if t.numel() and t.is_floating_point():
        t.view(-1)[pick.randrange(t.numel())] = pick.choice((float("inf"), float("nan"), -0.0, 3e38))
    elif t.numel():
        t.view(-1)[pick.randrange(t.numel())] = pick.choice((-1, 0, 7, 1 << 31, 1 << 62, -(1 << 63)))
    return t


TENSORS = (other_dtype, other_shape, huge, other_layout, other_layout, other_kind, other_kind, other_values)


# ---- What any argument may become


def changed(value: Any, pick: Pick) -> Any:
    if isinstance(value, Tensor):
        return pick.choice(TENSORS)(value, pick)
    if isinstance(value, bool):
        return pick.choice((not value, not value, None, 2))
    if isinstance(value, int):
        return pick.choice((0, -1, value + 1, 1 << 31, 1 << 62, -(1 << 63), None))
    if isinstance(value, str):
        return pick.choice(("", "gru", "lstm", "rnn_tanh", value + "\0", "x" * 1000, None))
    if isinstance(value, list):
        value = list(value)
        kind = pick.randrange(8)
        if kind == 0:
            return value[:-1]
        if kind == 1:
            return value + value[-1:]
        if kind == 2:
            return pick.choice(([], value * 2, None))
        if value:
            at = pick.randrange(len(value))
            value[at] = changed(value[at], pick)
        return value
    return pick.choice((torch.ones(1), torch.ones(2, 3, 4), torch.tensor([1]), 0, "x"))


def mutated(arguments: Arguments, pick: Pick) -> dict[str, Any]:
    result = dict(arguments)
    for name in pick.sample(list(result), pick.choice((1, 1, 1, 2))):
        result[name] = changed(result[name], pick)
    return result


def plain(value: Any) -> Any:
    """The same in freshly allocated dense tensors."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    if not isinstance(value, Tensor) or value.is_meta:
        return value
    if value.is_quantized:
        value = value.dequantize()
    dense = value.to_dense() if value.layout != torch.strided else value
    return dense.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def same(got: Any, want: Any) -> bool:
    if isinstance(got, (list, tuple)):
        return len(got) == len(want) and all(map(same, got, want))
    if not isinstance(got, Tensor):
        return got is None and want is None
    alike = got.shape == want.shape and got.dtype == want.dtype and got.device == want.device
    return alike and (got.is_meta or same_values(got, want))


def same_values(got: Tensor, want: Tensor) -> bool:
    return torch.equal(got.isnan(), want.isnan()) and torch.equal(got.nan_to_num(), want.nan_to_num())


# ---- What is called


@dataclass(frozen=True)
class Target:
    """Native code: what a valid call looks like, and how it is made. The results are tensors, or None."""

    arguments: Callable[[Pick], dict[str, Any]]
    call: Callable[..., Any]


def forward_arguments(pick: Pick) -> dict[str, Any]:
    cell, gates = pick.choice((("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)))
    steps, batch, size, hidden = (pick.choice((1, 2, 3, 5, 17)) for _ in range(4))
    directions = pick.choice((1, 2))
    width = pick.randint(1, hidden) if cell == "lstm" else hidden
    dtype = pick.choice((torch.float32, torch.float64))
    packed, bias = pick.random() < 0.5, pick.random() < 0.8
    lengths = sorted((pick.randint(1, steps) for _ in range(batch)), reverse=True)
    batch_sizes = [sum(n > step for n in lengths) for step in range(lengths[0])]

    def random_tensor(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype)

    weights: list[Tensor | None] = []
    for _ in range(directions):
        weights += [random_tensor(gates * hidden, size), random_tensor(gates * hidden, width)]
        weights += [random_tensor(gates * hidden) if bias else None for _ in range(2)]
        weights += [random_tensor(width, hidden) if width < hidden else None]
    return {
        "cell": cell,
        "x": random_tensor(*((sum(batch_sizes),) if packed else (steps, batch)), size),
        "h0": random_tensor(directions, batch, width),
        "c0": random_tensor(directions, batch, hidden) if cell == "lstm" else None,
        "weights": weights,
        "batch_sizes": torch.tensor(batch_sizes) if packed else None,
        "recompute": pick.random() < 0.3,
        "save": pick.random() < 0.5,
    }


def backward_arguments(pick: Pick) -> dict[str, Any]:
    given = forward_arguments(pick)
    del given["save"]
    y, hn, cn, tape = _C.layer_forward(**given, save=True)
    outer = [t if t is not None and pick.random() < 0.8 else None for t in (y, hn, cn)]
    wanted = [pick.random() < 0.8 for _ in range(3 + len(given["weights"]))]
    return (
        given | {"y": y, "tape": tape, "wanted": wanted} | dict(zip(("dy", "dhn", "dcn"), outer, strict=True))
    )


def forward(**given: Any) -> Any:
    return _C.layer_forward(**given)[:3]  # what a tape holds is nobody else's business


TARGETS = {
    "layer_forward": Target(forward_arguments, forward),
    "layer_backward": Target(backward_arguments, _C.layer_backward),
}


# ---- A run


def shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown, value))}]"
    if not isinstance(value, Tensor):
        return repr(value)[:40]
    if value.is_nested or value.layout != torch.strided:
        return f"{value.layout} {value.dtype}"  # torch itself cannot always print what a mutation made
    return f"{value.dtype} {list(value.shape)} {value.stride()} {value.device}"


def attempt(name: str, number: int) -> str | None:
    """What is wrong with the call of a number, if anything."""
    target, pick = TARGETS[name], random.Random(number)
    torch.manual_seed(number)
    arguments = target.arguments(pick)
    try:
        given = mutated(arguments, pick)
    except ERRORS:
        return None  # torch has no such tensor
    story = "; ".join(f"{key}: {shown(value)}" for key, value in given.items())
    try:
        got = target.call(**given)
    except ERRORS:
        return None
    except BaseException as error:
        return f"{type(error).__name__}: {error} ({story})"
    try:
        want = target.call(**{key: plain(value) for key, value in given.items()})
    except ERRORS as error:
        return f"accepted what is refused of plain tensors: {error} ({story})"
    return None if same(got, want) else f"another result than of plain tensors ({story})"


def main(name: str, first: int, count: int, progress: int | None = None) -> int:
    """Makes `count` calls; before each, its number goes into the file `progress`. Returns how many failed."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    wrong = 0
    for number in range(first, first + count):
        if progress is not None:
            os.pwrite(progress, number.to_bytes(8, "little"), 0)
        if words := attempt(name, number):
            wrong += 1
            print(f"{reproduction(name, number)}: {words}", flush=True)
    return wrong


def reproduction(name: str, number: int) -> str:
    return f"python tests/test_fuzz.py {name} {number}"


@pytest.mark.skipif(
    "RNNFUSED_TEST_EXTENSION" in os.environ, reason="a process of its own has no such extension"
)
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_arguments(name: str, tmp_path: Path) -> None:
    with (tmp_path / "progress").open("w+b") as progress:
        path = [str(Path(rnnfused.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        run = subprocess.run(
            [sys.executable, __file__, name, "0", str(CALLS // len(TARGETS)), str(progress.fileno())],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path))},
            pass_fds=[progress.fileno()],
            capture_output=True,
            text=True,
            check=False,
        )
        reached = int.from_bytes(progress.read(8), "little")
    words = (run.stdout + run.stderr)[-6000:]
    assert run.returncode in (0, 1), f"it crashed ({run.returncode}): {reproduction(name, reached)}\n{words}"
    assert run.returncode == 0, words


def test_most_mutations_are_refused_and_some_are_not() -> None:
    """The mutations reach the checks, and what lies beyond them."""
    outcomes = {"refused": 0, "taken": 0}
    for number in range(300):
        pick = random.Random(number)
        torch.manual_seed(number)
        try:
            given = mutated(forward_arguments(pick), pick)
            _C.layer_forward(**given)
            outcomes["taken"] += 1
        except ERRORS:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes


if __name__ == "__main__":
    _name, _first, *_rest = sys.argv[1:]
    sys.exit(min(1, main(_name, int(_first), *map(int, _rest or ["1"]))))
