"""Which weights a layer takes: those that stand under their names, or what was written to `_flat_weights`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.utils import parametrize

import rnnfused

Layer = torch.nn.RNNBase
X = torch.linspace(-1, 1, 30).reshape(5, 2, 3)
NAME = "weight_hh_l0"


def other() -> torch.Tensor:
    return torch.linspace(-0.5, 0.5, 64).reshape(16, 4)


def set_by_name(layer: Layer) -> None:
    layer.weight_hh_l0 = torch.nn.Parameter(other())


def registered(layer: Layer) -> None:
    layer.register_parameter(NAME, torch.nn.Parameter(other()))


def a_plain_tensor(layer: Layer) -> None:
    del layer._parameters[NAME]
    layer.weight_hh_l0 = other()


def a_buffer(layer: Layer) -> None:
    del layer._parameters[NAME]
    layer.register_buffer(NAME, other())


def an_element(layer: Layer) -> None:
    layer._flat_weights[1] = other()


def the_whole_list(layer: Layer) -> None:
    layer._flat_weights = [layer.weight_ih_l0, other(), layer.bias_ih_l0, layer.bias_hh_l0]


def an_element_without_a_name(layer: Layer) -> None:
    del layer._parameters[NAME]
    layer._flat_weights[1] = other()


def an_element_after_a_new_parameter(layer: Layer) -> None:
    layer.register_parameter(NAME, torch.nn.Parameter(other() + 1))
    layer(X)
    layer._flat_weights[1] = other()


def a_parameter_after_an_element(layer: Layer) -> None:
    layer._flat_weights[1] = other() + 1
    layer(X)
    layer.weight_hh_l0 = torch.nn.Parameter(other())


CHANGES = [
    set_by_name,
    registered,
    a_plain_tensor,
    a_buffer,
    an_element,
    the_whole_list,
    an_element_without_a_name,
    an_element_after_a_new_parameter,
    a_parameter_after_an_element,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("calls", [1, 2])
def test_a_changed_weight_is_taken(change: Callable[[Layer], None], calls: int) -> None:
    ours, theirs = rnnfused.LSTM(3, 4), torch.nn.LSTM(3, 4)
    theirs.load_state_dict(ours.state_dict())
    before = ours(X)[0]
    for layer in (ours, theirs):
        change(layer)
    for _ in range(calls):
        got, want = ours(X)[0], theirs(X)[0]
    torch.testing.assert_close(got, want)
    assert not torch.equal(got, before)
    assert torch.equal(ours._params()[1], other())


def test_a_write_to_the_list_gets_the_gradient() -> None:
    layer = rnnfused.GRU(3, 4)
    raw = torch.nn.Parameter(torch.ones(12, 4))
    layer._flat_weights[1] = raw * 0.5
    layer(X)[0].sum().backward()
    assert raw.grad is not None and layer.weight_hh_l0.grad is None


def test_a_write_to_the_list_outlives_another_weights_change() -> None:
    """torch.nn then fills the whole list from the names again, and the write is lost without a word."""
    layer = rnnfused.LSTM(3, 4)
    layer._flat_weights[1] = other()
    layer.bias_ih_l0 = torch.nn.Parameter(torch.ones(16))
    layer(X)
    assert torch.equal(layer._params()[1], other()) and layer._params()[2].eq(1).all()


def test_a_list_of_another_length() -> None:
    layer = rnnfused.LSTM(3, 4)
    layer._flat_weights = layer._flat_weights[:3]
    with pytest.raises(RuntimeError, match="_flat_weights: expected 4 weights, got 3"):
        layer(X)


def test_weights_of_one_call_leave_nothing() -> None:
    layer = rnnfused.LSTM(3, 4)
    before = layer(X)[0]
    listed = list(layer._flat_weights)
    theirs = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
    assert torch.func.functional_call(layer, theirs, (X,))[0].eq(0).all()
    assert all(now is then for now, then in zip(layer._flat_weights, listed, strict=True))
    assert torch.equal(layer(X)[0], before)


def test_what_a_parametrisation_raises_is_seen() -> None:
    class Broken(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            raise AttributeError("broken")

    layer = rnnfused.LSTM(3, 4)
    parametrize.register_parametrization(layer, NAME, Broken(), unsafe=True)
    with pytest.raises(AttributeError):
        layer(X)


def test_a_parametrised_weight_is_computed_once_a_call() -> None:
    class Counted(torch.nn.Module):
        calls = 0

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return weight

    layer, counted = rnnfused.LSTM(3, 4), Counted()
    parametrize.register_parametrization(layer, NAME, counted)
    counted.calls = 0
    layer(X)
    assert counted.calls == 1
