"""States: learned initial ones, carried ones, and those of streams that begin, end and pause on their own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from results import assert_same_bits, tensors
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import rnnfused
from rnnfused.seq2seq import DecoderState

LAYERS = ("RNN", "GRU", "LSTM")
ON_EACH = pytest.mark.parametrize("kind", LAYERS)


def learned(kind: str, **options: Any) -> Any:
    """A layer whose learned states are not zero any more."""
    module = getattr(rnnfused, kind)(3, 5, learn_initial_state=True, **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("initial"):
                parameter.normal_()
    return module


def begin(module: Any, batch: int | None) -> Any:
    """Its states, written out."""
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    states = [
        torch.stack(
            [getattr(module, f"initial_{state}_l{k}{s}") for k in range(module.num_layers) for s in suffixes]
        )
        for state in ("h", "c")[: 2 if isinstance(module, rnnfused.LSTM) else 1]
    ]
    if batch is not None:
        states = [s.unsqueeze(1).repeat(1, batch, 1) for s in states]
    return tuple(states) if len(states) > 1 else states[0]


@ON_EACH
def test_learned_states_are_parameters_and_zero_at_first(kind: str) -> None:
    torch.manual_seed(0)
    plain = getattr(rnnfused, kind)(3, 5, 2, bidirectional=True)
    torch.manual_seed(0)
    module = getattr(rnnfused, kind)(3, 5, 2, bidirectional=True, learn_initial_state=True)
    names = {n for n, _ in module.named_parameters()} - {n for n, _ in plain.named_parameters()}
    states = ("h", "c") if kind == "LSTM" else ("h",)
    assert names == {f"initial_{s}_l{k}{d}" for s in states for k in (0, 1) for d in ("", "_reverse")}
    x = torch.randn(4, 2, 3)
    assert_same_bits(module(x), plain(x))
    module.reset_parameters()
    assert not any(getattr(module, name).any() for name in names)
    assert "learn_initial_state=True" in repr(module)


@ON_EACH
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}])
def test_learned_states_are_those_of_every_form(kind: str, options: dict[str, Any]) -> None:
    module = learned(kind, **options)
    x = torch.randn(4, 2, 3)
    rows = torch.randn(5, 3)
    forms: list[tuple[Any, int | None, dict[str, Any]]] = [
        (x, 4 if module.batch_first else 2, {}),
        (x, 4 if module.batch_first else 2, {"lengths": [2, 1, 0, 2] if module.batch_first else [4, 1]}),
        (x[:, 0], None, {}),
        (pack_sequence([rows[:3], rows[3:]]), 2, {}),
        (rows, 2, {"cu_seqlens": torch.tensor([0, 3, 5])}),
    ]
    for given, batch, how in forms:
        got, want = module(given, **how), module(given, begin(module, batch), **how)
        assert_same_bits(got, want)
        total = [sum(t.square().sum() for t in tensors(r)) for r in (got, want)]
        parameters = list(module.parameters())
        torch.testing.assert_close(*(torch.autograd.grad(t, parameters) for t in total))
    frozen = rnnfused.Frozen(module)
    with torch.no_grad():
        want = module(x)
        assert_same_bits(frozen(x), want)
        module.initial_h_l0.zero_()
    assert_same_bits(frozen(x), want)  # a snapshot


def test_learned_states_with_a_projection_compiled_and_copied() -> None:
    module = rnnfused.LSTM(3, 5, proj_size=2, learn_initial_state=True)
    assert module.initial_h_l0.shape == (2,) and module.initial_c_l0.shape == (5,)
    x = torch.randn(4, 2, 3)
    want = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_same_bits(other(x), want)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), want)
    compiled(x)[0].sum().backward()
    assert module.initial_c_l0.grad is not None and module.initial_c_l0.grad.any()


def test_detached_states() -> None:
    module, x = rnnfused.LSTM(3, 5, 2), torch.randn(6, 2, 3)
    _, hx = module(x)
    cut = rnnfused.detach(hx)
    assert type(cut) is tuple and not any(t.requires_grad for t in cut)
    assert_same_bits(cut, hx)
    assert rnnfused.detach(None) is None and rnnfused.detach([hx[0], (hx[1],)])[1][0].grad_fn is None
    decoded = DecoderState((hx[0],), hx[1])
    assert type(rnnfused.detach(decoded)) is DecoderState
    assert rnnfused.detach(decoded).hx[0].grad_fn is rnnfused.detach(decoded).fed.grad_fn is None
    with pytest.raises(TypeError, match="hx: expected a tensor, or tuples or lists of them, got dict"):
        rnnfused.detach({})
    # Truncated back-propagation: each part has the gradients of itself alone.
    module.zero_grad()
    state = None
    for part in x.split(2):
        y, state = module(part, rnnfused.detach(state))
        y.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


# ---- Streams


def streams(kind: str, batch: int = 4, **options: Any) -> tuple[Any, Any]:
    module = getattr(rnnfused, kind)(3, 37, 2, **options)
    return module, rnnfused.Stepper(module, batch)


@ON_EACH
@pytest.mark.parametrize("threads", [1, 2])
def test_streams_that_begin_and_pause_on_their_own(kind: str, threads: int) -> None:
    module, stepper = streams(kind)
    alone = [rnnfused.Stepper(module, 1) for _ in range(4)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(30):
            x, ends, active = torch.randn(4, 3), torch.rand(4) < 0.2, torch.rand(4) < 0.6
            stepper.reset_rows(ends)
            y = stepper(x.masked_fill(~active.unsqueeze(1), float("nan")), active)
            for b, one in enumerate(alone):
                if ends[b]:
                    one.reset()
                want = one(x[b : b + 1]) if active[b] else torch.zeros(1, 37)
                assert torch.equal(y[b : b + 1], want)
        for b, one in enumerate(alone):
            assert_same_bits(stepper.get_rows(b), one.state)
    finally:
        torch.set_num_threads(before)


def test_nobody_takes_a_step() -> None:
    _, stepper = streams("LSTM")
    stepper(torch.randn(4, 3))
    before = stepper.state
    assert not stepper(torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.bool)).any()
    assert_same_bits(stepper.state, before)


def test_rows_of_a_state() -> None:
    _, stepper = streams("LSTM")
    stepper(torch.randn(4, 3))
    h, c = stepper.state
    rows = torch.tensor([True, False, True, False])
    for index in (rows, [0, 2], slice(0, 4, 2)):
        assert_same_bits(
            [t.contiguous() for t in stepper.get_rows(index)],
            [h[:, ::2].contiguous(), c[:, ::2].contiguous()],
        )
    kept = stepper.get_rows(rows)
    stepper.reset_rows([0, 1])
    assert not stepper.state[0][:, :2].any() and torch.equal(stepper.state[0][:, 2:], h[:, 2:])
    stepper.set_rows(rows, kept)
    assert torch.equal(stepper.state[1][:, 0], c[:, 0]) and not stepper.state[1][:, 1].any()
    with pytest.raises(ValueError, match=r"hx: expected size \[2, 1, 37\], got \[2, 2, 37\]"):
        stepper.set_rows(3, kept)
    with pytest.raises(IndexError):
        stepper.reset_rows(torch.zeros(3, dtype=torch.bool))


def test_learned_states_of_streams() -> None:
    module = learned("LSTM", num_layers=2)
    stepper = rnnfused.Stepper(module, 3)
    want: tuple[Tensor, ...] = begin(module, 3)
    for state, other in zip(stepper.state, want, strict=True):
        assert torch.equal(state, other)
    stepper(torch.randn(3, 3))
    stepper.reset_rows(1)
    assert torch.equal(stepper.state[0][:, 1], want[0][:, 1])
    assert not torch.equal(stepper.state[0][:, 0], want[0][:, 0])


@pytest.mark.parametrize(
    "active, message",
    [
        (torch.zeros(4), "active: expected dtype Bool, got Float"),
        (torch.zeros(3, dtype=torch.bool), r"active: expected size \[4\], got \[3\]"),
    ],
)
def test_masks_that_do_not_fit(active: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        streams("GRU")[1](torch.zeros(4, 3), active)
