"""Keras's layers, read by their class's name, get_config() and get_weights()."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from rnnfused.interop._weights import (
    Direction,
    Layer,
    Stack,
    array,
    build,
    check_shape,
    describe,
    from_columns,
    tensor,
)

__all__ = ["from_keras", "to_keras"]

# Of each class the options that change what it computes, and the values that our layers have.
_OPTIONS: dict[str, dict[str, tuple[Any, ...]]] = {
    "SimpleRNN": {"activation": ("tanh", "relu")},
    "LSTM": {"activation": ("tanh",), "recurrent_activation": ("sigmoid",)},
    "GRU": {"activation": ("tanh",), "recurrent_activation": ("sigmoid",), "reset_after": (True, False)},
}
_TAKES = ("reset_after", "recurrent_dropout")  # of ours
# Whose functions of these names are those that our layers have.
_LIBRARIES = ("keras", "torch", "jax", "tensorflow")


def from_keras(layer: Any, dtype: torch.dtype | None = None) -> Layer:
    """The RNN, LSTM or GRU with the weights of a Keras layer, batch_first as Keras is.

    layer: SimpleRNN, LSTM, GRU or Bidirectional, built; or a sequence of such layers of one kind and size,
    each on top of the one before it, which become one of several layers (num_layers). dtype: the weights' own
    if None.

    recurrent_dropout comes along, of which Keras draws a mask for each gate and we one for all; so does
    unit_forget_bias, as forget_bias=1. Not so dropout: Keras's is one mask for all steps of the input, ours
    lies between layers. What concerns calls alone does not matter here: stateful, return_sequences and the
    like. Where only some of the layers or directions have use_bias, ours has biases of 0 in the others, and
    `to_keras` gives these, too. Raises ValueError for a layer that is not built, another class, and options
    that our layers do not have: activations, go_backwards, other values of merge_mode.

    Keras's layout: kernel [I, G H], recurrent_kernel [H, G H], bias [G H], [2, 3 H] of a GRU with
    reset_after; gates i, f, c, o and z, r, h (keras.layers.LSTMCell and GRUCell, Keras 3).
    """
    layers = layer if isinstance(layer, Sequence) else [layer]
    if not layers:
        raise ValueError("layer: expected at least one, got none")
    stacks = [_read(one, f"layer {index}") for index, one in enumerate(layers)]
    cell, options = stacks[0].cell, stacks[0].options
    for index, stack in enumerate(stacks):
        if stack.cell != cell:
            raise ValueError(f"layer {index}: expected a layer of kind {cell} as layer 0, got {stack.cell}")
        for option, expected in options.items():
            if (got := stack.options[option]) != expected:
                raise ValueError(f"{option} of layer {index}: expected {expected} as layer 0, got {got}")
    return build(Stack(cell, [stack.layers[0] for stack in stacks], options), dtype, batch_first=True)


def to_keras(layer: Layer) -> list[Any]:
    """The layer's weights as NumPy arrays, as set_weights takes them.

    Of a layer in both directions the forward one's come first, as in Bidirectional; of several layers
    (num_layers) the first one's, as in a keras.Sequential of them. Of an LSTM, an RNN and a GRU with
    reset_after=False the bias is the sum of our two. reset_after and recurrent_dropout are for the
    constructor of Keras's layer.

    Raises TypeError for what is no RNN, LSTM or GRU, and ValueError for proj_size, learn_initial_state, other
    options and bfloat16.
    """
    cell, layers, options = describe(layer, _TAKES)
    arrays = []
    for direction in (direction for each in layers for direction in each):
        weights = direction.from_torch("keras", cell)
        arrays += [weights.w_ih.t(), weights.w_hh.t()]
        if layer.bias:
            arrays.append(torch.stack(weights.biases) if _has_two_biases(cell, options) else weights.bias)
    return [array(weight) for weight in arrays]


def _read(layer: Any, where: str) -> Stack:
    kind, config = type(layer).__name__, layer.get_config()
    configs, parts = [(kind, config)], [layer]
    if kind == "Bidirectional":
        _check_option(where, config, "merge_mode", ("concat",))
        both = (config["layer"], config["backward_layer"])
        configs = [(one["class_name"], one["config"]) for one in both]
        parts = [getattr(layer, name, None) for name in ("forward_layer", "backward_layer")]
    cells, options = [], []
    for index, (kind, config) in enumerate(configs):
        if kind not in _OPTIONS:
            raise ValueError(f"{where}: expected Bidirectional, {', '.join(_OPTIONS)}, got {kind}")
        for option, allowed in (*_OPTIONS[kind].items(), ("go_backwards", (index == 1,))):
            _check_option(where, config, option, allowed)
            _check_function(where, parts[index], option)
        cells.append(f"rnn_{config['activation']}" if kind == "SimpleRNN" else kind.lower())
        options.append(_options(kind, config))
    for said in zip(cells, options, strict=True):
        if said != (cells[0], options[0]):
            raise ValueError(f"{where}: expected the same in both directions, got {cells} and {options}")
    counts = [3 if config["use_bias"] else 2 for _, config in configs]
    arrays = layer.get_weights()
    if len(arrays) != sum(counts):
        raise ValueError(f"{where}: expected {sum(counts)} arrays (a layer that is built), got {len(arrays)}")
    weights = iter(arrays)
    two_biases = _has_two_biases(cells[0], options[0])
    directions = [_direction(where, cells[0], weights, count, two_biases) for count in counts]
    return Stack(cells[0], [directions], options[0])


def _options(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What our constructor is told."""
    options: dict[str, Any] = {"recurrent_dropout": config.get("recurrent_dropout", 0.0)}
    if kind == "GRU":
        options["reset_after"] = config["reset_after"]
    if kind == "LSTM":
        forgets = config["use_bias"] and config.get("unit_forget_bias", False)
        options["forget_bias"] = 1.0 if forgets else None
    return options


def _has_two_biases(cell: str, options: Mapping[str, Any]) -> bool:
    return cell == "gru" and options.get("reset_after", True)


def _check_option(where: str, config: Mapping[str, Any], option: str, allowed: Sequence[Any]) -> None:
    if config.get(option) not in allowed:
        raise ValueError(
            f"{option} of {where}: expected {' or '.join(map(repr, allowed))}, got {config.get(option)!r}"
        )


def _check_function(where: str, layer: Any, option: str) -> None:
    """The config has a function's name alone, which a user's function may share with the library's."""
    function = getattr(layer, option, None)
    if not callable(function):
        return
    module = getattr(function, "__module__", None)
    if str(module).partition(".")[0] not in _LIBRARIES:
        raise ValueError(
            f"{option} of {where}: expected Keras's own function of that name, got {function!r} of {module}"
        )


def _direction(where: str, cell: str, arrays: Iterator[Any], count: int, two_biases: bool) -> Direction:
    names = [f"{name} of {where}" for name in ("kernel", "recurrent_kernel", "bias")[:count]]
    named = {name: tensor(name, next(arrays)) for name in names}
    if two_biases and count == 3:
        bias = named.pop(names[2])
        check_shape(names[2], bias, 2, bias.size(-1))
        named |= {f"{names[2]}, row {row}": values for row, values in enumerate(bias)}
    return from_columns("keras", cell, named)
