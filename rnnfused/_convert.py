"""Swaps recurrent layers inside a model, in either direction, and says which."""

from __future__ import annotations

import dis
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import torch
from torch.fx.proxy import Proxy, TraceError
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from rnnfused import modules
from rnnfused._options import asked
from rnnfused._weights import Weights
from rnnfused.own_cells import OwnLayer

__all__ = ["Conversion", "conversions", "convert", "to_torch"]

M = TypeVar("M", bound=torch.nn.Module)

_log = logging.getLogger("rnnfused")

_NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
_OURS: dict[type, type] = {getattr(torch.nn, name): getattr(modules, name) for name in _NAMES}
_TORCH: dict[type, type] = {ours: theirs for theirs, ours in _OURS.items()}

# What a subclass may replace by something that goes on to super's: the call then arrives at our forward, a
# changed attribute at our __setattr__, a pickled layer at `_Converted`.
_CHAINED = frozenset(("forward", "__call__", "__setattr__", "__reduce_ex__"))

# What torch.nn's forward asks a layer, and ours does not or only once. A subclass that replaces any of it
# computes something else. (flatten_parameters is not one of them: it lays out memory for cuDNN.)
_ASKED = {
    *("__getattr__", "__getattribute__"),
    *("_flat_weights", "_flat_weights_names", "_flat_weight_refs"),
    *("_init_flat_weights", "_update_flat_weights", "_weights_have_changed"),
    *("check_forward_args", "check_hidden_size", "check_input"),
    *("get_expected_cell_size", "get_expected_hidden_size", "permute_hidden"),
    *("batch_first", "bias", "bidirectional", "dropout", "hidden_size", "input_size"),
    *("mode", "nonlinearity", "num_layers", "proj_size", "training"),
}


class Conversion(NamedTuple):
    """What `convert` makes of one recurrent layer.

    name: the layer's in the model, "" for the model itself. layer_type: its class, parametrisations aside.
    converted: whether it is rnnfused's once `convert` was called. reason: why not, "" if it is.
    """

    name: str
    layer_type: type
    converted: bool
    reason: str


def conversions(module: torch.nn.Module) -> list[Conversion]:
    """What `convert(module)` would do, layer by layer, and changes nothing.

    All layers of torch.nn.RNN, LSTM, GRU and the cells are listed, subclasses, scripted layers and those that
    are rnnfused's already among them. Raises TypeError if `module` is not a torch.nn.Module.
    """
    return [
        Conversion(name, source, not isinstance(target, str), target if isinstance(target, str) else "")
        for name, _, source, target in _recurrent(module)
    ]


def convert(module: M) -> M:
    """Makes every torch.nn.RNN, LSTM, GRU and cell in `module` rnnfused's, `module` included; returns it.

    Layers change in place, their type only. They stay the same objects with the same Parameters, so that
    optimizers, hooks, parametrisations, pruning and whatever else holds a layer go on working. A layer of a
    subclass gets a class that is derived from its own and from rnnfused's, if its forward is torch.nn's or
    calls super().forward; other layers are left alone. The logger "rnnfused" warns of each recurrent layer
    that is left alone, with the reason (`conversions` lists them), and names the others at level INFO. Raises
    TypeError if `module` is not a torch.nn.Module.
    """
    for name, layer, source, target in list(_recurrent(module)):
        words = (name or "the module itself", _full_name(source))
        if isinstance(target, str):
            _log.warning("%s (%s) is left alone: %s", *words, target)
        elif target is not source:
            _become(layer, source, target)
            _log.info("%s (%s) is converted", *words)
    return module


def to_torch(module: M) -> M | torch.nn.Module:
    """The reverse of `convert`: every rnnfused layer in `module` gets the class that it had, torch.nn's or a
    subclass of it, in place.

    What changes no number goes: recompute. Layers of classes that were written as subclasses of rnnfused's
    are left alone. Raises TypeError if `module` is not a torch.nn.Module, and ValueError, before anything is
    changed, for a layer that computes what torch.nn's does not: learn_initial_state, return_cells,
    weight_drop, the options of cells, and cells that torch.nn has not.
    """
    for name, layer in _checked(module).named_modules():
        if not isinstance(layer, modules._Described):
            continue
        own = [o for o in ("learn_initial_state", "return_cells", "weight_drop") if getattr(layer, o, False)]
        if isinstance(layer, OwnLayer):
            raise ValueError(f"module: torch.nn has no {type(layer).__name__}, as '{name}' is")
        for option in (*own, *asked(layer._options())):
            raise ValueError(f"module: torch.nn has no layer with {option}, as '{name}' is")
    for layer in module.modules():
        source = type_before_parametrizations(layer)
        target = _source(source) if _is_derived(source) else _TORCH.get(source)
        if target is not None:
            _become(layer, source, target)
    return module


def _checked(module: M) -> M:
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    return module


def _recurrent(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, type, type | str]]:
    """Of each recurrent layer its name, itself, its class and `_target`."""
    for name, layer in _checked(module).named_modules():
        if isinstance(layer, torch.jit.ScriptModule):
            if layer.original_name in _NAMES:
                yield name, layer, type(layer), "a ScriptModule runs what torch has compiled"
        elif isinstance(layer, (torch.nn.RNNBase, torch.nn.RNNCellBase)):
            source = type_before_parametrizations(layer)
            yield name, layer, source, _target(layer, source)


def _target(layer: torch.nn.Module, source: type) -> type | str:
    """The class that a layer of class `source` gets, or why it keeps its own."""
    target = _class_for(source)
    if isinstance(target, str) or target is source:
        return target
    if any(parameter is not None and parameter.is_complex() for parameter in layer._parameters.values()):
        return "its parameters are complex"
    theirs, ours = _bases(source)
    # Attributes of the object itself come before the class's, except for Parameters, buffers and modules.
    held = {*vars(layer), *layer._parameters, *layer._buffers, *layer._modules}
    for name in sorted(held):
        if name in _CHAINED or (name in _ASKED and hasattr(theirs, name)):
            return f"it has a {name} of its own, set on the layer itself"
        if name in _beyond(theirs, ours):
            return f"its attribute {name} has the name of one of rnnfused's"
    return target


def _class_for(source: type) -> type | str:
    """`_target` of a layer that has no attributes of its own."""
    if issubclass(source, (*_TORCH, OwnLayer)):
        return source
    theirs, ours = _bases(source)
    if theirs is None:
        return "it derives from none of torch.nn.RNN, LSTM, GRU and the cells"
    if source is theirs:
        return ours
    for cls in source.__mro__[: source.__mro__.index(theirs)]:
        for name, value in vars(cls).items():
            if name in _CHAINED and not _calls_super(value, name):
                return f"{_full_name(cls)}.{name} does not call super().{name}"
            if name in _ASKED and hasattr(value, "__get__"):
                return f"{_full_name(cls)} replaces {name}"
            if name in _beyond(theirs, ours):
                return f"{_full_name(cls)}.{name} has the name of an attribute of rnnfused's"
            if name == "__init__":
                continue  # what it has set is there to be seen
            for stored in sorted(_stored(value) & _beyond(theirs, ours)):
                return f"{_full_name(cls)}.{name} sets {stored}, the name of an attribute of rnnfused's"
    return _derived(source, ours)


def _bases(source: type) -> tuple[Any, Any]:
    """torch.nn's class that `source` derives from and ours, or None twice."""
    theirs = next((cls for cls in source.__mro__ if cls in _OURS), None)
    return theirs, theirs and _OURS[theirs]


@functools.cache
def _beyond(theirs: type, ours: type) -> set[str]:
    """Names that only our class uses."""
    return {*dir(ours)} - {*dir(theirs)}


def _calls_super(method: Any, name: str) -> bool:
    """Whether a method calls super().name or super(Class, self).name, as far as its code shows.

    A base class that is named, as in torch.nn.LSTM.forward(self, ...), is not to be redirected, and
    super(type(self), self) is the method itself in a class that is derived.
    """
    code = _code_of(method)
    return code is not None and _code_calls_super(code, name)


def _stored(method: Any) -> set[str]:
    """Names of attributes that a method sets, of whatever object."""
    code = _code_of(method)
    return set() if code is None else _code_stores(code)


def _code_of(method: Any) -> CodeType | None:
    code = getattr(inspect.unwrap(method), "__code__", None)
    return code if isinstance(code, CodeType) else None


def _code_stores(code: CodeType) -> set[str]:
    own = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_ATTR"}
    return own.union(*(_code_stores(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def _code_calls_super(code: CodeType, name: str) -> bool:
    after_super = False
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            after_super = instruction.argval == "super" or (after_super and instruction.argval != "type")
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
            if after_super and instruction.argval == name:
                return True
            after_super = False
    return any(_code_calls_super(inner, name) for inner in code.co_consts if isinstance(inner, CodeType))


class _Converted(modules._Described):
    """A base of the classes that are made for subclasses: (theirs, _Converted, ours).

    Their methods come first, and where they call super() ours come before torch.nn's. Theirs is the first
    base because an object can change only between classes that lay objects out alike.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        # pickle finds classes by name, and this one has none: the layer is made anew as one of theirs.
        reduced: Any = super().__reduce_ex__(protocol)
        make, args, *rest = reduced
        made = next(cls for cls in type(self).__mro__ if _is_derived(cls))
        make, *args = (_source(made) if value is made else value for value in (make, *args))
        return (_remade, (make, tuple(args)), *rest)

    def _leaf(self, input: Proxy, hx: Any, **options: Any) -> Any:
        if type(self).forward not in (modules._Sequence.forward, modules._Cell.forward):
            # A leaf is the whole layer, and this call comes from the middle of its forward.
            raise TraceError(
                f"{_full_name(type(self))}.forward cannot be traced symbolically: the layer has to be a leaf"
            )
        return super()._leaf(input, hx, **options)


# A class is kept as long as there are layers of it, since it keeps the class that it is made for.
_made: WeakValueDictionary[type, type] = WeakValueDictionary()


def _derived(source: type, ours: type) -> type | str:
    """The class that is `source` with our forward in place of torch.nn's, or why there can be none."""
    made = _made.get(source)
    if made is None:
        named = {name: getattr(source, name) for name in ("__module__", "__qualname__", "__doc__")}
        try:
            made = _made.setdefault(source, type(source.__name__, (source, _Converted, ours), named))
        except Exception as error:  # whatever their __init_subclass__ or metaclass raises
            return f"no class can be derived from its own: {type(error).__name__}: {error}"
    return made


def _is_derived(cls: type) -> bool:
    return _Converted in cls.__bases__


def _source(made: type) -> type:
    return made.__bases__[0]


def _remade(make: Callable[..., torch.nn.Module], args: tuple[Any, ...]) -> torch.nn.Module:
    """What a copied or pickled layer of a made class begins as. Files hold this function's name."""
    layer = make(*args)
    target = _class_for(type(layer))
    if isinstance(target, type):
        object.__setattr__(layer, "__class__", target)  # theirs may ask for attributes that are still to come
    return layer


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _become(layer: torch.nn.Module, source: type, target: type) -> None:
    """Both classes keep exactly torch.nn's attributes, but for those that `source` names."""
    for name in getattr(source, "_beyond_torch", ()):
        layer.__dict__.pop(name, None)
    if is_parametrized(layer):
        # torch makes a class for each parametrised layer, with the properties that compute its weights.
        own = dict(vars(type(layer)))
        layer.__class__ = type(f"Parametrized{target.__name__}", (target,), own)
    else:
        layer.__class__ = target
    if isinstance(layer, Weights):
        layer._drop_graphs()
