"""convert and to_torch, the registry, and what describes the installation."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import swa_utils

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


def test_a_layer_itself() -> None:
    lstm = torch.nn.LSTM(3, 4)
    holder = [lstm]
    assert rnnfused.convert(lstm) is lstm and type(holder[0]) is rnnfused.LSTM
    assert rnnfused.to_torch(lstm) is lstm and type(lstm) is torch.nn.LSTM


def test_to_torch_leaves_nothing_of_ours() -> None:
    layer = rnnfused.LSTM(3, 4, recompute=True)
    theirs = rnnfused.to_torch(layer)
    assert set(vars(theirs)) == set(vars(torch.nn.LSTM(3, 4)))
    assert not rnnfused.convert(theirs).recompute


# What people do to a layer. Each takes torch.nn's and ours.
def weight_norm(layer: torch.nn.Module) -> None:
    parametrizations.weight_norm(layer, "weight_hh_l0")


def two_parametrisations(layer: torch.nn.Module) -> None:
    parametrizations.spectral_norm(layer, "weight_hh_l0")
    parametrizations.weight_norm(layer, "weight_ih_l1")
    # torch.nn's layers compute such weights several times a call, and each time in training changes u and v.
    layer.parametrizations.eval()


def removed_parametrisation(layer: torch.nn.Module) -> None:
    weight_norm(layer)
    parametrize.remove_parametrizations(layer, "weight_hh_l0")


def old_weight_norm(layer: torch.nn.Module) -> None:
    torch.nn.utils.weight_norm(layer, "weight_hh_l0")


def old_spectral_norm(layer: torch.nn.Module) -> None:
    torch.nn.utils.spectral_norm(layer, "weight_hh_l0")


def pruned(layer: torch.nn.Module) -> None:
    prune.l1_unstructured(layer, "weight_hh_l0", 0.5)


def pruned_for_good(layer: torch.nn.Module) -> None:
    pruned(layer)
    prune.remove(layer, "weight_hh_l0")


def weight_dropped(layer: torch.nn.Module) -> None:
    """As older packages do it: the Parameter under another name, its place filled before every call."""
    weight = layer._parameters.pop("weight_hh_l0")
    layer.register_parameter("weight_hh_l0_raw", weight)

    def drop(module: torch.nn.Module, _: object) -> None:
        module.weight_hh_l0 = module.weight_hh_l0_raw * 0.5

    layer.register_forward_pre_hook(drop)


def written_to_the_list(layer: torch.nn.Module) -> None:
    """Weight drop as other older packages do it: into torch.nn's list of weights."""

    def drop(module: torch.nn.Module, _: object) -> None:
        module._flat_weights[1] = module.weight_hh_l0 * 0.5

    layer.register_forward_pre_hook(drop)


def plain(layer: torch.nn.Module) -> None:
    pass


TREATMENTS = [
    plain,
    weight_norm,
    two_parametrisations,
    removed_parametrisation,
    old_weight_norm,
    old_spectral_norm,
    pruned,
    pruned_for_good,
    weight_dropped,
    written_to_the_list,
]
Treatment = Callable[[torch.nn.Module], None]
# When the layer becomes ours: before the treatment, after it, or after it and a call.
ORDERS = ["before", "after", "used"]
each_treatment = pytest.mark.parametrize("treatment", TREATMENTS, ids=lambda treatment: treatment.__name__)
each_order = pytest.mark.parametrize("order", ORDERS)
filtered = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


def treated(treatment: Treatment, order: str | None, used: bool = False) -> torch.nn.Module:
    """A layer of torch.nn's, made ours in the given order or not at all."""
    torch.manual_seed(0)
    layer = torch.nn.LSTM(3, 4, 2)
    if order == "before":
        assert rnnfused.convert(layer) is layer
    treatment(layer)
    if used or order == "used":
        layer(torch.ones(2, 1, 3))
    if order in ("after", "used"):
        assert rnnfused.convert(layer) is layer
    assert isinstance(layer, torch.nn.LSTM) and isinstance(layer, rnnfused.LSTM) == (order is not None)
    return layer


def trained(layer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What two steps of training give: outputs, gradients, state."""
    x = torch.linspace(-1, 1, 30).reshape(5, 2, 3)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    results: dict[str, torch.Tensor] = {}
    for step in range(2):
        optimizer.zero_grad()
        output, (h, c) = layer(x)
        (output.square().sum() + h.sum() + c.sum()).backward()
        results |= {f"output {step}": output.detach()}
        results |= {f"{name} {step}": p.grad.clone() for name, p in layer.named_parameters()}
        optimizer.step()
    return results | {name: value.clone() for name, value in layer.state_dict().items()}


@filtered
@each_order
@each_treatment
def test_a_treated_layer_computes_as_torchs(treatment: Treatment, order: str) -> None:
    want = trained(treated(treatment, None, used=order == "used"))
    torch.testing.assert_close(trained(treated(treatment, order)), want)


@filtered
@each_treatment
def test_a_treated_layer_there_and_back(treatment: Treatment) -> None:
    layer = treated(treatment, None)
    kind, attributes = type(layer), set(vars(layer))
    rnnfused.to_torch(rnnfused.convert(layer))
    assert parametrize.type_before_parametrizations(layer) is torch.nn.LSTM
    assert type(layer).__name__ == kind.__name__
    assert set(vars(layer)) == attributes
    torch.testing.assert_close(trained(layer), trained(treated(treatment, None)))


def saved(layer: torch.nn.Module) -> torch.nn.Module:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(layer: torch.nn.Module) -> torch.nn.Module:
    return pickle.loads(pickle.dumps(layer))


def averaged(layer: torch.nn.Module) -> torch.nn.Module:
    model = swa_utils.AveragedModel(layer, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(2):  # the first copies
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(1.5)
        model.update_parameters(layer)
    return model.module


Copy = Callable[[torch.nn.Module], torch.nn.Module]
DEEP: list[Copy] = [copy.deepcopy, averaged]
COPIES: list[Copy] = [*DEEP, copy.copy, pickled, saved]


def outcome(copied: Copy, layer: torch.nn.Module) -> torch.nn.Module | str:
    try:
        return copied(layer)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@filtered
@each_order
@each_treatment
@pytest.mark.parametrize("copied", COPIES, ids=lambda copied: copied.__name__)
def test_copies_are_as_torchs(copied: Copy, treatment: Treatment, order: str) -> None:
    want = outcome(copied, treated(treatment, None, used=order == "used"))
    layer = treated(treatment, order)
    got = outcome(copied, layer)
    if isinstance(want, str):
        # torch.nn's own layer keeps the graph of its parametrised weights after a call and cannot be copied.
        better = (
            order == "used" and copied in (copy.deepcopy, averaged) and parametrize.is_parametrized(layer)
        )
        assert isinstance(got, torch.nn.Module) if better else got == want
    else:
        assert isinstance(got, rnnfused.LSTM) and type(got).__name__ == type(want).__name__
        torch.testing.assert_close(trained(got), trained(want))


def test_a_copy_has_weights_of_its_own() -> None:
    layer = treated(weight_norm, "after")
    clone = copy.deepcopy(layer)
    before = {name: p.clone() for name, p in clone.named_parameters()}
    trained(layer)
    torch.testing.assert_close(dict(clone.named_parameters()), before)
    want = layer(torch.ones(2, 1, 3))[0]
    clone.load_state_dict(layer.state_dict())
    torch.testing.assert_close(clone(torch.ones(2, 1, 3))[0], want)


@pytest.mark.parametrize("order", ["before", "after"])
def test_hooks_meet_the_layer_itself(order: str) -> None:
    gru = torch.nn.GRU(3, 4)
    met: dict[str, list[object]] = {}

    def noted(name: str) -> Callable[..., None]:
        met[name] = []
        return lambda *args: met[name].append(args[0])

    if order == "before":
        rnnfused.convert(gru)
    gru.register_forward_pre_hook(noted("forward pre"))
    gru.register_forward_hook(noted("forward"))
    gru.register_full_backward_pre_hook(noted("backward pre"))
    gru.register_full_backward_hook(noted("backward"))
    gru.register_state_dict_pre_hook(noted("state_dict pre"))
    gru.register_state_dict_post_hook(noted("state_dict post"))
    gru.register_load_state_dict_pre_hook(noted("load_state_dict pre"))
    gru.register_load_state_dict_post_hook(noted("load_state_dict post"))
    model = torch.nn.ModuleList([gru])
    rnnfused.convert(model)
    gc.collect()

    output = model[0](torch.zeros(1, 1, 3, requires_grad=True))[0]
    output.sum().backward()
    model.load_state_dict(model.state_dict())
    assert {name: len(modules) for name, modules in met.items()} == dict.fromkeys(met, 1)
    assert all(modules[0] is model[0] for modules in met.values()) and type(model[0]) is rnnfused.GRU


def initialised(module: torch.nn.Module) -> None:
    """As many packages initialise: by type."""
    if isinstance(module, (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN)):
        for name, parameter in module.named_parameters():
            torch.nn.init.constant_(parameter, 0.25 if "weight" in name else 0.5)
    elif isinstance(module, (torch.nn.LSTMCell, torch.nn.GRUCell, torch.nn.RNNCell)):
        torch.nn.init.constant_(module.bias_ih, 0.75)


def first_state(layer: torch.nn.Module, state: Any) -> torch.Tensor:
    """As many packages take h from what a layer returns: by type."""
    return state[0] if isinstance(layer, torch.nn.LSTM) else state


def test_code_that_chooses_by_type() -> None:
    ours = rnnfused.convert(Model()).apply(initialised).eval()
    theirs = Model().apply(initialised).eval()
    x = torch.linspace(-1, 1, 15).reshape(5, 1, 3)
    for layer, other in zip(ours.modules(), theirs.modules(), strict=True):
        if isinstance(other, torch.nn.RNNBase):
            assert all(p.eq(q).all() for p, q in zip(layer.parameters(), other.parameters(), strict=True))
            got, want = layer(torch.ones(2, 1, 4)), other(torch.ones(2, 1, 4))
            torch.testing.assert_close(first_state(layer, got[1]), first_state(other, want[1]))
        if isinstance(other, torch.nn.RNNCellBase):
            assert layer.bias_ih.eq(0.75).all()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_types(name: str) -> None:
    ours, theirs = getattr(rnnfused, name), getattr(torch.nn, name)
    assert issubclass(ours, theirs)
    assert set(vars(ours(3, 4))) - set(vars(theirs(3, 4))) <= {"recompute"}
    assert str(ours(3, 4)) == str(theirs(3, 4))


def test_a_whole_model_is_saved() -> None:
    model = rnnfused.convert(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GRU(4, 4)))
    loaded = saved(model)
    assert type(loaded[1]) is rnnfused.GRU
    x = torch.randn(5, 2, 3)
    assert torch.equal(loaded(x)[0], model(x)[0])


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
