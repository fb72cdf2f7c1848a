"""Layers of cells that torch.nn has not: called as `rnnfused.GRU` is, with its forms of input, states,
`state_dict` and options as far as the cell has them (docs/cells.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from rnnfused import functional
from rnnfused._layer import LayerConfig, Layout
from rnnfused._ops import leading_sizes
from rnnfused.cells import OWN_CELLS
from rnnfused.modules import _OneState, _Sequence, leaf

__all__ = ["AGRU", "AUGRU", "SLSTM", "IndRNN", "LiGRU", "MinGRU", "MinLSTM"]


class _Base(torch.nn.RNNBase):
    """What torch.nn.GRU is to `rnnfused.GRU`. torch.nn.RNNBase makes parameters of modes that it knows alone:
    those of a vanilla RNN, which others then replace.
    """

    _cell: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            *("RNN_TANH", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional),
            device=device,
            dtype=dtype,
        )
        self.mode = OWN_CELLS[self._cell].mode


class OwnLayer(_Sequence, _Base):
    """A layer whose cell torch.nn has not."""

    _cell: str
    _replaces_params = True


class IndRNN(_OneState, OwnLayer):
    """Independently recurrent network (Li et al. 2018): h' = relu(W_ih x + b + u h), where each unit sees
    itself alone; u is `weight_hh_l{k}` [H], and there is no bias_hh.

    IndRNN(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, recompute=False, learn_initial_state=False,
    weight_drop=0.0, **options). options: zoneout, recurrent_dropout, gate_clip, grad_clip. u begins uniform
    in [0, 1]: a unit's gradient over n steps is scaled by u^n, so that beyond 1 it explodes, and units with
    all memories from none to the whole sequence are there from the start. Of T steps Li et al. advise to keep
    |u| at most 2^(1/T). Everything else begins as torch.nn's. Shapes and dtypes: see `forward`.
    """

    _cell = "indrnn"

    def reset_parameters(self) -> None:
        """As torch.nn's; u uniform in [0, 1]."""
        super().reset_parameters()
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("weight_hh"):
                torch.nn.init.uniform_(parameter)


class LiGRU(_OneState, OwnLayer):
    """Light GRU (Ravanelli et al. 2018), without a reset gate: z = s(a_z), n = relu(a_n), h' = z h + (1 - z)
    n, with a = W_ih x + b_ih + W_hh h + b_hh; gates z, n.

    LiGRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, norm=None, recompute=False, learn_initial_state=False,
    weight_drop=0.0, **options). options: zoneout, recurrent_dropout, gate_clip, grad_clip, num_heads.

    norm: None; "input", a layer norm of W_ih x + b_ih, or "separate", one of W_hh h + b_hh, too (SLi-GRU:
    Moumen and Parcollet 2023), which are `layer_norm` of other layers; or "batch", batch normalisation of
    W_ih x over all rows that sequences have, as by Ravanelli et al.: a torch.nn.BatchNorm1d for each layer
    and direction, `norm_l{k}`, whose shift is the only bias. Shapes and dtypes: see `forward`.
    """

    _cell = "ligru"
    _batch_norm = False

    def __init__(self, *args: Any, norm: str | None = None, **kwargs: Any) -> None:
        known = (None, *OWN_CELLS[self._cell].norms, "batch")
        if norm not in known:
            raise ValueError(f"norm: expected one of {known}, got {norm!r}")
        if norm is not None and kwargs.get("layer_norm"):
            raise ValueError(f"layer_norm: expected None beside norm={norm!r}, got {kwargs['layer_norm']!r}")
        if norm == "batch":
            if len(args) > 3:  # input_size, hidden_size, num_layers, bias
                args = (*args[:3], False, *args[4:])
            else:
                kwargs["bias"] = False
        elif norm is not None:
            kwargs["layer_norm"] = norm
        super().__init__(*args, **kwargs)
        if norm != "batch":
            return
        self._batch_norm = True
        like = next(self.parameters())
        for name in self._norm_names():
            norm_of_one = torch.nn.BatchNorm1d(2 * self.hidden_size, device=like.device, dtype=like.dtype)
            self.add_module(name, norm_of_one)

    @property
    def norm(self) -> str | bool | None:
        return "batch" if self._batch_norm else self.layer_norm

    def extra_repr(self) -> str:
        return super().extra_repr() + (", norm='batch'" if self._batch_norm else "")

    def reset_parameters(self) -> None:
        """As torch.nn's; of norms gains become one, shifts zero, and statistics those of nothing seen."""
        super().reset_parameters()
        for name in self._norm_names() if self._batch_norm else []:
            getattr(self, name).reset_parameters()

    def _norm_names(self) -> list[str]:
        """Of each layer and direction."""
        suffixes = ("", "_reverse") if self.bidirectional else ("",)
        return [f"norm_l{layer}{suffix}" for layer in range(self.num_layers) for suffix in suffixes]

    def _run(self, input: Tensor, hx: Sequence[Tensor], layout: Layout) -> list[Tensor]:
        if not self._batch_norm:
            return super()._run(input, hx, layout)
        layer = self._config()
        sizes = (*leading_sizes(layer, input, layout), self.hidden_size)
        for state in hx:  # which layer by layer would be cut to what fits
            if state.dim() == len(sizes) and state.shape != sizes:
                raise RuntimeError(f"Expected hidden size {sizes}, got {list(state.shape)}")
        if not hx:
            hx = self._initial(layer, input, layout)
        params: Sequence[Tensor] = self._params()
        dropout = 0.0
        if self.training:
            layer, params = functional.drawn(layer, params, self.weight_drop)
            dropout = self.dropout
        norms = iter([getattr(self, name) for name in self._norm_names()])

        def run(
            one: LayerConfig, input: Tensor, states: Sequence[Tensor], own: list[Tensor], *where: Any
        ) -> list[Tensor]:
            """The norms stand between W_ih x and the recurrence: what they give is the input of a layer whose
            W_ih is the identity, of which each direction takes its own rows.
            """
            lengths = Layout(*where).lengths
            there = None if lengths is None or input.dim() == 2 else _there(one, input, lengths)
            places = range(0, one.directions * one.params_each, one.params_each)
            products = [_normalised(next(norms), input, own[place], there) for place in places]
            joined = torch.cat(products, -1)
            width = joined.size(-1)
            identity = torch.eye(width, dtype=joined.dtype, device=joined.device)
            for place, rows in zip(places, identity.chunk(one.directions), strict=True):
                own[place] = rows
            return functional.stack(one, joined, states, own, Layout(*where))

        return functional.layers(run, layer, input, hx, params, layout, dropout)


def _there(layer: LayerConfig, input: Tensor, lengths: Tensor) -> Tensor:
    """Which rows of a padded batch are a sequence's, as the input is laid out without its features."""
    steps = torch.arange(input.size(1 if layer.batch_first else 0), device=input.device)
    there = steps < lengths.to(input.device).unsqueeze(1)
    return there if layer.batch_first else there.t()


def _normalised(norm: torch.nn.Module, input: Tensor, w_ih: Tensor, there: Tensor | None) -> Tensor:
    """The norm of W_ih x [.., G H] over the rows that there are; the others are not read, and zero."""
    rows = input.flatten(0, -2)
    if there is None:
        normal: Tensor = norm(linear(rows, w_ih))
    else:
        places = there.flatten().nonzero().squeeze(1)
        own = norm(linear(rows.index_select(0, places), w_ih))
        normal = own.new_zeros(len(rows), len(w_ih)).index_copy(0, places, own)
    return normal.unflatten(0, input.shape[:-1])


class MinGRU(_OneState, OwnLayer):
    """Minimal GRU (Feng et al. 2024), whose gates do not see h: z = s(W_iz x + b_iz), n = W_in x + b_in, h' =
    (1 - z) h + z n; gates z, n. There are no weight_hh and bias_hh.

    MinGRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, recompute=False, learn_initial_state=False, **options).
    options: zoneout, grad_clip. Shapes and dtypes: see `forward`.
    """

    _cell = "mingru"


class MinLSTM(_OneState, OwnLayer):
    """Minimal LSTM (Feng et al. 2024), whose gates do not see h: f = s(W_if x + b_if), i = s(W_ii x + b_ii),
    n = W_in x + b_in, h' = (f h + i n) / (f + i); gates f, i, n. There are no c, weight_hh and bias_hh.

    MinLSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, recompute=False, learn_initial_state=False, **options).
    options: zoneout, grad_clip. Shapes and dtypes: see `forward`.
    """

    _cell = "minlstm"


class _Attending(_OneState, OwnLayer):
    """A layer that is given a weight for each row, which its input ends with where it runs."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        for name in ("num_layers", "dropout", "bidirectional"):
            if name in options:
                raise TypeError(
                    f"{name}: expected none, since an {type(self).__name__} is one layer forwards"
                )
        super().__init__(
            *(input_size, hidden_size, 1, bias, batch_first), device=device, dtype=dtype, **options
        )

    def forward(  # type: ignore[override]
        self,
        input: Any,
        hx: Any = None,
        attention: Any = None,
        lengths: Any = None,
        resets: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Any, ...]:
        """Runs the layer over a batch of sequences, as `rnnfused.LSTM.forward` does, with a weight for each
        row.

        attention: laid out as the input without its features: [T, B], [B, T] if batch_first, [T] unbatched,
        [rows] with cu_seqlens or of a PackedSequence (or a PackedSequence of such), a nested jagged tensor of
        [T_b]. Usually in [0, 1], which nobody checks. It has a gradient.

        Raises TypeError where there is none, RuntimeError for another size, and what `rnnfused.LSTM.forward`
        raises.
        """
        if isinstance(input, Proxy):
            return leaf(
                self, input, hx, attention=attention, lengths=lengths, resets=resets, cu_seqlens=cu_seqlens
            )
        joined = _joined(input, attention)
        return self._forward(self._run, joined, hx, lengths, resets, cu_seqlens)


def _joined(input: Any, attention: Any) -> Any:
    """The input with one feature more."""
    if isinstance(attention, PackedSequence):
        attention = attention.data
    if not isinstance(attention, Tensor):
        raise TypeError(f"attention: expected a tensor, got {type(attention).__name__}")
    if isinstance(input, PackedSequence):
        return input._replace(data=_joined(input.data, attention))
    if input.is_nested:
        values = attention.values() if attention.is_nested else attention
        return torch.nested.nested_tensor_from_jagged(_joined(input.values(), values), input.offsets())
    if attention.shape != input.shape[:-1]:
        raise RuntimeError(
            f"attention: expected size {list(input.shape[:-1])}, one for each row of the input, got "
            f"{list(attention.shape)}"
        )
    return torch.cat((input, attention.to(input.dtype).unsqueeze(-1)), -1)


class AUGRU(_Attending):
    """GRU with an attentional update gate (Zhou et al. 2019, DIEN): h' = (1 - u) h + u n, where u = a s(a_z)
    and a is the row's weight, which `forward` is given; r and n as in torch.nn.GRU; gates r, z, n.

    AUGRU(input_size, hidden_size, bias=True, batch_first=False, device=None, dtype=None, recompute=False,
    learn_initial_state=False, weight_drop=0.0, **options): one layer in one direction. options: zoneout,
    recurrent_dropout, gate_clip, grad_clip, num_heads. So z is the part of n, where torch.nn.GRU's is that of
    h: negate its rows to take over weights.
    """

    _cell = "augru"


class AGRU(_Attending):
    """Attention-based GRU (Zhou et al. 2019): h' = (1 - a) h + a n, where a is the row's weight, which
    `forward` is given, and n as in torch.nn.GRU; gates r, n. As `AUGRU` otherwise.
    """

    _cell = "agru"


class SLSTM(OwnLayer):
    """sLSTM (Beck et al. 2024, xLSTM): the LSTM with exponential gates and a normaliser.

    h' = o c' / n', c' = f c + i z, n' = f n + i, with z = tanh(a_z), o = s(a_o), i = exp(a_i), f = s(a_f); c
    and n are held in units of exp(m), m' = max(log f + m, a_i), so that nothing overflows. Gates i, f, z, o.
    hx is (h, c, n, m), each [L D, B, H]; of None h, c and n are zero and m is minus infinity. Where n is
    zero memory is empty, whatever m is: so it is after `resets`, which leave zeros in all of them.

    SLSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, recompute=False, weight_drop=0.0, **options). options:
    num_heads, zoneout (of h), recurrent_dropout, grad_clip. The initial states cannot be learned: n is a sum
    of positive numbers, which a gradient does not know. Shapes and dtypes: see `forward`.
    """

    _cell = "slstm"

    def __init__(self, *args: Any, learn_initial_state: bool = False, **kwargs: Any) -> None:
        if learn_initial_state:
            raise ValueError("learn_initial_state: expected False for an sLSTM, got True")
        super().__init__(*args, **kwargs)

    def _states(self, hx: Any) -> Sequence[Tensor]:
        if not isinstance(hx, (tuple, list)) or len(hx) != 4:
            raise RuntimeError("slstm expects four hidden states, h, c, n and m")
        h, *memory = hx
        for index, state in enumerate(memory, 1):  # of other sizes they could make up the whole
            if state.shape != h.shape:
                expected = f"Expected hidden[{index}] size {tuple(h.shape)}, as hidden[0]"
                raise RuntimeError(f"{expected}, got {list(state.shape)}")
        return h, torch.cat(memory, -1)

    def _hx(self, states: Sequence[Tensor]) -> tuple[Tensor, ...]:
        h, memory = states
        return h, *memory.chunk(3, -1)

    def _state_sizes(self) -> tuple[int, ...]:
        return self.hidden_size, 3 * self.hidden_size

    def _initial(self, layer: LayerConfig, input: Tensor, layout: Layout) -> Sequence[Tensor]:
        leading, units = leading_sizes(layer, input, layout), self.hidden_size
        empty = input.new_zeros(*leading, 2 * units), input.new_full((*leading, units), -torch.inf)
        return input.new_zeros(*leading, units), torch.cat(empty, -1)
