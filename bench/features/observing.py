"""What watches a program: profiler, FLOP counter, module tracker; and torch.library's check of an op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from bench.features.layers import CELLS, KINDS, Layers
from bench.features.probes import NotApplicable, probe

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}
ATEN = {
    "LSTM": "aten::lstm",
    "GRU": "aten::gru",
    "RNN": "aten::rnn_tanh",
    "LSTMCell": "aten::lstm_cell",
    "GRUCell": "aten::gru_cell",
    "RNNCell": "aten::rnn_tanh_cell",
}


def _input(kind: str) -> Tensor:
    return torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)


@probe("profiler", "a row named after the operation, with the input's shape", each=KINDS + CELLS)
def profiler(layers: Layers, kind: str) -> None:
    layer, x = layers.make(kind, 3, 4), _input(kind)
    for context in (torch.no_grad, torch.enable_grad):
        with context(), torch.profiler.profile(record_shapes=True) as profile:
            for _ in range(3):
                layer(x)
        rows = [
            row
            for row in profile.key_averages(group_by_input_shape=True)
            if (row.key.startswith("rnnfused::") if layers.fused else row.key == ATEN[kind])
        ]
        assert rows, f"no such row under {context.__name__}"
        assert any(row.count == 3 and list(x.shape) in row.input_shapes for row in rows), (
            "not with its shapes"
        )


def _flops(kind: str) -> int:
    # Two operations for each multiplication and addition of the products with W_ih [G, 3] and W_hh [G, 4].
    steps = 1 if kind in CELLS else 5
    return 2 * steps * 2 * GATES[kind] * 4 * (3 + 4)


@probe("FLOP counter, forward", "torch.utils.flop_counter; the exact figure", each=KINDS + CELLS)
def flops(layers: Layers, kind: str) -> None:
    layer, x = layers.make(kind, 3, 4), _input(kind)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    assert counter.get_total_flops() == _flops(kind), f"{counter.get_total_flops()}, not {_flops(kind)}"


@probe("FLOP counter, training", "forward and backward: three times forward", each=KINDS + CELLS)
def flops_training(layers: Layers, kind: str) -> None:
    layer, x = layers.make(kind, 3, 4), _input(kind).requires_grad_()
    h = torch.randn(*((2, 4) if kind in CELLS else (1, 2, 4)), requires_grad=True)
    hx = (h, torch.randn_like(h)) if kind.startswith("LSTM") else h
    with FlopCounterMode(display=False) as counter:
        result = layer(x, hx)
        (result if isinstance(result, Tensor) else result[0]).sum().backward()
    want = 3 * _flops(kind)
    assert counter.get_total_flops() == want, f"{counter.get_total_flops()}, not {want}"


@probe("FLOP counter, by module", "two layers and two directions, under the module's name", each=KINDS)
def flops_by_module(layers: Layers, kind: str) -> None:
    model, _ = layers.taggers(kind, 3, 4, num_layers=2, bidirectional=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(5, 2, 3))
    got = sum(counter.get_flop_counts().get("Tagger.rnn", {}).values())
    want = 2 * 2 * 5 * 2 * GATES[kind] * 4 * ((3 + 4) + (8 + 4))
    assert got == want, f"{got}, not {want}"


@probe(
    "module_tracker", "the layer is the parent of its operations, forward and backward", each=KINDS + CELLS
)
def module_tracker(layers: Layers, kind: str) -> None:
    model = torch.nn.ModuleDict({"inner": layers.make(kind, 3, 4)})
    model.forward = lambda x: model["inner"](x)  # type: ignore[method-assign]
    x = _input(kind).requires_grad_()
    found: set[tuple[bool, bool]] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not func.is_view and "zeros" not in func.__name__ and "new_" not in func.__name__:
                found.add((tracker.is_bw, "ModuleDict.inner" in tracker.parents))
            return func(*args, **(kwargs or {}))

    with ModuleTracker() as tracker, Watch():
        result = model(x)
        (result if isinstance(result, Tensor) else result[0]).sum().backward()
    assert (False, True) in found, "not in forward"
    assert (True, True) in found, "not in backward"


class Capture(TorchDispatchMode):
    """The calls of rnnfused's operations: what they were given, copied."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "rnnfused":
            copy = lambda t: t.detach().clone() if isinstance(t, Tensor) else t  # noqa: E731
            self.calls.append((func, tree_map(copy, args), tree_map(copy, kwargs)))
        return func(*args, **kwargs)


def _layouts(layers: Layers, kind: str) -> list[tuple[Any, Any]]:
    """Layers and inputs: every direction, layout and option."""
    if kind in CELLS:
        return [
            (layers.make(kind, 3, 4), torch.randn(2, 3)),
            (layers.make(kind, 3, 4, bias=False), torch.randn(3)),
        ]
    x = torch.randn(5, 2, 3)
    packed = pack_padded_sequence(x, torch.tensor([3, 5]), enforce_sorted=False)
    cases = [
        (layers.make(kind, 3, 4), x),
        (layers.make(kind, 3, 4, bidirectional=True), x),
        (layers.make(kind, 3, 4, batch_first=True, bias=False), x.transpose(0, 1)),
        (layers.make(kind, 3, 4, num_layers=2, bidirectional=True), x),
        (layers.make(kind, 3, 4, bidirectional=True), packed),
        (layers.make(kind, 3, 4), x[:, 0]),
    ]
    if kind == "LSTM":
        cases.append((layers.make(kind, 3, 4, proj_size=2, bidirectional=True), x))
    if kind == "RNN":
        cases.append((layers.make(kind, 3, 4, nonlinearity="relu"), x))
    return cases


@probe("torch.library.opcheck", "every direction and layout, with and without gradients", each=KINDS + CELLS)
def opcheck(layers: Layers, kind: str) -> None:
    if not layers.fused:
        raise NotApplicable("not an op")
    for layer, x in _layouts(layers, kind):
        for context in (torch.no_grad, torch.enable_grad):
            with context(), Capture() as capture:
                layer(x)
            assert capture.calls, "no operation of rnnfused was seen"
            for op, args, kwargs in capture.calls:

                def leaf(tensor: Any, wanted: bool = context is torch.enable_grad) -> Any:
                    floating = isinstance(tensor, Tensor) and tensor.is_floating_point()
                    return tensor.requires_grad_(wanted) if floating else tensor

                torch.library.opcheck(op, tree_map(leaf, args), tree_map(leaf, kwargs))
