"""convert and to_torch, the registry, and what describes the installation."""

from __future__ import annotations

import abc
import ast
import copy
import functools
import gc
import inspect
import io
import pickle
import textwrap
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import swa_utils

import rnnfused
from rnnfused import _convert, _steps, reference
from rnnfused._load import _C, build_info
from rnnfused.cells import CELLS, EVERY_CELL, OWN_CELLS


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
    assert set(vars(ours(3, 4))) - set(vars(theirs(3, 4))) <= set(ours._beyond_torch)
    assert str(ours(3, 4)) == str(theirs(3, 4))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNNCell"])
def test_files_name_no_class_but_the_layers_own(name: str) -> None:
    layer = getattr(rnnfused, name)(3, 4)
    layer(torch.zeros(2, 3))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(file) == [f"rnnfused.modules.{name}"]
    file.seek(0)
    with torch.serialization.safe_globals([type(layer)]):
        again = torch.load(file, weights_only=True)
    torch.testing.assert_close(again(torch.ones(2, 3)), layer(torch.ones(2, 3)), rtol=0, atol=0)


def test_a_whole_model_is_saved() -> None:
    model = rnnfused.convert(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GRU(4, 4)))
    loaded = saved(model)
    assert type(loaded[1]) is rnnfused.GRU
    x = torch.randn(5, 2, 3)
    assert torch.equal(loaded(x)[0], model(x)[0])


# Subclasses as packages write them.
class Flexible(abc.ABC, torch.nn.RNNBase):
    """A forward for all kinds, over torch.nn's."""

    @abc.abstractmethod
    def first(self, state: Any) -> torch.Tensor: ...

    def forward(self, x: Any, hx: Any = None, scale: float = 2.0) -> tuple[Any, Any]:
        output, state = super().forward(x, hx=hx)
        return (output * scale if isinstance(output, torch.Tensor) else output), state


class FlexibleLSTM(Flexible, torch.nn.LSTM):
    def first(self, state: Any) -> torch.Tensor:
        return state[0]


class Wide(torch.nn.GRU):
    """Another constructor, more methods and attributes, no forward; copied by constructing."""

    def __init__(self, size: int) -> None:
        super().__init__(size, 2 * size, num_layers=2, bidirectional=True)
        self.scale = torch.nn.Linear(1, 1)

    def width(self) -> int:
        return 2 * self.hidden_size

    def flatten_parameters(self) -> None:
        self.flattened = True

    def another(self) -> Wide:
        return type(self)(self.input_size)


def noted(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any) -> Any:
        return forward(self, *args)

    return wrapper


class Decorated(torch.nn.RNN):
    @noted
    def forward(self, input: Any, hx: Any = None) -> Any:
        return [super(Decorated, self).forward(x, hx)[0] for x in (input, -input)]


class Reduced(torch.nn.LSTM):
    """Says itself how it is pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.input_size, self.hidden_size), self.__getstate__()


class ShiftedCell(torch.nn.LSTMCell):
    def forward(self, input: torch.Tensor, hx: Any = None) -> torch.Tensor:
        return super().forward(input, hx)[0] + 1


class PlainCell(torch.nn.GRUCell):
    pass


class Further(ShiftedCell):
    pass


SUBCLASSES: list[Callable[[], torch.nn.Module]] = [
    lambda: FlexibleLSTM(4, 4, 2),
    lambda: Wide(4),
    lambda: Decorated(4, 4),
    lambda: Reduced(4, 4),
    lambda: ShiftedCell(4, 4),
    lambda: PlainCell(4, 4),
    lambda: Further(4, 4),
]
each_subclass = pytest.mark.parametrize("make", SUBCLASSES, ids=lambda make: type(make()).__name__)


def example(layer: torch.nn.Module) -> torch.Tensor:
    return torch.linspace(-1, 1, 24).reshape((6, 4) if isinstance(layer, torch.nn.RNNCellBase) else (3, 2, 4))


def ours_of(kind: type) -> type:
    return next(
        getattr(rnnfused, cls.__name__) for cls in kind.__mro__ if cls.__module__ == "torch.nn.modules.rnn"
    )


@each_subclass
def test_a_subclass_there_and_back(make: Callable[[], torch.nn.Module]) -> None:
    layer = make()
    kind, attributes = type(layer), dict(vars(layer))
    parameters, text = dict(layer.named_parameters()), str(layer)
    x = example(layer)
    want = layer(x)
    met: list[object] = []
    layer.register_forward_hook(lambda module, *_: met.append(module))
    model = torch.nn.ModuleList([layer])

    assert rnnfused.convert(model)[0] is layer
    assert isinstance(layer, kind) and isinstance(layer, ours_of(kind)) and type(layer) is not kind
    assert type(rnnfused.convert(make())) is type(layer)
    assert str(layer) == text and list(model.state_dict()) == [f"0.{name}" for name in parameters]
    assert all(p is parameters[name] for name, p in layer.named_parameters())
    torch.testing.assert_close(layer(x), want)
    assert met == [layer]

    rnnfused.to_torch(model)
    assert type(layer) is kind and set(vars(layer)) == set(attributes)
    torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_a_subclass_runs_our_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type("Scaled", (getattr(torch.nn, name),), {})

    def forward(self: torch.nn.Module, *args: Any) -> Any:
        return "theirs", super(kind, self).forward(*args)

    kind.forward = forward
    layer = rnnfused.convert(kind(4, 4))
    monkeypatch.setattr(getattr(rnnfused, name), "forward", lambda self, *args: "ours")
    assert layer(torch.ones(1, 4)) == ("theirs", "ours")


def test_a_subclass_keeps_its_methods() -> None:
    layer = rnnfused.convert(Wide(4))
    assert layer.width() == 16 and layer.flattened
    another = layer.another()
    assert type(another) is type(layer) and another(example(layer))[0].shape == (3, 2, 16)
    another.recompute = True
    assert not rnnfused.to_torch(another).__dict__.get("recompute")
    state = torch.ones(1)
    assert rnnfused.convert(FlexibleLSTM(4, 4)).first((state, None)) is state


@each_subclass
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, pickled, saved], ids=lambda copied: copied.__name__
)
def test_copies_of_a_converted_subclass(copied: Copy, make: Callable[[], torch.nn.Module]) -> None:
    layer = rnnfused.convert(make())
    clone = copied(layer)
    assert clone is not layer and type(clone) is type(layer)
    torch.testing.assert_close(clone(example(layer)), layer(example(layer)))
    assert type(rnnfused.to_torch(clone)) is type(make())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol(protocol: int) -> None:
    layer = rnnfused.convert(Wide(4))
    assert type(pickle.loads(pickle.dumps(layer, protocol))) is type(layer)


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_parametrised_layer_of_a_subclass(order: str) -> None:
    layer = FlexibleLSTM(4, 4)
    if order == "before":
        rnnfused.convert(layer)
    weight_norm(layer)
    want = layer(example(layer))
    rnnfused.convert(layer)
    assert isinstance(layer, rnnfused.LSTM) and isinstance(layer, FlexibleLSTM)
    assert type(layer).__name__ == "ParametrizedFlexibleLSTM"
    torch.testing.assert_close(layer(example(layer)), want)
    torch.testing.assert_close(copy.deepcopy(layer)(example(layer)), want)
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(layer)
    rnnfused.to_torch(layer)
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer) is FlexibleLSTM
    torch.testing.assert_close(layer(example(layer)), want)


@each_subclass
def test_a_converted_subclass_is_one_graph(make: Callable[[], torch.nn.Module]) -> None:
    torch._dynamo.reset()
    layer = rnnfused.convert(make())
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(example(layer)), layer(example(layer)))


def test_a_converted_subclass_in_a_symbolic_trace() -> None:
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(rnnfused.convert(PlainCell(4, 4))))
    assert torch.equal(graph(torch.ones(2, 4)), graph.get_submodule("0")(torch.ones(2, 4)))
    # A leaf inside of the layer's own forward would be that forward once more.
    with pytest.raises(
        torch.fx.proxy.TraceError, match=r"ShiftedCell\.forward cannot be traced symbolically"
    ):
        torch.fx.symbolic_trace(torch.nn.Sequential(rnnfused.convert(ShiftedCell(4, 4))))


def test_a_class_lives_as_long_as_its_layers() -> None:
    kind = type("Passing", (torch.nn.LSTM,), {})
    gone = weakref.ref(type(rnnfused.convert(kind(2, 2)))), weakref.ref(kind)
    del kind
    gc.collect()  # the class that was made
    gc.collect()  # the one that it was made for
    assert [ref() for ref in gone] == [None, None]


# Subclasses whose forward ours cannot stand in for.
class OwnMaths(torch.nn.LSTMCell):
    def forward(self, input: torch.Tensor, hx: Any = None) -> torch.Tensor:
        return input @ self.weight_ih.t()


class OwnForwardBelow(OwnMaths):
    def forward(self, input: torch.Tensor, hx: Any = None) -> torch.Tensor:
        return super().forward(input) + 1


class BaseByName(torch.nn.LSTM):
    def forward(self, input: torch.Tensor, hx: Any = None) -> Any:
        return torch.nn.LSTM.forward(self, input, hx)


class AnotherSuper(torch.nn.GRU):
    def forward(self, input: torch.Tensor) -> Any:
        super().flatten_parameters()
        return self.head.forward(input)


class SuperOfItself(torch.nn.LSTM):
    def forward(self, *args: Any) -> Any:
        return super(type(self), self).forward(*args)


class KeepsItsStates(torch.nn.LSTM):
    def forward(self, *args: Any) -> Any:
        y, states = super().forward(*args)

        def keep() -> None:
            self._states = states

        keep()
        return y, states


class NoFunction(torch.nn.GRU):
    forward = functools.partial(torch.nn.GRU.forward)


class OwnCall(torch.nn.GRU):
    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        return input


class Checked(torch.nn.LSTM):
    def check_forward_args(self, *args: Any) -> None:
        pass


class Computed(torch.nn.RNN):
    @property
    def _flat_weights(self) -> list[torch.Tensor]:
        return list(self.parameters())

    @_flat_weights.setter
    def _flat_weights(self, weights: list[torch.Tensor]) -> None:
        pass


class SameName(torch.nn.LSTM):
    def _config(self) -> dict[str, int]:
        return {}


class SameAttribute(torch.nn.LSTM):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self._layer = torch.nn.Linear(2, 2)


class Direct(torch.nn.RNNBase):
    def __init__(self, *sizes: int) -> None:
        super().__init__("LSTM", *sizes)


class Registered(torch.nn.GRU):
    def __init_subclass__(cls) -> None:
        raise KeyError("name")


def shadowed() -> torch.nn.Module:
    layer = torch.nn.GRU(2, 2)
    layer.forward = layer.forward  # type: ignore[method-assign]
    return layer


LEFT_ALONE: list[tuple[Callable[[], torch.nn.Module], str]] = [
    (lambda: OwnMaths(2, 2), "OwnMaths.forward does not call super().forward"),
    (lambda: OwnForwardBelow(2, 2), "OwnMaths.forward does not call super().forward"),
    (lambda: BaseByName(2, 2), "BaseByName.forward does not call super().forward"),
    (lambda: AnotherSuper(2, 2), "AnotherSuper.forward does not call super().forward"),
    (lambda: SuperOfItself(2, 2), "SuperOfItself.forward does not call super().forward"),
    (
        lambda: KeepsItsStates(2, 2),
        "KeepsItsStates.forward sets _states, the name of an attribute of rnnfused's",
    ),
    (lambda: torch.nn.GRU(2, 2, dtype=torch.complex64), "its parameters are complex"),
    (lambda: NoFunction(2, 2), "NoFunction.forward does not call super().forward"),
    (lambda: OwnCall(2, 2), "OwnCall.__call__ does not call super().__call__"),
    (lambda: Checked(2, 2), "Checked replaces check_forward_args"),
    (lambda: Computed(2, 2), "Computed replaces _flat_weights"),
    (lambda: SameName(2, 2), "SameName._config has the name of an attribute of rnnfused's"),
    (lambda: SameAttribute(2, 2), "its attribute _layer has the name of one of rnnfused's"),
    (lambda: Direct(2, 2), "it derives from none of torch.nn.RNN, LSTM, GRU and the cells"),
    (lambda: Registered(2, 2), "no class can be derived from its own: KeyError: 'name'"),
    (shadowed, "it has a forward of its own, set on the layer itself"),
    (lambda: torch.jit.script(torch.nn.GRU(2, 2)), "a ScriptModule runs what torch has compiled"),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
@pytest.mark.parametrize(("make", "reason"), LEFT_ALONE, ids=[reason for _, reason in LEFT_ALONE])
def test_what_is_left_alone(
    make: Callable[[], torch.nn.Module], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make()
    kind, attributes = type(layer), set(vars(layer))
    model = torch.nn.ModuleDict({"encoder": layer})
    (found,) = rnnfused.conversions(model)
    assert found[:3] == ("encoder", kind, False) and found.reason.endswith(reason)

    rnnfused.convert(model)
    assert type(layer) is kind and set(vars(layer)) == attributes
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("rnnfused", "WARNING")
    assert record.getMessage().startswith("encoder (") and record.getMessage().endswith(reason)


def test_conversions(caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Sequential(
        torch.nn.LSTM(2, 2), torch.nn.Linear(2, 2), OwnMaths(2, 2), rnnfused.GRU(2, 2)
    )
    types = [type(layer) for layer in model]
    want = [("0", torch.nn.LSTM, True), ("2", OwnMaths, False), ("3", rnnfused.GRU, True)]
    assert [found[:3] for found in rnnfused.conversions(model)] == want
    assert [type(layer) for layer in model] == types and not caplog.records

    with caplog.at_level("INFO", logger="rnnfused"):
        rnnfused.convert(model)
    texts = [(record.levelname, record.getMessage().split(":")[0]) for record in caplog.records]
    assert texts == [
        ("INFO", "0 (torch.nn.modules.rnn.LSTM) is converted"),
        ("WARNING", f"2 ({__name__}.OwnMaths) is left alone"),
    ]
    want[0] = ("0", rnnfused.LSTM, True)
    assert [found[:3] for found in rnnfused.conversions(model)] == want
    assert rnnfused.conversions(torch.nn.LSTM(2, 2)) == [("", torch.nn.LSTM, True, "")]
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.Module, got int"):
        rnnfused.conversions(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_all_that_torchs_forward_asks_is_known(name: str) -> None:
    """What a subclass may not replace: whatever torch.nn's forward asks its layer, at any depth."""
    kind = getattr(torch.nn, name)
    asked: set[str] = set()
    pending = ["forward"]
    while pending:
        tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(kind, pending.pop()))))
        names = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "self"
        }
        pending += [n for n in names - asked if inspect.isfunction(getattr(kind, n, None))]
        asked |= names
    # Laid out for cuDNN; weights, which ours asks in the same way.
    asked -= {"flatten_parameters", "weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    assert asked and asked <= _convert._ASKED


def test_not_a_module() -> None:
    with pytest.raises(TypeError, match=r"module: expected a torch\.nn\.Module, got int"):
        rnnfused.convert(3)  # type: ignore[type-var]


def test_every_list_of_cells_agrees() -> None:
    assert list(CELLS) == _C.cell_names()
    assert set(CELLS) == set(reference.CELLS)
    assert set(OWN_CELLS) == set(reference.OWN_CELLS)
    assert set(EVERY_CELL) == set(_steps.STEPS)


def test_show_config_names_what_runs() -> None:
    text = rnnfused.show_config()
    assert _C.isa() in _C.available_isas()
    for word in (rnnfused.__version__, _C.isa(), torch.__version__, "RNNFUSED_ISA"):
        assert word in text
    built = build_info.cuda
    assert (f"nvcc {built}" if built else "not built") in text


@pytest.mark.parametrize("option", ["learn_initial_state", "return_cells", "weight_drop"])
def test_what_torch_has_not_stays(option: str) -> None:
    model = torch.nn.ModuleDict({"a": rnnfused.GRU(2, 3), "b": rnnfused.LSTM(2, 3, **{option: 1})})
    with pytest.raises(ValueError, match=f"torch.nn has no layer with {option}, as 'b' is"):
        rnnfused.to_torch(model)
    assert type(model["a"]) is rnnfused.GRU
