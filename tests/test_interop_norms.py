"""Layer-norm layers of haste, NeMo, torchaudio and Dreamer: made of their weights, ours compute what steps in
NumPy do, which are written from the published equations, and what their own layers do where those are
installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from frameworks import (
    INPUT,
    Array,
    B,
    H,
    Step,
    T,
    assert_close,
    draw,
    features,
    output,
    over_layers,
    over_time,
    sigmoid,
)
from results import assert_same_bits
from torch import Tensor

import rnnfused
from rnnfused import interop


def norm(a: Array, gain: Array | float = 1.0, shift: Array | float = 0.0, eps: float = 1e-5) -> Array:
    centred = a - a.mean(-1, keepdims=True)
    return gain * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) + shift


def lstm_step(
    sums: Callable[[Array, Array], Array],
    order: str,
    carried: Callable[[Array], Array] = lambda c: c,
    shown: Callable[[Array], Array] = lambda c: c,
) -> Step:
    """sums: of x and h what enters the gates, in the order. carried, shown: what becomes of c, then what h is
    made of.
    """

    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        a = dict(zip(order, np.split(sums(x, h), 4, axis=1), strict=True))
        c = carried(sigmoid(a["f"]) * c + sigmoid(a["i"]) * np.tanh(a["g"]))
        return sigmoid(a["o"]) * np.tanh(shown(c)), c

    return step


def tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in arrays.items()}


def over_steps(layer: Any, x: Array) -> Array:
    """The output for x [B, T, I] of a layer that is not batch_first."""
    assert not layer.batch_first
    return output(layer, x.swapaxes(0, 1)).swapaxes(0, 1)


def assert_same_state(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    assert list(got) == list(want)
    assert_same_bits(got.values(), want.values())


def with_norms(layer: Any, *silent: str) -> Any:
    """The layer with norms that do something, but for the parameters whose names begin so: those are zero."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("norm_"):
                parameter.normal_()
            if name.startswith(silent):
                parameter.zero_()
    return layer


# haste


def haste_arrays(cell: str) -> dict[str, Array]:
    columns = {"lstm": 4, "gru": 3}[cell] * H
    shapes: dict[str, Any] = {"kernel": (INPUT, columns), "recurrent_kernel": (H, columns), "bias": columns}
    if cell == "gru":
        shapes["recurrent_bias"] = columns
    shapes["gamma"] = (2, columns)
    if cell == "lstm":
        shapes |= {"gamma_h": H, "beta_h": H}
    return {name: draw(shape) for name, shape in shapes.items()}


def haste_step(cell: str, p: Mapping[str, Array], zoneout: float) -> Step:
    """haste's equations, in evaluation: a unit keeps zoneout of its previous value."""

    def of_x(x: Array) -> Array:
        return norm(x @ p["kernel"], p["gamma"][0]) + p["bias"]

    def of_h(h: Array) -> Array:
        return norm(h @ p["recurrent_kernel"], p["gamma"][1]) + p.get("recurrent_bias", 0)

    def gru(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        x_z, x_r, x_h = np.split(of_x(x), 3, axis=1)
        h_z, h_r, h_h = np.split(of_h(h), 3, axis=1)
        z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        return z * h + (1 - z) * np.tanh(x_h + r * h_h), c

    def shown(c: Array) -> Array:
        return norm(c, p["gamma_h"], p["beta_h"])

    step = gru if cell == "gru" else lstm_step(lambda x, h: of_x(x) + of_h(h), "igfo", shown=shown)

    def zoned(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        new, c = step(x, h, c)
        return zoneout * h + (1 - zoneout) * new, c

    return zoned


@pytest.mark.parametrize("zoneout", [0.0, 0.25])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_haste_weights(cell: str, zoneout: float) -> None:
    arrays = haste_arrays(cell)
    layer = interop.from_haste(tensors(arrays), cell, zoneout=zoneout, dropout=0.5)
    assert layer.layer_norm == "separate" and layer.weight_drop == 0.5 and not layer.bias
    x = draw((B, T, INPUT))
    assert_close(over_steps(layer, x), over_time(haste_step(cell, arrays, zoneout), x))
    assert_same_state(interop.to_haste(layer), tensors(arrays))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_haste_round_trip(cell: str) -> None:
    options: dict[str, Any] = {"layer_norm": True, "bias": False}
    layer = rnnfused.GRU(INPUT, H, **options, zoneout=0.1)
    if cell == "lstm":
        layer = rnnfused.LSTM(INPUT, H, **options, cell_norm="output", zoneout=(0.1, 0.0))
    with_norms(layer, *(["norm_hh_bias"] if cell == "lstm" else []))
    back = interop.from_haste(interop.to_haste(layer), cell, zoneout=0.1)
    assert back.zoneout == layer.zoneout
    assert_same_state(back.state_dict(), layer.state_dict())


def test_haste_zoneout_without_layer_norm() -> None:
    for cell, zoneout in (("lstm", (0.2, 0.0)), ("gru", 0.2)):
        kind = {"lstm": rnnfused.LSTM, "gru": rnnfused.GRU}[cell]
        back = interop.from_haste(interop.to_haste(kind(INPUT, H, zoneout=zoneout)), cell, zoneout=0.2)
        assert back.zoneout == zoneout and back.layer_norm is None


@pytest.mark.parametrize(
    "layer, words",
    [
        (rnnfused.LSTM(INPUT, H, zoneout=0.1), r"zoneout: expected \(0.1, 0.0\), got \(0.1, 0.1\)"),
        (rnnfused.GRU(INPUT, H, layer_norm="joint"), "layer_norm: expected 'separate', got 'joint'"),
        (
            rnnfused.LSTM(INPUT, H, layer_norm=True, bias=False),
            "cell_norm: expected 'output', got None",
        ),
        (rnnfused.GRU(INPUT, H, layer_norm=True), "bias: expected False, got True"),
        (rnnfused.LSTM(INPUT, H, peephole=True), "peephole: expected False, got True"),
    ],
)
def test_what_haste_has_not(layer: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        interop.to_haste(layer)


def test_what_of_haste_does_not_fit() -> None:
    state = tensors(haste_arrays("lstm"))
    for name, words in (
        ("gamma", r"gamma: expected shape \(2, 16\)"),
        ("gamma_h", r"gamma_h: expected shape \(4,\)"),
        ("bias", r"bias: expected shape \(16,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            interop.from_haste({**state, name: torch.zeros(3)}, "lstm")
    with pytest.raises(ValueError, match=r"expected .* of a gru, got .*gamma_h"):
        interop.from_haste(state, "gru")


# NeMo, and torch's fastrnns


def nemo_cell(inputs: int) -> dict[str, Array]:
    shapes: dict[str, Any] = {"weight_ih": (4 * H, inputs), "weight_hh": (4 * H, H)}
    for name, size in (("i", 4 * H), ("h", 4 * H), ("c", H)):
        shapes |= {f"layernorm_{name}.weight": size, f"layernorm_{name}.bias": size}
    return {name: draw(shape) for name, shape in shapes.items()}


def nemo_step(p: Mapping[str, Array]) -> Step:
    def normed(name: str, a: Array) -> Array:
        return norm(a, p[f"layernorm_{name}.weight"], p[f"layernorm_{name}.bias"])

    def sums(x: Array, h: Array) -> Array:
        return normed("i", x @ p["weight_ih"].T) + normed("h", h @ p["weight_hh"].T)

    return lstm_step(sums, "ifgo", carried=lambda c: normed("c", c))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_nemo_weights(num_layers: int, bidirectional: bool) -> None:
    cells = [[nemo_cell(n) for _ in range(1 + bidirectional)] for n in features(num_layers, bidirectional)]
    state = {
        f"layers.{index}.{f'directions.{k}.' if bidirectional else ''}cell.{name}": values
        for index, directions in enumerate(cells)
        for k, cell in enumerate(directions)
        for name, values in cell.items()
    }
    layer = interop.from_nemo(tensors(state))
    assert (layer.num_layers, layer.bidirectional, layer.bias) == (num_layers, bidirectional, False)
    x = draw((B, T, INPUT))
    assert_close(over_steps(layer, x), over_layers([[nemo_step(c) for c in each] for each in cells], x))
    assert_same_state(interop.to_nemo(layer), tensors(state))


def test_nemo_round_trip() -> None:
    options: dict[str, Any] = {"layer_norm": True, "cell_norm": "carried", "bias": False}
    layer = with_norms(rnnfused.LSTM(INPUT, H, 2, bidirectional=True, **options))
    back = interop.from_nemo(interop.to_nemo(layer))
    assert_same_state(back.state_dict(), layer.state_dict())


def test_nemo_itself() -> None:
    nemo = pytest.importorskip("nemo.collections.common.parts.rnn")
    theirs = nemo.rnn(INPUT, H, 2, norm="layer").double()
    x = draw((B, T, INPUT))
    with torch.no_grad():
        want = theirs(torch.from_numpy(x.swapaxes(0, 1)), None)[0].numpy().swapaxes(0, 1)
    layer = interop.from_nemo(theirs)
    assert_close(over_steps(layer, x), want)
    theirs.load_state_dict(interop.to_nemo(layer))


def test_what_nemo_has_not() -> None:
    options: dict[str, Any] = {"layer_norm": True, "cell_norm": "carried"}
    for layer, words in (
        (rnnfused.GRU(INPUT, H), "layer: expected 'lstm', got 'gru'"),
        (rnnfused.LSTM(INPUT, H), "layer_norm: expected 'separate', got None"),
        (
            rnnfused.LSTM(INPUT, H, layer_norm=True, cell_norm="output"),
            "cell_norm: expected 'carried', got 'output'",
        ),
        (rnnfused.LSTM(INPUT, H, **options), "bias: expected False, got True"),
        (rnnfused.LSTM(INPUT, H, **options, bias=False, zoneout=0.1), "zoneout: expected 0.0, got 0.1"),
    ):
        with pytest.raises(ValueError, match=words):
            interop.to_nemo(layer)
    state = tensors({f"layers.0.cell.{name}": values for name, values in nemo_cell(INPUT).items()})
    with pytest.raises(ValueError, match=r"expected layers.0.cell.weight_ih, .* of a layer-norm LSTM, got "):
        interop.from_nemo({"weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"layernorm_c.bias: expected shape \(4,\), got \(3,\)"):
        interop.from_nemo({**state, "layers.0.cell.layernorm_c.bias": torch.zeros(3)})


# torchaudio


class AudioLSTM(torch.nn.Module):
    """torchaudio's parameters of an LSTM with layer norm."""

    def __init__(self, inputs: int, eps: float = 1e-5, kind: type = torch.nn.LayerNorm) -> None:
        super().__init__()
        self.x2g = torch.nn.Linear(inputs, 4 * H, bias=False)
        self.p2g = torch.nn.Linear(H, 4 * H, bias=False)
        self.c_norm = kind(H, eps)
        self.g_norm = kind(4 * H, eps)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_()
        self.double()


def torchaudio_step(state: Mapping[str, Tensor]) -> Step:
    p = {name: values.numpy() for name, values in state.items()}
    if "g_norm.weight" not in p:
        return lstm_step(lambda x, h: x @ p["x2g.weight"].T + p["x2g.bias"] + h @ p["p2g.weight"].T, "ifgo")

    def normed(name: str, a: Array) -> Array:
        return norm(a, p[f"{name}_norm.weight"], p[f"{name}_norm.bias"])

    def sums(x: Array, h: Array) -> Array:
        return normed("g", x @ p["x2g.weight"].T + h @ p["p2g.weight"].T)

    return lstm_step(sums, "ifgo", carried=lambda c: normed("c", c))


class Float32Norm(torch.nn.LayerNorm):
    """A user's, whose epsilon counts as any other."""


class LayerNorm(torch.nn.Module):
    """One without an epsilon, as fastrnns has."""

    def __init__(self, size: int, _eps: float) -> None:
        super().__init__()
        self.weight, self.bias = (torch.nn.Parameter(torch.zeros(size)) for _ in range(2))


@pytest.mark.parametrize("kind, got", [(Float32Norm, "0.001"), (LayerNorm, "None")])
def test_layer_norms_of_other_classes(kind: type, got: str) -> None:
    module = AudioLSTM(INPUT, eps=1e-3, kind=kind)
    with pytest.raises(ValueError, match=f"eps of c_norm: expected 1e-05, got {got}"):
        interop.from_torchaudio(module)
    interop.from_torchaudio(module.state_dict())
    interop.from_torchaudio(AudioLSTM(INPUT, kind=Float32Norm))


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_torchaudio_weights(num_layers: int, normed: bool) -> None:
    modules = torch.nn.ModuleList(AudioLSTM(inputs) for inputs in features(num_layers, False))
    states = [module.state_dict() for module in modules]
    if not normed:
        plain = ("x2g.weight", "p2g.weight")
        bias = torch.ones(4 * H).double()
        states = [{name: state[name] for name in plain} | {"x2g.bias": bias} for state in states]
    layer = interop.from_torchaudio(modules if normed else states)
    assert layer.num_layers == num_layers and layer.layer_norm == ("joint" if normed else None)
    x = draw((B, T, INPUT))
    assert_close(over_steps(layer, x), over_layers([[torchaudio_step(state)] for state in states], x))
    for got, want in zip(interop.to_torchaudio(layer), states, strict=True):
        assert_same_state(got, want)
    if num_layers == 1:
        alone = interop.from_torchaudio(modules[0] if normed else states[0])
        assert_same_state(alone.state_dict(), layer.state_dict())


def test_torchaudio_round_trip() -> None:
    layer = with_norms(rnnfused.LSTM(INPUT, H, 2, layer_norm="joint", cell_norm="carried"))
    back = interop.from_torchaudio(interop.to_torchaudio(layer))
    assert_same_state(back.state_dict(), layer.state_dict())


@pytest.mark.parametrize("layer_norm", [True, False])
def test_torchaudio_itself(layer_norm: bool) -> None:
    try:
        from torchaudio.models.rnnt import _CustomLSTM
    except (ImportError, OSError) as error:
        pytest.skip(f"no torchaudio: {error}")
    theirs, x = _CustomLSTM(INPUT, H, layer_norm).double(), draw((B, T, INPUT))
    with torch.no_grad():
        want = theirs(torch.from_numpy(x.swapaxes(0, 1)), None)[0].numpy().swapaxes(0, 1)
    layer = interop.from_torchaudio(theirs)
    assert_close(over_steps(layer, x), want)
    theirs.load_state_dict(interop.to_torchaudio(layer)[0])


def test_what_torchaudio_has_not() -> None:
    for layer, words in (
        (rnnfused.GRU(INPUT, H), "layer: expected 'lstm', got 'gru'"),
        (rnnfused.LSTM(INPUT, H, bidirectional=True), "bidirectional: expected False, got True"),
        (rnnfused.LSTM(INPUT, H, layer_norm=True), "layer_norm: expected 'joint', got 'separate'"),
        (rnnfused.LSTM(INPUT, H, layer_norm="joint"), "cell_norm: expected 'carried', got None"),
        (rnnfused.LSTM(INPUT, H, num_heads=2), "num_heads: expected 1, got 2"),
    ):
        with pytest.raises(ValueError, match=words):
            interop.to_torchaudio(layer)
    with pytest.raises(ValueError, match=r"eps of c_norm: expected 1e-05, got 0.001"):
        interop.from_torchaudio(AudioLSTM(INPUT, eps=1e-3))
    with pytest.raises(ValueError, match="source: expected at least one layer, got none"):
        interop.from_torchaudio([])
    with pytest.raises(ValueError, match=r"expected x2g.weight, .* of an LSTM without layer norm, got "):
        interop.from_torchaudio({"x2g.weight": torch.zeros(3)})
    state = AudioLSTM(INPUT).state_dict()
    with pytest.raises(ValueError, match=r"g_norm.bias: expected shape \(16,\), got \(4,\)"):
        interop.from_torchaudio({**state, "g_norm.bias": state["c_norm.bias"]})


# Dreamer


def dreamer_step(weight: Array, gain: Array, shift: Array, eps: float, update_bias: float) -> Step:
    def step(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        parts = norm(np.concatenate([x, h], axis=1) @ weight.T, gain, shift, eps)
        reset, candidate, update = np.split(parts, 3, axis=1)
        u = sigmoid(update + update_bias)
        return u * np.tanh(sigmoid(reset) * candidate) + (1 - u) * h, c

    return step


def dreamer_arrays() -> tuple[Array, Array, Array]:
    return draw((3 * H, INPUT + H)), draw(3 * H), draw(3 * H)


@pytest.mark.parametrize("eps, update_bias", [(1e-3, -1.0), (1e-5, -1.0), (1e-1, 0.5)])
def test_dreamer_weights(eps: float, update_bias: float) -> None:
    arrays = dreamer_arrays()
    layer = interop.from_dreamer(*arrays, eps=eps, update_bias=update_bias)
    assert layer.layer_norm == "joint" and layer.update_bias == update_bias
    x = draw((B, T, INPUT))
    assert_close(over_steps(layer, x), over_time(dreamer_step(*arrays, eps, update_bias), x))
    back = interop.to_dreamer(layer, eps=eps)
    if eps == 1e-5:
        assert_same_bits(back, [torch.from_numpy(array) for array in arrays])
    for got, want in zip(back, arrays, strict=True):
        assert_close(got.numpy(), want)


def test_dreamer_round_trip() -> None:
    layer = with_norms(rnnfused.GRU(INPUT, H, layer_norm="joint", update_bias=-1.0))
    back = interop.from_dreamer(*interop.to_dreamer(layer, eps=1e-5), eps=1e-5)
    assert_same_state(back.state_dict(), layer.state_dict())


def test_what_dreamer_has_not() -> None:
    for layer, words in (
        (rnnfused.LSTM(INPUT, H), "layer: expected 'gru', got 'lstm'"),
        (rnnfused.GRU(INPUT, H), "layer_norm: expected 'joint', got None"),
        (rnnfused.GRU(INPUT, H, 2, layer_norm="joint"), "num_layers: expected 1, got 2"),
        (rnnfused.GRU(INPUT, H, layer_norm="joint", zoneout=0.1), "zoneout: expected 0.0, got 0.1"),
        (
            rnnfused.GRU(INPUT, H, layer_norm="joint", bidirectional=True),
            "bidirectional: expected False, got True",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            interop.to_dreamer(layer)
    weight, gain, shift = dreamer_arrays()
    for wrong in (weight[:, :H], weight[1:], gain):
        with pytest.raises(ValueError, match=r"weight: expected shape \(3 H, I \+ H\), got"):
            interop.from_dreamer(wrong, gain, shift)
    with pytest.raises(ValueError, match=r"norm_bias: expected shape \(12,\), got \(11,\)"):
        interop.from_dreamer(weight, gain, shift[1:])
    with pytest.raises(ValueError, match="eps: expected a number above 0, got 0"):
        interop.from_dreamer(weight, gain, shift, eps=0)


def test_a_layer_has_memory_of_its_own() -> None:
    module = AudioLSTM(INPUT)
    layer = interop.from_torchaudio(module)
    before = {name: values.clone() for name, values in layer.state_dict().items()}
    with torch.no_grad():
        for tensor in (*module.parameters(), *interop.to_torchaudio(layer)[0].values()):
            tensor.zero_()
    assert_same_state(layer.state_dict(), before)
