"""Batches and states as users have them: what torch.nn's users pack, pad, sort and loop for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bench.features.check import GRADIENTS, flat, same, trained
from bench.features.layers import KINDS, Layers
from bench.features.probes import probe

DEEP = {"num_layers": 2, "bidirectional": True}
LENGTHS = torch.tensor([3, 5, 1, 4])


def _padded(twin: Any, x: Tensor) -> Any:
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    y, states = twin(packed)
    return pad_packed_sequence(y, total_length=len(x))[0], states


def _rows(x: Tensor) -> Tensor:
    return torch.cat([x[:length, b] for b, length in enumerate(LENGTHS.tolist())])


def _ends() -> Tensor:
    return torch.cat((LENGTHS.new_zeros(1), LENGTHS.cumsum(0)))


@probe("lengths of padded input", "in any order, no packing; outputs zero beyond; gradients", each=KINDS)
def lengths(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, **DEEP)
    x = torch.randn(5, 4, 3)
    want = trained(lambda x: _padded(twin, x), twin, x)
    same(trained(lambda x: layer(x, lengths=LENGTHS), layer, x), want, **GRADIENTS)


@probe("sequences of no steps", "output zero, the initial state at the end", each=KINDS)
def no_steps(layers: Layers, kind: str) -> None:
    layer, _ = layers.pair(kind, 3, 4)
    hx = tuple(torch.randn(1, 2, 4) for _ in range(2 if kind == "LSTM" else 1))
    given = torch.tensor([0, 3])
    y, states = layer(torch.randn(5, 2, 3), hx if kind == "LSTM" else hx[0], lengths=given)
    assert not y[:, 0].any()
    for state, first in zip(flat(states), hx, strict=True):
        same(state[:, 0], first[:, 0])


@probe("resets inside a sequence", "as if cut there, both directions; gradients", each=KINDS)
def resets(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, bidirectional=True)
    x = torch.randn(6, 2, 3)
    cut = torch.zeros(6, 2, dtype=torch.bool)
    cut[2] = True

    def pieces(x: Tensor) -> Tensor:
        return torch.cat((twin(x[:2])[0], twin(x[2:])[0]))

    same(
        trained(lambda x: layer(x, resets=cut)[0], layer, x),
        trained(pieces, twin, x),
        **GRADIENTS,
    )


@probe("rows one sequence after the other", "cu_seqlens, as flash-attention has them; gradients", each=KINDS)
def concatenated(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, **DEEP)
    x = torch.randn(5, 4, 3)
    want = trained(lambda x: _rows(_padded(twin, x)[0]), twin, x)
    same(trained(lambda x: layer(_rows(x), cu_seqlens=_ends())[0], layer, x), want, **GRADIENTS)


@probe("nested jagged tensors", "in and out", each=KINDS)
def nested(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = torch.randn(5, 4, 3)
    y, states = layer(torch.nested.nested_tensor_from_jagged(_rows(x), _ends()))
    assert y.is_nested
    padded, want = _padded(twin, x)
    same([y.values(), *flat(states)], [_rows(padded), *flat(want)])


@probe("c of every step", "return_cells=True", each=("LSTM",))
def cells(layers: Layers, kind: str) -> None:
    layer = layers.make(kind, 3, 4, return_cells=True)
    _, twin = layers.pair(kind, 3, 4)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(5, 2, 3)
    states = [twin(x[: t + 1])[1][1][0] for t in range(5)]
    same(layer(x)[2], torch.stack(states))


@probe("learned initial states", "learn_initial_state=True: parameters; gradients", each=KINDS)
def learned(layers: Layers, kind: str) -> None:
    layer = layers.make(kind, 3, 4, learn_initial_state=True)
    layer(torch.randn(5, 2, 3))[0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in layer.named_parameters() if "initial_h" in n)
