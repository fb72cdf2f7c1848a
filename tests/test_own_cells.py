"""Layers of cells that torch.nn has not: values and all gradients against the NumPy reference, native code
against torch's operations, every form of input, and what else modules do.
"""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from results import assert_same_bits
from tolerances import COMPILED, FLOAT64, NARROW_OPERATIONS
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import rnnfused
from rnnfused import _decomposed, _masks, reference
from rnnfused._layer import LayerConfig, Layout
from rnnfused.cells import CELLS, EVERY_CELL, OWN_CELLS

pytestmark = pytest.mark.usefixtures("one_thread")

T, B, I, H = 5, 3, 3, 4  # noqa: E741 (the names of every page)
LENGTHS = [3, 5, 1]

DRAWN = {"zoneout": 0.3, "recurrent_dropout": 0.4}
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "IndRNN": [{}, {"bias": False}, {"gate_clip": 0.4, "grad_clip": 0.05, **DRAWN}],
    "LiGRU": [
        {},
        {"bias": False},
        {"norm": "input"},
        {"norm": "separate", "num_heads": 2, "gate_clip": 0.6, "grad_clip": 0.05, **DRAWN},
    ],
    "MinGRU": [{}, {"bias": False}, {"zoneout": 0.3, "grad_clip": 0.05}],
    "MinLSTM": [{}, {"bias": False}, {"zoneout": 0.3, "grad_clip": 0.05}],
    "AUGRU": [{}, {"bias": False}, {"num_heads": 2, "gate_clip": 0.4, "grad_clip": 0.05, **DRAWN}],
    "AGRU": [{}, {"bias": False}, {"num_heads": 2, "gate_clip": 0.4, "grad_clip": 0.05, **DRAWN}],
    "SLSTM": [{}, {"bias": False}, {"num_heads": 2, "grad_clip": 0.05, **DRAWN}],
}
ALL = pytest.mark.parametrize(
    "kind, options",
    [
        pytest.param(kind, options, id="-".join([kind, *(f"{n}={v}" for n, v in options.items())]))
        for kind, every in OPTIONS.items()
        for options in every
    ],
)
KINDS = pytest.mark.parametrize("kind", OPTIONS)
ATTENDING = ("AUGRU", "AGRU")
SHORT = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}


def made(kind: str, **options: Any) -> Any:
    """Norms' gains and shifts are not what they begin as, or a mistake in them would not show."""
    torch.manual_seed(0)
    layer = getattr(rnnfused, kind)(I, H, **{"dtype": torch.float64} | options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("norm_"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def both_ways(kind: str) -> dict[str, Any]:
    """What a constructor is given for the largest layer that there is."""
    return {} if kind in ATTENDING else {"bidirectional": True}


def draw(*sizes: int, seed: int = 3) -> Tensor:
    return torch.randn(*sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights_of(kind: str, *sizes: int) -> dict[str, Tensor]:
    """The weight of each row, for a cell that takes one."""
    return {"attention": draw(*sizes, seed=5).sigmoid()} if kind in ATTENDING else {}


def states(layer: Any) -> list[Tensor]:
    """Initial states as the module takes them, none of them zero; n is positive."""
    leading = (layer.num_layers * (2 if layer.bidirectional else 1), B, H)
    count = 4 if layer._config().spec.memory else 1
    given = [draw(*leading, seed=10 + index) for index in range(count)]
    return [(s.abs() + 0.5 if index == 2 else s).requires_grad_() for index, s in enumerate(given)]


def hx_of(given: list[Tensor]) -> Any:
    return given[0] if len(given) == 1 else tuple(given)


def tuple_of(hx: Any) -> tuple[Tensor, ...]:
    return hx if isinstance(hx, tuple) else (hx,)


def seed_of(layer: Any, seed: int) -> Tensor | None:
    """What a call draws after torch.manual_seed(seed)."""
    if not (layer.training and layer._config().is_random):
        return None
    torch.manual_seed(seed)
    limits = torch.iinfo(torch.int64)
    return torch.randint(limits.min, limits.max, (1,))[0]


def assert_near(ours: Tensor, theirs: np.ndarray, name: str) -> None:
    bound = FLOAT64 * max(1, np.abs(theirs).max())
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=bound, err_msg=name)


class Reference:
    """One direction of a module of one layer, by the NumPy reference."""

    def __init__(self, layer: Any, hx: list[Tensor], attention: Tensor | None, index: int) -> None:
        config, options = layer._config(), layer._options()
        seed = seed_of(layer, 7)
        end = "_l0_reverse" if index else "_l0"
        self.names = {n: n + end for n in (*SHORT.values(), *config.own_params)}
        arrays = {
            n: p.detach().numpy()
            for n, full in self.names.items()
            for p in [getattr(layer, full, None)]
            if p is not None
        }
        given: dict[str, Any] = {}
        del options["recurrent_dropout"]
        options["layer_norm"] = config.layer_norm
        count = len(hx)
        options["zoneout"] = (config.zoneout[0], *[0.0] * (count - 1)) if any(config.zoneout) else 0.0
        if seed is not None and any(config.zoneout):
            mask = _masks.zoneout(seed, 0, index, torch.arange(T * B), H, config.zoneout[0])
            of_h = mask.view(T, B, H).double().numpy()
            given["zoneout_masks"] = (of_h, *[np.zeros_like(of_h)] * (count - 1))
        if seed is not None and config.recurrent_dropout:
            given["recurrent_dropout"] = _masks.recurrent_dropout(
                seed, index, torch.arange(B), H, config.recurrent_dropout, torch.float64
            ).numpy()
        if attention is not None:
            given["attention"] = attention.detach().numpy()
        self.cell = config.cell
        self.result = reference.forward(
            self.cell,
            draw(T, B, I).numpy(),
            tuple(s[index].detach().numpy() for s in hx),
            reference.Weights(**{short: arrays.get(name) for short, name in SHORT.items()}),
            reverse=index == 1,
            options=reference.Options(**options),
            parameters={name: arrays[name] for name in config.own_params},
            **given,
        )

    def gradients(self, dy: Tensor, dfinal: list[Tensor]) -> tuple[Any, dict[str, np.ndarray]]:
        """All of them, and those of the params by their names in the module."""
        found = reference.backward(self.cell, self.result.tape, dy.numpy(), tuple(d.numpy() for d in dfinal))
        named = {name: getattr(found, short) for short, name in SHORT.items()} | found.parameters
        return found, {self.names[name]: value for name, value in named.items() if value is not None}


# ---- Values


@pytest.mark.parametrize("kind", ["IndRNN", "MinGRU", "MinLSTM"])
def test_the_operator_rebuilds_nothing_without_a_product(kind: str) -> None:
    layer = made(kind)
    text, params = layer._config().text, list(layer._params())
    assert "recompute" not in text

    def gradients(text: str) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        x, h = torch.randn(40, B, I).to(params[0]).requires_grad_(), torch.zeros(1, B, H).to(params[0])
        y, h_n = torch.ops.rnnfused.recurrent(x, [h], params, None, None, None, text, False)
        return torch.autograd.grad((y, h_n), (x, *params), (torch.ones_like(y), h_n.detach()))

    for got, want in zip(gradients(text + " recompute"), gradients(text), strict=True):
        assert_same_bits(got, want)


@ALL
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_values_and_gradients_are_those_of_the_reference(
    kind: str, options: dict[str, Any], training: bool, recompute: bool
) -> None:
    layer = made(kind, recompute=recompute, **both_ways(kind), **options).train(training)
    hx, x = states(layer), draw(T, B, I).requires_grad_()
    weights = {name: w.requires_grad_() for name, w in weights_of(kind, T, B).items()}
    torch.manual_seed(7)
    y, after = layer(x, hx_of(hx), **weights)
    final = tuple_of(after)
    dy, dfinal = draw(*y.shape, seed=20), [draw(*s.shape, seed=21 + i) for i, s in enumerate(final)]
    torch.autograd.backward([y, *final], [dy, *dfinal])
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    dx = np.zeros((T, B, I))
    for index in range(layer._config().directions):
        own, columns = (
            Reference(layer, hx, weights.get("attention"), index),
            slice(index * H, (index + 1) * H),
        )
        assert_near(y[..., columns], own.result.y, "y")
        for ours, theirs in zip(final, own.result.states, strict=True):
            assert_near(ours[index], theirs, "final states")
        found, named = own.gradients(dy[..., columns], [d[index] for d in dfinal])
        dx += found.x
        for state, theirs in zip(hx, found.states, strict=True):
            assert_near(state.grad[index], theirs, "initial states")
        for weight in weights.values():
            assert_near(weight.grad, found.attention, "attention")
        for name, theirs in named.items():
            assert_near(gradients.pop(name), theirs, name)
    assert_near(x.grad, dx, "x")
    assert not gradients


WORDS: list[tuple[str, dict[str, Any]]] = [
    (cell, changes)
    for cell, spec in OWN_CELLS.items()
    for changes in (
        {},
        {"bias": False, "grad_clip": 0.05},
        {"zoneout": (0.3, 0.0), "drawn": True},
        *([{"recurrent_dropout": 0.4, "drawn": True}] if spec.recurrent else []),
        *([{"gate_clip": 0.4}] if "gate_clip" in spec.takes else []),
        *([{"num_heads": 2}] if "num_heads" in spec.takes else []),
        *({"layer_norm": norm} for norm in spec.norms),
        *([] if spec.attends else [{"bidirectional": True}, {"batch_first": True}]),
    )
]


@pytest.mark.parametrize("cell, changes", WORDS, ids=lambda value: str(value))
@pytest.mark.parametrize("layout", ["padded", "lengths and resets", "packed", "concatenated", "step"])
def test_native_code_is_what_torchs_operations_are(cell: str, changes: dict[str, Any], layout: str) -> None:
    if layout == "step" and changes.keys() & {"bidirectional", "batch_first"}:
        return
    layer = LayerConfig(cell, step=layout == "step", **changes)
    assert LayerConfig.parse(layer.text) == layer
    shapes = [shape for each in layer.shapes(I, H, H) for shape in each.values()]
    params = [(0.5 * draw(*shape, seed=index)).requires_grad_() for index, shape in enumerate(shapes)]
    features = I + layer.spec.attends
    x, where = draw(T, B, features), Layout()
    if layer.batch_first:
        x = x.transpose(0, 1)
    if layout == "step":
        x = x[0]
    elif layout == "packed":
        x, where = draw(9, features), Layout(torch.tensor([3, 2, 2, 1, 1]))
    elif layout != "padded":
        resets = torch.rand(x.shape[:2], generator=torch.Generator().manual_seed(9)) < 0.3
        where = Layout(None, torch.tensor(LENGTHS), resets)
        if layout == "concatenated":
            x, where = draw(sum(LENGTHS), features), Layout(None, torch.tensor(LENGTHS), resets.flatten()[:9])
    x.requires_grad_()
    leading = (B,) if layer.step else (layer.directions, B)
    hx = [
        draw(*leading, size, seed=30 + i).abs().requires_grad_()
        for i, size in enumerate(layer.state_sizes(params))
    ]
    leaves = [x, *hx, *params]
    if layer.drawn:
        params = [*params, torch.tensor([0x123456789ABCDEF])]
    ours = torch.ops.rnnfused.recurrent(x, hx, params, *where, layer.text, False)
    theirs = _decomposed.recurrent(layer, x, hx, params, *where)
    outer = [draw(*t.shape, seed=40 + i) for i, t in enumerate(ours)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=FLOAT64, atol=FLOAT64)
    gradients = (torch.autograd.grad(of, leaves, outer) for of in (ours, theirs))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=FLOAT64, atol=FLOAT64)


@KINDS
def test_second_derivatives(kind: str) -> None:
    layer = made(kind)
    hx, weights = states(layer), weights_of(kind, 2, B)
    names = [name for name, _ in layer.named_parameters()]

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        x, *rest = given
        initial, params = rest[: len(hx)], dict(zip(names, rest[len(hx) :], strict=True))
        y, after = torch.func.functional_call(layer, params, (x, hx_of(initial)), weights)
        return y, *tuple_of(after)

    x = draw(2, B, I).requires_grad_()
    params = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradgradcheck(run, (x, *hx, *params), fast_mode=True)


def test_mingru_is_a_parallel_scan() -> None:
    """h_t = a_t h_{t-1} + b_t with a = 1 - z, b = z n: pairs (a, b) are joined as functions are, and so by
    doubling, which is what the cell is made for.
    """
    layer = made("MinGRU")
    x, h = draw(T, B, I), states(layer)[0]
    a_z, n = linear(x, layer.weight_ih_l0, layer.bias_ih_l0).chunk(2, -1)
    a, b = 1 - a_z.sigmoid(), a_z.sigmoid() * n
    reach = 1
    while reach < T:
        ones, zeros = torch.ones_like(a[:reach]), torch.zeros_like(b[:reach])
        earlier_a, earlier_b = torch.cat((ones, a[:-reach])), torch.cat((zeros, b[:-reach]))
        a, b, reach = a * earlier_a, a * earlier_b + b, 2 * reach
    y, final = layer(x, h)
    torch.testing.assert_close(y, a * h + b, rtol=0, atol=FLOAT64)
    torch.testing.assert_close(final[0], y[-1])


def plain_slstm(layer: Any, x: Tensor) -> Tensor:
    """With i and f as they are, from an empty memory."""
    h = c = n = x.new_zeros(B, H)
    rows = []
    for row in x:
        sums = linear(row, layer.weight_ih_l0, layer.bias_ih_l0) + linear(
            h, layer.weight_hh_l0, layer.bias_hh_l0
        )
        i, f, z, o = sums.chunk(4, -1)
        c, n = f.sigmoid() * c + i.exp() * z.tanh(), f.sigmoid() * n + i.exp()
        h = o.sigmoid() * c / n
        rows.append(h)
    return torch.stack(rows)


def test_slstm_is_that_without_a_stabiliser() -> None:
    layer, x = made("SLSTM"), draw(T, B, I).requires_grad_()
    (y, (h, c, n, m)), theirs = layer(x), plain_slstm(layer, x)
    torch.testing.assert_close(y, theirs, rtol=0, atol=FLOAT64)
    of, leaves = draw(T, B, H, seed=20), [x, *layer.parameters()]
    gradients = [torch.autograd.grad(out, leaves, of) for out in (y, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=FLOAT64)
    assert torch.equal(h[0], y[-1])
    empty = torch.zeros(1, B, H, dtype=torch.float64)
    again, (_, same_c, same_n, same_m) = layer(x, (empty, empty, empty, empty))
    torch.testing.assert_close(again, y, rtol=0, atol=FLOAT64)
    for ours, other in ((c, same_c), (n, same_n)):
        torch.testing.assert_close(ours * m.exp(), other * same_m.exp(), rtol=0, atol=FLOAT64)


def test_slstm_bears_gates_whose_exponential_overflows() -> None:
    layer = made("SLSTM")
    with torch.no_grad():
        layer.bias_ih_l0[:H] += 1000.0
    x = draw(T, B, I)
    assert not plain_slstm(layer, x).isfinite().all()
    y, _ = layer(x)
    assert y.isfinite().all()
    with torch.no_grad():
        layer.bias_ih_l0[:H] -= 2000.0
    assert layer(x)[0].isfinite().all()


def test_attention_chooses_between_gru_and_standstill() -> None:
    """Of weight one AUGRU is a GRU whose z is the other's 1 - z; of weight zero nothing changes."""
    layer, gru = made("AUGRU"), torch.nn.GRU(I, H, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(layer.parameters(), gru.parameters(), strict=True):
            theirs.copy_(ours)
            theirs[H : 2 * H].neg_()
    x, (h,) = draw(T, B, I), states(layer)
    y, _ = layer(x, h, torch.ones(T, B))
    torch.testing.assert_close(y, gru(x, h)[0], rtol=0, atol=FLOAT64)
    for kind in ATTENDING:
        still, _ = made(kind)(x, h, torch.zeros(T, B))
        assert torch.equal(still, h.expand(T, B, H))


# ---- Batch normalisation


def by_batch_norm(layer: Any, x: Tensor, rows: Tensor) -> Tensor:
    """One layer in both directions from zeros, written from the equations; rows: which there are, [T, B]."""
    found = []
    for end in ("", "_reverse"):
        product = x @ getattr(layer, f"weight_ih_l0{end}").t()
        own = product[rows]
        mean, variance = own.mean(0), own.var(0, correction=0)
        norm = getattr(layer, f"norm_l0{end}")
        normal = (product - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
        h, outputs = x.new_zeros(B, H), [x.new_zeros(B, H)] * T
        for t in reversed(range(T)) if end else range(T):
            a_z, a_n = (normal[t] + h @ getattr(layer, f"weight_hh_l0{end}").t()).chunk(2, -1)
            z = a_z.sigmoid()
            after = z * h + (1 - z) * a_n.relu()
            h = torch.where(rows[t].unsqueeze(1), after, h)
            outputs[t] = after * rows[t].unsqueeze(1)
        found.append(torch.stack(outputs))
    return torch.cat(found, -1)


@pytest.mark.parametrize("ragged", [False, True])
def test_batch_norm_is_over_the_rows_that_there_are(ragged: bool) -> None:
    layer = made("LiGRU", norm="batch", bidirectional=True)
    lengths = torch.tensor(LENGTHS) if ragged else torch.full((B,), T)
    rows = torch.arange(T).unsqueeze(1) < lengths
    x = draw(T, B, I)
    expected = by_batch_norm(layer, x, rows)
    x = x.masked_fill(~rows.unsqueeze(-1), torch.nan)
    if ragged:
        ours = [layer(x, lengths=lengths)[0]]
        packed, _ = layer(pack_sequence([x[:n, b] for b, n in enumerate(LENGTHS)], enforce_sorted=False))
        ours.append(pad_packed_sequence(packed)[0])
    else:
        ours = [layer(x)[0]]
    for y in ours:
        torch.testing.assert_close(y, expected, rtol=0, atol=FLOAT64)
    gradients = [torch.autograd.grad(y.sin().sum(), list(layer.parameters())) for y in (ours[0], expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=FLOAT64)


def test_batch_norm_keeps_statistics_for_evaluation() -> None:
    layer = made("LiGRU", norm="batch", num_layers=2, dropout=0.5)
    x = draw(T, B, I)
    layer(x)
    product = (x @ layer.weight_ih_l0.t()).flatten(0, 1)
    torch.testing.assert_close(layer.norm_l0.running_mean, 0.1 * product.mean(0))
    layer.eval()
    y, _ = layer(x)
    torch.testing.assert_close(torch.cat([layer(x[:, b : b + 1])[0] for b in range(B)], 1), y)
    by_batch = made("LiGRU", norm="batch", num_layers=2, batch_first=True).eval()
    by_batch.load_state_dict(layer.state_dict())
    assert layer.norm == by_batch.norm == "batch"
    torch.testing.assert_close(by_batch(x.transpose(0, 1))[0].transpose(0, 1), y)
    layer.reset_parameters()
    assert (layer.norm_l0.weight == 1).all() and (layer.norm_l1.running_mean == 0).all()
    assert layer.weight_ih_l0.abs().max() <= 0.5


# ---- Layouts


@ALL
def test_every_layout_gives_each_sequence_alone(kind: str, options: dict[str, Any]) -> None:
    layer = made(kind, **both_ways(kind), **options).eval()
    x, weights = draw(T, B, I), weights_of(kind, T, B)
    rows = [x[:n, b] for b, n in enumerate(LENGTHS)]
    of_rows = [{name: w[:n, b] for name, w in weights.items()} for b, n in enumerate(LENGTHS)]
    alone = [layer(row, **own) for row, own in zip(rows, of_rows, strict=True)]

    def joined(join: Callable[[list[Tensor]], Any]) -> dict[str, Any]:
        return {name: join([own[name] for own in of_rows]) for name in weights}

    def check(found: Any, final: Any = None) -> None:
        for ours, (theirs, _) in zip(found, alone, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=FLOAT64)
        if final is not None:
            for b, (_, theirs) in enumerate(alone):
                for state, of_one in zip(tuple_of(final), tuple_of(theirs), strict=True):
                    torch.testing.assert_close(state[:, b], of_one, rtol=0, atol=FLOAT64)

    y, final = layer(x, lengths=LENGTHS, **weights)
    check([y[:n, b] for b, n in enumerate(LENGTHS)], final)
    assert all((y[n:, b] == 0).all() for b, n in enumerate(LENGTHS))
    packed, final = layer(
        pack_sequence(rows, enforce_sorted=False), **joined(lambda w: pack_sequence(w, enforce_sorted=False))
    )
    assert isinstance(packed, PackedSequence)
    padded, _ = pad_packed_sequence(packed)
    check([padded[:n, b] for b, n in enumerate(LENGTHS)], final)
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    y, final = layer(torch.cat(rows), cu_seqlens=ends, **joined(torch.cat))
    check(y.split(LENGTHS), final)

    def nested(parts: list[Tensor]) -> Tensor:
        return torch.nested.nested_tensor(parts, layout=torch.jagged)

    check(layer(nested(rows), **joined(nested))[0].unbind())
    by_batch = made(kind, batch_first=True, **both_ways(kind), **options).eval()
    turned = {name: w.t() for name, w in weights.items()}
    y, _ = by_batch(x.transpose(0, 1), lengths=LENGTHS, **turned)
    check([y[b, :n] for b, n in enumerate(LENGTHS)])


@ALL
def test_resets_begin_anew(kind: str, options: dict[str, Any]) -> None:
    layer = made(kind, **both_ways(kind), **options).eval()
    x, weights, resets = draw(T, B, I), weights_of(kind, T, B), torch.zeros(T, B, dtype=torch.bool)
    resets[2] = True
    y, _ = layer(x, resets=resets, **weights)
    for part in (slice(2), slice(2, T)):
        alone, _ = layer(x[part], **{name: w[part] for name, w in weights.items()})
        torch.testing.assert_close(y[part], alone, rtol=0, atol=FLOAT64)


@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if kind not in ATTENDING])
def test_layers_stand_over_one_another(kind: str) -> None:
    stack = made(kind, num_layers=2, bidirectional=True, dropout=0.5)
    hx, x = states(stack), draw(T, B, I)
    each = stack._config().params_each * 2
    for training in (True, False):
        stack.train(training)
        torch.manual_seed(7)
        y, after = stack(x, hx_of(hx))
        torch.manual_seed(7)
        rows, finals = x, []
        for index in range(2):
            one = type(stack)(rows.size(-1), H, bidirectional=True, dtype=torch.float64)
            with torch.no_grad():
                own = stack._params()[index * each :][:each]
                for parameter, value in zip(one.parameters(), own, strict=True):
                    parameter.copy_(value)
            rows, final = one(rows, hx_of([s[2 * index : 2 * index + 2] for s in hx]))
            finals.append(tuple_of(final))
            if not index and training:
                torch.manual_seed(7)
                rows = torch.nn.functional.dropout(rows, 0.5)
        torch.testing.assert_close(y, rows, rtol=0, atol=FLOAT64)
        for ours, parts in zip(tuple_of(after), zip(*finals, strict=True), strict=True):
            torch.testing.assert_close(ours, torch.cat(parts), rtol=0, atol=FLOAT64)


# ---- Compilers, types


@pytest.mark.long
@ALL
def test_compiled_in_one_graph(kind: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    layer = made(kind, **both_ways(kind), **options).eval()
    x, weights = draw(T, B, I), weights_of(kind, T, B)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for arguments in ({}, {"lengths": torch.tensor(LENGTHS)}):
        found = []
        for run in (layer, compiled):
            layer.zero_grad()
            y, after = run(x, **weights, **arguments)
            y.sin().sum().backward()
            found.append([y, *tuple_of(after), *(p.grad for p in layer.parameters())])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=COMPILED)


@KINDS
def test_exported(kind: str) -> None:
    layer = made(kind, **both_ways(kind)).eval()
    x, weights = draw(T, B, I), weights_of(kind, T, B)
    program = torch.export.export(layer, (x,), weights)
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert torch.ops.rnnfused.recurrent.default in targets
    torch.testing.assert_close(program.module()(x, **weights)[0], layer(x, **weights)[0])


@ALL
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_and_autocast(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    layer = made(kind, dtype=torch.float32, **both_ways(kind), **options).eval()
    x, weights = draw(T, B, I).float(), {n: w.float() for n, w in weights_of(kind, T, B).items()}
    y, _ = layer(x, **weights)
    with torch.autocast("cpu", dtype):
        assert torch.equal(layer(x, **weights)[0], y)
    narrow, _ = copy.deepcopy(layer).to(dtype)(x.to(dtype), **{n: w.to(dtype) for n, w in weights.items()})
    assert narrow.dtype == dtype
    bound = NARROW_OPERATIONS * torch.finfo(dtype).eps
    torch.testing.assert_close(narrow.float(), y, rtol=0, atol=bound)


# ---- Modules


SIZES = {
    "IndRNN": {"weight_ih": (H, I), "weight_hh": (H,), "bias_ih": (H,)},
    "LiGRU": {"weight_ih": (2 * H, I), "weight_hh": (2 * H, H), "bias_ih": (2 * H,), "bias_hh": (2 * H,)},
    "MinGRU": {"weight_ih": (2 * H, I), "bias_ih": (2 * H,)},
    "MinLSTM": {"weight_ih": (3 * H, I), "bias_ih": (3 * H,)},
    "AUGRU": {"weight_ih": (3 * H, I), "weight_hh": (3 * H, H), "bias_ih": (3 * H,), "bias_hh": (3 * H,)},
    "AGRU": {"weight_ih": (2 * H, I), "weight_hh": (2 * H, H), "bias_ih": (2 * H,), "bias_hh": (2 * H,)},
    "SLSTM": {"weight_ih": (4 * H, I), "weight_hh": (4 * H, H), "bias_ih": (4 * H,), "bias_hh": (4 * H,)},
}


@KINDS
def test_parameters_have_the_documented_names_and_sizes(kind: str) -> None:
    layer = made(kind, **both_ways(kind))
    ends = ("_l0", "_l0_reverse")[: layer._config().directions]
    expected = {name + end: size for end in ends for name, size in SIZES[kind].items()}
    found = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert found == expected
    assert list(found) == list(expected) == layer._flat_weights_names
    assert [list(map(id, each)) for each in layer.all_weights] == [
        [id(getattr(layer, name)) for name in names] for names in layer._all_weights
    ]
    assert isinstance(layer, torch.nn.RNNBase)


@KINDS
def test_initial_values(kind: str) -> None:
    layer = getattr(rnnfused, kind)(I, 64)
    for _ in range(2):
        for name, parameter in layer.named_parameters():
            if kind == "IndRNN" and name.startswith("weight_hh"):
                assert 0 <= parameter.min() < 0.2 and 0.8 < parameter.max() <= 1
            else:
                assert parameter.abs().max() <= 1 / 8 and parameter.std() > 0.05, name
            parameter.data.fill_(5)
        layer.reset_parameters()


@ALL
def test_copies_pickles_and_state_dicts(kind: str, options: dict[str, Any]) -> None:
    layer = made(kind, **both_ways(kind), **options).eval()
    x, weights = draw(T, B, I), weights_of(kind, T, B)
    y, after = layer(x, **weights)
    other = getattr(rnnfused, kind)(I, H, dtype=torch.float64, **both_ways(kind), **options).eval()
    other.load_state_dict(layer.state_dict())
    for same in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), other):
        found, final = same(x, **weights)
        assert_same_bits([found, *tuple_of(final)], [y, *tuple_of(after)])
        assert repr(same) == repr(layer)
    for name, value in options.items():
        shown = "layer_norm" if name == "norm" else name
        assert f"{shown}={value}" in repr(layer).replace("'", "")


@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if kind != "SLSTM"])
def test_initial_states_are_learned(kind: str) -> None:
    layer = made(kind, learn_initial_state=True, **both_ways(kind))
    weights = weights_of(kind, T, B)
    with torch.no_grad():
        for names in layer._initial_names():
            for index, name in enumerate(names):
                getattr(layer, name).copy_(draw(H, seed=index))
    given = torch.stack([getattr(layer, name) for name in layer._initial_names()[0]])
    y, _ = layer(draw(T, B, I), **weights)
    theirs, _ = layer(draw(T, B, I), given.unsqueeze(1).expand(-1, B, -1), **weights)
    assert torch.equal(y, theirs)
    y.sum().backward()
    assert all(getattr(layer, name).grad.any() for name in layer._initial_names()[0])


@KINDS
def test_a_model_keeps_them(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Sequential(made(kind))
    with caplog.at_level(logging.WARNING, "rnnfused"):
        assert type(rnnfused.convert(model)[0]) is getattr(rnnfused, kind)
    assert not caplog.records
    with pytest.raises(ValueError, match=f"torch.nn has no {kind}, as '0' is"):
        rnnfused.to_torch(model)
    with pytest.raises(TypeError, match=r"expected an rnnfused\.RNN, LSTM or GRU"):
        rnnfused.Frozen(model[0])
    traced = torch.fx.symbolic_trace(model) if kind not in ATTENDING else None
    if traced is not None:
        assert_same_bits(list(tuple_of(traced(draw(T, B, I))[0])), [model(draw(T, B, I))[0]])


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("MinGRU", {"recurrent_dropout": 0.5}, "recurrent_dropout: expected nothing for cell 'mingru'"),
    ("MinGRU", {"weight_drop": 0.5}, "weight_drop: expected 0 for a cell without W_hh"),
    ("MinLSTM", {"gate_clip": 0.5}, "gate_clip: expected nothing for cell 'minlstm'"),
    ("IndRNN", {"num_heads": 2}, "num_heads: expected nothing for cell 'indrnn'"),
    ("IndRNN", {"layer_norm": True}, "layer_norm: expected nothing for cell 'indrnn'"),
    ("LiGRU", {"norm": "joint"}, "norm: expected one of"),
    ("LiGRU", {"norm": "batch", "layer_norm": "input"}, "layer_norm: expected None beside norm='batch'"),
    ("LiGRU", {"num_heads": 3}, "num_heads: expected a divisor of 4 units"),
    ("AUGRU", {"peephole": True}, "peephole: expected nothing for cell 'augru'"),
    ("SLSTM", {"zoneout": (0.1, 0.1)}, "zoneout: expected a probability or one for each of h"),
    ("SLSTM", {"learn_initial_state": True}, "learn_initial_state: expected False for an sLSTM"),
]


@pytest.mark.parametrize("kind, options, message", WRONG)
def test_what_a_cell_has_not_is_refused(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(rnnfused, kind)(I, H, **options)


def test_wrong_calls_are_refused() -> None:
    layer, x = rnnfused.AUGRU(I, H), torch.randn(T, B, I)
    with pytest.raises(TypeError, match="attention: expected a tensor, got NoneType"):
        layer(x)
    with pytest.raises(RuntimeError, match=r"attention: expected size \[5, 3\]"):
        layer(x, attention=torch.rand(B, T))
    with pytest.raises(TypeError, match="num_layers"):
        rnnfused.AUGRU(I, H, num_layers=2)
    with pytest.raises(TypeError, match="proj_size"):
        rnnfused.LiGRU(I, H, proj_size=2)
    with pytest.raises(RuntimeError, match="slstm expects four hidden states"):
        rnnfused.SLSTM(I, H)(x, torch.zeros(1, B, H))
    for dtype in (torch.float32, torch.bfloat16):
        slstm = rnnfused.SLSTM(I, H, dtype=dtype)
        state, narrow, wide = (torch.zeros(1, B, size, dtype=dtype) for size in (H, H - 1, H + 1))
        for memory, index in (((state, state, narrow), 3), ((narrow, wide, state), 1)):
            with pytest.raises(RuntimeError, match=rf"Expected hidden\[{index}\] size .*, got \["):
                slstm(x.to(dtype), (state, *memory))
        with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
            slstm(x[..., 1:].to(dtype))
    for norm in ("batch", "input"):
        for layers in (1, 4):
            with pytest.raises(
                RuntimeError, match=rf"hidden size \(2, {B}, {H}\), got \[{layers}, {B}, {H}\]"
            ):
                rnnfused.LiGRU(I, H, 2, norm=norm)(x, torch.zeros(layers, B, H))


# ---- Tables


def test_the_tables_agree() -> None:
    assert [*EVERY_CELL] == [*CELLS, *OWN_CELLS]
    for name, spec in OWN_CELLS.items():
        theirs = reference.OWN_CELLS[name]
        assert set(spec.takes) == theirs.takes, name
        assert spec.norms == theirs.norms, name
        assert len(spec.gates) == len(theirs.x_to), name
        assert spec.attends == theirs.attends, name
        assert (spec.recurrent is not None) == bool(theirs.h_to), name
        assert (spec.states[:1] + (spec.memory or spec.states[1:])) == theirs.states, name
    modes = [spec.mode for spec in EVERY_CELL.values()]
    assert len(set(modes)) == len(modes)


@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("option", [{"num_layers": 2}, {"bidirectional": True}, {"dropout": 0.5}])
def test_a_layer_that_attends_is_one_layer_forwards(name: str, option: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(option))}: expected none, since an {name} is one layer"):
        getattr(rnnfused, name)(3, 4, **option)
