"""The recurrent classes of one column, by the names that torch.nn gives them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from bench.features.check import flat

__all__ = ["CELLS", "COLUMNS", "KINDS", "Layers", "Loop", "Tagger", "autocast_dtypes"]

KINDS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
COLUMNS = ("torch.nn", "rnnfused")


class Layers:
    """`layers.LSTM` and its like are the column's classes; `make` and `pair` take a class by its name."""

    def __init__(self, column: str) -> None:
        if column not in COLUMNS:
            raise ValueError(f"column: expected one of {COLUMNS}, got {column!r}")
        self.column = column
        # rnnfused is imported only for its own column: torch.nn's is that of a program that does not have it.
        self._package: Any = nn
        if column == "rnnfused":
            import rnnfused

            self._package = rnnfused
        for name in KINDS + CELLS:
            setattr(self, name, getattr(self._package, name))

    LSTM: Any
    GRU: Any
    RNN: Any
    LSTMCell: Any
    GRUCell: Any
    RNNCell: Any

    @property
    def fused(self) -> bool:
        return self.column == "rnnfused"

    def make(self, kind: str, *args: Any, **options: Any) -> Any:
        return getattr(self, kind)(*args, **options)

    def pair(self, kind: str, *args: Any, **options: Any) -> tuple[Any, Any]:
        """A layer, and torch.nn's layer with the same weights."""
        layer = self.make(kind, *args, **options)
        twin = getattr(nn, kind)(*args, **options)
        twin.load_state_dict(layer.state_dict())
        return layer, twin

    def taggers(self, kind: str, *args: Any, **options: Any) -> tuple[Tagger, Tagger]:
        """A model around a layer, and the same around torch.nn's."""
        layer, twin = self.pair(kind, *args, **options)
        model = Tagger(layer)
        return model, Tagger(twin, copy.deepcopy(model.head))

    def convert(self, model: Any) -> Any:
        """A model of torch.nn's layers, as this column's user has it."""
        return self._package.convert(model) if self.fused else model

    def onnx_options(self) -> dict[str, Any]:
        """What a user adds to torch.onnx.export(dynamo=True)."""
        if not self.fused:
            return {}
        import rnnfused.onnx

        return {"custom_translation_table": rnnfused.onnx.translation_table()}


def autocast_dtypes(twin: Any, x: Tensor) -> list[torch.dtype]:
    """What a layer of torch.nn returns under autocast to bfloat16. Its LSTM runs there on some processors
    alone: on others, what it returns where it does.
    """
    with torch.no_grad():
        try:
            with torch.autocast("cpu", torch.bfloat16):
                return [result.dtype for result in flat(twin(x))]
        except RuntimeError:
            if not any(isinstance(module, nn.LSTM) for module in twin.modules()):
                raise
            return [torch.bfloat16 for _ in flat(twin(x))]


class Tagger(nn.Module):
    """A model as users write it: a recurrent layer and a linear one on its output."""

    def __init__(self, rnn: Any, head: nn.Linear | None = None) -> None:
        super().__init__()
        self.rnn = rnn
        width = (getattr(rnn, "proj_size", 0) or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
        self.head = head or nn.Linear(width, 5, dtype=rnn.weight_ih_l0.dtype, device=rnn.weight_ih_l0.device)

    def forward(self, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        y, states = self.rnn(x, hx)
        return self.head(y), states


class Loop(nn.Module):
    """A decoder as users write it: a cell in a Python loop."""

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x.unbind(0):
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs)
