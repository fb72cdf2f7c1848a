"""Recurrent layers with weights of 8 bits, for inference: `quantize_dynamic` makes a model's layers such."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.utils.parametrize import type_before_parametrizations

from rnnfused import modules
from rnnfused._convert import _OURS, convert
from rnnfused._layer import PADDED, LayerConfig, Layout
from rnnfused._load import _C
from rnnfused._ops import recurrent
from rnnfused._options import DEFAULTS, asked
from rnnfused._weights import is_of_weights, with_computed_weights

__all__ = ["SMALLEST", "Quantized", "quantize_dynamic", "quantized_params"]

M = TypeVar("M", bound=torch.nn.Module)

_log = logging.getLogger("rnnfused")

# Hidden units from which on a layer gains by 8 bits: bench/results/cpu-int8.md.
SMALLEST = 64

# How a layer is called, which may be changed after construction, as torch.nn's may.
_SETTABLE = ("batch_first", "return_cells")

# What torch.nn.Module calls around forward.
_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs"),
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
)
_KINDS = {kind.__name__: kind for kind in (modules.RNN, modules.LSTM, modules.GRU)} | {
    kind.__name__: kind for kind in (modules.RNNCell, modules.LSTMCell, modules.GRUCell)
}


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as integers from -127 to 127, int8, and the scale of each of its rows, float32: symmetric, the
    largest number of a row becomes 127 or -127. A row that is not finite has a scale that is not.
    """
    largest = weight.abs().amax(1) if weight.size(1) else weight.new_zeros(weight.size(0))
    scale = largest / 127
    numbers = (weight / scale.unsqueeze(1)).nan_to_num(0.0, 0.0, 0.0).round().clamp(-127, 127)
    return numbers.to(torch.int8), scale


def quantized_params(layer: LayerConfig, params: Sequence[Tensor]) -> list[Tensor]:
    """The weights of a layer or stack, its matrices as 8 bits, as the operator takes them
    (csrc/torch/arguments.h).
    """
    found: list[Tensor] = []
    for first in range(0, len(params), layer.params_each):
        scales = []
        for weight in params[first : first + layer.params_each]:
            if weight.dim() == 2:
                weight, scale = to_int8(weight)
                scales.append(scale)
            found.append(weight)
        found += scales
    return found


class Quantized(torch.nn.Module):
    """A recurrent layer or cell for inference with matrices of 8 bits, called as the layer it is made of.

    Each row of a matrix is int8 with a scale (symmetric, per output channel). In a product each row of the
    input and each h is rounded to 8 bits, too, by a scale of its own (its largest number becomes 127); sums
    are integers, exact; everything else, c and the gates among it, is float32. Weights are packed once.

    layer: an RNN, LSTM, GRU or cell of rnnfused's or torch.nn's on the CPU, in float32, whose weights are
    copied. state_dict: `weight_*` int8, `scale_*` and `bias_*` float32; `load_state_dict` takes a float32
    layer's and that of torch.ao's dynamically quantised layers, too. Can be copied, pickled, exported and
    compiled. To go back through it raises RuntimeError: there is no derivative. Raises TypeError for another
    layer, RuntimeError for another device or dtype and for options of the cell; calls raise what the layer's
    raise.
    """

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        kind = kind_of(layer) if isinstance(layer, torch.nn.Module) else None
        if kind is None:
            raise TypeError(
                "layer: expected an RNN, LSTM, GRU or cell of rnnfused's or torch.nn's, got "
                f"{type(layer).__name__}"
            )
        if changed := asked({name: getattr(layer, name, default) for name, default in DEFAULTS.items()}):
            raise RuntimeError(f"layer: expected torch.nn's equations with 8 bits, got {', '.join(changed)}")
        if issubclass(kind, modules._Cell):
            for name in ("bias_ih", "bias_hh"):
                if (getattr(layer, name) is not None) != bool(layer.bias):
                    raise RuntimeError(
                        f"{name}: expected {'a tensor' if layer.bias else 'None'} of a layer whose bias is "
                        f"{layer.bias}, got the other"
                    )
        layer = with_computed_weights(layer)
        self.__dict__["_shape"] = _without_memory(kind, layer)
        for group in self._groups():
            for name in group:
                weight = getattr(layer, name).detach()
                if weight.dtype != torch.float32 or weight.device.type != "cpu":
                    raise RuntimeError(
                        f"{name}: expected dtype torch.float32 on cpu, got {weight.dtype} on {weight.device}"
                    )
                self._put(name, weight, self.register_buffer)
        for names in self._initial_names():
            for name in names:
                self.register_buffer(name, getattr(layer, name).detach().clone())
        self.register_load_state_dict_pre_hook(_quantize_state)
        self.eval()

    def forward(
        self,
        input: Any,
        hx: Any = None,
        lengths: Any = None,
        resets: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Any:
        """As the layer's own forward."""
        shape, others = self._shape, {"lengths": lengths, "resets": resets, "cu_seqlens": cu_seqlens}
        if isinstance(input, Proxy):
            return modules.leaf(self, input, hx, **others)
        if isinstance(shape, modules._Sequence):
            return shape._forward(self._run, input, hx, lengths, resets, cu_seqlens)
        for name, given in others.items():
            if given is not None:
                raise TypeError(f"{name}: expected none, since a cell runs one step")
        return shape._hx(self._run(input, () if hx is None else shape._states(hx), PADDED))

    def flatten_parameters(self) -> None:
        """Does nothing: torch.nn's layers have it, and models call it."""

    def extra_repr(self) -> str:
        return repr(self._shape)

    def __getattr__(self, name: str) -> Any:
        # hidden_size, batch_first and whatever else describes the layer.
        try:
            return super().__getattr__(name)
        except AttributeError:
            described = vars(self.__dict__.get("_shape", object))
            if name.startswith("_") or name not in described:
                raise
            return described[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SETTABLE and hasattr(self._shape, name):
            shape = copy.copy(self._shape)  # which a copy of this module may share
            setattr(shape, name, value)
            self.__dict__["_shape"] = shape
            self.__dict__.pop("_seen", None)  # what is packed is of the old kind
        else:
            super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_packed", "_seen")}

    def _put(self, name: str, weight: Tensor, put: Callable[[str, Tensor], Any]) -> None:
        """A weight of the layer's as the buffers that hold it."""
        if not _is_matrix(name):
            put(name, weight.clone())
            return
        numbers, scale = to_int8(weight)
        put(name, numbers)
        put(_scale_of(name), scale)

    def _groups(self) -> list[list[str]]:
        """Names of the weights of each layer and direction, in the operator's order."""
        shape = self._shape
        names: list[str] = getattr(shape, "_flat_weights_names", list(shape._parameters))
        each = shape._config().params_each
        return [names[first : first + each] for first in range(0, shape._config().params, each)]

    def _initial_names(self) -> list[list[str]]:
        """Of the learned initial states, if they are learned."""
        return self._shape._initial_names() if getattr(self._shape, "learn_initial_state", False) else []

    def _config(self) -> LayerConfig:
        return dataclasses.replace(self._shape._config(), int8=True)

    def _params(self) -> list[Tensor]:
        """As the operator takes them."""
        found: list[Tensor] = []
        for group in self._groups():
            found += [getattr(self, name) for name in group]
            found += [getattr(self, _scale_of(name)) for name in group if _is_matrix(name)]
        return found

    def _run(self, input: Tensor, hx: Sequence[Tensor], layout: Layout) -> list[Tensor]:
        initial = self._initial_names()
        if initial and not hx:
            learned = [torch.stack([getattr(self, name) for name in names]) for names in initial]
            hx = modules.expanded(self._shape._config(), learned, input, layout)
        if not torch.compiler.is_compiling():
            if torch.is_autocast_enabled("cpu"):
                with torch.autocast("cpu", enabled=False):
                    return self._run(input.float(), [state.float() for state in hx], layout)
            outputs: list[Tensor] | None = self._native().forward(input, hx, *layout)
            if outputs is not None:
                return outputs
        return recurrent(self._config(), input, hx, self._params(), *layout)

    def _native(self) -> Any:
        """What has packed the weights as they are now."""
        # Whoever has put them there, or written to them.
        now = [(t, -1 if t.is_inference() else t._version) for t in self._buffers.values() if t is not None]
        seen = self.__dict__.get("_seen", ())
        if len(seen) != len(now) or not all(
            t is s and v == w for (t, v), (s, w) in zip(now, seen, strict=True)
        ):
            self.__dict__["_packed"] = _C.Frozen(self._config().text, self._params())
            self.__dict__["_seen"] = now
        return self.__dict__["_packed"]


def _is_matrix(name: str) -> bool:
    return name.startswith("weight")


def _scale_of(name: str) -> str:
    return name.replace("weight", "scale", 1)


def kind_of(layer: torch.nn.Module) -> Any:
    """The class of ours that a layer is of, or would be converted to; None for other modules and for
    subclasses, whose forward may do more.
    """
    source = type_before_parametrizations(layer)
    target = _OURS.get(source, source)
    return target if target in _KINDS.values() else None


def _without_memory(kind: Any, layer: Any) -> Any:
    """One of ours that is described by the same options, its weights on the meta device."""
    options = {"bias": layer.bias, "device": "meta"}
    if kind in (modules.RNN, modules.RNNCell):
        options["nonlinearity"] = layer.nonlinearity
    if issubclass(kind, modules._Sequence):
        for name in ("num_layers", "batch_first", "dropout", "bidirectional"):
            options[name] = getattr(layer, name)
        options["learn_initial_state"] = getattr(layer, "learn_initial_state", False)
    if kind is modules.LSTM:
        options |= {"proj_size": layer.proj_size, "return_cells": getattr(layer, "return_cells", False)}
    return kind(layer.input_size, layer.hidden_size, **options).eval()


def _quantize_state(module: Quantized, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """What a float32 layer or one of torch.ao's has saved becomes what `module` would have."""

    def put(name: str, value: Tensor) -> None:
        state[prefix + name] = value

    for index, group in enumerate(module._groups()):
        for name, value in _saved_by_torch_ao(state, prefix, index, group):
            put(name, value)
        for name in group:
            weight = state.get(prefix + name)
            if not isinstance(weight, Tensor) or weight.shape != getattr(module, name).shape:
                continue  # what is missing or of another size is torch's to complain of
            if weight.is_quantized:
                numbers, scale = weight.int_repr(), _scales(weight)
                put(name, numbers)
                put(_scale_of(name), scale)
            elif weight.is_floating_point():
                module._put(name, weight.float(), put)


# ---- torch.ao's quantised layers


def _is_of_torch_ao(layer: torch.nn.Module) -> bool:
    kind = type(layer)
    return kind.__module__.startswith("torch.ao.nn.quantized.dynamic") and kind.__name__ in _KINDS


def _from_torch_ao(layer: Any) -> Quantized:
    kind = _KINDS[type(layer).__name__]
    names = ("bias", "nonlinearity", "num_layers", "batch_first", "dropout", "bidirectional")
    options = {name: getattr(layer, name) for name in names if hasattr(layer, name)}
    made = Quantized(kind(layer.input_size, layer.hidden_size, **options))
    made.load_state_dict(layer.state_dict())
    return made


def _saved_by_torch_ao(
    state: dict[str, Any], prefix: str, index: int, group: Sequence[str]
) -> list[tuple[str, Tensor]]:
    """Takes the weights of one layer and direction out of what torch.ao has saved; none if it has not.

    Raises RuntimeError for weights that are not of 8 bits.
    """
    of_layer = state.pop(f"{prefix}_all_weight_values.{index}.param", None)
    if of_layer is not None:
        packed = of_layer.__getstate__()[0][4]
    else:
        packed = [state.pop(f"{prefix}_packed_weight_{kind}", None) for kind in ("ih", "hh")]
        if any(weight is None for weight in packed):
            return []
    found = [torch.ops.quantized.linear_unpack(weight) for weight in packed]
    weights, biases = zip(*found, strict=True)
    for name, weight in zip(group, weights, strict=False):
        if not weight.is_quantized:
            raise RuntimeError(f"{name}: expected weights of 8 bits, got torch.ao's of {weight.dtype}")
    values = [*weights, *(bias.detach() for bias in biases if bias is not None)]
    return list(zip(group, values, strict=True))


def _scales(weight: Tensor) -> Tensor:
    """Of the rows of a tensor that torch has quantised. Raises RuntimeError for one with zero points."""
    per_row = weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
    zero_points = weight.q_per_channel_zero_points() if per_row else torch.tensor(weight.q_zero_point())
    if weight.dtype != torch.qint8 or zero_points.any():
        raise RuntimeError(f"weight: expected dtype torch.qint8 with zero point 0, got {weight.dtype}")
    if per_row:
        return weight.q_per_channel_scales().float()
    return torch.full((weight.size(0),), weight.q_scale())


def quantize_dynamic(
    model: M,
    qconfig_spec: Iterable[type | str] | None = None,
    dtype: torch.dtype = torch.qint8,
    *,
    inplace: bool = False,
    smallest: int = SMALLEST,
) -> M:
    """A model for inference with weights of 8 bits in its recurrent layers: each RNN, LSTM, GRU and cell of
    rnnfused's and of torch.nn's, and each that torch.ao.quantization.quantize_dynamic has made of one (by the
    same numbers), becomes a `Quantized`. The successor of torch.ao's function for recurrent layers; the
    model's other layers stay as they are.

    qconfig_spec, as torch.ao's function has it: a set of types and of names of modules, or a mapping in which
    None is for those that are to stay; a module's name comes before its type, and modules are as what they
    are in where nothing is said of them. Recurrent layers that are asked for so get weights of 8 bits. None:
    all. dtype: torch.qint8;
    there is no other. inplace: changes `model` itself instead of a copy. smallest: layers of fewer hidden
    units stay float32 (rnnfused's), since 8 bits gain nothing there; the logger "rnnfused" says so at level
    INFO, and warns of layers of another dtype or device, of torch.ao's in float16, of subclasses and of what
    `convert` leaves alone. Hooks of forward move to what a layer becomes. Returns the model, or where that is
    a layer itself what it becomes. Raises TypeError if `model` is not a torch.nn.Module and for a
    qconfig_spec of anything else, ValueError for another dtype.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if dtype != torch.qint8:
        raise ValueError(f"dtype: expected torch.qint8, got {dtype}")
    spec = _checked_spec(qconfig_spec)
    asked_for = None if spec is None else _asked_for(model, spec)
    if not inplace:
        model = copy.deepcopy(model)
    convert(model)
    made: dict[torch.nn.Module, torch.nn.Module] = {}
    for name, layer in model.named_modules():
        if asked_for is not None and name not in asked_for:
            continue
        found = _quantized_or_why_not(layer, smallest)
        if isinstance(found, Quantized):
            made[layer] = found
            _log.info("%s is quantised", name or "the model itself")
        elif found is not None:
            _log.log(found.level, "%s stays as it is: %s", name or "the model itself", found.reason)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in made:
                parent._modules[name] = made[child]
    return made.get(model, model)  # type: ignore[return-value]


def _checked_spec(spec: Any) -> dict[type | str, bool] | None:
    """Whether layers are asked for, by type and name."""
    if spec is None:
        return None
    if isinstance(spec, str) or not isinstance(spec, Iterable):
        raise TypeError(f"qconfig_spec: expected None, or a set of types and names, got {spec!r}")
    wanted = {one: not isinstance(spec, Mapping) or spec[one] is not None for one in spec}
    for one in wanted:
        if not isinstance(one, (type, str)):
            raise TypeError(f"qconfig_spec: expected types and names of modules, got {one!r}")
    return wanted


def _asked_for(model: torch.nn.Module, spec: dict[type | str, bool]) -> set[str]:
    """Names of the modules that are, by torch.ao's rule (torch.ao.quantization.propagate_qconfig_)."""
    found = set()

    def walk(module: torch.nn.Module, name: str, inherited: bool) -> None:
        asked_for = inherited
        for one, wanted in spec.items():
            if isinstance(one, type) and _is_of_type(module, one):
                asked_for = wanted
        asked_for = spec.get(name, asked_for)
        if asked_for:
            found.add(name)
        for child_name, child in module.named_children():
            walk(child, f"{name}.{child_name}" if name else child_name, asked_for)

    walk(model, "", False)
    return found


def _is_of_type(module: torch.nn.Module, asked: type) -> bool:
    """rnnfused's and torch.nn's layers are the same, and torch.ao's have their names."""
    kind = type_before_parametrizations(module)
    if _is_of_torch_ao(module):
        return kind.__name__ == asked.__name__
    return _OURS.get(kind, kind) is _OURS.get(asked, asked)


class _Left(NamedTuple):
    level: int
    reason: str


def _quantized_or_why_not(layer: Any, smallest: int) -> Quantized | _Left | None:
    """None for what is no recurrent layer."""
    try:
        if _is_of_torch_ao(layer):
            made = _from_torch_ao(layer)
        elif kind_of(layer) is not None:
            if layer.hidden_size < smallest:
                return _Left(logging.INFO, f"{layer.hidden_size} hidden units, fewer than {smallest}")
            made = Quantized(layer)
        elif isinstance(layer, modules._Described):
            return _Left(
                logging.WARNING, f"{type(layer).__qualname__} is a subclass, whose forward may do more"
            )
        else:
            return None
    except RuntimeError as error:  # another dtype or device, or other equations
        return _Left(logging.WARNING, str(error))
    # Those of weight_norm and pruning have computed the weights for the last time.
    of_weights = {key for key, hook in layer._forward_pre_hooks.items() if is_of_weights(hook)}
    for name in _HOOKS:
        kept = {key: hook for key, hook in getattr(layer, name).items() if key not in of_weights}
        getattr(made, name).update(kept)
    return made
