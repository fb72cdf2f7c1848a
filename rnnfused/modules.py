"""Drop-in modules: torch.nn's constructors, parameters, state_dict and calls, over `rnnfused.functional`.

They derive from torch.nn's layers, so that code which chooses by type treats them alike; `_compiler` says how
torch's compiler takes that. Parameters, initialisation, validation and pickling are the base classes'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnnfused import functional
from rnnfused._checks import check_input
from rnnfused._compiler import admit
from rnnfused._weights import Weights
from rnnfused.cells import CELLS

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

States = tuple[Tensor, ...]
# One layer stack on rows of input: (input, hx, batch_sizes).
Run = Callable[[Tensor, Any, Tensor | None], tuple[Tensor, Any]]
CELLS_OF_MODE = {spec.mode: spec for spec in CELLS.values()}


class _Sequence(Weights):
    """What RNN, LSTM and GRU share: from any of torch's forms of input to rows of a layer, and back.

    hx is one tensor, or a pair for LSTM; `_states` and `_hx` say which. recompute=True keeps only the output,
    c and the last few gates for backward, which rebuilds the others: less memory, more time, the same
    gradients.
    """

    recompute = False  # also of a module that an older version pickled, and of a converted one
    _beyond_torch = ("recompute",)  # attributes that torch.nn's layers do not have

    def __init__(self, *args: Any, recompute: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.recompute = recompute

    def extra_repr(self) -> str:
        return super().extra_repr() + (", recompute=True" if self.recompute else "")

    def _states(self, hx: Any) -> States:
        return (hx,)

    def _hx(self, states: States) -> Any:
        return states[0]

    def _state_sizes(self) -> tuple[int, ...]:
        return (self.hidden_size,)

    def _check_dimensions(self, hx: Any, batched: bool) -> None:
        raise NotImplementedError

    def _run(self, input: Tensor, hx: Any, batch_sizes: Tensor | None) -> tuple[Tensor, Any]:
        output, final = functional.stack(
            CELLS_OF_MODE[self.mode],
            input,
            self._states(hx),
            self._params(),
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first,
            batch_sizes,
            self.recompute,
        )
        return output, self._hx(final)

    def _zeros(self, input: Tensor, batch: int) -> Any:
        layers = self.num_layers * (2 if self.bidirectional else 1)
        return self._hx(tuple(input.new_zeros(layers, batch, size) for size in self._state_sizes()))

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Runs the layers over a sequence.

        input: [T, B, I], [B, T, I] if batch_first, [T, I] unbatched, or a PackedSequence. hx: the initial
        states, never batch-first: h [L D, B, P], for LSTM (h, c) with c [L D, B, H]; zeros if None. Returns
        the output, laid out as the input with D P features, and the final states. float32 and float64; on a
        GPU float16 and bfloat16 too. Raises torch.nn's exceptions with torch.nn's messages.
        """
        return self._forward(self._run, input, hx)

    def _forward(self, run: Run, input: Any, hx: Any) -> tuple[Any, Any]:
        """From any form of input to what `run` takes, and back."""
        if isinstance(input, PackedSequence):
            return self._forward_packed(run, input, hx)
        refused: Exception | None = None
        batch_dim = 0 if self.batch_first else 1
        if input.dim() == 3:
            # The checks take as long as a step of a small layer. The native layer makes them too, and what it
            # refuses falls through to those that speak torch's words.
            try:
                return run(input, self._zeros(input, input.size(batch_dim)) if hx is None else hx, None)
            except Exception as error:
                refused = error
        if input.dim() not in (2, 3):
            kind = type(self)._kind
            tensor = " tensor" if kind == "RNN" else ""
            raise ValueError(f"{kind}: Expected input to be 2D or 3D, got {input.dim()}D{tensor} instead")
        batched = input.dim() == 3
        if hx is not None:
            self._check_dimensions(hx, batched)
        if not batched:
            input = input.unsqueeze(batch_dim)
            hx = None if hx is None else self._hx(tuple(s.unsqueeze(1) for s in self._states(hx)))
        check_input(input)
        if hx is None:
            hx = self._zeros(input, input.size(batch_dim))
        self.check_forward_args(input, hx, None)
        if refused is not None:
            raise refused
        output, final = run(input, hx, None)
        if not batched:
            output = output.squeeze(batch_dim)
            final = self._hx(tuple(s.squeeze(1) for s in self._states(final)))
        return output, final

    def _forward_packed(self, run: Run, packed: PackedSequence, hx: Any) -> tuple[PackedSequence, Any]:
        data, batch_sizes, sorted_indices, unsorted_indices = packed
        check_input(data)
        batch = int(batch_sizes[0])
        hx = self._zeros(data, batch) if hx is None else self.permute_hidden(hx, sorted_indices)
        self.check_forward_args(data, hx, batch_sizes)
        output, final = run(data, hx, batch_sizes)
        return (
            PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices),
            self.permute_hidden(final, unsorted_indices),
        )

    _kind: str


class _OneState(_Sequence):
    """RNN and GRU: hx is h."""

    def _check_dimensions(self, hx: Tensor, batched: bool) -> None:
        expected = 3 if batched else 2
        if hx.dim() != expected:
            form = "batched" if batched else "unbatched"
            raise RuntimeError(
                f"For {form} {expected}-D input, hx should also be {expected}-D but got {hx.dim()}-D tensor"
            )


class RNN(_OneState, torch.nn.RNN):
    """torch.nn.RNN: h' = act(W_ih x + b_ih + W_hh h + b_hh) (Elman 1990).

    RNN(input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, recompute=False): recompute changes nothing, since an RNN
    keeps nothing beside its output. Shapes and dtypes: see `forward`.
    """

    _kind = "RNN"


class GRU(_OneState, torch.nn.GRU):
    """torch.nn.GRU: the gated recurrent unit (Cho et al. 2014), its reset gate applied after the recurrent
    product.

    GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
    device=None, dtype=None, recompute=False): recompute keeps few gates for backward, which rebuilds the
    others. Shapes and dtypes: see `forward`.
    """

    _kind = "GRU"


class LSTM(_Sequence, torch.nn.LSTM):
    """torch.nn.LSTM: long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000; projection: Sak
    et al. 2014).

    LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, proj_size=0, device=None, dtype=None, recompute=False): recompute keeps only the
    output, c and the last few gates for backward, which rebuilds the others. Shapes and dtypes: see
    `forward`.
    """

    _kind = "LSTM"

    def _states(self, hx: tuple[Tensor, Tensor]) -> States:
        return tuple(hx)

    def _hx(self, states: States) -> States:
        return states

    def _state_sizes(self) -> tuple[int, ...]:
        return (self.proj_size or self.hidden_size, self.hidden_size)

    def _check_dimensions(self, hx: tuple[Tensor, Tensor], batched: bool) -> None:
        expected = 3 if batched else 2
        if hx[0].dim() != expected or hx[1].dim() != expected:
            form = "batched" if batched else "unbatched"
            raise RuntimeError(
                f"For {form} {expected}-D input, hx and cx should also be {expected}-D "
                f"but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
            )


class _Cell(torch.nn.RNNCellBase):
    """What the three cells share: unbatched input, and zeros for states that are not given."""

    def _check_input(self, input: Tensor) -> None:
        if input.dim() not in (1, 2):
            kind = type(self).__name__
            raise ValueError(f"{kind}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        check_input(input)

    def _check_state(self, name: str, state: Tensor) -> None:
        if state.dim() not in (1, 2):
            kind = type(self).__name__
            raise ValueError(f"{kind}: Expected {name} to be 1D or 2D, got {state.dim()}D instead")

    def _weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh

    def _one_state(
        self, step: Callable[[Tensor, Tensor], Tensor], input: Tensor, hx: Tensor | None
    ) -> Tensor:
        self._check_input(input)
        if hx is None:
            hx = input.new_zeros(*input.shape[:-1], self.hidden_size)
        self._check_state("hidden", hx)
        if input.dim() == 1:
            return step(input.unsqueeze(0), hx.unsqueeze(0)).squeeze(0)
        return step(input, hx)


class RNNCell(_Cell, torch.nn.RNNCell):
    """torch.nn.RNNCell: one step of `RNN`. input [B, I] or [I], hx [B, H] or [H]; returns h'."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        def step(x: Tensor, h: Tensor) -> Tensor:
            return functional.rnn_cell(x, h, *self._weights(), nonlinearity=self.nonlinearity)

        return self._one_state(step, input, hx)


class GRUCell(_Cell, torch.nn.GRUCell):
    """torch.nn.GRUCell: one step of `GRU`. input [B, I] or [I], hx [B, H] or [H]; returns h'."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._one_state(lambda x, h: functional.gru_cell(x, h, *self._weights()), input, hx)


class LSTMCell(_Cell, torch.nn.LSTMCell):
    """torch.nn.LSTMCell: one step of `LSTM`. input [B, I] or [I], hx = (h, c) of [B, H] or [H]; returns (h',
    c').
    """

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        self._check_input(input)
        if hx is None:
            zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
            hx = (zeros, zeros)
        for index, state in enumerate(hx):
            self._check_state(f"hx[{index}]", state)
        if input.dim() == 1:
            h, c = functional.lstm_cell(
                input.unsqueeze(0), (hx[0].unsqueeze(0), hx[1].unsqueeze(0)), *self._weights()
            )
            return h.squeeze(0), c.squeeze(0)
        return functional.lstm_cell(input, hx, *self._weights())


admit(_Sequence)
