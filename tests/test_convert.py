"""convert and to_torch, the registry, and what describes the installation."""

from __future__ import annotations

import pytest
import torch

import rnnfused
from rnnfused import _decomposed, reference
from rnnfused._load import _C, build_info
from rnnfused.cells import CELLS


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(3, 4))
        self.shared = torch.nn.GRU(4, 4)
        self.blocks = torch.nn.ModuleDict({"a": self.shared, "b": torch.nn.LSTM(4, 4, 2, dropout=0.2)})
        self.cell = torch.nn.LSTMCell(4, 4)
        self.plain = torch.nn.RNN(4, 4, nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.blocks["a"](self.shared(self.encoder(x))[0])[0]
        y = self.plain(self.blocks["b"](y)[0])[0]
        return self.cell(y[-1])[0]


def test_there_and_back() -> None:
    model = Model().eval()
    x = torch.randn(5, 2, 3)
    want = model(x)
    parameters = dict(model.named_parameters())
    keys = list(model.state_dict())

    assert rnnfused.convert(model) is model
    assert isinstance(model.shared, rnnfused.GRU) and model.blocks["a"] is model.shared
    assert isinstance(model.cell, rnnfused.LSTMCell) and model.plain.nonlinearity == "relu"
    assert not model.blocks["b"].training and model.blocks["b"].dropout == 0.2
    assert list(model.state_dict()) == keys
    assert all(p is parameters[name] for name, p in model.named_parameters())
    torch.testing.assert_close(model(x), want)
    torch.optim.SGD(parameters.values(), 0.1).step()

    rnnfused.to_torch(model)
    assert type(model.shared) is torch.nn.GRU and type(model.plain) is torch.nn.RNN
    assert all(p is parameters[name] for name, p in model.named_parameters())
    torch.testing.assert_close(model(x), want)


def test_a_layer_itself_and_its_hooks() -> None:
    lstm = torch.nn.LSTM(3, 4)
    calls: list[str] = []
    lstm.register_forward_hook(lambda *_: calls.append("hook"))
    converted = rnnfused.convert(lstm)
    assert isinstance(converted, rnnfused.LSTM)
    converted(torch.zeros(1, 1, 3))
    assert calls == ["hook"]


def test_parametrised_layers() -> None:
    gru = torch.nn.GRU(3, 4)
    torch.nn.utils.parametrizations.weight_norm(gru, "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    want = gru(x)[0]
    converted = rnnfused.convert(torch.nn.Sequential(gru))[0]
    assert isinstance(converted, rnnfused.GRU)
    torch.testing.assert_close(converted(x)[0], want)


def test_subclasses_are_left_alone() -> None:
    class Mine(torch.nn.LSTM):
        pass

    model = torch.nn.Sequential(Mine(2, 2))
    assert type(rnnfused.convert(model)[0]) is Mine


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.Module, got int"):
        rnnfused.convert(3)  # type: ignore[type-var]


def test_every_list_of_cells_agrees() -> None:
    assert list(CELLS) == _C.cell_names()
    assert set(CELLS) == set(reference.CELLS) == set(_decomposed.STEPS)


def test_show_config_names_what_runs() -> None:
    text = rnnfused.show_config()
    assert _C.isa() in _C.available_isas()
    for word in (rnnfused.__version__, _C.isa(), torch.__version__, "RNNFUSED_ISA"):
        assert word in text
    built = build_info.cuda
    assert (f"nvcc {built}" if built else "not built") in text
