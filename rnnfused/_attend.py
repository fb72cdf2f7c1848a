"""A layer that attends while it runs (Bahdanau et al. 2015): the operator `rnnfused::attend`, its derivatives
and what it is to tracers; csrc/torch/attention.h says what it takes and gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from rnnfused._layer import LayerConfig
from rnnfused._ops import recurrent, stand_in
from rnnfused.attention import masked_softmax

__all__ = ["attend", "serves"]


def serves(*tensors: Tensor) -> bool:
    """Whether there are kernels for such tensors: on the CPU, float32 or float64, all of one type, outside of
    autocast, of torch.func's transforms and of forward mode.
    """
    first = tensors[0]
    return (
        first.device.type == "cpu"
        and first.dtype in (torch.float32, torch.float64)
        and all(t.dtype == first.dtype and t.device == first.device for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and (is_dynamo_compiling() or forward_ad._current_level < 0)
    )


def attend(
    layer: LayerConfig,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    keys: Tensor,
    values: Tensor,
    query: Tensor,
    score: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """The output [T, B, H], the final states, the input [T, B, E] with the contexts after it [T, B, E + V],
    and the weights [T, B, S] of one layer whose every step is given the context of the state before it.
    """
    attention = [keys, values, query, score]
    save = torch.is_grad_enabled() and any(t.requires_grad for t in (input, *hx, *params, *attention))
    results = torch.ops.rnnfused.attend(input, hx, params, attention, mask, layer.text, save)
    states = len(layer.spec.states)
    return results[0], list(results[1 : 1 + states]), results[1 + states], results[2 + states]


def _by_steps(
    layer: LayerConfig,
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    attention: Sequence[Tensor],
    mask: Tensor | None,
) -> list[Tensor]:
    """The same, as far as it can be differentiated, in operations whose derivatives have derivatives."""
    keys, values, query, score = attention
    outputs, entered, weighed = [], [], []
    states = list(hx)
    for given in input:
        asked = torch.nn.functional.linear(states[0][0], query).unsqueeze(1)
        weights = masked_softmax(torch.tanh(asked + keys) @ score, mask)
        entering = torch.cat((given, (weights.unsqueeze(1) @ values).squeeze(1)), -1)
        y, *states = recurrent(layer, entering.unsqueeze(0), states, params)
        outputs.append(y)
        entered.append(entering)
        weighed.append(weights)
    return [torch.cat(outputs), *states, torch.stack(entered), torch.stack(weighed)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    input, hx, params, attention, mask, layer, save = inputs
    if not save:
        ctx.layer = None
        return
    states = len(LayerConfig.parse(layer).spec.states)
    y, x, weights, queries, tape = output[0], *output[1 + states :]
    ctx.layer, ctx.counts = layer, (1, len(hx), len(params), len(attention))
    ctx.given = 0 if mask is None else 1
    ctx.save_for_backward(
        input, *hx, *params, *attention, *([] if mask is None else [mask]), x, weights, queries, y, tape
    )


def _backward(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    if ctx.layer is None:
        raise RuntimeError("save: expected True of a call whose gradients are wanted, got False")
    saved = list(ctx.saved_tensors)
    kept = saved[-5:]
    mask = saved[-6] if ctx.given else None
    rest = iter(saved)
    parts = [[next(rest) for _ in range(count)] for count in ctx.counts]
    _, hx, params, attention = parts
    outer = [*grads[: 3 + len(hx)]]  # nobody asks for queries and tape
    if torch.is_grad_enabled():
        found = _differentiable(LayerConfig.parse(ctx.layer), parts, mask, outer)
    else:
        found = torch.ops.rnnfused.attend_backward(outer, kept, hx, params, attention, mask, ctx.layer)
    of = iter(found)
    dinput, dhx, dparams, dattention = ([next(of) for _ in range(count)] for count in ctx.counts)
    return dinput[0], dhx, dparams, dattention, None, None, None


def _differentiable(
    layer: LayerConfig, parts: list[list[Tensor]], mask: Tensor | None, outer: Sequence[Tensor | None]
) -> list[Tensor]:
    """The gradients in operations that have gradients themselves: for create_graph=True."""
    own = [[stand_in(t) for t in part] for part in parts]
    (input,), hx, params, attention = own
    results = _by_steps(layer, input, hx, params, attention, mask)
    pairs = [(y, g) for y, g in zip(results, outer, strict=True) if g is not None]
    inputs = [t for part in own for t in part]
    of, along = zip(*pairs, strict=True)
    found = torch.autograd.grad(of, inputs, along, create_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)]


def _fake(
    input: Tensor,
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    attention: Sequence[Tensor],
    mask: Tensor | None,
    layer: str,
    save: bool,
) -> list[Tensor]:
    keys, values, _, _ = attention
    T, B, E = input.shape
    x = input.new_empty(T, B, E + values.size(2))
    # Its sizes, and of the tape, are the layer's own.
    results = torch.ops.rnnfused.recurrent(x, hx, params, None, None, None, layer, save)
    states = 1 + len(hx)
    beside = [x, input.new_empty(T, B, keys.size(1)), input.new_empty(T, B, keys.size(2))]
    return [*results[:states], *beside, *results[states:]]


def _fake_backward(
    grads: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    hx: Sequence[Tensor],
    params: Sequence[Tensor],
    attention: Sequence[Tensor],
    mask: Tensor | None,
    layer: str,
) -> list[Tensor]:
    x = kept[0]
    dinput = x.new_empty(*x.shape[:2], x.size(2) - attention[1].size(2))
    return [dinput, *(t.new_empty(t.shape) for t in (*hx, *params, *attention))]


torch.library.register_autograd("rnnfused::attend", _backward, setup_context=_setup)
torch.library.register_fake("rnnfused::attend", _fake)
torch.library.register_fake("rnnfused::attend_backward", _fake_backward)
