"""Sequences as users have them: lengths, resets, rows one sequence after the other, nested tensors."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from by_hand import pieces_of, split_by_hand
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from results import assert_same_bits, tensors
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import rnnfused

LAYERS = ("RNN", "GRU", "LSTM")
EXAMPLES = int(os.environ.get("RNNFUSED_LAYOUT_EXAMPLES", "150"))

properties = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class Batch:
    """A module, and sequences for it in any of their forms."""

    def __init__(self, module: Any, x: Tensor, lengths: Sequence[int], resets: Tensor, form: str) -> None:
        self.module, self.x, self.lengths, self.resets, self.form = module, x, list(lengths), resets, form
        directions = 1 + module.bidirectional
        sizes = (module.proj_size or module.hidden_size, module.hidden_size)
        count = 2 if isinstance(module, rnnfused.LSTM) else 1
        self.hx = [
            torch.randn(module.num_layers * directions, x.size(1), size, dtype=x.dtype, device=x.device)
            for size in sizes[:count]
        ]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, *self.hx, *self.module.parameters()]

    @property
    def beyond(self) -> Tensor:
        """[T, B]: what lies behind the lengths."""
        steps = torch.arange(len(self.x), device=self.x.device)
        return steps.unsqueeze(1) >= torch.tensor(self.lengths, dtype=torch.long, device=self.x.device)

    def rows(self, t: Tensor) -> Tensor:
        """Of [T, B, ...], one sequence after the other."""
        return torch.cat([t[:length, b] for b, length in enumerate(self.lengths)])

    def run(self) -> list[Tensor]:
        """The output [T, B, D P] and the final states, of the form's own call."""
        hx: Any = tuple(self.hx) if len(self.hx) > 1 else self.hx[0]
        # What lies beyond is no number, and shows wherever it is read.
        x = self.x.masked_fill(self.beyond.unsqueeze(-1), float("nan"))
        lengths = torch.tensor(self.lengths, dtype=torch.int32)
        if self.form == "padded":
            first = self.module.batch_first
            y, final, *cells = self.module(
                x.transpose(0, 1) if first else x,
                hx,
                lengths=lengths,
                resets=self.resets.t() if first else self.resets,
            )
            y, *cells = (t.transpose(0, 1) if first else t for t in (y, *cells))
            return [y, *tensors(final), *cells]
        rows, resets = self.rows(x), self.rows(self.resets)
        ends = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
        if self.form == "concatenated":
            y, final, *cells = self.module(rows, hx, cu_seqlens=ends, resets=resets)
        else:
            offsets = ends.to(rows.device)
            nested = torch.nested.nested_tensor_from_jagged(rows, offsets)
            y, final, *cells = self.module(nested, hx, resets=resets)
            assert all(t.is_nested and torch.equal(t.offsets(), offsets) for t in (y, *cells))
            y, *cells = (t.values() for t in (y, *cells))

        def padded(t: Tensor) -> Tensor:
            out = t.new_zeros(*self.x.shape[:2], t.size(-1))
            for b, (start, length) in enumerate(zip(ends.tolist(), self.lengths, strict=False)):
                out[:length, b] = t[start : start + length]
            return out

        return [padded(y), *tensors(final), *map(padded, cells)]

    def by_hand(self) -> list[Tensor]:
        return split_by_hand(self.module, self.x, self.hx, self.lengths, self.resets)


@st.composite
def batches(draw: Any) -> Batch:
    kind = draw(st.sampled_from(LAYERS))
    hidden = draw(st.integers(2, 9))
    options: dict[str, Any] = {
        "num_layers": draw(st.sampled_from((1, 1, 2))),
        "bidirectional": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "recompute": draw(st.booleans()),
    }
    if kind == "LSTM" and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, hidden - 1))
    if kind == "LSTM":
        options["return_cells"] = draw(st.booleans())
    torch.manual_seed(draw(st.integers(0, 1000)))
    module = getattr(rnnfused, kind)(draw(st.integers(1, 5)), hidden, dtype=torch.float64, **options)
    steps, batch = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    if draw(st.sampled_from((False, False, False, True))):
        lengths = [steps] * batch
    resets = torch.rand(steps, batch) < draw(st.sampled_from((0.0, 0.1, 0.5, 1.0)))
    x = torch.randn(steps, batch, module.input_size, dtype=torch.float64)
    form = draw(st.sampled_from(("padded", "concatenated", "nested")))
    return Batch(module, x, lengths, resets, form)


@given(batch=batches(), second=st.booleans())
@properties
def test_everything_is_as_if_split_by_hand(batch: Batch, second: bool) -> None:
    leaves = [t.requires_grad_() for t in batch.leaves]
    got, want = batch.run(), batch.by_hand()
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert not got[0][batch.beyond].any()
    outer = [torch.randn_like(t) for t in want]
    first = [gradients(results, leaves, outer, create_graph=True) for results in (got, want)]
    torch.testing.assert_close(first[0], first[1], rtol=1e-9, atol=1e-11)
    if second and batch.form != "nested":  # torch's nested tensors have no second derivatives
        outer = [torch.randn_like(t) for t in leaves]
        both = [gradients(results, leaves, outer) for results in first]
        torch.testing.assert_close(both[0], both[1], rtol=1e-8, atol=1e-10)


def gradients(
    results: Sequence[Tensor], leaves: Sequence[Tensor], outer: Sequence[Tensor], **options: Any
) -> Sequence[Tensor]:
    """Zeros, too, where nothing depends on anything."""
    total = sum((r * o).sum() for r, o in zip(results, outer, strict=True))
    if not total.requires_grad:
        return [torch.zeros_like(t) for t in leaves]
    return torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True, **options)


@given(batch=batches())
@properties
def test_tangents_are_as_if_split_by_hand(batch: Batch) -> None:
    if batch.form == "nested":
        batch.form = "concatenated"  # torch's nested tensors have no tangents
    parameters = list(batch.module.named_parameters())
    primals = (batch.x, *batch.hx, *(p.detach() for _, p in parameters))
    states = len(batch.hx)

    def function(run: Any) -> Any:
        def call(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            batch.x, batch.hx = x, list(others[:states])
            batch.module._flat_weights = list(others[states:])
            return tuple(run())

        return call

    tangents = tuple(torch.randn_like(t) for t in primals)
    got = torch.func.jvp(function(batch.run), primals, tangents)
    want = torch.func.jvp(function(batch.by_hand), primals, tangents)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


# ---- 16 bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_16_bits(kind: str, dtype: torch.dtype) -> None:
    """Where h is kept unrounded beside what products read, a row that begins late or anew has no such h."""
    options = {"return_cells": True} if kind == "LSTM" else {}
    module = getattr(rnnfused, kind)(5, 8, 2, bidirectional=True, **options).to(dtype)
    exact = copy.deepcopy(module).double()
    x = torch.randn(9, 4, 5).to(dtype)
    where = Batch(exact, x.double(), [9, 0, 4, 6], torch.rand(9, 4) < 0.2, "padded")
    where.hx = [s.to(dtype).double() for s in where.hx]
    want = where.by_hand()
    hx = tuple(s.to(dtype) for s in where.hx)
    leaves = [x.requires_grad_(), *module.parameters()]
    y, final, *cells = module(x, hx if len(hx) > 1 else hx[0], lengths=where.lengths, resets=where.resets)
    got = [y, *tensors(final), *cells]
    wide = [where.x.requires_grad_(), *exact.parameters()]
    gradients_of = [
        torch.autograd.grad(sum(r.sum() for r in results), of)
        for results, of in ((got, leaves), (where.by_hand(), wide))
    ]
    bound = 16 * torch.finfo(dtype).eps
    for one, other in zip((*got, *gradients_of[0]), (*want, *gradients_of[1]), strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).abs().max() <= bound * max(1.0, float(other.detach().abs().max()))


# ---- The same bits as packed


@pytest.mark.cpu  # on a GPU rows are masked where they are, and summed in another order
@pytest.mark.parametrize("kind", LAYERS)
def test_bits_of_a_packed_sequence(kind: str) -> None:
    module = getattr(rnnfused, kind)(7, 33, num_layers=2, bidirectional=True)
    x, lengths = torch.randn(12, 5, 7), torch.tensor([7, 12, 1, 12, 3])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    results = []
    for run in (lambda x: module(x, lengths=lengths), lambda x: unpacked(module, x, lengths)):
        own = x.clone().requires_grad_()
        y, final = run(own)
        gradients = torch.autograd.grad(y.square().sum(), [own, *module.parameters()])
        results.append([y, *tensors(final), *gradients])
    assert packed.batch_sizes[0] == 5
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def unpacked(module: Any, x: Tensor, lengths: Tensor) -> Any:
    y, final = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    return pad_packed_sequence(y, total_length=len(x))[0], final


@pytest.mark.cpu  # on a GPU rows are masked where they are, and summed in another order
@pytest.mark.parametrize("kind", LAYERS)
def test_bits_of_pieces_cut_by_hand(kind: str) -> None:
    module = getattr(rnnfused, kind)(7, 33, bidirectional=True)
    steps, lengths = 20, [20, 4, 13]
    x, resets = torch.randn(steps, 3, 7), torch.rand(steps, 3) < 0.2
    results = []
    for by_hand in (False, True):
        own = x.clone().requires_grad_()
        pieces = [(b, *ends) for b, n in enumerate(lengths) for ends in pieces_of(n, resets[:, b].tolist())]
        if by_hand:
            cut = pack_sequence([own[start:end, b] for b, start, end in pieces], enforce_sorted=False)
            rows, found = pad_packed_sequence(module(cut)[0])[0], {}
            for index, (b, start, end) in enumerate(pieces):
                found[b, start] = rows[: end - start, index]
        else:
            y = module(own, lengths=lengths, resets=resets)[0]
            found = {(b, start): y[start:end, b] for b, start, end in pieces}
        total = sum(found[b, start].square().sum() for b, start, _ in pieces)
        gradients = torch.autograd.grad(total, [own, *module.parameters()])
        results.append([*(found[b, start] for b, start, _ in pieces), *gradients])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


# ---- Forms, and what is nearly one


def test_lengths_in_any_integers_and_a_list() -> None:
    module, x = rnnfused.GRU(3, 5), torch.randn(4, 3, 3)
    want = module(x, lengths=torch.tensor([4, 0, 2]))
    for lengths in (
        [4, 0, 2],
        (4, 0, 2),
        *(torch.tensor([4, 0, 2], dtype=t) for t in (torch.uint8, torch.int8, torch.int16, torch.int32)),
        torch.tensor([4, 9, 0, 9, 2])[::2],
    ):
        assert_same_bits(module(x, lengths=lengths), want)


@pytest.mark.parametrize("batch", [3, 0])
@pytest.mark.parametrize("kind", LAYERS)
def test_no_step_at_all(kind: str, batch: int) -> None:
    module = getattr(rnnfused, kind)(3, 5, num_layers=2, bidirectional=True)
    x = torch.randn(4, batch, 3, requires_grad=True)
    hx = tuple(torch.randn(4, batch, 5, requires_grad=True) for _ in range(2 if kind == "LSTM" else 1))
    lengths = torch.zeros(batch, dtype=torch.long)
    y, final = module(x, hx if kind == "LSTM" else hx[0], lengths=lengths)
    assert y.shape == (4, batch, 10) and not y.any()
    assert all(torch.equal(one, other) for one, other in zip(tensors(final), hx, strict=True))
    total = y.sum() + sum(t.sum() for t in tensors(final))
    of_x, *of_states = torch.autograd.grad(total, [x, *hx])
    assert not of_x.any() and all(torch.equal(g, torch.ones_like(g)) for g in of_states)


def test_no_row_at_all() -> None:
    y, final = rnnfused.LSTM(3, 5)(torch.zeros(0, 3), cu_seqlens=torch.zeros(3, dtype=torch.int32))
    assert y.shape == (0, 5) and all(s.shape == (1, 2, 5) and not s.any() for s in final)


@pytest.mark.parametrize(
    "given, error, message",
    [
        (
            {"lengths": torch.tensor([1.0, 2.0])},
            RuntimeError,
            r"lengths: expected an integer dtype, got torch.float32",
        ),
        (
            {"lengths": torch.tensor([True, False])},
            RuntimeError,
            "lengths: expected an integer dtype, got torch.bool",
        ),
        (
            {"lengths": [1, 2, 3]},
            RuntimeError,
            r"lengths: expected size \[2\], one for each sequence, got \[3\]",
        ),
        ({"lengths": torch.tensor(3)}, RuntimeError, "lengths: expected 1 dimension, got 0"),
        ({"resets": torch.zeros(4, 2)}, RuntimeError, "resets: expected dtype torch.bool, got torch.float32"),
        ({"resets": torch.zeros(2, 4).bool()}, RuntimeError, r"resets: expected size \[4, 2\].*got \[2, 4\]"),
        (
            {"resets": torch.zeros(4, 2, device="meta").bool()},
            RuntimeError,
            "found at least two devices, meta and cpu",
        ),
        ({"resets": [True]}, TypeError, "resets: expected a tensor, got list"),
        (
            {"cu_seqlens": torch.tensor([0, 4])},
            RuntimeError,
            "input must have 2 dimensions with cu_seqlens, got 3",
        ),
        (
            {"lengths": [1, 2], "cu_seqlens": torch.tensor([0, 4])},
            ValueError,
            "lengths: expected none with cu_seqlens",
        ),
    ],
)
def test_what_does_not_fit(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rnnfused.GRU(3, 5)(torch.zeros(4, 2, 3), **given)


@pytest.mark.cpu  # a GPU's lengths are not read by the host
@pytest.mark.parametrize("length", [-1, 5])
def test_lengths_out_of_range(length: int) -> None:
    with pytest.raises(RuntimeError, match=f"lengths: expected lengths from 0 to 4, got {length}"):
        rnnfused.GRU(3, 5)(torch.zeros(4, 2, 3), lengths=[length, 2])


@pytest.mark.parametrize(
    "ends, message",
    [
        ([0, 2], r"expected a sum of 3 \(the rows of input\), got 2"),
        ([0, 2, 4], r"expected a sum of 3 \(the rows of input\), got more|expected lengths from 0 to 3"),
        ([0, 2, 1, 3], "expected lengths from 0 to 3, got -1"),
        ([1, 2, 6], "cu_seqlens: expected 0 as its first, got 1"),
        ([], r"cu_seqlens: expected size \[sequences \+ 1\], beginning with 0, got \[0\]"),
    ],
)
def test_ends_that_do_not_fit(ends: list[int], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        rnnfused.GRU(3, 5)(torch.zeros(3, 3), cu_seqlens=torch.tensor(ends, dtype=torch.int32))


def test_a_packed_sequence_has_its_own_lengths() -> None:
    packed = pack_sequence([torch.zeros(2, 3)])
    for other in (
        {"lengths": [2]},
        {"resets": torch.zeros(2, 1).bool()},
        {"cu_seqlens": torch.tensor([0, 2])},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(other))}: expected none with a PackedSequence"):
            rnnfused.GRU(3, 5)(packed, **other)


def test_frozen_takes_them_too() -> None:
    module = rnnfused.LSTM(3, 33, num_layers=2)
    frozen = rnnfused.Frozen(module)
    x, lengths, resets = torch.randn(9, 4, 3), [9, 0, 4, 5], torch.rand(9, 4) < 0.2
    with torch.no_grad():
        assert_same_bits(frozen(x, lengths=lengths, resets=resets), module(x, lengths=lengths, resets=resets))
        rows = torch.randn(18, 3)
        ends = torch.tensor([0, 9, 9, 18])
        assert_same_bits(frozen(rows, cu_seqlens=ends), module(rows, cu_seqlens=ends))


def test_cells_take_none() -> None:
    weights = [torch.zeros(s) for s in ((9, 2), (9, 3))]
    for place, name in ((4, "lengths"), (5, "resets")):
        layout: list[Any] = [None, None, None]
        layout[place - 3] = torch.zeros(1).bool() if name == "resets" else torch.ones(1).long()
        with pytest.raises(RuntimeError, match=f"{name}: expected none, since a cell runs one step"):
            torch.ops.rnnfused.recurrent(torch.zeros(1, 2), [], weights, *layout, "gru step no_biases", False)
