"""Recurrent layers for inference, their weights packed once: `Frozen` for sequences, `Stepper` for steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import zip_longest
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.fx.proxy import TraceError

from rnnfused._layer import LayerConfig, Layout
from rnnfused._load import _C
from rnnfused._ops import recurrent
from rnnfused._quantized import quantized_params
from rnnfused._varied import native_dtype
from rnnfused._weights import with_computed_weights
from rnnfused.modules import GRU, LSTM, RNN, _Sequence, expanded

__all__ = ["Frozen", "Stepper"]


Module = RNN | LSTM | GRU
_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "int8": torch.int8}


class _Snapshot:
    """A module's weights as they were, and native code that has packed them. Copies and pickles hold the
    weights; the native object, which neither can, is made anew.
    """

    _native: Any
    _layer: LayerConfig
    _seen: LayerConfig | None  # the module's own, found to be the same
    _dtype: torch.dtype  # of what a call is given and gives
    _weights: Sequence[Tensor]
    _learned: Sequence[Tensor] = ()

    def __init__(self, module: Module, weights: str | None) -> None:
        if not isinstance(module, (RNN, LSTM, GRU)):
            raise TypeError(f"module: expected an rnnfused.RNN, LSTM or GRU, got {type(module).__name__}")
        if type(module).forward is not _Sequence.forward:
            raise TypeError(
                f"module: expected rnnfused's own forward, which {type(module).__name__} has replaced"
            )
        if variations := module._config().variations:
            options = ", ".join(variations)
            if weights is not None:
                raise ValueError(f"weights: expected None for a layer with {options}, got {weights!r}")
            weight = module._params()[0]
            if native_dtype(module._config(), weight) != weight.dtype:
                raise ValueError(
                    f"module: expected float32 or float64 on the CPU and no projection with {options}, "
                    "for what native code runs"
                )
        if weights is not None and weights not in _DTYPES:
            known = ", ".join(map(repr, _DTYPES))
            raise ValueError(f"weights: expected None or one of {known}, got {weights!r}")
        self._module, self._kind, self._seen = module, weights, None

    def _described(self) -> LayerConfig:
        """The module as it is described now. Raises TypeError if it is none of ours any more."""
        if not isinstance(self._module, _Sequence):
            raise TypeError(
                f"module: expected an rnnfused.RNN, LSTM or GRU, got {type(self._module).__name__}, which it "
                "has become since"
            )
        layer = self._module._config()
        return dataclasses.replace(layer, int8=True) if self._kind == "int8" else layer

    def _check_unchanged(self) -> None:
        """Raises RuntimeError if the module is described otherwise than what is kept of it."""
        if torch.compiler.is_compiling() or vars(self._module).get("_layer") is self._seen is not None:
            return
        if (now := self._described()) != self._layer:
            raise RuntimeError(
                f"module: expected '{self._layer.text}', as it was, got '{now.text}': call refresh"
            )
        self.__dict__["_seen"] = self._module._config()

    def _in_words(self) -> str:
        return f", weights={self._kind!r}" if self._kind else ""

    def refresh(self) -> None:
        """Takes the module's weights as they are now, on the device where they are now.

        Raises what the constructor raises, before anything is changed. A CUDA graph that was captured before
        reads weights that are gone: capture it again.
        """
        # What is kept outlives the mode that it is made in.
        with torch.inference_mode(False), torch.no_grad():
            taken = self._taken()
            native = self._pack(taken)
        self.__dict__.update(taken, _native=native)

    def _taken(self) -> dict[str, Any]:
        """What is held of the module, by attribute."""
        layer = self._described()
        params = [parameter.detach() for parameter in with_computed_weights(self._module)._params()]
        dtype = params[0].dtype
        if self._kind is not None and dtype != torch.float32:
            raise ValueError(f"module: expected dtype torch.float32 with weights, got {dtype}")
        stored = _DTYPES[self._kind] if self._kind else dtype
        if self._kind == "int8":
            weights = [t.clone() for t in quantized_params(self._module._config(), params)]
        else:
            weights = [t.to(stored, copy=True) for t in params]
        learned = [state.detach() for state in self._module._learned()]
        return {
            "_layer": layer,
            "_dtype": dtype,
            "_weights": weights,
            "_learned": learned,
        }

    def _pack(self, taken: dict[str, Any]) -> Any:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name != "_native"}
        return state | {"_layer": self._layer.text, "_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _layer=LayerConfig.parse(state["_layer"]))
        with torch.inference_mode(False), torch.no_grad():
            self._native = self._pack(self.__dict__)


class Frozen(_Snapshot):
    """A module for inference, called as the module itself: Frozen(module)(input, hx=None, ...) gives the bits
    of module(input, hx, ...) in eval mode.

    The module packs its weights anew in every call, as it must while they may change; a Frozen packs them
    once, which shows where a call is short beside its weights. (They are packed again where another number of
    threads or sequences asks for another layout.)

    module: an rnnfused.RNN, LSTM or GRU on the CPU or a GPU. Its weights are those that it has when the
    Frozen is made, whatever becomes of the module's: after a change, or after the module was moved to another
    device (which a Frozen does not follow by itself), call `refresh`. weights: "bf16" or "f16" keeps those of
    a float32 module, and what is multiplied with them, in bfloat16 or float16, on the CPU "int8" in 8 bits
    with a scale for each row (see `Quantized`); input, output and states stay float32 (a GPU rounds the
    states of 16 bits where a call begins and ends). A Frozen can be copied and pickled, and be an attribute
    of a torch.nn.Module, of which it is no part that trains. Nothing is differentiated. Calls from several
    threads are safe, and wait for each other. On the CPU a sequence of at most 8 rows is summed in the order
    of longer ones, where the module reads its weights as they lie: the same numbers to rounding; so it is
    where a call is traced or transformed, which runs the operator on the same weights. On a GPU a call can be
    captured in a CUDA graph where the module's can.

    Raises TypeError for another module, ValueError for other weights and for options of the cell
    (docs/cells.md) with them, RuntimeError for weights of 8 bits on a GPU; calls raise what the module's
    raise, and RuntimeError for another device, for tensors that require a gradient (with weights of 8 bits:
    when somebody goes back to them) and where the module is described otherwise than it was; TypeError where
    it is torch.nn's by now; torch.fx's symbolic traces raise TraceError.
    """

    def __init__(self, module: Module, weights: str | None = None) -> None:
        super().__init__(module, weights)
        self.refresh()

    def __call__(
        self,
        input: Any,
        hx: Any = None,
        lengths: Any = None,
        resets: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Any, ...]:
        if isinstance(input, Proxy):
            raise TraceError("a Frozen cannot be traced symbolically: its weights are no module's")
        self._check_unchanged()
        return self._module._forward(self._run, input, hx, lengths, resets, cu_seqlens)

    def __repr__(self) -> str:
        return f"Frozen({self._module!r}{self._in_words()})"

    def _pack(self, taken: dict[str, Any]) -> Any:
        return _C.Frozen(taken["_layer"].text, taken["_weights"])

    def _run(self, input: Tensor, hx: Sequence[Tensor], layout: Layout) -> list[Tensor]:
        if self._learned and not hx:
            hx = expanded(self._layer, self._learned, input, layout)
        if self._kind in (None, "int8"):
            return self._outputs(input, hx, layout)
        if input.dtype != self._dtype:
            raise RuntimeError(f"input: expected dtype {self._dtype}, got {input.dtype}")
        # The states stay as they are: the kernels keep them in float32.
        return [t.to(self._dtype) for t in self._outputs(input.to(self._weights[0].dtype), hx, layout)]

    def _outputs(self, input: Tensor, hx: Sequence[Tensor], layout: Layout) -> list[Tensor]:
        if not torch.compiler.is_compiling():
            outputs = self._native.forward(input, hx, *layout)
            if outputs is not None:
                return outputs
        return recurrent(self._layer, input, hx, self._weights, *layout)


class Stepper(_Snapshot):
    """Layers run one step a call, the state carried from call to call: for input that comes as it is made, in
    speech recognition, text generation or control.

    A call of the module reads its weights as they lie, makes zero states or takes them, and passes through
    torch.nn.Module; a Stepper packs the weights once and keeps plan and state. Its outputs have the bits of
    the module's over the whole sequence at once (where that has more than 8 rows: a shorter one runs with
    unpacked weights, whose products are summed in another order).

    module: an rnnfused.RNN, LSTM or GRU of any number of layers, in one direction, on the CPU or a GPU. It is
    run as in eval mode, without dropout. batch_size: sequences that go on side by side. weights: "bf16" or
    "f16" keeps those of a float32 module, and what is multiplied with them, in bfloat16 or float16, on the
    CPU "int8" in 8 bits with a scale for each row (see `Quantized`). The state is zero at first, or the
    module's learned one; it is float32 where weights are of 16 bits, the module's own too, so that what a
    step rounds away is not lost to the next.

    On a GPU (docs/cuda.md) the state stays at one place in memory, which every step, reset and assignment
    writes to, and a step reads nothing from the host and waits for nothing: it can be captured in a CUDA
    graph and replayed. The bits are those of the whole sequence run by the same kernels, as far as torch's
    products give a row the same ones in a batch of any size.

    Weights are those that the module has when the Stepper is made, whatever becomes of the module's: after a
    change, call `refresh`; if the module was moved to another device, the state goes there, too. A Stepper
    can be copied and pickled, its state with it, and be an attribute of a torch.nn.Module. Nothing is
    differentiated or traced. Calls from several threads are safe, and wait for each other. Raises TypeError
    for another module, ValueError for two directions, a batch size below 1, other weights and for options of
    the cell (docs/cells.md) with them, RuntimeError for another device or dtype and for weights of 8 bits on
    a GPU.
    """

    _states: tuple[Tensor, ...]
    _begin: Sequence[Tensor]  # what a row's states are at first, as much as all rows share

    def __init__(self, module: Module, batch_size: int = 1, weights: str | None = None) -> None:
        super().__init__(module, weights)
        if module.bidirectional:
            raise ValueError("module: expected one direction, got bidirectional=True")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        device = module._params()[0].device
        with torch.inference_mode(False):
            self._states = tuple(
                torch.zeros(module.num_layers, batch_size, size, device=device)
                for size in module._state_sizes()
            )
        super().refresh()
        self.reset()

    def __call__(self, input: Tensor, active: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """One step: input [B, I], of the module's dtype; returns the last layer's output [B, P], which later
        calls leave alone.

        active, bool [B], on the module's device: which sequences take the step. The others' states stand
        still, their outputs are zero, and nothing comes of their input; on the CPU they take no time either.
        out [B, P], contiguous, of the module's dtype: what the output is written to and returned in. With a
        contiguous input such a step on a GPU takes no memory.

        Raises RuntimeError for another size, dtype or device, for an input that requires a gradient and for
        an out that shares memory with the input, before anything is changed.
        """
        return self._native.step(input, active, out)

    def __repr__(self) -> str:
        return f"Stepper({self._module!r}, batch_size={self._states[0].shape[1]}{self._in_words()})"

    @property
    def state(self) -> Any:
        """The state as the module takes and returns it: h [L, B, P], for an LSTM (h, c) with c [L, B, H]. A
        copy; assign to set it, for instance to what the module returned for the beginning of a sequence.
        """
        return self.get_rows(slice(None))

    @state.setter
    def state(self, hx: Any) -> None:
        self._put("state", slice(None), hx)

    def reset(self) -> None:
        """Sets the state to zero, or to the module's learned one."""
        self.reset_rows(slice(None))

    def reset_rows(self, rows: Any) -> None:
        """Sets the state of some sequences to zero, or to the module's learned one: where their episode, file
        or speaker ends.

        rows: a bool mask [B], or whatever else indexes a tensor of B. Raises IndexError for what does not. On
        a GPU a mask that is there can change from replay to replay of a CUDA graph.
        """
        index = _as_index("rows", rows)

        def write() -> None:
            for state, begin in zip(self._states, self._begin, strict=True):
                if (
                    isinstance(index, Tensor)
                    and index.dtype == torch.bool
                    and index.shape == state.shape[1:2]
                ):
                    # Not by index: a GPU would be asked how many rows those are.
                    torch.where(index.to(state.device).unsqueeze(1), begin, state, out=state)
                else:
                    state[:, index] = begin

        self._at_rest(write, writes=True)

    def get_rows(self, rows: Any) -> Any:
        """The state of some sequences, as `state` has it of all: a copy. rows: as in `reset_rows`; a mask on
        a GPU is waited for, since it says how many rows there are.
        """
        index = _as_index("rows", rows)
        found: list[Tensor] = []

        def read() -> None:
            found.extend(state[:, index].clone() for state in self._states)

        self._at_rest(read, writes=False)
        return tuple(found) if len(found) > 1 else found[0]

    def set_rows(self, rows: Any, hx: Any) -> None:
        """Sets the state of some sequences to what `get_rows` or the module gave for as many.

        Raises ValueError for states of another size, before anything is changed.
        """
        self._put("hx", _as_index("rows", rows), hx)

    def _put(self, name: str, index: Any, hx: Any) -> None:
        count = len(self._states)
        given = (hx,) if isinstance(hx, Tensor) else hx
        if not (isinstance(given, (tuple, list)) and all(isinstance(state, Tensor) for state in given)):
            raise TypeError(f"{name}: expected {'a tensor' if count == 1 else '(h, c)'}, got {hx!r}")
        if len(given) != count:
            raise ValueError(f"{name}: expected {count} states, got {len(given)}")
        for own, new in zip(self._states, given, strict=True):
            if new.shape != own[:, index].shape:
                raise ValueError(f"{name}: expected size {list(own[:, index].shape)}, got {list(new.shape)}")

        def write() -> None:
            for own, new in zip(self._states, given, strict=True):
                own[:, index] = new

        self._at_rest(write, writes=True)

    def _at_rest(self, body: Callable[[], None], *, writes: bool) -> None:
        """Runs what reads or writes the state while no step does."""
        with torch.no_grad():
            self._native.at_rest(body, writes)

    def refresh(self) -> None:
        self._native.at_rest(super().refresh, True)

    refresh.__doc__ = _Snapshot.refresh.__doc__

    def __getstate__(self) -> dict[str, Any]:
        states: list[Tensor] = []
        self._at_rest(lambda: states.extend(own.clone() for own in self._states), writes=False)
        return super().__getstate__() | {"_states": tuple(states)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Whatever mode it is copied in.
        with torch.inference_mode(False), torch.no_grad():
            states = tuple(own.clone() for own in state["_states"])
        super().__setstate__(state | {"_states": states})

    def _taken(self) -> dict[str, Any]:
        taken = super()._taken()
        stored = taken["_weights"][0].dtype
        computed = torch.float32 if stored in _DTYPES.values() else stored
        states = tuple(state.to(taken["_weights"][0].device, computed) for state in self._states)
        begin = [
            (learned.unsqueeze(1) if learned is not None else state.new_zeros(())).to(state.dtype)
            for state, learned in zip_longest(states, taken["_learned"])
        ]
        return taken | {"_states": states, "_begin": begin}

    def _pack(self, taken: dict[str, Any]) -> Any:
        layer = dataclasses.replace(taken["_layer"], batch_first=False, cells=False)
        # A step that another thread has begun to ask for may still be the last of before a refresh.
        before = self.__dict__.get("_native")
        return _C.Stepper(layer.text, taken["_weights"], taken["_states"], taken["_dtype"], before)


def _as_index(name: str, rows: Any) -> Any:
    """What indexes the sequences; one of them keeps its dimension. Raises IndexError for None."""
    if rows is None:
        raise IndexError(f"{name}: expected what indexes the sequences, got None")
    if isinstance(rows, Tensor) and rows.dim() == 0 and rows.dtype != torch.bool:
        return rows.unsqueeze(0)
    return [int(rows)] if isinstance(rows, Integral) and not isinstance(rows, bool) else rows
