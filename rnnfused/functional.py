"""Stateless forms of the layers and cells.

`params` is the flat list of torch's modules: for each layer, and in it for each direction, weight_ih,
weight_hh, then bias_ih and bias_hh if there are biases, then weight_hr if there is a projection, then what
the cell's options bring (docs/cells.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rnnfused import _decomposed
from rnnfused._layer import PADDED, LayerConfig, Layout
from rnnfused._load import _C
from rnnfused._ops import recurrent
from rnnfused._options import CellOptions, as_number, layer_fields
from rnnfused._varied import in_float32, native_dtype

__all__ = ["CellOptions", "Options", "gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]


class Options(CellOptions, total=False):
    """What `rnn`, `lstm` and `gru` take beside their tensors, and beside `CellOptions`.

    has_biases: whether params hold biases (True). num_layers: 1. dropout: the probability with which an
    element of a layer's output, the last one's excepted, is zeroed in training (0). training: False.
    bidirectional: False. batch_first: whether input and output are [B, T, .] (False). batch_sizes: of a
    PackedSequence (None). lengths [B]: of padded sequences, or of rows [rows, I] one sequence after the other
    (None). resets: before which steps the state is zero (None; `rnnfused.LSTM.forward` says more of both).
    recompute: whether training keeps only the outputs, c and the gates of the last steps (512 rows, and a
    quarter of all, at most; on a GPU none), and backward rebuilds the others (False): a fifth to two fifths
    of what an LSTM's layer keeps beside its output, for up to 1.3 times the time; the same gradients.
    weight_drop: the probability with which an element of the recurrent weights is zeroed in training (0).
    """

    has_biases: bool
    num_layers: int
    dropout: float
    training: bool
    bidirectional: bool
    batch_first: bool
    batch_sizes: Tensor | None
    lengths: Tensor | None
    resets: Tensor | None
    recompute: bool
    weight_drop: float


def rnn(
    input: Tensor,
    hx: Tensor,
    params: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]:
    """Vanilla RNN (Elman 1990): h' = act(W_ih x + b_ih + W_hh h + b_hh), with act = tanh or relu.

    input: [T, B, I] ([B, T, I] if batch_first), or the data of a PackedSequence, [rows, I], with its
    batch_sizes [T]. hx: [L D, B, H], never batch-first. float32, float64,
    float16 or bfloat16, the same throughout. options: `Options`.
    Returns the output [T, B, D H] (laid out as the input) and h_n [L D, B, H]. Raises ValueError for an
    unknown nonlinearity, a wrong number of params, or options of the cell that it has not or that do not go
    together; TypeError for an unknown option, RuntimeError for wrong sizes, dtypes or devices, and for an
    empty sequence.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    output, h_n = _sequence(f"rnn_{nonlinearity}", input, (hx,), params, **options)
    return output, h_n


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    params: Sequence[Tensor],
    *,
    return_cells: bool = False,
    **options: Unpack[Options],
) -> tuple[Tensor, ...]:
    """LSTM (Hochreiter & Schmidhuber 1997, forget gate of Gers et al. 2000; projection of Sak et al. 2014).

    As `rnn`, with hx = (h_0 [L D, B, P], c_0 [L D, B, H]); P is H, or the projection's size where h_0 is
    narrower than c_0, and then params hold weight_hr [P, H]. Returns output [T, B, D P], h_n and c_n, and
    with return_cells c of every step of the last layer [T, B, D H], laid out as the output.
    """
    return tuple(_sequence("lstm", input, _pair("lstm", hx), params, return_cells=return_cells, **options))


def gru(
    input: Tensor, hx: Tensor, params: Sequence[Tensor], **options: Unpack[Options]
) -> tuple[Tensor, Tensor]:
    """GRU (Cho et al. 2014) with the reset gate applied after the recurrent product, as torch, unless
    reset_after=False. Otherwise as `rnn`.
    """
    output, h_n = _sequence("gru", input, (hx,), params, **options)
    return output, h_n


def rnn_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    own_params: Sequence[Tensor] = (),
    training: bool = False,
    **options: Unpack[CellOptions],
) -> Tensor:
    """One step of `rnn`: input [B, I], hx [B, H]; returns h' [B, H].

    own_params: what the options bring, in the order of docs/cells.md. training: whether zoneout and recurrent
    dropout draw.
    """
    if nonlinearity not in ("tanh", "relu"):
        raise RuntimeError(f"Unknown nonlinearity: {nonlinearity}")
    params = [w_ih, w_hh, b_ih, b_hh, *own_params]
    return _cell(f"rnn_{nonlinearity}", input, (hx,), params, training, options)[0]


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    own_params: Sequence[Tensor] = (),
    training: bool = False,
    **options: Unpack[CellOptions],
) -> tuple[Tensor, Tensor]:
    """One step of `lstm`: input [B, I], hx = (h, c) of [B, H]; returns (h', c'). Otherwise as `rnn_cell`."""
    params = [w_ih, w_hh, b_ih, b_hh, *own_params]
    h, c = _cell("lstm", input, _pair("lstm_cell", hx), params, training, options)
    return h, c


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    own_params: Sequence[Tensor] = (),
    training: bool = False,
    **options: Unpack[CellOptions],
) -> Tensor:
    """One step of `gru`: input [B, I], hx [B, H]; returns h' [B, H]. Otherwise as `rnn_cell`."""
    params = [w_ih, w_hh, b_ih, b_hh, *own_params]
    return _cell("gru", input, (hx,), params, training, options)[0]


def _pair(function: str, hx: Sequence[Tensor]) -> Sequence[Tensor]:
    """Two states, and not one tensor of two rows."""
    if isinstance(hx, Tensor):
        raise TypeError(f"{function}(): argument 'hx' must be tuple of Tensors, not Tensor")
    return tuple(hx)


def _cell(
    cell: str,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor | None],
    training: bool,
    options: Any,
) -> list[Tensor]:
    """params: W_ih, W_hh, both biases or None twice, what the options bring."""
    if (params[2] is None) != (params[3] is None):
        raise ValueError("b_ih, b_hh: expected both biases or neither")
    biased = params[2] is not None
    if biased and options.get("layer_norm") == "joint":
        raise ValueError("b_ih, b_hh: expected None with layer_norm='joint', whose shift it is")
    layer = LayerConfig(cell, bias=biased, step=True, **layer_fields(cell, options))
    given: Sequence[Tensor] = [p for p in params if p is not None]
    if training:
        layer, given = drawn(layer, given)
    return stack(layer, input, hx, given)


def _sequence(
    cell: str,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    recompute: bool = False,
    weight_drop: float = 0.0,
    return_cells: bool = False,
    **options: Any,
) -> list[Tensor]:
    dropout = check_probability("dropout", dropout)
    weight_drop = check_probability("weight_drop", weight_drop)
    projected = len(hx) > 1 and hx[0].shape[-1] != hx[1].shape[-1]
    has_biases = has_biases and options.get("layer_norm") != "joint"
    layer = LayerConfig(
        *(cell, num_layers, bidirectional, batch_first, has_biases, projected, recompute, return_cells),
        **layer_fields(cell, options),
    )
    layout = Layout(batch_sizes, lengths, resets)
    if not training:
        return stack(layer, input, hx, params, layout)
    layer, params = drawn(layer, params, weight_drop)
    return stack(layer, input, hx, params, layout, dropout)


def check_probability(name: str, p: float) -> float:
    """p as Python's number; raises TypeError or ValueError, naming the argument, for what is none."""
    p = as_number(name, p)
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {p}")
    return p


def drop_weights(layer: LayerConfig, params: Sequence[Tensor], p: float) -> list[Tensor]:
    """params with the elements of every W_hh dropped with probability p, and the others scaled."""
    return [
        torch.nn.functional.dropout(w, p, training=True) if index % layer.params_each == 1 else w
        for index, w in enumerate(params)
    ]


def drawn(
    layer: LayerConfig, params: Sequence[Tensor], weight_drop: float = 0.0
) -> tuple[LayerConfig, Sequence[Tensor]]:
    """The layer and its params in training, with what is drawn once a call: the recurrent weights that stay,
    and the seeds of zoneout and recurrent dropout, a number for each layer.
    """
    if weight_drop:
        params = drop_weights(layer, params, weight_drop)
    if layer.varied and layer.is_random:
        if (
            params[0].is_cuda
            and not torch.compiler.is_compiling()
            and torch.cuda.is_current_stream_capturing()
        ):
            raise RuntimeError(
                "zoneout and recurrent_dropout: expected no capture of a CUDA graph in training, since every "
                "replay would have the masks of the capture"
            )
        # From the CPU's generator, wherever the layer is, so that no GPU has to be waited for.
        limits = torch.iinfo(torch.int64)
        seeds = torch.randint(limits.min, limits.max, (layer.num_layers,), dtype=torch.int64, device="cpu")
        layer, params = dataclasses.replace(layer, drawn=True), [*params, seeds]
    return layer, params


# What runs layers: (layer, input, hx, params, batch_sizes, lengths, resets) -> outputs.
Run = Callable[..., list[Tensor]]


def stack(
    layer: LayerConfig,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    layout: Layout = PADDED,
    dropout: float = 0.0,
) -> list[Tensor]:
    """Layer over layer, with dropout between them as in torch: what the operator returns of all of them."""
    run: Run = recurrent
    if layer.varied:
        device = input.device.type
        # torch 2.11's compiler cannot ask which devices have autocast.
        if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return stack(layer, *in_float32(input, hx, params), layout, dropout)
        dtype = native_dtype(layer, input)
        if dtype is None:
            run = _decomposed.recurrent  # step by step
        elif dtype != input.dtype:
            check(layer, input, hx, params, layout)
            wide = stack(layer, *in_float32(input, hx, params), layout, dropout)
            return [t.to((hx[0] if hx else input).dtype) for t in wide]
    if run is recurrent and (dropout == 0 or layer.num_layers == 1):
        return recurrent(layer, input, hx, params, *layout)
    check(layer, input, hx, params, layout)
    if layer.num_layers == 1:
        return run(layer, input, hx, params, *layout)
    return layers(run, layer, input, hx, params, layout, dropout)


def check(
    layer: LayerConfig, input: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], layout: Layout
) -> None:
    """Of all layers at once, what no layer sees by itself."""
    if not torch.compiler.is_compiling():
        _C.check(layer.text, input, hx, params, *layout)


def layers(
    run: Run,
    layer: LayerConfig,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    layout: Layout,
    dropout: float,
) -> list[Tensor]:
    """One after the other; the arguments were checked."""
    each, directions = layer.params_each * layer.directions, layer.directions
    finals, cells = [], []
    for index in range(layer.num_layers):
        if index > 0 and dropout:
            input = torch.nn.functional.dropout(input, dropout, training=True)
        states = [s[index * directions : (index + 1) * directions] for s in hx]
        own = [*params[index * each : (index + 1) * each]]
        if layer.drawn:
            own.append(params[-1][index : index + 1])
        one = layer.inner if index + 1 < layer.num_layers else layer.single
        input, *final = run(one, input, states, own, *layout)
        finals.append(final[: len(layer.spec.states)])
        cells = final[len(layer.spec.states) :]
    return [input, *(torch.cat(states) for states in zip(*finals, strict=True)), *cells]
