"""Layers whose equations torch.nn has not, by an option or by their cell: where they run, and what a call
must be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rnnfused._layer import LayerConfig, Layout
from rnnfused._load import _C
from rnnfused.cells import CELLS

__all__ = ["check", "in_float32", "is_native"]

# As native code calls them.
_TYPES = {
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.float32: "Float",
    torch.float64: "Double",
    torch.int64: "Long",
}


def is_native(layer: LayerConfig, input: Tensor) -> bool:
    """Whether native code runs such a layer; otherwise torch's operations do, step by step."""
    wide = input.dtype in (torch.float32, torch.float64)
    return wide and input.device.type in ("cpu", "meta") and not layer.projected


def check(
    layer: LayerConfig, input: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], layout: Layout
) -> None:
    """Raises what native code raises for the call of a layer, for params of this one's sizes."""
    if len(params) != layer.params:
        raise ValueError(
            f"params: expected {layer.params} tensors ({layer.params_each} for each of "
            f"{layer.num_layers * layer.directions}{', and seeds' if layer.drawn else ''}), got {len(params)}"
        )
    w_ih, spec = params[0], layer.spec
    features, hidden = w_ih.size(-1), _units(layer, params)
    output = params[2 + 2 * layer.bias].size(0) if layer.projected else hidden
    expected = [pair for shapes in layer.shapes(features, hidden, output) for pair in shapes.items()]
    for (name, shape), param in zip(expected, params, strict=False):
        _check_tensor(name, param, shape, w_ih.dtype, input.device)
    if layer.drawn:
        _check_tensor("seeds", params[-1], (layer.num_layers,), torch.int64, None)
    # The rest is as of a cell without options, of which these have sizes and type, and no memory: one of
    # torch.nn's with as many states, whose second has the units of one vector.
    if spec.memory:
        hx = [*hx[:1], *(_one_of(spec.memory, s, hidden) for s in hx[1:])]
    plain = LayerConfig(
        layer.cell if spec.name in CELLS else "lstm" if len(spec.states) > 1 else "rnn_tanh",
        layer.num_layers,
        layer.bidirectional,
        layer.batch_first,
        layer.bias,
        layer.projected,
        cells=layer.cells,
        step=layer.step,
    )
    nothing = torch.empty((), dtype=w_ih.dtype, device=w_ih.device)
    stand_ins = [
        nothing.expand(shape)
        for shapes in plain.shapes(features + spec.attends, hidden, output)
        for shape in shapes.values()
    ]
    _C.check(plain.text, input, hx, stand_ins, *layout)


def _units(layer: LayerConfig, params: Sequence[Tensor]) -> int:
    """H, by W_hh where that is a matrix, as native code finds it."""
    gates, heads = len(layer.gates), layer.num_heads
    if layer.spec.recurrent != "matrix":
        return params[0].size(0) // gates
    w_hh = params[1]
    if w_hh.dim() != (2 if heads == 1 else 3) or w_hh.size(-2) % gates:
        size = "hidden_size" if heads == 1 else "head_size"
        leading = "" if heads == 1 else f"{heads}, "
        raise RuntimeError(
            f"weight_hh: expected size [{leading}{gates} * {size}, {size}], got {list(w_hh.shape)}"
        )
    return heads * w_hh.size(-2) // gates


def _one_of(memory: Sequence[str], state: Tensor, hidden: int) -> Tensor:
    """The first of the vectors that make up the state."""
    if state.size(-1) != len(memory) * hidden:
        names = ", ".join(memory)
        raise RuntimeError(f"hx: expected {len(memory)} * {hidden} units of {names}, got {state.size(-1)}")
    return state[..., :hidden]


def _words(dtype: torch.dtype) -> str:
    return _TYPES.get(dtype, str(dtype))


def _check_tensor(
    name: str, t: Tensor, shape: Sequence[int], dtype: torch.dtype, device: torch.device | None
) -> None:
    """device: None for any."""
    if device is not None and t.device != device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at "
            f"{device} and parameter tensor at {t.device}"
        )
    if t.dtype != dtype:
        raise RuntimeError(f"{name}: expected dtype {_words(dtype)}, got {_words(t.dtype)}")
    if t.shape != torch.Size(shape):
        raise RuntimeError(f"{name}: expected size {list(shape)}, got {list(t.shape)}")


def in_float32(
    input: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The same with all tensors of 16 bits in 32: what autocast means to such a layer."""

    def wide(t: Tensor) -> Tensor:
        return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t

    return wide(input), [wide(s) for s in hx], [wide(p) for p in params]
