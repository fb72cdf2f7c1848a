"""Forms of input, options and ways to call: the drop-in itself."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, Dataset

from bench.features.check import GRADIENTS, bits, flat, raises, same, trained
from bench.features.layers import CELLS, KINDS, Layers
from bench.features.probes import probe

DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True}


def _states(kind: str, *shape: int, dtype: torch.dtype = torch.float32) -> Any:
    h = torch.randn(*shape, dtype=dtype)
    return (h, torch.randn(*shape, dtype=dtype)) if kind.startswith("LSTM") else h


@probe(
    "every option of the constructor",
    "layers, bias, batch_first, directions; with and without hx",
    each=KINDS,
)
def options(layers: Layers, kind: str) -> None:
    for depth, bias, first, both in product((1, 3), (True, False), (True, False), (True, False)):
        settings = {"num_layers": depth, "bias": bias, "batch_first": first, "bidirectional": both}
        layer, twin = layers.pair(kind, 3, 4, **settings)
        x = torch.randn(2, 5, 3) if first else torch.randn(5, 2, 3)
        for hx in (None, _states(kind, depth * (1 + both), 2, 4)):
            same(trained(layer, layer, x, hx), trained(twin, twin, x, hx), **GRADIENTS)


@probe("cells", "with and without hx and bias, batched and not", each=CELLS)
def cells(layers: Layers, kind: str) -> None:
    for bias, batch in product((True, False), ((2,), ())):
        layer, twin = layers.pair(kind, 3, 4, bias=bias)
        x = torch.randn(*batch, 3)
        for hx in (None, _states(kind, *batch, 4)):
            same(trained(layer, layer, x, hx), trained(twin, twin, x, hx), **GRADIENTS)


@probe("nonlinearity='relu'", "layer and cell", each=("RNN", "RNNCell"))
def relu(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, nonlinearity="relu")
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    same(trained(layer, layer, x), trained(twin, twin, x), **GRADIENTS)


@probe("float64", "results and gradients to 1e-12", each=KINDS + CELLS)
def double(layers: Layers, kind: str) -> None:
    cell = kind in CELLS
    layer, twin = layers.pair(kind, 3, 4, dtype=torch.float64, **({} if cell else DEEP))
    x = torch.randn(*((2, 3) if cell else (2, 5, 3)), dtype=torch.float64)
    same(trained(layer, layer, x), trained(twin, twin, x), rtol=1e-12, atol=1e-12)


@probe("batch of 0", "shapes of results, gradients of weights zero", each=KINDS + CELLS)
def empty_batch(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = torch.randn(0, 3) if kind in CELLS else torch.randn(5, 0, 3)
    same(trained(layer, layer, x), trained(twin, twin, x))


@probe("T of 0", "torch.nn's error", each=KINDS)
def no_steps(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    got, want = (raises(lambda m=module: m(torch.randn(0, 2, 3))) for module in (layer, twin))
    assert (type(got), str(got)) == (type(want), str(want)), f"{got!r}, not {want!r}"


@probe("unbatched input", "with and without hx; gradients", each=KINDS)
def unbatched(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, **DEEP)
    x = torch.randn(5, 3)
    for hx in (None, _states(kind, 4, 4)):
        same(trained(layer, layer, x, hx), trained(twin, twin, x, hx), **GRADIENTS)


class Ragged:
    """Packs padded input, calls the layer, and pads its output."""

    def __init__(self, layer: Any, lengths: list[int], ordered: bool) -> None:
        self.layer, self.lengths, self.ordered = layer, torch.tensor(lengths), ordered

    def __call__(self, x: Tensor, hx: Any) -> Any:
        first = self.layer.batch_first
        packed = pack_padded_sequence(x, self.lengths, first, enforce_sorted=self.ordered)
        output, states = self.layer(packed, hx)
        assert isinstance(output, PackedSequence)
        return pad_packed_sequence(output, batch_first=first)[0], states


@probe(
    "PackedSequence", "sorted and unsorted, batch_first or not, with and without hx; gradients", each=KINDS
)
def packed(layers: Layers, kind: str) -> None:
    for first, (lengths, ordered) in product((True, False), (([3, 5, 1, 5], False), ([5, 4, 4, 2], True))):
        layer, twin = layers.pair(kind, 3, 4, num_layers=2, bidirectional=True, batch_first=first)
        x = torch.randn(4, 5, 3) if first else torch.randn(5, 4, 3)

        for hx in (None, _states(kind, 4, 4, 4)):
            got, want = (trained(Ragged(m, lengths, ordered), m, x, hx) for m in (layer, twin))
            same(got, want, **GRADIENTS)


@probe("pack_sequence of ragged tensors", "one of length 1", each=KINDS)
def pack_ragged(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, bidirectional=True)
    ragged = pack_sequence([torch.randn(n, 3) for n in (1, 7, 4)], enforce_sorted=False)
    same(layer(ragged), twin(ragged))


@probe("proj_size", "two layers, two directions, packed too; gradients", each=("LSTM",))
def projection(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, proj_size=2, num_layers=2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    hx = (torch.randn(4, 2, 2), torch.randn(4, 2, 4))
    same(trained(layer, layer, x), trained(twin, twin, x), **GRADIENTS)
    same(trained(layer, layer, x, hx), trained(twin, twin, x, hx), **GRADIENTS)
    ragged = pack_padded_sequence(x, torch.tensor([3, 5]), enforce_sorted=False)
    same(layer(ragged, hx), twin(ragged, hx))


@probe(
    "dropout between layers",
    "the same seed gives torch.nn's numbers; the generator is left as it was",
    each=KINDS,
)
def dropout(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, num_layers=3, dropout=0.5, bidirectional=True)
    x = torch.randn(5, 2, 3)
    results = []
    for module in (layer, twin):
        torch.manual_seed(1)
        results.append([*trained(module, module, x), torch.randn(3)])
    same(*results, **GRADIENTS)
    same(layer.eval()(x), twin.eval()(x))


@probe("the same seed, the same initial weights", "constructor and reset_parameters", each=KINDS + CELLS)
def initial(layers: Layers, kind: str) -> None:
    made = []
    for package in (layers, torch.nn):
        torch.manual_seed(3)
        layer = getattr(package, kind)(3, 4)
        first = [p.detach().clone() for p in layer.parameters()]
        layer.reset_parameters()
        made.append(first + list(layer.parameters()))
    bits(*made)


@probe("inference_mode", "results are inference tensors; weights made inside too", each=KINDS + CELLS)
def inference_mode(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    with torch.inference_mode():
        got = flat(layer(x))
        inside = layers.make(kind, 3, 4)
        inside.load_state_dict(twin.state_dict())
        same(inside(x), twin(x))
    assert all(result.is_inference() for result in got)
    same([result.clone() for result in got], twin(x))


@probe("NaN and infinity in the input", "where torch.nn has them", each=KINDS + CELLS)
def not_finite(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = torch.randn(3, 3) if kind in CELLS else torch.randn(5, 3, 3)
    x.view(-1, 3)[0, 0], x.view(-1, 3)[1, 1] = float("nan"), float("inf")
    same(layer(x), twin(x), rtol=1.3e-6, atol=1e-5, equal_nan=True)


@probe(
    "use_deterministic_algorithms", "no warning, no error; two runs give the same bits", each=KINDS + CELLS
)
def deterministic(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    torch.use_deterministic_algorithms(True)
    try:
        first = trained(layer, layer, x)
        bits(trained(layer, layer, x), [tensor.clone() for tensor in first])
        same(first, trained(twin, twin, x), **GRADIENTS)
    finally:
        torch.use_deterministic_algorithms(False)


@probe(
    "callers in several threads",
    "one layer, gradients by autograd.grad, each thread its own input",
    each=KINDS,
)
def threads(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 8, 16, **DEEP)
    inputs = [torch.randn(4, 9 + i, 8) for i in range(16)]

    def step(module: Any, x: Tensor) -> list[Tensor]:
        results = flat(module(x))
        return [*results, *torch.autograd.grad(results[0].sin().sum(), list(module.parameters()))]

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda x: step(layer, x), inputs * 4))
    for result, x in zip(got, inputs * 4, strict=True):
        same(result, step(twin, x), **GRADIENTS)


class Encoded(Dataset):
    """A data set that runs a layer, as feature extractors do."""

    def __init__(self, layer: Any, inputs: Tensor) -> None:
        self.layer, self.inputs = layer, inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.layer(self.inputs[index])[0]


@probe("fork", "called in the parent on two threads, then in two DataLoader workers", each=KINDS)
def fork(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 16, 64)
    torch.set_num_threads(2)
    try:
        inputs = torch.randn(8, 20, 16, 16)
        trained(layer, layer, inputs[0])
        loader = DataLoader(
            Encoded(layer, inputs), 4, num_workers=2, multiprocessing_context="fork", timeout=30
        )
        got = torch.cat(list(loader))
        with torch.no_grad():
            same(got, torch.stack([twin(x)[0] for x in inputs]))
    finally:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
