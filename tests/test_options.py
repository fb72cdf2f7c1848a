"""Options of the cells, through modules and functions: values, parameters, errors, what else modules do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import FLOAT64
from torch import Tensor
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

import rnnfused
from rnnfused import _decomposed, _flops, _masks, functional, reference
from rnnfused._layer import LayerConfig
from rnnfused._options import DEFAULTS
from rnnfused.cells import CELLS
from rnnfused.seq2seq import DecoderState

pytestmark = pytest.mark.usefixtures("one_thread")

T, B, I, H, P = 5, 3, 3, 4, 2  # noqa: E741 (the names of every page)
LENGTHS = [3, 5, 1]

EACH: list[dict[str, Any]] = [
    {"layer_norm": True},
    {"zoneout": 0.3},
    {"recurrent_dropout": 0.4},
    {"gate_clip": 0.4},
    {"grad_clip": 0.01},
    {"num_heads": 2},
    {"layer_norm": "separate", "zoneout": 0.3, "recurrent_dropout": 0.4, "gate_clip": 0.7, "num_heads": 2},
]
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "RNN": [*EACH, {"nonlinearity": "relu", "layer_norm": "separate", "zoneout": (0.2,)}],
    "LSTM": [
        *EACH,
        {"layer_norm": "joint"},
        {"layer_norm": "joint", "cell_norm": "carried"},
        {"layer_norm": "separate", "cell_norm": "output"},
        {"zoneout": (0.1, 0.6)},
        {"peephole": True},
        {"coupled_gates": True},
        {"cell_clip": 0.2},
        {
            "coupled_gates": True,
            "peephole": True,
            "layer_norm": "joint",
            "zoneout": (0.5, 0.0),
            "proj_size": P,
        },
    ],
    "GRU": [
        *EACH,
        {"layer_norm": "joint"},
        {"layer_norm": "joint", "update_bias": -1.0},
        {"reset_after": False},
        {"reset_after": False, "num_heads": 2, "zoneout": 0.3, "recurrent_dropout": 1.0},
    ],
}
CASES = [
    pytest.param(kind, options, id="-".join([kind, *(f"{n}={v}" for n, v in options.items())]))
    for kind, every in OPTIONS.items()
    for options in every
]
ALL = pytest.mark.parametrize("kind, options", CASES)
DRAWING = {"zoneout": (0.3, 0.6), "recurrent_dropout": 0.4}


def made(kind: str, **options: Any) -> Any:
    """Norms' gains and shifts are not what they begin as, or a mistake in them would not show."""
    torch.manual_seed(0)
    layer = getattr(rnnfused, kind)(I, H, dtype=torch.float64, **options)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("norm_"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def batch(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(T, B, I, dtype=dtype, generator=torch.Generator().manual_seed(3))


def states(layer: Any, batch: int = B) -> list[Tensor]:
    """Initial states, none of them zero."""
    generator = torch.Generator().manual_seed(4)
    leading = (layer.num_layers * (2 if layer.bidirectional else 1), batch)
    return [
        torch.randn(*leading, size, dtype=torch.float64, generator=generator, requires_grad=True)
        for size in layer._state_sizes()
    ]


def seeds_of(seed: int, layers: int = 1) -> Tensor:
    """What a call of a layer in training draws after torch.manual_seed(seed)."""
    torch.manual_seed(seed)
    limits = torch.iinfo(torch.int64)
    return torch.randint(limits.min, limits.max, (layers,))


class Reference:
    """One direction of a module of one layer, by the NumPy reference."""

    def __init__(self, layer: Any, direction: int, seed: Tensor | None = None) -> None:
        config, options = layer._config(), layer._options()
        suffix = "_l0" + ("_reverse" if direction else "")
        named = {
            n.removesuffix(suffix): p for n, p in layer.named_parameters() if n.endswith("l0" + suffix[3:])
        }
        self.names = {name: name + suffix for name in named}
        arrays = {name: p.detach().numpy() for name, p in named.items()}
        own = {name: arrays[name] for name in config.own_params}
        weights = {short: arrays.get(name) for short, name in WEIGHTS.items()}
        sizes = layer._state_sizes()
        del options["recurrent_dropout"]
        options["layer_norm"] = config.layer_norm
        drawn: dict[str, Any] = {}
        if seed is not None and any(config.zoneout):
            rows = torch.arange(T * B)
            masks = [
                _masks.zoneout(seed, state, direction, rows, size, config.zoneout[state])
                for state, size in enumerate(sizes)
            ]
            drawn["zoneout_masks"] = tuple(m.view(T, B, -1).double().numpy() for m in masks)
        if seed is not None and config.recurrent_dropout:
            drawn["recurrent_dropout"] = _masks.recurrent_dropout(
                seed, direction, torch.arange(B), sizes[0], config.recurrent_dropout, torch.float64
            ).numpy()
        self.cell, initial = config.cell, tuple(s[direction].detach().numpy() for s in states(layer))
        self.result = reference.forward(
            self.cell,
            batch().numpy(),
            initial,
            reference.Weights(**weights),
            reverse=direction == 1,
            options=reference.Options(**options),
            parameters=own,
            **drawn,
        )

    def gradients(self, dy: np.ndarray, dstates: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        """Of the params, by their names in the module."""
        found = reference.backward(self.cell, self.result.tape, dy, dstates)
        by_name = {name: getattr(found, short) for short, name in WEIGHTS.items()} | found.parameters
        return {self.names[name]: value for name, value in by_name.items() if value is not None}


WEIGHTS = {
    "w_ih": "weight_ih",
    "w_hh": "weight_hh",
    "b_ih": "bias_ih",
    "b_hh": "bias_hh",
    "w_hr": "weight_hr",
}


def assert_near(ours: Tensor, theirs: np.ndarray, name: str) -> None:
    np.testing.assert_allclose(
        ours.detach().numpy(), theirs, rtol=0, atol=FLOAT64 * max(1, np.abs(theirs).max()), err_msg=name
    )


# ---- Values


@ALL
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_values_and_gradients_are_those_of_the_reference(
    kind: str, options: dict[str, Any], training: bool
) -> None:
    layer = made(kind, bidirectional=True, **options).train(training)
    hx = states(layer)
    seed = seeds_of(7)[0] if training and layer._config().is_random else None
    torch.manual_seed(7)
    y, final = layer(batch(), layer._hx(hx))
    final = final if isinstance(final, tuple) else (final,)
    dy = torch.randn_like(y)
    dfinal = [torch.randn_like(s) for s in final]
    torch.autograd.backward([y, *final], [dy, *dfinal])
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    width = y.size(-1) // 2
    for direction in range(2):
        own = Reference(layer, direction, seed)
        columns = slice(direction * width, (direction + 1) * width)
        assert_near(y[..., columns], own.result.y, "y")
        for ours, theirs in zip(final, own.result.states, strict=True):
            assert_near(ours[direction], theirs, "final states")
        outer = dy[..., columns].numpy(), tuple(d[direction].numpy() for d in dfinal)
        for name, theirs in own.gradients(*outer).items():
            assert_near(gradients.pop(name), theirs, name)
    assert not gradients


@ALL
def test_layers_stand_over_one_another(kind: str, options: dict[str, Any]) -> None:
    """With dropout between them and a seed for each, drawn before."""
    stack = made(kind, num_layers=2, bidirectional=True, dropout=0.5, **options)
    hx = states(stack)
    torch.manual_seed(7)
    y, final = stack(batch(), stack._hx(hx))
    random = stack._config().is_random
    seeds = seeds_of(7, 2) if random else None
    if not random:
        torch.manual_seed(7)
    x: Tensor = batch()
    finals = []
    config = stack._config().single
    each = stack._config().params_each * 2
    if random:
        config = LayerConfig.parse(config.text + " drawn")
    for index in range(2):
        params = list(stack._params()[index * each : (index + 1) * each])
        if seeds is not None:
            params.append(seeds[index : index + 1])
        own = [s[2 * index : 2 * index + 2] for s in hx]
        x, *after = functional.stack(config, x, own, params)
        finals.append(after)
        if index == 0:
            x = torch.nn.functional.dropout(x, 0.5)
    assert torch.equal(y, x)
    final = final if isinstance(final, tuple) else (final,)
    for ours, parts in zip(final, zip(*finals, strict=True), strict=True):
        assert torch.equal(ours, torch.cat(parts))


@ALL
def test_functions_are_the_modules(kind: str, options: dict[str, Any]) -> None:
    layer = made(kind, num_layers=2, **options)
    hx = layer._hx(states(layer))
    given = {name: value for name, value in options.items() if name != "proj_size"}
    params, more = layer._params(), {"num_layers": 2, "training": True}
    torch.manual_seed(7)
    y, final = layer(batch(), hx)
    torch.manual_seed(7)
    run = getattr(functional, kind.lower())
    results = run(batch(), hx, params, **more, **given)
    assert torch.equal(y, results[0])
    for ours, theirs in zip(results[1:], final if isinstance(final, tuple) else (final,), strict=True):
        assert torch.equal(ours, theirs)


@ALL
def test_cells_are_layers_of_one_step(kind: str, options: dict[str, Any]) -> None:
    """Also where they draw: a cell's step is the first."""
    options = {name: value for name, value in options.items() if name != "proj_size"}
    layer, cell = made(kind, **options), made(f"{kind}Cell", **options)
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in layer.state_dict().items()})
    hx, x = [s[0] for s in states(layer)], batch()[0]
    torch.manual_seed(7)
    y, _ = layer(x.unsqueeze(0), layer._hx([s.unsqueeze(0) for s in hx]))
    torch.manual_seed(7)
    after = cell(x, cell._hx(hx))
    assert torch.equal(after[0] if kind == "LSTM" else after, y[0])

    config = cell._config()
    names = [*WEIGHTS.values()][:4] if config.bias else [*WEIGHTS.values()][:2]
    own = [getattr(cell, name) for name in config.own_params]
    torch.manual_seed(7)
    run = getattr(functional, f"{kind.lower()}_cell")
    found = run(
        x, cell._hx(hx), *(getattr(cell, name) for name in names), own_params=own, training=True, **options
    )
    for ours, theirs in zip(cell._states(found), cell._states(after), strict=True):
        assert torch.equal(ours, theirs)

    cell.eval()
    alone = cell._states(cell(x[0], cell._hx([s[0] for s in hx])))
    for one, every in zip(alone, cell._states(cell(x, cell._hx(hx))), strict=True):
        torch.testing.assert_close(one, every[0], rtol=0, atol=FLOAT64)


# ---- Layouts


@ALL
def test_every_layout_gives_each_sequence_alone(kind: str, options: dict[str, Any]) -> None:
    layer = made(kind, bidirectional=True, **options).eval()
    rows = [batch()[:n, b] for b, n in enumerate(LENGTHS)]
    alone = [layer(row)[0] for row in rows]

    def check(found: list[Tensor]) -> None:
        for ours, theirs in zip(found, alone, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=FLOAT64)

    y, _ = layer(batch(), lengths=LENGTHS)
    check([y[:n, b] for b, n in enumerate(LENGTHS)])
    assert all((y[n:, b] == 0).all() for b, n in enumerate(LENGTHS))
    packed, _ = layer(pack_sequence(rows, enforce_sorted=False))
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed)
    check([padded[:n, b] for b, n in enumerate(lengths.tolist())])
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    y, _ = layer(torch.cat(rows), cu_seqlens=ends)
    check(list(y.split(LENGTHS)))
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    check(list(layer(nested)[0].unbind()))
    by_batch = made(kind, bidirectional=True, batch_first=True, **options).eval()
    check(
        [y[:n] for y, n in zip(by_batch(batch().transpose(0, 1), lengths=LENGTHS)[0], LENGTHS, strict=True)]
    )


@pytest.mark.parametrize("kind", OPTIONS)
def test_layouts_draw_the_same_for_the_same_sequence(kind: str) -> None:
    """Of full length, where sequences and steps have the same numbers."""
    layer = made(kind, zoneout=0.3, recurrent_dropout=0.4)
    rows = list(batch().unbind(1))

    def run(*given: Any, **layout: Any) -> Any:
        torch.manual_seed(7)
        return layer(*given, **layout)[0]

    y = run(batch())
    for other in (
        run(batch(), lengths=[T] * B),
        torch.nn.utils.rnn.pad_packed_sequence(run(pack_sequence(rows)))[0],
        torch.stack(run(torch.cat(rows), cu_seqlens=torch.arange(0, T * B + 1, T)).split(T), 1),
    ):
        torch.testing.assert_close(other, y, rtol=0, atol=FLOAT64)


# ---- Parameters


NAMES: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "peephole": ("LSTM", {"peephole": True}, {"weight_peephole": (3, H)}),
    "coupled": (
        "LSTM",
        {"peephole": True, "coupled_gates": True},
        {"weight_ih": (3 * H, I), "weight_hh": (3 * H, H), "bias_ih": (3 * H,), "weight_peephole": (2, H)},
    ),
    "separate": (
        "GRU",
        {"layer_norm": "separate"},
        {f"norm_{of}_{part}": (3 * H,) for of in ("ih", "hh") for part in ("weight", "bias")},
    ),
    "joint": (
        "LSTM",
        {"layer_norm": "joint", "cell_norm": "output"},
        {"norm_weight": (4 * H,), "norm_bias": (4 * H,), "norm_c_weight": (H,), "norm_c_bias": (H,)},
    ),
    "heads": ("GRU", {"num_heads": 2}, {"weight_hh": (2, 3 * H // 2, H // 2)}),
    "projected heads": (
        "LSTM",
        {"num_heads": 2, "proj_size": P},
        {"weight_hh": (2, 2 * H, P // 2), "weight_hr": (P, H)},
    ),
}


@pytest.mark.parametrize("kind, options, expected", NAMES.values(), ids=NAMES)
def test_parameters_have_the_documented_names_and_sizes(
    kind: str, options: dict[str, Any], expected: dict[str, tuple[int, ...]]
) -> None:
    layer = getattr(rnnfused, kind)(I, H, num_layers=2, bidirectional=True, **options)
    found = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    for place in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        for name, shape in expected.items():
            if name != "weight_ih" or place.startswith("_l0"):
                assert found[name + place] == shape, name
        assert ("bias_ih" + place in found) == (options.get("layer_norm") != "joint")
    assert list(found) == layer._flat_weights_names
    assert [[id(p) for p in each] for each in layer.all_weights] == [
        [id(getattr(layer, name)) for name in names] for names in layer._all_weights
    ]
    if "proj_size" not in options:
        cell = getattr(rnnfused, f"{kind}Cell")(I, H, **options)
        sizes = {name: tuple(p.shape) for name, p in cell.named_parameters()}
        assert sizes == {n[:-3]: s for n, s in found.items() if n.endswith("_l0")}


@ALL
def test_initial_values(kind: str, options: dict[str, Any]) -> None:
    """Gains are one, shifts zero, everything else as torch.nn draws it."""
    layer = getattr(rnnfused, kind)(I, 64, **options)
    for _ in range(2):
        for name, parameter in layer.named_parameters():
            if name.startswith("norm_"):
                assert (parameter == ("_weight_" in name)).all(), name
            else:
                assert parameter.abs().max() <= 1 / 8, name
                assert parameter.std() > 0.05, name
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.fill_(5)
        layer.reset_parameters()


@pytest.mark.parametrize(
    "options, shift",
    [
        ({}, "bias_ih"),
        ({"layer_norm": True, "bias": False}, "norm_ih_bias"),
        ({"layer_norm": "joint"}, "norm_bias"),
    ],
)
def test_forget_bias_is_where_the_shift_is(options: dict[str, Any], shift: str) -> None:
    for made_of, name in ((rnnfused.LSTM, f"{shift}_l0"), (rnnfused.LSTMCell, shift)):
        torch.manual_seed(0)
        plain = made_of(I, H, **options)
        torch.manual_seed(0)
        biased = made_of(I, H, forget_bias=2.0, **options)
        for (own, p), other in zip(biased.named_parameters(), plain.parameters(), strict=True):
            change = (p - other).view(4, -1) if own == name else p - other
            expected = torch.tensor([0.0, 2.0, 0.0, 0.0]).unsqueeze(1) if own == name else 0.0
            torch.testing.assert_close(change, torch.zeros_like(change) + expected)


def test_a_parametrised_norm_is_read_as_it_is() -> None:
    layer = made("LSTM", layer_norm=True, peephole=True)
    y = layer(batch())[0]
    weight = layer.weight_peephole_l0.detach().clone()
    parametrizations.weight_norm(layer, "weight_peephole_l0")
    torch.testing.assert_close(layer(batch())[0], y)
    with torch.no_grad():
        layer.parametrizations.weight_peephole_l0.original0.mul_(2)
    torch.testing.assert_close(layer.weight_peephole_l0, 2 * weight)
    assert not torch.allclose(layer(batch())[0], y)


# ---- What else modules do


@ALL
def test_repr_makes_the_same_layer(kind: str, options: dict[str, Any]) -> None:
    options = {name: v for name, v in options.items() if name not in ("proj_size", "nonlinearity")}
    for layer in (made(kind, **options), made(f"{kind}Cell", **options)):
        again = eval(repr(layer), vars(rnnfused))
        assert repr(again) == repr(layer)
        assert again._config() == layer._config()


def test_repr_of_a_plain_layer_is_torchs() -> None:
    for kind in ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"):
        assert repr(getattr(rnnfused, kind)(I, H)) == repr(getattr(torch.nn, kind)(I, H))
        assert repr(getattr(rnnfused, kind)(I, H, layer_norm=False)) == repr(getattr(torch.nn, kind)(I, H))


@ALL
def test_copies_and_files_hold_the_layer(kind: str, options: dict[str, Any]) -> None:
    layer = made(kind, num_layers=2, **options)
    fresh = getattr(rnnfused, kind)(I, H, num_layers=2, dtype=torch.float64, **options)
    fresh.load_state_dict(layer.state_dict())

    def run(layer: Any) -> Tensor:
        torch.manual_seed(7)
        y: Tensor = layer(batch())[0]
        return y

    for other in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert torch.equal(run(other), run(layer))
        assert repr(other) == repr(layer)
    moved = copy.deepcopy(layer).to(torch.float32)
    moved.flatten_parameters()
    assert {p.dtype for p in moved.parameters()} == {torch.float32}
    assert moved(batch(torch.float32))[0].dtype == torch.float32


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_layers_of_older_files_and_converted_ones_have_no_options(kind: str) -> None:
    layer, converted = getattr(rnnfused, kind)(I, H), rnnfused.convert(getattr(torch.nn, kind)(I, H))
    for own in (layer, converted):
        assert not DEFAULTS.keys() & vars(own).keys()
        assert {name: getattr(own, name) for name in DEFAULTS} == DEFAULTS
        assert not own._config().varied


def test_attributes_may_change_after_construction() -> None:
    layer, plain = made("LSTM", zoneout=0.5), made("LSTM")  # with the same weights: they are the same sizes
    layer.zoneout = 0.0
    assert torch.equal(layer(batch())[0], plain(batch())[0])
    plain.zoneout = 1.0
    assert (plain(batch())[0] == 0).all()
    plain.zoneout = 2.0
    with pytest.raises(ValueError, match=r"^zoneout: expected a probability"):
        plain(batch())
    plain.zoneout, plain.peephole = 0.0, True
    with pytest.raises(ValueError, match=r"^params: expected 5 tensors"):
        plain(batch())


@pytest.mark.parametrize(
    "kind, options",
    [
        ("RNN", {"layer_norm": True, "recurrent_dropout": 0.4, "gate_clip": 0.7}),
        ("LSTM", {"layer_norm": "joint", "cell_norm": "carried", "peephole": True, "coupled_gates": True}),
        ("LSTM", {"zoneout": (0.3, 0.6), "cell_clip": 0.2, "grad_clip": 0.01, "num_heads": 2}),
        ("GRU", {"layer_norm": "joint", "update_bias": -1.0, "zoneout": 0.3}),
        ("GRU", {"reset_after": False, "num_heads": 2}),
        ("LSTMCell", {"peephole": True, "zoneout": 0.3}),
    ],
)
def test_compiled_and_exported(kind: str, options: dict[str, Any]) -> None:
    """Steps are unrolled; what is drawn is drawn by the compiled code at each call."""
    torch.compiler.reset()  # what was compiled for other options counts against a limit
    layer, x = made(kind, **options), batch()[0] if kind.endswith("Cell") else batch()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    program = torch.export.export(layer, (x,)).module()

    def run(call: Callable[..., Any]) -> list[Tensor]:
        torch.manual_seed(7)
        first = call(x)[0]
        return [first, call(x)[0]]

    expected = run(layer)
    assert torch.equal(*expected) != layer._config().is_random
    for call in (compiled, program):
        for ours, theirs in zip(run(call), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_beside_what_else_layers_take() -> None:
    options = {"weight_drop": 0.4, "learn_initial_state": True, "return_cells": True, "recompute": True}
    layer = made("LSTM", peephole=True, zoneout=0.3, **options)
    with torch.no_grad():
        layer.initial_h_l0.fill_(0.5)
        layer.initial_c_l0.fill_(-0.5)
    torch.manual_seed(7)
    y, (h, c), cells = layer(batch())
    torch.manual_seed(7)
    plain = made("LSTM", peephole=True, zoneout=0.3)
    torch.manual_seed(7)
    with torch.no_grad():
        plain.weight_hh_l0.copy_(torch.nn.functional.dropout(layer.weight_hh_l0, 0.4))
    expected, (h_n, c_n) = plain(batch(), tuple(torch.full((1, B, H), v).double() for v in (0.5, -0.5)))
    assert torch.equal(y, expected)
    assert torch.equal(h, h_n)
    assert torch.equal(c, c_n)
    assert torch.equal(cells[-1], c[0])


def test_autocast_computes_in_float32() -> None:
    layer = made("GRU", layer_norm=True, num_layers=2).float()
    x, hx = batch(torch.float32), torch.ones(2, B, H)
    expected, h_n = layer(x, hx)
    with torch.autocast("cpu", torch.bfloat16):
        y, final = layer(x, hx)
        other = layer(x.bfloat16(), hx.bfloat16())[0]
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(y, expected)
    assert torch.equal(final, h_n)
    assert torch.equal(other, layer(x.bfloat16().float(), hx)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_of_16_bits_compute_in_float32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In native code: results and gradients are float32's, rounded once."""
    monkeypatch.setattr(_decomposed, "recurrent", None)
    layer = made("LSTM", layer_norm="joint", zoneout=0.1, num_layers=2).to(dtype)
    wide, x = copy.deepcopy(layer).float(), batch(dtype).requires_grad_()
    wide_x = x.detach().float().requires_grad_()
    torch.manual_seed(3)
    y, (h, c) = layer(x)
    torch.manual_seed(3)
    exact, states = wide(wide_x)
    for got, want in zip((y, h, c), (exact, *states), strict=True):
        assert torch.equal(got, want.to(dtype))
    y.sum().backward()
    exact.sum().backward()
    for got, want in zip((x, *layer.parameters()), (wide_x, *wide.parameters()), strict=True):
        assert torch.equal(got.grad, want.grad.to(dtype))
    with pytest.raises((ValueError, RuntimeError), match="dtype"):
        layer(batch(torch.float32))


# ---- What is drawn


def test_seeds_come_from_torchs_generator() -> None:
    """One draw a call: repeated by torch.manual_seed, another at each call, none in eval mode."""
    layer, x = made("LSTM", num_layers=2, **DRAWING), batch()
    torch.manual_seed(7)
    first, second = layer(x)[0], layer(x)[0]
    torch.manual_seed(7)
    assert torch.equal(layer(x)[0], first)
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])
    assert torch.equal(torch.get_rng_state(), before)
    for option in DRAWING:
        setattr(layer, option, 0.0)
    layer.train()(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_layers_and_directions_draw_on_their_own() -> None:
    """With zoneout of everything half of the units of each stand still."""
    layer = made("RNN", num_layers=2, bidirectional=True, zoneout=0.5)
    hx = states(layer)[0]
    _, final = layer(batch()[:1], hx)
    kept = final == hx
    assert kept.any() and not kept.all()
    assert len({tuple(part.flatten().tolist()) for part in kept}) == 4


def test_checkpointing_draws_the_same_again() -> None:
    layer, x = made("GRU", zoneout=0.3, recurrent_dropout=0.4), batch().requires_grad_()

    def gradients(run: Callable[..., Any]) -> list[Tensor]:
        torch.manual_seed(7)
        return list(torch.autograd.grad(run(x)[0].square().sum(), [x, *layer.parameters()]))

    expected = gradients(layer)
    for ours, theirs in zip(
        gradients(lambda x: checkpoint(layer, x, use_reentrant=False)), expected, strict=True
    ):
        assert torch.equal(ours, theirs)


def test_vmap_draws_as_it_is_told() -> None:
    layer, xs = made("LSTM", **DRAWING), batch().expand(4, -1, -1, -1)
    run = lambda x: layer(x)[0]  # noqa: E731
    torch.manual_seed(7)
    expected = layer(batch())[0]
    torch.manual_seed(7)
    same = torch.func.vmap(run, randomness="same")(xs)
    torch.testing.assert_close(same, expected.expand_as(same), rtol=0, atol=FLOAT64)
    different = torch.func.vmap(run, randomness="different")(xs)
    assert len({tuple(y.flatten().tolist()) for y in different}) == 4
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(run)(xs)


def test_the_mean_of_training_is_near_evaluation() -> None:
    """Of one step, where zoneout's mean is exact."""
    cell = made("GRUCell", zoneout=0.3)
    x, h = torch.randn(1, I).double().expand(20000, I), torch.randn(1, H).double().expand(20000, H)
    mean = cell(x, h).mean(0)
    # A mean of 20000 draws is off by at most half of the two values' distance over its root; five of them.
    torch.testing.assert_close(mean, cell.eval()(x, h)[0], rtol=0, atol=5 * 2 / 20000**0.5)


# ---- Errors


# A module, its options, and how the message begins.
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "peephole of a GRU": ("GRU", {"peephole": True}, "peephole: expected nothing for cell 'gru'"),
    "coupled gates of an RNN": ("RNN", {"coupled_gates": True}, "coupled_gates: expected nothing for cell"),
    "reset_after of an LSTM": (
        "LSTM",
        {"reset_after": False},
        "reset_after: expected nothing for cell 'lstm'",
    ),
    "cell_clip of an RNN": ("RNN", {"cell_clip": 1.0}, "cell_clip: expected nothing for cell 'rnn_tanh'"),
    "cell_norm of a GRU": ("GRU", {"cell_norm": "carried"}, "cell_norm: expected nothing for cell 'gru'"),
    "unknown norm": ("LSTM", {"layer_norm": "batch"}, r"layer_norm: expected one of .*, got 'batch'"),
    "joint norm of an RNN": ("RNN", {"layer_norm": "joint"}, "layer_norm: expected one of .*, got 'joint'"),
    "norm before the reset": (
        "GRU",
        {"reset_after": False, "layer_norm": True},
        "layer_norm: expected None with reset_after=False, got 'separate'",
    ),
    "unknown cell_norm": (
        "LSTM",
        {"layer_norm": "joint", "cell_norm": "inner"},
        r"cell_norm: expected one of .*, got 'inner'",
    ),
    "cell_norm alone": ("LSTM", {"cell_norm": "carried"}, "cell_norm: expected a layer_norm beside it"),
    "update_bias alone": ("GRU", {"update_bias": 1.0}, "update_bias: expected layer_norm='joint' beside it"),
    "cell_clip": ("LSTM", {"cell_clip": 0.0}, "cell_clip: expected a number above 0, got 0.0"),
    "gate_clip": ("GRU", {"gate_clip": -1.0}, "gate_clip: expected a number above 0, got -1.0"),
    "grad_clip": ("RNN", {"grad_clip": -1.0}, "grad_clip: expected a number above 0, got -1.0"),
    "zoneout": ("LSTM", {"zoneout": 1.5}, "zoneout: expected a probability or one for each of h, c, got 1.5"),
    "zoneout of c in a GRU": ("GRU", {"zoneout": (0.1, 0.1)}, "zoneout: expected a probability"),
    "recurrent_dropout": ("GRU", {"recurrent_dropout": -0.1}, "recurrent_dropout: expected a probability in"),
    "num_heads": ("GRU", {"num_heads": 0}, "num_heads: expected at least 1, got 0"),
    "num_heads of units": ("GRU", {"num_heads": 3}, "num_heads: expected a divisor of 4 units and of 4"),
    "forget_bias without f": (
        "LSTM",
        {"forget_bias": 1.0, "coupled_gates": True},
        "forget_bias: expected None with coupled_gates=True, got 1.0",
    ),
}


@pytest.mark.parametrize("kind, options, message", WRONG.values(), ids=WRONG)
def test_wrong_options_are_named(kind: str, options: dict[str, Any], message: str) -> None:
    for name in (kind, f"{kind}Cell"):
        with pytest.raises(ValueError, match=f"^{message}"):
            getattr(rnnfused, name)(I, H, **options)


def test_heads_must_divide_the_projection() -> None:
    with pytest.raises(ValueError, match=r"^num_heads: expected a divisor of 8 units and of 6, which h has"):
        rnnfused.LSTM(I, 8, proj_size=6, num_heads=4)


@pytest.mark.parametrize("number", [np.float64, np.float32, torch.tensor])
def test_numbers_of_numpy_and_torch(number: Any) -> None:
    options = {"recurrent_dropout": 0.25, "gate_clip": 2.0, "grad_clip": 0.5, "zoneout": 0.125}
    layer = rnnfused.GRU(4, 6, **{k: number(v) for k, v in options.items()}, num_heads=np.int64(2))
    want = rnnfused.GRU(4, 6, **options, num_heads=2)
    assert layer._config() == want._config() and repr(layer) == repr(want)
    assert layer(torch.zeros(3, 2, 4))[0].shape == (3, 2, 6)


@pytest.mark.parametrize(
    "value", ["1", [[1.0], [1.0]], 1j, True, np.True_, torch.tensor(True), torch.ones(2), np.ones(1)]
)
@pytest.mark.parametrize(
    "name", ["recurrent_dropout", "cell_clip", "grad_clip", "num_heads", "zoneout", "weight_drop"]
)
def test_what_is_no_number_is_named(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected an? (number|integer), got "):
        rnnfused.LSTM(4, 6, **{name: value})


@pytest.mark.parametrize("name", ["recurrent_dropout", "update_bias", "num_heads", "zoneout"])
def test_none_is_no_number(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}: expected an? (number|integer), got None"):
        rnnfused.GRU(4, 6, layer_norm="joint", **{name: None})


def test_compilers_may_have_numbers_stand_for_any() -> None:
    torch.compiler.reset()
    layer, x = made("GRU", gate_clip=2, zoneout=0.3).eval(), batch()
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    torch.testing.assert_close(compiled(x)[0], layer(x)[0])

    def clipped(limit: float) -> Tensor:
        h = x.new_zeros(1, x.size(1), H)
        return functional.gru(x, h, list(layer.parameters()), gate_clip=limit, zoneout=(limit,))[0]

    compiled = torch.compile(clipped, fullgraph=True, backend="eager")
    for limit in (0.1, 0.2, 0.3):
        torch.testing.assert_close(compiled(limit), clipped(limit))


def test_unknown_options_are_named() -> None:
    with pytest.raises(TypeError, match="peepholes"):
        rnnfused.LSTM(I, H, peepholes=True)
    layer = made("GRU")
    with pytest.raises(TypeError, match=r"^zone: expected no such argument"):
        functional.gru(batch(), states(layer)[0], layer._params(), zone=0.1)  # type: ignore[call-arg]


def test_arguments_are_checked_before_anything_runs() -> None:
    layer = made("LSTM", layer_norm="joint", peephole=True, num_layers=2, bidirectional=True)
    x, hx, params = batch(), tuple(states(layer)), list(layer._params())

    def run(x: Tensor = x, hx: Any = hx, params: list[Tensor] = params, **more: Any) -> Any:
        options: Any = {
            "layer_norm": "joint",
            "peephole": True,
            "num_layers": 2,
            "bidirectional": True,
        } | more
        return functional.lstm(x, hx, params, **options)

    def changed(name: str, tensor: Tensor) -> list[Tensor]:
        return [
            tensor if own == name else p for own, p in zip(layer._flat_weights_names, params, strict=True)
        ]

    run()
    with pytest.raises(ValueError, match=r"^params: expected 20 tensors \(5 for each of 4\), got 19$"):
        run(params=params[:-1])
    with pytest.raises(
        ValueError, match=r"^params: expected 21 tensors \(5 for each of 4, and seeds\), got 22$"
    ):
        run(params=[*params, params[0]], zoneout=0.1, training=True)
    with pytest.raises(
        RuntimeError, match=r"^weight_hh: expected size \[4 \* hidden_size, hidden_size\], got"
    ):
        run(params=changed("weight_hh_l0", torch.zeros(15, H).double()))
    for name, shape, wrong in (
        ("weight_ih_l0", [4 * H, I], torch.zeros(15, I)),
        ("weight_peephole_l1", [3, H], torch.zeros(2, H)),
        ("norm_bias_l0_reverse", [4 * H], torch.zeros(H)),
        ("weight_hh_l1_reverse", [4 * H, H], torch.zeros(3 * H, H)),
    ):
        expected = str(shape).replace("[", r"\[").replace("]", r"\]")
        with pytest.raises(RuntimeError, match=rf"^{name}: expected size {expected}, got \["):
            run(params=changed(name, wrong.double()))
    with pytest.raises(RuntimeError, match=r"^norm_weight_l1: expected dtype Double, got Float$"):
        run(params=changed("norm_weight_l1", torch.zeros(4 * H)))
    with pytest.raises(RuntimeError, match=r"^Input and parameter tensors are not at the same device"):
        run(params=changed("norm_weight_l1", torch.zeros(4 * H, device="meta").double()))
    with pytest.raises(
        RuntimeError, match=r"^input.size\(-1\) must be equal to input_size. Expected 3, got 2$"
    ):
        run(x[..., :2])
    with pytest.raises(RuntimeError, match=r"^Expected hidden\[0\] size \(4, 3, 4\), got \[4, 2, 4\]$"):
        run(hx=tuple(s[:, :2] for s in hx))
    with pytest.raises(RuntimeError, match=r"^lengths: expected size \[3\]"):
        run(lengths=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"^b_ih, b_hh: expected None with layer_norm='joint'"):
        functional.lstm_cell(
            x[0], (hx[0][0], hx[1][0]), *params[:2], params[3], params[3], layer_norm="joint"
        )


def test_what_has_no_options_says_so() -> None:
    layer = made("LSTM", zoneout=0.1, peephole=True).float()
    model = torch.nn.Sequential(layer)
    for make in (rnnfused.Frozen, rnnfused.Stepper):
        with pytest.raises(
            ValueError, match=r"^weights: expected None for a layer with peephole, zoneout, got"
        ):
            make(layer, weights="bf16")
        with pytest.raises(
            ValueError, match=r"^module: expected float32 or float64 on the CPU and no projection"
        ):
            make(made("LSTM", zoneout=0.1, peephole=True).half())
    with pytest.raises(
        RuntimeError, match=r"^layer: expected torch.nn's equations with 8 bits, got peephole, zoneout$"
    ):
        rnnfused.Quantized(layer)
    assert rnnfused.quantize_dynamic(model, smallest=1)[0]._config() == layer._config()
    for call in (rnnfused.to_torch, torch.jit.script):
        with (
            pytest.warns() if call is torch.jit.script else pytest.MonkeyPatch.context(),
            pytest.raises(ValueError, match=r"^module: torch.nn has no layer with peephole"),
        ):
            call(model)
    with pytest.raises(ValueError, match=r"^peephole: expected False, got True$"):
        rnnfused.interop.to_keras(layer)
    assert rnnfused.convert(model)[0] is layer


@pytest.mark.parametrize("kind", OPTIONS)
def test_frozen_and_stepper_know_every_option(kind: str) -> None:
    for options in OPTIONS[kind]:
        if "proj_size" in options:
            continue
        layer = made(kind, **{"num_layers": 2} | options).float().eval()
        x = batch(torch.float32)
        with torch.no_grad():
            expected, final = layer(x)
            frozen, frozen_final = rnnfused.Frozen(layer)(x)
            stepper = rnnfused.Stepper(layer, batch_size=B)
            steps = torch.stack([stepper(row) for row in x])
        assert torch.equal(frozen, expected)
        torch.testing.assert_close(frozen_final, final, rtol=0, atol=0)
        torch.testing.assert_close(steps, expected)
        torch.testing.assert_close(stepper.state, final)


def test_a_decoder_runs_a_layer_with_options() -> None:
    """What attends natively has torch.nn's equations only; a clip that clips nothing is an option, too."""
    decoder = rnnfused.seq2seq.AttentionDecoder(10, 6, 8, 5, input_feeding=False).eval()
    memory = decoder.attention.prepare(torch.randn(4, 2, 5))
    tokens = torch.randint(10, (3, 2))
    state = DecoderState((torch.randn(1, 2, 8), torch.randn(1, 2, 8)), None)
    expected = decoder(tokens, memory, state)
    decoder.recurrent.cell_clip = 100.0
    torch.testing.assert_close(decoder(tokens, memory, state).scores, expected.scores)
    decoder.recurrent.cell_clip = 0.01
    assert not torch.allclose(decoder(tokens, memory, state).scores, expected.scores)


# ---- Tables


def test_cells_take_what_the_reference_says() -> None:
    for name, spec in CELLS.items():
        assert set(spec.takes) == reference.CELLS[name].takes, name
        assert spec.norms == reference.CELLS[name].norms, name
    theirs = vars(reference.Options())
    assert {name: value for name, value in DEFAULTS.items() if name != "recurrent_dropout"} == theirs
    assert functional.CellOptions.__annotations__.keys() == DEFAULTS.keys()


def test_every_option_is_a_word_of_the_layer() -> None:
    for kind, every in OPTIONS.items():
        for options in every:
            config = made(kind, **options)._config()
            assert config.varied
            assert LayerConfig.parse(config.text) == config


def test_flops_are_those_of_products() -> None:
    config = LayerConfig("lstm", peephole=True, layer_norm="joint", bias=False, num_heads=2, drawn=True)
    shapes = [(4 * H, I), (2, 2 * H, H // 2), (3, H), (4 * H,), (4 * H,), (1,)]
    assert _flops._weights(config, shapes) == [4 * H * I, 4 * H * H // 2, 0, 0, 0, 0]
