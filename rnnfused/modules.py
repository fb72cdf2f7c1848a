"""Drop-in modules: torch.nn's constructors, parameters, state_dict and calls, over `rnnfused.functional`.

They derive from torch.nn's layers, so that code which chooses by type treats them alike; `_compiler` says how
torch's compiler takes that. Parameters, initialisation, validation and pickling are the base classes'.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from rnnfused import functional
from rnnfused._compiler import admit
from rnnfused._layer import PADDED, LayerConfig, Layout
from rnnfused._ops import leading_sizes, recurrent
from rnnfused._options import DEFAULTS, asked, layer_fields
from rnnfused._sequences import Sequences
from rnnfused._weights import Weights
from rnnfused.cells import CELLS

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

# One layer stack: (input, hx, where its sequences are).
Run = Callable[[Tensor, Sequence[Tensor], Layout], list[Tensor]]
CELLS_OF_MODE = {spec.mode: spec.name for spec in CELLS.values()}

# Attributes that LayerConfig is made from; they may be changed after construction, as torch.nn's may.
_DESCRIBED = frozenset(
    (
        *("mode", "num_layers", "bias", "batch_first", "bidirectional", "proj_size", "nonlinearity"),
        *("recompute", "return_cells"),
        *DEFAULTS,
    )
)


def leaf(module: torch.nn.Module, input: Proxy, hx: Any, **options: Any) -> Any:
    """In a symbolic trace (torch.fx) a layer is a leaf, as torch.nn's are."""
    tracer: Any = input.tracer
    given = {name: value for name, value in options.items() if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input, hx), given)


def _own_methods() -> frozenset[str]:
    """Names that a subclass must not give to attributes: calls go through them."""
    bases = {base for cls in (RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell) for base in cls.__mro__}
    ours = {base for base in bases if base.__module__.startswith("rnnfused.")}
    named = {name for base in ours for name, value in vars(base).items() if inspect.isfunction(value)}
    return frozenset({"_layer", *named}.difference(*map(vars, bases - ours)))


class _Described(torch.nn.Module):
    """A module with one LayerConfig, made when it is first asked for: a converted layer was never initialised
    as one of ours.

    Beyond torch.nn's arguments each takes the cell's options by keyword: `rnnfused.functional.CellOptions`.
    What they bring are parameters (docs/cells.md).
    """

    # Also of a module that an older version pickled, and of a converted one.
    peephole: bool = DEFAULTS["peephole"]
    coupled_gates: bool = DEFAULTS["coupled_gates"]
    reset_after: bool = DEFAULTS["reset_after"]
    layer_norm: str | bool | None = DEFAULTS["layer_norm"]
    cell_norm: str | None = DEFAULTS["cell_norm"]
    update_bias: float = DEFAULTS["update_bias"]
    zoneout: float | tuple[float, ...] = DEFAULTS["zoneout"]
    recurrent_dropout: float = DEFAULTS["recurrent_dropout"]
    cell_clip: float | None = DEFAULTS["cell_clip"]
    gate_clip: float | None = DEFAULTS["gate_clip"]
    grad_clip: float | None = DEFAULTS["grad_clip"]
    num_heads: int = DEFAULTS["num_heads"]

    _layer: LayerConfig | None = None
    _replaces_params = False  # whether those that torch.nn's constructor makes are another cell's
    _beyond_torch: tuple[str, ...] = ("_layer", *DEFAULTS)  # attributes that torch.nn's layers do not have

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        changed = asked({name: kwargs.pop(name) for name in DEFAULTS if name in kwargs})
        super().__init__(*args, **kwargs)
        for name, value in changed.items():
            setattr(self, name, value)
        if changed or self._replaces_params:
            self._make_params(self._config())

    def _make_params(self, layer: LayerConfig) -> None:
        """Puts parameters in the place of torch.nn's, where the options bring or resize any."""
        of_torch: Any = self
        output = getattr(self, "proj_size", 0) or of_torch.hidden_size
        shapes = layer.shapes(of_torch.input_size, of_torch.hidden_size, output)
        named = {name: shape for each in shapes for name, shape in each.items()}
        if named == {name: tuple(p.shape) for name, p in self.named_parameters()}:
            return
        like = next(self.parameters())
        self._parameters.clear()
        self.bias = layer.bias
        for name, shape in named.items():
            self.register_parameter(name, torch.nn.Parameter(like.new_empty(shape)))
        self._note_names([list(each) for each in shapes])
        self.reset_parameters()

    def _note_names(self, names: list[list[str]]) -> None:
        """What torch.nn's class keeps beside its parameters: their names in each layer and direction."""
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """As torch.nn's; the gains of norms become one, their shifts zero."""
        super().reset_parameters()  # type: ignore[misc]
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("norm_"):
                torch.nn.init.constant_(parameter, 1 if "_weight" in name else 0)

    def extra_repr(self) -> str:
        changed = asked(self._options())
        return super().extra_repr() + "".join(f", {name}={value!r}" for name, value in changed.items())

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _DESCRIBED:
            if isinstance(value, torch.nn.Module) or (isinstance(value, Tensor) and value.dim() > 0):
                raise TypeError(
                    f"{name}: expected an option of rnnfused's {type(self).__name__}, got "
                    f"{type(value).__name__} (an attribute of a subclass needs another name)"
                )
            self.__dict__.pop("_layer", None)
        elif name in _OWN_METHODS:
            raise AttributeError(
                f"{name}: expected a name that rnnfused's layers leave free, got that of one of their methods"
            )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        # Files hold what torch.nn's would: no class of ours but the layer's own.
        theirs = getattr(super(), "__getstate__", lambda: self.__dict__)()
        return {name: value for name, value in theirs.items() if name != "_layer"}

    def _config(self) -> LayerConfig:
        if is_dynamo_compiling():
            return self._describe()  # so that no compiled code depends on whether there was a call before
        layer = self._layer
        if layer is None:
            layer = self._describe()
            # What a trace left in the module would compile the next call anew.
            if not torch.compiler.is_compiling():
                self.__dict__["_layer"] = layer
        return layer

    def _describe(self) -> LayerConfig:
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in DEFAULTS}

    def _fields(self, cell: str) -> dict[str, Any]:
        """Of a LayerConfig: what the cell's options and the biases come to."""
        fields = layer_fields(cell, self._options())
        of_torch: Any = self
        return {"bias": bool(of_torch.bias) and fields.get("layer_norm") != "joint", **fields}

    def _states(self, hx: Any) -> Sequence[Tensor]:
        """hx as the operator takes it; raises what torch.nn raises for what is none."""
        raise NotImplementedError

    def _hx(self, states: Sequence[Tensor]) -> Any:
        """The reverse."""
        raise NotImplementedError

    def _leaf(self, input: Proxy, hx: Any, **options: Any) -> Any:
        return leaf(self, input, hx, **options)

    def __prepare_scriptable__(self) -> torch.nn.Module:
        # torch.jit.script asks for what to compile in this module's place.
        from rnnfused._convert import to_torch

        warnings.warn(
            f"torch.jit.script compiles torch.nn's layer in place of rnnfused's {type(self).__name__}, with "
            "the same parameters; for rnnfused's kernels use torch.export (or torch.jit.trace)",
            stacklevel=2,
        )
        return to_torch(copy.copy(self))


class _OneState(_Described):
    """hx is h."""

    def _states(self, hx: Tensor) -> Sequence[Tensor]:
        hx.dim()  # AttributeError for what is no tensor, as torch.nn's
        return (hx,)

    def _hx(self, states: Sequence[Tensor]) -> Tensor:
        return states[0]


class _TwoStates(_Described):
    """hx is (h, c)."""

    def _states(self, hx: Any) -> Sequence[Tensor]:
        if isinstance(hx, (tuple, list)) and len(hx) == 2:
            return hx
        return self._odd_states(hx)

    def _odd_states(self, hx: Any) -> Sequence[Tensor]:
        """Raises what torch.nn raises for what is no pair, if it raises."""
        raise NotImplementedError

    def _hx(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(states)


class _Sequence(_Described, Weights):
    """What RNN, LSTM and GRU share: from any of torch's forms of input to the operator, and back.

    hx is one tensor, or a pair for LSTM; `_states` and `_hx` say which. recompute=True keeps only the output,
    c and the last few gates for backward, which rebuilds the others: less memory, more time, the same
    gradients. learn_initial_state=True: the states of a call without hx are parameters, `initial_h_l0` [P]
    and `initial_c_l0` [H], for each layer and direction as the weights are named; zero at first.
    weight_drop=p: in training each call drops elements of the recurrent weights W_hh with probability p and
    scales the others by 1 / (1 - p), the same for all steps and sequences (DropConnect: Wan et al. 2013;
    Merity, Keskar and Socher 2018).
    """

    recompute = False
    learn_initial_state = False
    return_cells = False
    weight_drop = 0.0
    _beyond_torch = (
        *_Described._beyond_torch,
        *("recompute", "learn_initial_state", "return_cells", "weight_drop"),
    )

    def __init__(
        self,
        *args: Any,
        recompute: bool = False,
        learn_initial_state: bool = False,
        weight_drop: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        weight_drop = functional.check_probability("weight_drop", weight_drop)
        if weight_drop and self._config().spec.recurrent is None:
            raise ValueError(f"weight_drop: expected 0 for a cell without W_hh, got {weight_drop}")
        self.recompute = recompute
        self.learn_initial_state = learn_initial_state
        self.weight_drop = weight_drop
        if learn_initial_state:
            like = self._parameters["weight_ih_l0"]
            assert like is not None
            for names, size in zip(self._initial_names(), self._state_sizes(), strict=True):
                for name in names:
                    self.register_parameter(name, torch.nn.Parameter(like.new_zeros(size)))

    def _note_names(self, names: list[list[str]]) -> None:
        self._all_weights = names
        self._flat_weights_names = [name for each in names for name in each]
        self._init_flat_weights()

    def flatten_parameters(self) -> None:
        """As torch.nn's, which lays weights out for cuDNN, where cuDNN has such a layer."""
        if not self._config().varied:
            super().flatten_parameters()

    def extra_repr(self) -> str:
        own = _Sequence._beyond_torch[len(_Described._beyond_torch) :]
        options = [f", {name}={getattr(self, name)}" for name in own if getattr(self, name)]
        return super().extra_repr() + "".join(options)

    def reset_parameters(self) -> None:
        """As torch.nn's; learned initial states become zero."""
        super().reset_parameters()
        if self.learn_initial_state:
            for names in self._initial_names():
                for name in names:
                    torch.nn.init.zeros_(getattr(self, name))

    def _initial_names(self) -> list[list[str]]:
        """Of each state: the parameters, in the order of hx, that it begins with."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        return [
            [f"initial_{state}_l{layer}{suffix}" for layer in range(self.num_layers) for suffix in suffixes]
            for state in ("h", "c")[: len(self._state_sizes())]
        ]

    def _learned(self) -> list[Tensor]:
        """The learned initial states [L D, units]; none where they are not learned."""
        if not self.learn_initial_state:
            return []
        return [torch.stack([getattr(self, name) for name in names]) for names in self._initial_names()]

    @property
    def _cell(self) -> str:
        """Of the registry."""
        return CELLS_OF_MODE[self.mode]

    def _describe(self) -> LayerConfig:
        cell = self._cell
        return LayerConfig(
            cell,
            self.num_layers,
            bool(self.bidirectional),
            bool(self.batch_first),
            projected=self.proj_size > 0,
            recompute=bool(self.recompute),
            cells=bool(self.return_cells),
            **self._fields(cell),
        )

    def _initial(self, layer: LayerConfig, input: Tensor, layout: Layout) -> Sequence[Tensor]:
        """The states of a call without hx; none for zeros."""
        return expanded(layer, self._learned(), input, layout) if self.learn_initial_state else ()

    def _state_sizes(self) -> tuple[int, ...]:
        return (self.proj_size or self.hidden_size, self.hidden_size)[: len(self._config().spec.states)]

    def _run(self, input: Tensor, hx: Sequence[Tensor], layout: Layout) -> list[Tensor]:
        layer = self._config()
        if not hx:
            hx = self._initial(layer, input, layout)
        params: Sequence[Tensor] = self._params()
        if not self.training:
            return functional.stack(layer, input, hx, params, layout)
        layer, params = functional.drawn(layer, params, self.weight_drop)
        return functional.stack(layer, input, hx, params, layout, self.dropout)

    def forward(
        self,
        input: Any,
        hx: Any = None,
        lengths: Any = None,  # no keyword-only ones: torch's older ONNX exporter gives all by position
        resets: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """Runs the layers over a batch of sequences.

        input: [T, B, I], [B, T, I] if batch_first, [T, I] unbatched, a PackedSequence, rows [rows, I] with
        cu_seqlens, or a nested jagged tensor of [T_b, I]. hx: the initial states, never batch-first: h
        [L D, B, P], for LSTM (h, c) with c [L D, B, H]; if None zeros, or the learned ones.

        lengths [B], integers in any order, on any device: how many of its steps each sequence has. Beyond
        them the output is zero, and nothing is read. The final states are those at each sequence's own end
        (the initial ones of a sequence of no steps), where the backward direction begins.
        resets, bool, [T, B] ([B, T] if batch_first, else as the input without its features), on the input's
        device: the state is zero before these steps, in the backward direction after them, and no gradient
        passes; as if the sequence were cut there.
        cu_seqlens [B + 1], integers: sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1] of the input.

        Returns the output, laid out as the input with D P features, and the final states; of an LSTM with
        return_cells also c of every step, laid out as the input with D H features. float32, float64, float16
        and bfloat16. Raises torch.nn's exceptions with torch.nn's messages, and RuntimeError or
        TypeError for lengths, resets and cu_seqlens that do not fit.
        """
        return self._forward(self._run, input, hx, lengths, resets, cu_seqlens)

    def _forward(
        self, run: Run, input: Any, hx: Any, lengths: Any, resets: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Any, ...]:
        """From any form of input to what `run` takes, and back."""
        if isinstance(input, Tensor):
            if lengths is None and resets is None and cu_seqlens is None and not input.is_nested:
                found = run(input, () if hx is None else self._states(hx), PADDED)
                if self.return_cells:
                    return self._result(found)
                output, *states = found  # without one more call: a step may take few microseconds in all
                return output, self._hx(states)
        elif isinstance(input, PackedSequence):
            return self._forward_packed(run, input, hx, lengths, resets, cu_seqlens)
        elif isinstance(input, Proxy):
            return self._leaf(input, hx, lengths=lengths, resets=resets, cu_seqlens=cu_seqlens)
        sequences = Sequences(input, lengths, resets, cu_seqlens)
        results = run(sequences.input, () if hx is None else self._states(hx), sequences.layout)
        return self._result(results, sequences.like_input)

    def _result(
        self, results: list[Tensor], like_input: Callable[[Tensor], Any] | None = None
    ) -> tuple[Any, ...]:
        """What forward returns, from what the operator does."""
        output, *states = results
        if like_input is not None:
            output = like_input(output)
        return output, self._hx(states)

    def _forward_packed(self, run: Run, packed: PackedSequence, hx: Any, *others: Any) -> tuple[Any, ...]:
        for name, given in zip(("lengths", "resets", "cu_seqlens"), others, strict=True):
            if given is not None:
                raise ValueError(f"{name}: expected none with a PackedSequence, whose batch_sizes say it")
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        states: Sequence[Tensor] = ()
        if hx is not None:
            states = [_reordered(s, sorted_indices) for s in self._states(hx)]
        output, *rest = run(data, states, Layout(batch_sizes))
        count = len(self._state_sizes())
        final = [_reordered(state, unsorted_indices) for state in rest[:count]]
        return self._result(
            [output, *final, *rest[count:]],
            lambda rows: PackedSequence(rows, batch_sizes, sorted_indices, unsorted_indices),
        )


def expanded(layer: LayerConfig, learned: Sequence[Tensor], input: Tensor, layout: Layout) -> list[Tensor]:
    """Initial states [L D, units] for every sequence of the input."""
    leading = leading_sizes(layer, input, layout)
    return [s if len(leading) == 1 else s.unsqueeze(1).expand(*leading, s.size(-1)) for s in learned]


def _reordered(state: Tensor, indices: Tensor | None) -> Tensor:
    return state if indices is None else state.index_select(1, indices)


class RNN(_OneState, _Sequence, torch.nn.RNN):
    """torch.nn.RNN: h' = act(W_ih x + b_ih + W_hh h + b_hh) (Elman 1990).

    RNN(input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, recompute=False, learn_initial_state=False,
    weight_drop=0.0, **options): recompute changes nothing, since an RNN keeps nothing beside its output.
    options: layer_norm="separate", zoneout, recurrent_dropout, gate_clip, grad_clip, num_heads, as
    docs/cells.md has them. Shapes and dtypes: see `forward`.
    """


class GRU(_OneState, _Sequence, torch.nn.GRU):
    """torch.nn.GRU: the gated recurrent unit (Cho et al. 2014), its reset gate applied after the recurrent
    product.

    GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
    device=None, dtype=None, recompute=False, learn_initial_state=False, weight_drop=0.0, **options):
    recompute keeps few gates for backward, which rebuilds the others. options: those of `RNN`, and
    layer_norm="joint" with update_bias, reset_after=False: n = tanh(W_in x + b_in + W_hn (r h) + b_hn).
    Shapes and dtypes: see `forward`.
    """


class _ForgetBias(torch.nn.Module):
    """forget_bias=x: at initialisation x is added to the forget gate's bias, b_ih's part of it (Gers et al.
    2000; Jozefowicz, Zaremba and Sutskever 2015 advise 1); with a layer norm to the norm's shift.
    """

    forget_bias: float | None = None

    def __init__(self, *args: Any, forget_bias: float | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        layer: LayerConfig = self._config()  # type: ignore[operator]
        if forget_bias is not None and layer.coupled_gates:
            raise ValueError(f"forget_bias: expected None with coupled_gates=True, got {forget_bias}")
        if forget_bias is not None and layer.layer_norm is None and not layer.bias:
            raise ValueError(f"forget_bias: expected None with bias=False, got {forget_bias}")
        self.forget_bias = forget_bias
        self._add_forget_bias()

    def reset_parameters(self) -> None:
        """As torch.nn's, with the forget gate's bias."""
        super().reset_parameters()  # type: ignore[misc]
        self._add_forget_bias()  # of nothing while torch.nn's constructor calls it

    def extra_repr(self) -> str:
        of_bias = "" if self.forget_bias is None else f", forget_bias={self.forget_bias}"
        return super().extra_repr() + of_bias

    def _add_forget_bias(self) -> None:
        if self.forget_bias is None:
            return
        layer: LayerConfig = self._config()  # type: ignore[operator]
        shifts = {None: "bias_ih", "separate": "norm_ih_bias", "joint": "norm_bias"}
        with torch.no_grad():
            for name, parameter in self.named_parameters(recurse=False):
                if name.startswith(shifts[layer.layer_norm]):
                    parameter.chunk(4)[1].add_(self.forget_bias)  # i, f, g, o


class LSTM(_ForgetBias, _TwoStates, _Sequence, torch.nn.LSTM):
    """torch.nn.LSTM: long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000; projection: Sak
    et al. 2014).

    LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, proj_size=0, device=None, dtype=None, recompute=False, learn_initial_state=False,
    weight_drop=0.0, return_cells=False, forget_bias=None, **options): return_cells gives c of every step of
    the last layer as a third result; recompute keeps only the output, c and the last few gates for backward,
    which rebuilds the others; forget_bias is added to the forget gate's bias at initialisation. options:
    those of `RNN`, and layer_norm="joint", cell_norm, peephole, coupled_gates, cell_clip. Shapes and dtypes:
    see `forward`.
    """

    _beyond_torch = (*_Sequence._beyond_torch, "forget_bias")

    def __init__(self, *args: Any, return_cells: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.return_cells = return_cells

    def _result(
        self, results: list[Tensor], like_input: Callable[[Tensor], Any] | None = None
    ) -> tuple[Any, ...]:
        if not self.return_cells:
            return super()._result(results, like_input)
        *others, cells = results
        return *super()._result(others, like_input), cells if like_input is None else like_input(cells)

    def _odd_states(self, hx: Any) -> Sequence[Tensor]:
        pair = hx[0], hx[1]
        if isinstance(hx, Tensor):
            if hx.dim() == 3:
                return pair  # which torch.nn takes without a batch
            raise TypeError("lstm(): argument 'hx' must be tuple of Tensors, not Tensor")
        raise RuntimeError("lstm expects two hidden states")


_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Cell(_Described, torch.nn.RNNCellBase):
    """What the three cells share."""

    _cell: str  # of the registry

    def _describe(self) -> LayerConfig:
        return LayerConfig(self._cell, step=True, **self._fields(self._cell))

    def _note_names(self, names: list[list[str]]) -> None:
        for name in _WEIGHTS:
            if name not in self._parameters:
                self.register_parameter(name, None)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """One step. input: [B, I] or [I]; hx: the states [B, H] or [H], zeros if None. Returns the next
        states. Raises torch.nn's exceptions with torch.nn's messages.
        """
        if isinstance(input, Proxy):
            return self._leaf(input, hx)
        layer, states = self._config(), () if hx is None else self._states(hx)
        if layer.varied:
            return self._hx(self._varied_step(layer, input, states))
        own = self._parameters
        try:
            # By way of nn.Module's attributes each would cost as much as a tenth of a small step.
            params: Sequence[Any] = (own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"])
        except KeyError:  # parametrised, or otherwise no parameter
            params = [getattr(self, name) for name in _WEIGHTS]
        if not layer.bias or params[2] is None or params[3] is None:
            layer, params = _with_biases_given(layer, params)
        return self._hx(recurrent(layer, input, states, params))

    def _varied_step(self, layer: LayerConfig, input: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        layer, params = _with_biases_given(layer, [getattr(self, name) for name in _WEIGHTS])
        params = [*params, *(getattr(self, name) for name in layer.own_params)]
        if self.training:
            layer, params = functional.drawn(layer, params)
        return functional.stack(layer, input, states, params)


def _with_biases_given(layer: LayerConfig, params: Sequence[Any]) -> tuple[LayerConfig, Sequence[Tensor]]:
    """As torch.nn's cells take their biases: those that are there, whatever `bias` says; of one alone the
    other is zero.
    """
    *weights, b_ih, b_hh = params
    given = [bias for bias in (b_ih, b_hh) if bias is not None]
    if layer.bias != bool(given):
        layer = replace(layer, bias=bool(given))
    if len(given) == 1:
        other = torch.zeros_like(given[0])
        given = [other, b_hh] if b_ih is None else [b_ih, other]
    return layer, [*weights, *given]


class RNNCell(_OneState, _Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell: one step of `RNN`. input [B, I] or [I], hx [B, H] or [H]; returns h'. By keyword the
    options of `RNN`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        # In full, since torch.nn.utils.skip_init looks for `device` in the signature.
        super().__init__(input_size, hidden_size, bias, nonlinearity, device, dtype, **options)

    @property
    def _cell(self) -> str:  # type: ignore[override]
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return f"rnn_{self.nonlinearity}"


class GRUCell(_OneState, _Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell: one step of `GRU`. input [B, I] or [I], hx [B, H] or [H]; returns h'. By keyword the
    options of `GRU`.
    """

    _cell = "gru"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, **options)


class LSTMCell(_ForgetBias, _TwoStates, _Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell: one step of `LSTM`. input [B, I] or [I], hx = (h, c) of [B, H] or [H]; returns (h',
    c'). Beyond torch.nn's arguments forget_bias=None and the options of `LSTM`.
    """

    _cell = "lstm"
    _beyond_torch = (*_Cell._beyond_torch, "forget_bias")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        forget_bias: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype, forget_bias=forget_bias, **options)

    def _odd_states(self, hx: Any) -> Sequence[Tensor]:
        iter(hx)
        if isinstance(hx, Tensor):
            raise TypeError("lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not Tensor")
        raise RuntimeError("lstm_cell expects two hidden states")


_OWN_METHODS = _own_methods()
admit(_Sequence)
