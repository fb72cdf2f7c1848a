"""The CUDA drivers: on a GPU, or on the CPU where that plays one. Tests marked `gpu` ask for more of torch
than the emulation has.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_own_cells
import torch
from one_layer import layer
from test_sequence import SIZES, VARIANTS, Problem, check_errors
from test_varied import Made, check_against_twin, differentiated, draw, make, native
from tolerances import FLOAT64, FLOOR_ULPS, TORCH_ERRORS
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfused
from bench.gpu.timing import capture
from rnnfused import functional
from rnnfused._layer import Layout

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
KINDS = ("RNN", "GRU", "LSTM")
# Beside those of the CPU's tiles: units that a thread takes four at a time, and a batch beyond one block.
WIDE_SIZES = [(6, 5, 12, 64), (3, 70, 8, 132), (2, 3, 4, 516)]


@pytest.fixture(autouse=True)
def full_precision() -> Any:
    """torch's own rounding of float32 and of 16-bit sums, off."""
    settings = torch.backends.cuda.matmul
    names = ("allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction")
    before = {name: getattr(settings, name) for name in names}
    for name in names:
        setattr(settings, name, False)
    yield
    for name, value in before.items():
        setattr(settings, name, value)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])
@pytest.mark.parametrize("ragged", [False, True], ids=["padded", "ragged"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell, projected", VARIANTS, ids=lambda v: {True: "proj", False: ""}.get(v, v))
def test_every_output_and_gradient(
    cell: str, projected: bool, dtype: torch.dtype, ragged: bool, bidirectional: bool, bias: bool, gpu: str
) -> None:
    options = {"dtype": np.float64, "ragged": ragged, "bidirectional": bidirectional, "bias": bias}
    for size in SIZES + WIDE_SIZES:
        if projected and size[3] == 1:
            continue
        problem = Problem(cell, projected, size, **options).rounded(dtype)
        terms = max(8, size[0] * size[1] + size[3])
        bound = FLOAT64 if dtype == torch.float64 else FLOOR_ULPS * np.sqrt(terms) * torch.finfo(dtype).eps
        check_errors(problem.native(gpu, dtype), problem.exact(), bound, size)


def on_device(made: Made, gpu: str) -> Made:
    """A copy there, of which batch sizes and seeds stay on the CPU."""

    def moved(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach().to(gpu).requires_grad_(t.requires_grad)

    layout = Layout(made.layout.batch_sizes, moved(made.layout.lengths), moved(made.layout.resets))
    own = {name: [moved(t) for t in getattr(made, name)] for name in ("hx", "params", "outer")}
    return dataclasses.replace(made, x=moved(made.x), layout=layout, **own)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", range(16))
def test_options(index: int, dtype: torch.dtype, gpu: str) -> None:
    """Steps of test_varied.py's walk, in every dtype."""
    case = draw(index)
    made = make(case).to(dtype)
    there = on_device(made, gpu)
    got = {name: t.cpu() for name, t in differentiated(native, case.layer, there).items()}
    check_against_twin(case, made, got, f"{case} in {dtype}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@test_own_cells.ALL
def test_other_cells(
    kind: str, options: dict[str, Any], dtype: torch.dtype, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With lengths, resets, all that is drawn, and both directions, against the CPU in float64."""
    # Where the CPU plays the GPU, that has kernels of 16 bits.
    monkeypatch.setattr(functional, "native_dtype", lambda layer, input: input.dtype)
    own = test_own_cells
    exact = own.made(kind, **options, **own.both_ways(kind)).to(dtype).double()
    there = copy.deepcopy(exact).to(gpu, dtype)
    given = [own.draw(own.T, own.B, own.I), *own.states(exact), *own.weights_of(kind, own.T, own.B).values()]
    given = [t.detach().to(dtype) for t in given]
    resets = torch.rand(own.T, own.B, generator=torch.Generator().manual_seed(1)) < 0.3
    lengths = torch.tensor(own.LENGTHS)

    def results(layer: Any) -> dict[str, Tensor]:
        weight = next(layer.parameters())
        leaves = [t.to(weight.device, weight.dtype).requires_grad_() for t in given]
        attended = {"attention": leaves.pop()} if kind in own.ATTENDING else {}
        torch.manual_seed(7)
        y, final = layer(
            leaves[0],
            own.hx_of(leaves[1:]),
            lengths=lengths.to(weight.device),
            resets=resets.to(weight.device),
            **attended,
        )
        outputs = [y, *own.tuple_of(final)]
        loss = sum((k + 1) * t.double().sin().sum() for k, t in enumerate(outputs))
        leaves += attended.values()
        named = {f"given {k}": t for k, t in enumerate(leaves)} | dict(layer.named_parameters())
        found = torch.autograd.grad(loss, list(named.values()))
        all_found = dict(enumerate(outputs)) | {f"d {n}": d for n, d in zip(named, found, strict=True)}
        return {str(name): t.detach().cpu().double() for name, t in all_found.items()}

    got, want = results(there), results(exact)
    terms = own.T * own.B + own.H
    bound = FLOAT64 if dtype == torch.float64 else FLOOR_ULPS * terms**0.5 * torch.finfo(dtype).eps
    # One rounding decides whether a relu or a clip lets a gradient through.
    decides = kind in ("IndRNN", "LiGRU") or "gate_clip" in options or "grad_clip" in options
    for name, value in want.items():
        if dtype == torch.float64 or not (decides and name.startswith("d ")):
            torch.testing.assert_close(
                got[name], value, rtol=bound, atol=bound * (1 + float(value.abs().max()))
            )


@pytest.mark.parametrize("dtype", DTYPES[2:], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_states_may_be_wider_than_the_input(kind: str, dtype: torch.dtype, gpu: str) -> None:
    module = getattr(rnnfused, kind)(5, 8, bidirectional=True, dtype=dtype, device=gpu)
    x = torch.randn(4, 3, 5, dtype=dtype, device=gpu)
    given = [torch.randn(2, 3, 8, dtype=dtype, device=gpu) for _ in range(1 + (kind == "LSTM"))]

    def results(state_type: torch.dtype) -> list[Tensor]:
        leaves = [x.clone().requires_grad_(), *(s.to(state_type).requires_grad_() for s in given)]
        y, final = module(leaves[0], tuple(leaves[1:]) if len(leaves) > 2 else leaves[1])
        outputs = [y, *(final if isinstance(final, tuple) else (final,))]
        assert {t.dtype for t in outputs} == {state_type}
        loss = sum((k + 1) * t.float().sin().sum() for k, t in enumerate(outputs))
        gradients = torch.autograd.grad(loss, [*leaves, *module.parameters()])
        return [t.detach().float() for t in (*outputs, *gradients)]

    for wide, narrow in zip(results(torch.float32), results(dtype), strict=True):
        bound = 20 * torch.finfo(dtype).eps
        torch.testing.assert_close(wide, narrow, rtol=bound, atol=bound * (1 + float(narrow.abs().max())))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "share"), [("LSTM", 0.6), ("GRU", 0.5)])
def test_gates_are_kept_in_the_layers_type(kind: str, share: float, dtype: torch.dtype, gpu: str) -> None:
    """All four numbers of a unit; an LSTM's c stays float32."""

    def tape_bytes(dtype: torch.dtype) -> int:
        kept = []

        def note(t: Tensor) -> Tensor:
            kept.append(t.nbytes)
            return t

        module = getattr(rnnfused, kind)(4, 64, dtype=dtype, device=gpu)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            module(torch.randn(50, 8, 4, dtype=dtype, device=gpu))
        return max(kept)

    assert tape_bytes(dtype) == share * tape_bytes(torch.float32)


@pytest.mark.gpu
def test_a_graph_does_not_repeat_masks() -> None:
    layer = rnnfused.GRU(4, 8, zoneout=0.5, device="cuda")
    x = torch.randn(3, 2, 4, device="cuda")
    layer(x)
    with pytest.raises(RuntimeError, match="zoneout"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        layer(x)
    layer.eval()
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        layer(x)


def run(module: Any, x: Tensor, lengths: list[int] | None = None) -> dict[str, Tensor]:
    x = x.detach().clone().requires_grad_()
    module.zero_grad()
    y, states = module(pack_padded_sequence(x, lengths) if lengths else x)
    y = y.data if lengths else y
    states = states if isinstance(states, tuple) else (states,)
    (y.float().sin().sum() + sum((i + 2) * s.float().cos().sum() for i, s in enumerate(states))).backward()
    found = {"y": y.detach(), "dx": x.grad, **{f"state{i}": s.detach() for i, s in enumerate(states)}}
    return found | {f"d{name}": p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [None, [9, 9, 4, 1]], ids=["padded", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_in_every_dtype(kind: str, lengths: list[int] | None, dtype: torch.dtype, gpu: str) -> None:
    """Two layers, both directions; recomputed gates; the same bits on every run."""
    options = {"num_layers": 2, "bidirectional": True, "dtype": dtype, "device": gpu}
    usual = getattr(rnnfused, kind)(12, 20, **options)
    lean = getattr(rnnfused, kind)(12, 20, recompute=True, **options)
    lean.load_state_dict(usual.state_dict())
    x = torch.randn(9, 4, 12, dtype=dtype, device=gpu)
    want, again, rebuilt = run(usual, x, lengths), run(usual, x, lengths), run(lean, x, lengths)
    tolerance = 100 * torch.finfo(dtype).eps
    for name, value in want.items():
        assert value.dtype == dtype and value.device.type == gpu
        assert torch.equal(again[name], value), name
        torch.testing.assert_close(rebuilt[name], value, rtol=tolerance, atol=tolerance, msg=name)


FORMS: list[tuple[dict[str, Any], tuple[int, ...]]] = [
    ({}, (5, 3, 4)),
    ({"batch_first": True, "bias": False}, (3, 5, 4)),
    ({"num_layers": 3, "bidirectional": True}, (5, 3, 4)),
    ({"num_layers": 2, "batch_first": True}, (5, 4)),  # unbatched
    ({"proj_size": 2, "num_layers": 2}, (5, 3, 4)),
]


@pytest.mark.parametrize("given_states", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("options, size", FORMS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_modules_as_torchs(
    kind: str, options: dict[str, Any], size: tuple[int, ...], given_states: bool, gpu: str
) -> None:
    if "proj_size" in options and kind != "LSTM":
        pytest.skip("torch projects LSTMs only")
    options = options | {"device": gpu, "dtype": torch.float64}
    theirs, ours = (getattr(of, kind)(4, 6, **options) for of in (torch.nn, rnnfused))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(*size, device=gpu, dtype=torch.float64)
    hx = None
    if given_states:
        states = theirs(x)[1]  # of the sizes that are wanted
        hx = tuple(s.detach() for s in states) if kind == "LSTM" else states.detach()
    found = []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        y, states = module(leaf, hx)
        states = states if kind == "LSTM" else (states,)
        gradients = torch.autograd.grad(
            y.sin().sum() + sum(s.cos().sum() for s in states), (leaf, *module.parameters())
        )
        found.append((y, *states, *gradients))
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("kind", KINDS)
def test_cells_and_unsorted_sequences_as_torchs(kind: str, gpu: str) -> None:
    options: dict[str, Any] = {"device": gpu, "dtype": torch.float64}
    x = torch.randn(6, 3, 4, **options)
    for suffix in ("Cell", ""):
        theirs, ours = (getattr(of, kind + suffix)(4, 5, **options) for of in (torch.nn, rnnfused))
        ours.load_state_dict(theirs.state_dict())
        given = x[0] if suffix else pack_padded_sequence(x, [2, 6, 4], enforce_sorted=False)
        want, got = theirs(given), ours(given)
        for a, b in zip(flat(want), flat(got), strict=True):
            torch.testing.assert_close(b, a, rtol=FLOAT64, atol=FLOAT64, check_dtype=False)


def flat(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    return [t for part in results if part is not None for t in flat(part)]


def test_dropout_between_layers(gpu: str) -> None:
    module = rnnfused.GRU(4, 8, num_layers=2, dropout=1.0, device=gpu)
    first, second = (module(torch.randn(3, 2, 4, device=gpu))[0] for _ in range(2))
    assert torch.equal(first, second)  # nothing of the input gets through
    assert not torch.equal(*(module.eval()(torch.randn(3, 2, 4, device=gpu))[0] for _ in range(2)))


def test_pointers_that_are_not_aligned(gpu: str) -> None:
    """Units are then loaded one by one: the same numbers."""
    random = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(gpu)

    def shifted(t: Tensor) -> Tensor:
        room = torch.zeros(t.numel() + 1, device=gpu)
        room[1:] = t.flatten()
        return room[1:].view(t.shape)

    states = [draw(1, 3, 16), draw(1, 3, 16)]
    given = [draw(5, 3, 8), *states, draw(64, 8) / 4, draw(64, 16) / 4, draw(64), draw(64)]
    found = []
    for prepare in (Tensor.clone, shifted):
        x, h0, c0, *weights = (prepare(t).requires_grad_() for t in given)
        y, (h, c) = layer("lstm", x, (h0, c0), (*weights, None))
        gradients = torch.autograd.grad(
            (y, h, c), (x, h0, c0, *weights), (prepare(y.detach().sin()), h.detach(), c.detach())
        )
        found.append((y, h, c, *gradients))
    bound = FLOOR_ULPS * np.sqrt(5 * 3 + 16) * torch.finfo(torch.float32).eps
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= bound * (b.abs().max() + 1)


def test_a_tape_that_comes_back_at_another_address(gpu: str) -> None:
    def move(t: Tensor) -> Tensor:
        if t.dtype != torch.uint8:
            return t
        room = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
        room[1:] = t
        return room[1:]

    module = rnnfused.LSTM(4, 8, device=gpu)
    x = torch.randn(3, 2, 4, device=gpu)
    want = run(module, x)
    with torch.autograd.graph.saved_tensors_hooks(move, lambda t: t):
        got = run(module, x)
    for name, value in want.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(kind: str, gpu: str) -> None:
    module = getattr(rnnfused, kind)(2, 3, dtype=torch.float64, device=gpu)
    x = torch.randn(3, 2, 2, dtype=torch.float64, device=gpu, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: module(t)[0], x)
    assert torch.autograd.gradgradcheck(lambda t: module(t)[0], x)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_wanted_is_not_there(kind: str, gpu: str) -> None:
    module = getattr(rnnfused, kind)(4, 8, device=gpu).eval()  # backward in eval mode, where cuDNN refuses it
    module.weight_hh_l0.requires_grad_(False)
    module.bias_ih_l0.requires_grad_(False)
    module(torch.ones(3, 2, 4, device=gpu))[0].sum().backward()
    assert module.weight_hh_l0.grad is None and module.bias_ih_l0.grad is None
    assert module.weight_ih_l0.grad.abs().sum() > 0 and module.bias_hh_l0.grad.abs().sum() > 0


def logged(code: str) -> list[str]:
    """What RNNFUSED_LOG=plan says of it."""
    run = subprocess.run(
        [sys.executable, "-c", f"import conftest, torch, rnnfused\n{code}"],
        cwd=Path(__file__).parent,
        env=os.environ | {"RNNFUSED_LOG": "plan"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in run.stderr.splitlines() if line.startswith("rnnfused: ")]


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_recompute_takes_less_memory(kind: str, gpu: str) -> None:
    code = f"""
for recompute in (False, True):
    module = rnnfused.{kind}(64, 64, recompute=recompute, device={gpu!r})
    y = module(torch.zeros(64, 4, 64, device={gpu!r}))[0]
    bare = [t.to("meta") for t in (torch.zeros(64, 4, 64), *module.parameters())]
    text = module._config().text
    tape = torch.ops.rnnfused.recurrent(bare[0], [], bare[1:], None, None, None, text, True)[-1]
    print("rnnfused: tape", tape.nbytes, file=__import__("sys").stderr)
    y.sum().backward()"""
    lines = logged(code)
    taken = [
        int(tape.split()[-1]) + int(backward.split("scratch_bytes=")[1])
        for tape, backward in zip(lines[1::3], lines[2::3], strict=True)
    ]
    assert taken[1] < 0.9 * taken[0]


def test_the_plan_is_logged(gpu: str) -> None:
    forward, backward = logged(
        f"rnnfused.LSTM(2, 4, device={gpu!r})(torch.zeros(3, 1, 2, device={gpu!r}))[0].sum().backward()"
    )
    for line, what in ((forward, "forward"), (backward, "backward")):
        assert line.startswith(f"rnnfused: {what} lstm T=3 B=1 I=2 H=4 directions=1 device={gpu}")
        assert "driver=stepwise units=4 " in line


def test_words_for_what_is_wrong(gpu: str) -> None:
    module = rnnfused.LSTM(2, 3, device=gpu, dtype=torch.complex64)
    with pytest.raises(
        RuntimeError, match="expected dtype float32, float64, float16 or bfloat16, got Complex"
    ):
        module(torch.zeros(1, 1, 2, device=gpu, dtype=torch.complex64))
    x, weights = torch.zeros(2, 1, 4, device=gpu), list(torch.zeros(2, 16, 4, device=gpu))
    y, *_, tape = torch.ops.rnnfused.recurrent(x, [], weights, None, None, None, "lstm no_biases", True)
    with pytest.raises(RuntimeError, match=r"tape: expected size \[1, \d+\], got \[3\]"):
        torch.ops.rnnfused.recurrent_backward(
            [y, None, None], x, [], weights, None, None, None, y, tape.view(-1)[:3], "lstm no_biases", [0]
        )


# ---- What only a GPU shows


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("shape", [(30, 1, 64), (20, 8, 100), (10, 64, 16), (6, 5, 512)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_errors_at_most_twice_torchs(kind: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    t, b, h = shape
    options = {"bidirectional": True, "device": "cuda"}
    theirs = getattr(torch.nn, kind)(h, h, dtype=dtype, **options)
    ours = getattr(rnnfused, kind)(h, h, dtype=dtype, **options)
    exact = getattr(torch.nn, kind)(h, h, dtype=torch.float64, **options)
    for module in (ours, exact):
        module.load_state_dict(theirs.state_dict())
    x = torch.randn(t, b, h, device="cuda", dtype=dtype)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        want, got, torchs = run(exact, x.double()), run(ours, x), run(theirs, x)
    for name, truth in want.items():
        error, their_error = ((found[name] - truth).abs().max() for found in (got, torchs))
        floor = FLOOR_ULPS * torch.finfo(dtype).eps * truth.abs().max()
        assert error <= max(TORCH_ERRORS * their_error, floor), (
            f"{name}: {error:.2e}, torch {their_error:.2e}"
        )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: str, dtype: torch.dtype) -> None:
    module = getattr(rnnfused, kind)(8, 16, num_layers=2, device="cuda")
    x = torch.randn(5, 3, 8, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype):
        y, _ = module(x)
    assert y.dtype == dtype
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    exact, _ = module.double()(x.double())
    torch.testing.assert_close(
        y.double(), exact, rtol=0, atol=FLOOR_ULPS * torch.finfo(dtype).eps, check_dtype=False
    )


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_another_stream(kind: str) -> None:
    module = getattr(rnnfused, kind)(32, 64, device="cuda")
    x = torch.randn(50, 16, 32, device="cuda")
    want = run(module, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = [run(module, x) for _ in range(5)]  # memory goes round within the stream
    torch.cuda.current_stream().wait_stream(stream)
    for got in found:
        for name, value in want.items():
            assert torch.equal(got[name], value), name


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [None, [7, 5, 5, 2]], ids=["padded", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
def test_captured_in_a_graph(kind: str, lengths: list[int] | None) -> None:
    module = getattr(rnnfused, kind)(8, 16, bidirectional=True, device="cuda")
    static, fresh = torch.randn(7, 4, 8, device="cuda"), torch.randn(7, 4, 8, device="cuda")
    packed = pack_padded_sequence(static, lengths or [7] * 4)
    data = packed.data.clone().requires_grad_()

    def step() -> tuple[Tensor, ...]:
        y = module(packed._replace(data=data))[0].data
        return (y, *torch.autograd.grad(y.sin().sum(), (data, *module.parameters())))

    graph, results = capture(step)
    data.data.copy_(pack_padded_sequence(fresh, lengths or [7] * 4).data)
    want = [t.clone() for t in step()]
    graph.replay()
    for got, value in zip(results, want, strict=True):
        assert torch.equal(got, value)


@pytest.mark.gpu
def test_tensors_of_two_devices() -> None:
    module = rnnfused.GRU(2, 3, device="cuda")
    with pytest.raises(RuntimeError, match="not at the same device, found input tensor at cuda:0 and hidden"):
        module(torch.zeros(1, 1, 2, device="cuda"), torch.zeros(1, 1, 3))
    with pytest.raises(RuntimeError, match="not at the same device, found input tensor at cpu and parameter"):
        module(torch.zeros(1, 1, 2))


@pytest.mark.gpu
def test_a_device_that_is_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is only one GPU")
    module = rnnfused.LSTM(4, 8, device="cuda:1")
    x = torch.randn(3, 2, 4, device="cuda:1")
    assert torch.cuda.current_device() == 0
    want = run(module.cpu(), x.cpu())
    for name, value in run(module.to("cuda:1"), x).items():
        torch.testing.assert_close(value.cpu(), want[name], rtol=1e-4, atol=1e-5)
