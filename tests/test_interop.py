"""Weights of other frameworks: layers made of them compute what steps in NumPy do, which are written from the
frameworks' published equations, and what the frameworks' own layers do where those are installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from frameworks import (
    CELLS,
    GATES,
    INPUT,
    LAYOUTS,
    Array,
    B,
    H,
    Step,
    T,
    assert_close,
    assert_float32_close,
    assert_same_arrays,
    draw,
    features,
    make,
    output,
    over_layers,
    over_time,
    relu,
    sigmoid,
    with_one_bias,
)
from results import assert_same_bits
from torch import Tensor

import rnnfused
from rnnfused import interop

# Keras


def keras_step(cell: str, kernel: Array, recurrent: Array, bias: Array) -> Step:
    """Keras's documented equations; of a GRU reset_after where there are two biases."""

    def lstm(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    def gru(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        x_z, x_r, x_h = np.split(x @ kernel + bias[0], 3, axis=1)
        h_z, h_r, h_h = np.split(h @ recurrent + bias[1], 3, axis=1)
        z, r = sigmoid(x_z + h_z), sigmoid(x_r + h_r)
        return z * h + (1 - z) * np.tanh(x_h + r * h_h), c

    def gru_reset_before(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        x_z, x_r, x_h = np.split(x @ kernel + bias, 3, axis=1)
        u_z, u_r, u_h = np.split(recurrent, 3, axis=1)
        z, r = sigmoid(x_z + h @ u_z), sigmoid(x_r + h @ u_r)
        return z * h + (1 - z) * np.tanh(x_h + (r * h) @ u_h), c

    def rnn(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        act = np.tanh if cell == "rnn_tanh" else relu
        return act(x @ kernel + h @ recurrent + bias), c

    return {"lstm": lstm, "gru": gru if bias.ndim == 2 else gru_reset_before}.get(cell, rnn)


KERAS_NAMES = {"rnn_tanh": "SimpleRNN", "rnn_relu": "SimpleRNN", "lstm": "LSTM", "gru": "GRU"}


def keras_config(cell: str, **changed: Any) -> dict[str, Any]:
    config = {
        "units": H,
        "activation": "relu" if cell == "rnn_relu" else "tanh",
        "use_bias": True,
        "go_backwards": False,
        "dropout": 0.5,
    }
    if cell in ("lstm", "gru"):
        config["recurrent_activation"] = "sigmoid"
    if cell == "gru":
        config["reset_after"] = True
    return {**config, **changed}


def keras_layer(name: str, config: Mapping[str, Any], weights: Sequence[Array]) -> Any:
    """What from_keras asks of a layer of Keras's, without Keras."""
    methods = {"get_config": lambda self: config, "get_weights": lambda self: weights}
    return type(name, (), methods)()


def keras_bidirectional(cell: str, weights: Sequence[Array], **changed: Any) -> Any:
    # Whether there are two biases tells reset_after; without weights there is none to be told.
    after = {"reset_after": weights[2].ndim == 2} if cell == "gru" and weights else {}
    layers = {
        name: {"class_name": KERAS_NAMES[cell], "config": keras_config(cell, go_backwards=backwards, **after)}
        for name, backwards in (("layer", False), ("backward_layer", True))
    }
    return keras_layer("Bidirectional", {"merge_mode": "concat", **layers, **changed}, weights)


def keras_weights(cell: str, inputs: int, reset_after: bool = True) -> list[Array]:
    columns, two = GATES[cell] * H, cell == "gru" and reset_after
    return [draw((inputs, columns)), draw((H, columns)), draw((2, columns) if two else columns)]


def keras_layers(cell: str, arrays: Sequence[Array], bidirectional: bool) -> list[Any]:
    """Of the weights of one layer after the other, as to_keras has them."""
    each = 6 if bidirectional else 3
    parts = [arrays[k : k + each] for k in range(0, len(arrays), each)]
    if bidirectional:
        return [keras_bidirectional(cell, part) for part in parts]
    after = {"reset_after": arrays[2].ndim == 2} if cell == "gru" else {}
    return [keras_layer(KERAS_NAMES[cell], keras_config(cell, **after), part) for part in parts]


EVERY_KIND = [(cell, True) for cell in CELLS] + [("gru", False)]  # a cell, and the GRU's reset_after


@pytest.mark.parametrize("num_layers, bidirectional", LAYOUTS)
@pytest.mark.parametrize("cell, reset_after", EVERY_KIND)
def test_keras_weights(cell: str, reset_after: bool, num_layers: int, bidirectional: bool) -> None:
    weights = [
        [keras_weights(cell, inputs, reset_after) for _ in range(1 + bidirectional)]
        for inputs in features(num_layers, bidirectional)
    ]
    flat = [array for directions in weights for arrays in directions for array in arrays]
    layers = keras_layers(cell, flat, bidirectional)
    layer = interop.from_keras(layers if num_layers > 1 else layers[0])
    assert type(layer) is type(make(cell, 1, 1)) and layer.batch_first
    assert (layer.num_layers, layer.bidirectional) == (num_layers, bidirectional)
    assert layer.reset_after is reset_after
    x = draw((B, T, INPUT))
    steps = [[keras_step(cell, *arrays) for arrays in directions] for directions in weights]
    assert_close(output(layer, x), over_layers(steps, x))
    assert_same_arrays(interop.to_keras(layer), flat)


@pytest.mark.parametrize("num_layers, bidirectional", LAYOUTS)
@pytest.mark.parametrize("cell, reset_after", EVERY_KIND)
def test_keras_round_trip(cell: str, reset_after: bool, num_layers: int, bidirectional: bool) -> None:
    options: dict[str, Any] = {"batch_first": True, "bidirectional": bidirectional}
    if not reset_after:
        options["reset_after"] = False
    layer = make(cell, INPUT, H, num_layers, **options)
    if cell != "gru" or not reset_after:
        with_one_bias(layer)
    back = interop.from_keras(keras_layers(cell, interop.to_keras(layer), bidirectional))
    assert list(back.state_dict()) == list(layer.state_dict())
    assert_same_bits(back.state_dict().values(), layer.state_dict().values())


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_keras_without_bias(cell: str) -> None:
    weights = keras_weights(cell, INPUT)[:2]
    layer = interop.from_keras(keras_layer(KERAS_NAMES[cell], keras_config(cell, use_bias=False), weights))
    assert not layer.bias
    assert_same_arrays(interop.to_keras(layer), weights)


@pytest.mark.parametrize("unit_forget_bias, use_bias", [(True, True), (False, True), (True, False)])
def test_keras_regularisers(unit_forget_bias: bool, use_bias: bool) -> None:
    """What the layer does in training, and when it is initialised anew."""
    config = keras_config(
        "lstm", recurrent_dropout=0.25, unit_forget_bias=unit_forget_bias, use_bias=use_bias
    )
    weights = keras_weights("lstm", INPUT)[: 3 if use_bias else 2]
    layer = interop.from_keras(keras_layer("LSTM", config, weights), torch.float32)
    assert isinstance(layer, rnnfused.LSTM) and layer.recurrent_dropout == 0.25
    assert layer.forget_bias == (1.0 if unit_forget_bias and use_bias else None)
    layer.reset_parameters()
    if use_bias:
        forget = layer.bias_ih_l0.detach()[H : 2 * H]
        assert bool((forget >= 1 - H**-0.5).all()) is unit_forget_bias
    x = torch.randn(B, T, INPUT)
    assert not torch.equal(layer(x)[0], layer.eval()(x)[0])
    assert len(interop.to_keras(layer)) == len(weights)


def test_bfloat16_arrays() -> None:
    """Which NumPy has from ml_dtypes alone."""
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    state = haste_state("gru")
    arrays = {name: values.numpy().astype(bfloat16) for name, values in state.items()}
    layer = interop.from_haste(arrays, "gru")
    assert layer.weight_ih_l0.dtype == torch.bfloat16
    want = interop.from_haste(state, "gru", torch.bfloat16)
    assert_same_bits(layer.state_dict().values(), want.state_dict().values())


def test_keras_in_another_dtype() -> None:
    layer = interop.from_keras(
        keras_layer("GRU", keras_config("gru"), keras_weights("gru", INPUT)), torch.bfloat16
    )
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad and p.is_contiguous() for p in layer.parameters())
    with pytest.raises(ValueError, match="expected weights in float16, float32 or float64, got bfloat16"):
        interop.to_keras(layer)


GRU_CONFIG, GRU_WEIGHTS = keras_config("gru"), keras_weights("gru", INPUT)


def keras_gru(**changed: Any) -> Any:
    return keras_layer("GRU", {**GRU_CONFIG, **changed}, GRU_WEIGHTS)


@pytest.mark.parametrize(
    "layer, words",
    [
        (keras_gru(reset_after=None), "reset_after of layer 0: expected True or False, got None"),
        (
            keras_gru(reset_after=False),
            r"bias of layer 0: expected shape \(12,\), got \(2, 12\)",
        ),
        (keras_gru(activation="relu"), "activation of layer 0: expected 'tanh', got 'relu'"),
        (
            keras_gru(recurrent_activation="hard_sigmoid"),
            "recurrent_activation .*: expected 'sigmoid', got 'hard_s",
        ),
        (keras_gru(go_backwards=True), "go_backwards of layer 0: expected False, got True"),
        (keras_layer("GRU", GRU_CONFIG, []), r"expected 3 arrays \(a layer that is built\), got 0"),
        (
            keras_layer("ConvLSTM2D", GRU_CONFIG, []),
            "expected Bidirectional, SimpleRNN, LSTM, GRU, got ConvLSTM2D",
        ),
        (keras_layer("SimpleRNN", {"activation": "elu"}, []), "expected 'tanh' or 'relu', got 'elu'"),
        (keras_bidirectional("gru", 2 * GRU_WEIGHTS, merge_mode="sum"), "expected 'concat', got 'sum'"),
        (
            keras_bidirectional("gru", [], backward_layer={"class_name": "GRU", "config": GRU_CONFIG}),
            "go_backwards of layer 0: expected True, got False",
        ),
        (
            keras_bidirectional(
                "gru",
                [],
                backward_layer={"class_name": "LSTM", "config": keras_config("lstm", go_backwards=True)},
            ),
            "expected the same in both directions, got .*gru.*lstm",
        ),
        (
            keras_bidirectional(
                "lstm",
                [],
                backward_layer={
                    "class_name": "LSTM",
                    "config": keras_config("lstm", go_backwards=True, recurrent_dropout=0.5),
                },
            ),
            "expected the same in both directions, .*'recurrent_dropout': 0.0, .*'recurrent_dropout': 0.5",
        ),
        (
            keras_layer("GRU", GRU_CONFIG, [*GRU_WEIGHTS[:2], GRU_WEIGHTS[2][0]]),
            r"bias of layer 0: expected shape \(2, 12\), got \(12,\)",
        ),
        (
            keras_layer("GRU", GRU_CONFIG, [GRU_WEIGHTS[0][:, 1:], *GRU_WEIGHTS[1:]]),
            r"^kernel of layer 0: expected shape \(3, 12\), got \(3, 11\)",
        ),
        (
            keras_layer("GRU", GRU_CONFIG, [a.astype(np.int64) for a in GRU_WEIGHTS]),
            "kernel of layer 0: expected floating-point numbers, got torch.int64",
        ),
        ([], "expected at least one, got none"),
        ([keras_gru(), keras_gru()], "expected 4 features and 4 units in layer 1, got 3 and 4"),
        (
            [keras_gru(), keras_bidirectional("gru", 2 * GRU_WEIGHTS)],
            "expected 1 directions in each, got 2 in 1",
        ),
        (
            [keras_gru(), keras_layer("LSTM", keras_config("lstm"), keras_weights("lstm", H))],
            "layer 1: expected a layer of kind gru as layer 0, got lstm",
        ),
        (
            [
                keras_gru(),
                keras_layer("GRU", keras_config("gru", reset_after=False), keras_weights("gru", H, False)),
            ],
            "reset_after of layer 1: expected True as layer 0, got False",
        ),
    ],
)
def test_what_of_keras_is_an_error(layer: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        interop.from_keras(layer)


def tanh(values: Any) -> Any:
    """Not Keras's, whose name it has."""
    return values


def test_a_users_function_is_not_kerass_of_that_name() -> None:
    words = "activation of layer 0: expected Keras's own function of that name, got <function tanh"
    theirs, both = keras_gru(), keras_bidirectional("gru", 2 * GRU_WEIGHTS)
    theirs.recurrent_activation = torch.nn.functional.sigmoid
    theirs.activation = torch.nn.functional.tanh
    interop.from_keras(theirs)
    theirs.activation, both.backward_layer = tanh, theirs
    for layer in (theirs, both):
        with pytest.raises(ValueError, match=words):
            interop.from_keras(layer)


def test_keras_itself_with_other_functions() -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layers = [keras.layers.LSTM(H, activation=one) for one in (keras.activations.tanh, keras.ops.tanh, tanh)]
    for layer in layers:
        layer.build((None, None, INPUT))
    for layer in layers[:2]:
        interop.from_keras(layer)
    with pytest.raises(ValueError, match="activation of layer 0: expected Keras's own function"):
        interop.from_keras(layers[2])


@pytest.mark.parametrize("num_layers, bidirectional", LAYOUTS)
@pytest.mark.parametrize("cell, reset_after", EVERY_KIND)
def test_keras_itself(cell: str, reset_after: bool, num_layers: int, bidirectional: bool) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")

    def one() -> Any:
        options: dict[str, Any] = {"return_sequences": True, "bias_initializer": "glorot_uniform"}
        if cell == "rnn_relu":
            options["activation"] = "relu"
        if not reset_after:
            options |= {"reset_after": False, "recurrent_dropout": 0.5}  # which matters in training alone
        layer = getattr(keras.layers, KERAS_NAMES[cell])(H, **options)
        return keras.layers.Bidirectional(layer) if bidirectional else layer

    model = keras.Sequential([one() for _ in range(num_layers)])
    model.build((None, None, INPUT))
    x = draw((B, T, INPUT)).astype(np.float32)
    layer = interop.from_keras(model.layers)
    assert_float32_close(output(layer, x), model.predict(x, verbose=0))
    assert_same_arrays(interop.to_keras(layer), model.get_weights())
    assert layer.recurrent_dropout == (0.0 if reset_after else 0.5)
    of_gru = {} if reset_after else {"reset_after": False}
    ours = make(cell, INPUT, H, num_layers, batch_first=True, bidirectional=bidirectional, **of_gru)
    model.set_weights(interop.to_keras(ours))
    assert_float32_close(output(ours, x), model.predict(x, verbose=0))


# Flax


def flax_step(cell: str, tree: Mapping[str, Any]) -> Step:
    """Flax's documented equations, Dense by Dense."""

    def dense(name: str, values: Array) -> Array:
        return values @ tree[name]["kernel"] + tree[name].get("bias", 0)

    def lstm(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, f, o = (sigmoid(dense(f"i{gate}", x) + dense(f"h{gate}", h)) for gate in "ifo")
        c = f * c + i * np.tanh(dense("ig", x) + dense("hg", h))
        return o * np.tanh(c), c

    def gru(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        r, z = (sigmoid(dense(f"i{gate}", x) + dense(f"h{gate}", h)) for gate in "rz")
        n = np.tanh(dense("in", x) + r * dense("hn", h))
        return (1 - z) * n + z * h, c

    def rnn(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        return (np.tanh if cell == "rnn_tanh" else relu)(dense("i", x) + dense("h", h)), c

    return {"lstm": lstm, "gru": gru}.get(cell, rnn)


FLAX_NAMES = {
    "lstm": ["ii", "if", "ig", "io", "hi", "hf", "hg", "ho"],
    "gru": ["ir", "iz", "in", "hr", "hz", "hn"],
    "rnn_tanh": ["i", "h"],
    "rnn_relu": ["i", "h"],
}
FLAX_BIASED = {"hi", "hf", "hg", "ho", "ir", "iz", "in", "hn", "i"}


def flax_cell(cell: str, inputs: int) -> dict[str, Any]:
    return {
        name: {"kernel": draw((inputs if name[0] == "i" else H, H))}
        | ({"bias": draw(H)} if name in FLAX_BIASED else {})
        for name in FLAX_NAMES[cell]
    }


def flax_tree(cell: str, inputs: int, bidirectional: bool) -> dict[str, Any]:
    if not bidirectional:
        return flax_cell(cell, inputs)
    return {name: {"cell": flax_cell(cell, inputs)} for name in ("forward_rnn", "backward_rnn")}


def leaves(tree: Any) -> dict[str, Array]:
    """The arrays of a tree by their paths."""
    if not isinstance(tree, Mapping):
        return {"": np.asarray(tree)}
    return {f"/{name}{path}": leaf for name, part in tree.items() for path, leaf in leaves(part).items()}


def assert_same_tree(got: Any, want: Any) -> None:
    got, want = leaves(got), leaves(want)
    assert sorted(got) == sorted(want)
    assert_same_arrays([got[path] for path in want], list(want.values()))


@pytest.mark.parametrize("num_layers, bidirectional", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_flax_parameters(cell: str, num_layers: int, bidirectional: bool) -> None:
    trees = [flax_tree(cell, inputs, bidirectional) for inputs in features(num_layers, bidirectional)]
    layer = interop.from_flax(trees if num_layers > 1 else {"params": trees[0]}, cell)
    assert layer.batch_first and (layer.num_layers, layer.bidirectional) == (num_layers, bidirectional)
    x = draw((B, T, INPUT))
    cells = [
        [tree[name]["cell"] for name in ("forward_rnn", "backward_rnn")] if bidirectional else [tree]
        for tree in trees
    ]
    steps = [[flax_step(cell, one) for one in directions] for directions in cells]
    assert_close(output(layer, x), over_layers(steps, x))
    for one, other in zip(interop.to_flax(layer), trees, strict=True):
        assert_same_tree(one, other)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_flax_has_fewer_biases(cell: str, bias: bool) -> None:
    """What has no place of its own is added to where it belongs."""
    layer = make(cell, INPUT, H, batch_first=True, bias=bias, dtype=torch.float64)
    (tree,) = interop.to_flax(layer)
    assert {name for name in tree if "bias" in tree[name]} == FLAX_BIASED & set(tree)
    x = draw((B, T, INPUT))
    want = output(layer, x)
    assert_close(over_time(flax_step(cell, tree), x), want)
    assert_close(output(interop.from_flax(tree, cell), x), want)


LSTM_TREE = flax_cell("lstm", INPUT)


@pytest.mark.parametrize(
    "params, cell, words",
    [
        (LSTM_TREE, "mgu", "cell: expected 'lstm' or 'gru' .*, got 'mgu'"),
        (LSTM_TREE, "gru", "params: expected ir, iz, in, hr, hz, hn of a cell 'gru', got ii, if"),
        ({"dense_i": {}, "dense_h": {}}, "gru", "expected ir, .* got dense_i, dense_h"),
        ({**LSTM_TREE, "hf": {"scale": 1.0}}, "lstm", "hf: expected a kernel, got scale"),
        (
            {**LSTM_TREE, "if": {"kernel": draw((5, H))}},
            "lstm",
            r"kernel of if: expected shape \(3, 4\), got \(5, 4\)",
        ),
        (
            {**LSTM_TREE, "ho": {"kernel": draw((H, H)), "bias": draw(3)}},
            "lstm",
            r"bias of ho: .*\(4,\), got \(3,\)",
        ),
        ([], "lstm", "params: expected at least one layer, got none"),
    ],
)
def test_what_of_flax_is_an_error(params: Any, cell: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        interop.from_flax(params, cell)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_flax_itself(cell: str, bidirectional: bool) -> None:
    flax = pytest.importorskip("flax.linen")
    import jax

    def one() -> Any:
        options = {"bias_init": flax.initializers.normal()}
        if cell == "rnn_relu":
            options["activation_fn"] = flax.relu
        kinds = {"lstm": flax.OptimizedLSTMCell, "gru": flax.GRUCell}
        return flax.RNN(kinds.get(cell, flax.SimpleCell)(H, **options))

    model = flax.Bidirectional(one(), one()) if bidirectional else one()
    x = draw((B, T, INPUT)).astype(np.float32)
    variables = model.init(jax.random.key(0), x)
    layer = interop.from_flax(variables, cell)
    assert_float32_close(output(layer, x), np.asarray(model.apply(variables, x)))
    (tree,) = interop.to_flax(layer)
    assert_same_tree(tree if bidirectional else {"cell": tree}, variables["params"])
    if cell == "lstm":  # the plain cell has the same parameters
        plain = flax.RNN(flax.LSTMCell(H)).init(jax.random.key(0), x)
        optimized = flax.RNN(flax.OptimizedLSTMCell(H)).init(jax.random.key(0), x)
        assert sorted(leaves(plain)) == sorted(leaves(optimized))


# haste


def haste_step(cell: str, state: Mapping[str, Array]) -> Step:
    """haste's documented equations."""
    kernel, recurrent = state["kernel"], state["recurrent_kernel"]

    def lstm(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, g, f, o = np.split(x @ kernel + h @ recurrent + state["bias"], 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    def gru(x: Array, h: Array, c: Array) -> tuple[Array, Array]:
        return keras_step("gru", kernel, recurrent, np.stack([state["bias"], state["recurrent_bias"]]))(
            x, h, c
        )

    return {"lstm": lstm, "gru": gru}[cell]


def haste_state(cell: str) -> dict[str, Tensor]:
    columns = GATES[cell] * H
    shapes: dict[str, Any] = {"kernel": (INPUT, columns), "recurrent_kernel": (H, columns), "bias": columns}
    if cell == "gru":
        shapes["recurrent_bias"] = columns
    return {name: torch.from_numpy(draw(shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_haste_weights(cell: str) -> None:
    state = haste_state(cell)
    layer = interop.from_haste(state, cell)
    assert not layer.batch_first
    x = draw((B, T, INPUT))
    want = over_time(haste_step(cell, {name: values.numpy() for name, values in state.items()}), x)
    assert_close(output(layer, x.swapaxes(0, 1)).swapaxes(0, 1), want)
    back = interop.to_haste(layer)
    assert list(back) == list(state)
    assert_same_bits(back.values(), state.values())


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_haste_round_trip(cell: str) -> None:
    layer = make(cell, INPUT, H)
    if cell == "lstm":
        with_one_bias(layer)
    back = interop.from_haste(interop.to_haste(layer), cell)
    assert_same_bits(back.state_dict().values(), layer.state_dict().values())


def test_a_layer_has_memory_of_its_own() -> None:
    state = haste_state("lstm")
    layer = interop.from_haste(state, "lstm")
    before = layer.weight_hh_l0.detach().clone()
    state["recurrent_kernel"].zero_()
    interop.to_haste(layer)["recurrent_kernel"].zero_()
    assert torch.equal(layer.weight_hh_l0, before)


LSTM_STATE = haste_state("lstm")


@pytest.mark.parametrize(
    "state, cell, words",
    [
        (LSTM_STATE, "indrnn", "cell: expected 'lstm' or 'gru', got 'indrnn'"),
        (
            LSTM_STATE,
            "gru",
            "state_dict: expected kernel, recurrent_kernel, bias, recurrent_bias of a gru, got kernel",
        ),
        ({**LSTM_STATE, "gamma": draw(H)}, "lstm", "expected .* of a lstm, got .*, gamma"),
        ({**LSTM_STATE, "bias": torch.zeros(3)}, "lstm", r"bias: expected shape \(16,\), got \(3,\)"),
        (
            {**LSTM_STATE, "bias": torch.zeros(16, dtype=torch.int32)},
            "lstm",
            "bias: expected floating-point numbers, got torch.int32",
        ),
    ],
)
def test_what_of_haste_is_an_error(state: Any, cell: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        interop.from_haste(state, cell)


@pytest.mark.parametrize(
    "layer, words",
    [
        (rnnfused.RNN(INPUT, H), "layer: expected 'lstm' or 'gru', got 'rnn_tanh'"),
        (rnnfused.GRU(INPUT, H, 2), "num_layers: expected 1, got 2"),
        (rnnfused.GRU(INPUT, H, bidirectional=True), "bidirectional: expected False, got True"),
    ],
)
def test_what_haste_has_not(layer: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        interop.to_haste(layer)


@pytest.mark.parametrize("to", [interop.to_keras, interop.to_flax, interop.to_haste])
def test_what_no_framework_has(to: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="proj_size: expected 0, got 2"):
        to(rnnfused.LSTM(INPUT, H, proj_size=2))
    with pytest.raises(ValueError, match="learn_initial_state: expected False, got True"):
        to(rnnfused.LSTM(INPUT, H, learn_initial_state=True))
    with pytest.raises(TypeError, match="layer: expected an RNN, LSTM or GRU, got Linear"):
        to(torch.nn.Linear(INPUT, H))


@pytest.mark.parametrize(
    "to, layer, words",
    [
        (interop.to_flax, rnnfused.GRU(INPUT, H, reset_after=False), "reset_after: expected True, got False"),
        (interop.to_flax, rnnfused.LSTM(INPUT, H, recurrent_dropout=0.5), "recurrent_dropout: expected 0.0"),
        (interop.to_haste, rnnfused.GRU(INPUT, H, reset_after=False), "reset_after: expected True, got Fal"),
        (interop.to_keras, rnnfused.LSTM(INPUT, H, zoneout=0.1), "zoneout: expected 0.0, got 0.1"),
        (interop.to_keras, rnnfused.GRU(INPUT, H, layer_norm=True), "layer_norm: expected None, got separ"),
        (interop.to_keras, rnnfused.LSTM(INPUT, H, coupled_gates=True), "coupled_gates: expected False"),
    ],
)
def test_options_that_others_have_not(to: Callable[[Any], Any], layer: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to(layer)


def test_own_cells_are_no_layers_of_others() -> None:
    with pytest.raises(TypeError, match="expected an RNN, LSTM or GRU, got IndRNN"):
        interop.to_keras(rnnfused.IndRNN(INPUT, H))  # type: ignore[arg-type]


def test_torchs_layers_go_out_as_ours_do() -> None:
    theirs = torch.nn.LSTM(INPUT, H)
    assert_same_arrays(interop.to_keras(theirs), interop.to_keras(rnnfused.convert(theirs)))


def test_nothing_is_drawn() -> None:
    before = torch.get_rng_state()
    interop.from_haste(LSTM_STATE, "lstm")
    assert torch.equal(torch.get_rng_state(), before)


def test_no_framework_is_imported() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); import rnnfused.interop; "
        "rnnfused.interop.to_keras(rnnfused.LSTM(3, 4)); "
        "names = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "assert not names & {'keras', 'flax', 'jax', 'onnx', 'haste_pytorch'}, names"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
