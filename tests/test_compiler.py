"""What torch's compiler makes of layers that are torch.nn's by type."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrizations

import rnnfused
from rnnfused import _compiler


class Probe(rnnfused.LSTM):
    """A layer that compiles whatever the kernels are."""

    def forward(self, input: torch.Tensor, hx: None = None) -> torch.Tensor:
        weight, _, bias, _ = self._params()
        return torch.tanh(input @ weight.t() + bias)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Probe(3, 4)
        self.out = torch.nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.out(self.layer(x))
        return y if isinstance(self.layer, torch.nn.LSTM) else y * 0


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


def test_one_graph() -> None:
    model, counter = Model(), CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x = torch.randn(5, 2, 3)
    for _ in range(2):
        assert torch.equal(compiled(x), model(x))
    assert compiled(x).ne(0).any() and counter.frame_count == 1


def test_weights_of_every_kind_in_one_graph() -> None:
    x = torch.randn(5, 2, 3)

    def check(layer: torch.nn.Module) -> None:
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))

    layer = Probe(3, 4)
    check(layer)
    layer._flat_weights[0] = torch.randn(16, 3)  # the same code meets another list: it is compiled again
    check(layer)
    parametrizations.weight_norm(layer, "weight_ih_l0")
    check(layer)

    def called(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"bias_ih_l0": weight}, (x,))

    compiled = torch.compile(called, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(16)), called(torch.ones(16)))


def test_a_model_that_was_compiled_may_be_converted() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.GRU(3, 4))
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(5, 2, 3)
    want = compiled(x)[0]
    rnnfused.convert(compiled)
    assert type(model[1]) is rnnfused.GRU
    torch.testing.assert_close(compiled(x)[0], want)


def test_torchs_own_layers_are_compiled_as_ever() -> None:
    model = Model()
    torch.compile(model, fullgraph=True, backend="eager")(torch.randn(5, 2, 3))
    assert not torch._dynamo.config.allow_rnn
    model.layer = torch.nn.LSTM(3, 4)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, or LSTM"):
        torch.compile(model, fullgraph=True, backend="eager")(torch.randn(5, 2, 3))


def test_a_torch_that_asks_in_another_way_is_left_alone() -> None:
    builder = types.ModuleType("builder")
    builder.VariableBuilder = type("VariableBuilder", (), {})
    _compiler._teach(builder, torch.nn.RNNBase)
    assert not hasattr(builder.VariableBuilder, "wrap_module")


@pytest.mark.long
@pytest.mark.parametrize("first", ["rnnfused", "torch._dynamo"])
def test_imports_in_either_order(first: str) -> None:
    second = "torch._dynamo" if first == "rnnfused" else "rnnfused"
    code = f"""
import sys
import torch
import {first}
assert {first!r} == "torch._dynamo" or "torch._dynamo" not in sys.modules, "importing rnnfused imports Dynamo"
import {second}
import rnnfused

class Probe(rnnfused.GRU):
    def forward(self, input):
        return input + 1

print(torch.compile(Probe(3, 4), fullgraph=True, backend="eager")(torch.zeros(1)).item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "1.0", done.stderr
