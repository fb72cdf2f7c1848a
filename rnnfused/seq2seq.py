"""Sequence to sequence: an encoder, a decoder with attention, and what it generates.

    outputs, final = encoder(source, lengths)
    memory, state = decoder.prepare(outputs, final, lengths)
    decoded = decoder(target[:-1], memory, state)              # training: decoded.scores against target[1:]
    found = generate(decoder, memory, state, begin, end, max_steps=50, width=5)

Tokens are integers, time first: source [S, B], target [T, B].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnnfused import _attend, modules
from rnnfused.attention import AdditiveAttention, LuongAttention, Memory

__all__ = ["AttentionDecoder", "Decoded", "DecoderState", "Encoder", "Hypothesis", "generate"]

_LAYERS = {"rnn": modules.RNN, "lstm": modules.LSTM, "gru": modules.GRU}


def _keeps(module: Any, base: Any, *methods: str) -> bool:
    """Whether the module does these as `base` does: neither its class nor itself has others."""
    return all(
        getattr(type(module), name) is getattr(base, name) and name not in vars(module) for name in methods
    )


def _is_plain(module: Any, base: Any) -> bool:
    """Whether a call of the module is `base`'s forward and nothing else: no subclass's, no hooks."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return _keeps(module, base, "forward") and not any(hooks) and not _has_any_global_hook()


def _layers(cell: str) -> Any:
    if cell not in _LAYERS:
        raise ValueError(f"cell: expected one of {', '.join(map(repr, _LAYERS))}, got {cell!r}")
    return _LAYERS[cell]


class Encoder(torch.nn.Module):
    """Embedding and recurrent layers over a source of any length.

    Encoder(vocabulary_size, embedding_size, hidden_size, num_layers=1, cell="lstm", bidirectional=True,
    dropout=0.0). dropout: of the embedding and between layers. Raises ValueError for another cell.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        hidden_size: int,
        num_layers: int = 1,
        cell: str = "lstm",
        bidirectional: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary_size, embedding_size)
        self.dropout = torch.nn.Dropout(dropout)
        self.recurrent = _layers(cell)(
            embedding_size,
            hidden_size,
            num_layers,
            bidirectional=bidirectional,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.output_size = hidden_size * (2 if bidirectional else 1)

    def forward(self, tokens: Tensor, lengths: Any = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """tokens [S, B], or [S] of one sequence; lengths [B], in any order: how many of them each sequence
        has. Returns the outputs [S, B, D H], zero beyond the lengths, and the final states (h, and c of an
        LSTM), of both directions side by side: [L, B, D H] each; without B where the tokens have none.
        """
        embedded = self.dropout(self.embedding(tokens))
        is_torchs = isinstance(self.recurrent, torch.nn.RNNBase)
        if lengths is None:
            outputs, final = self.recurrent(embedded)
        elif is_torchs and not isinstance(self.recurrent, modules._Sequence):
            outputs, final = self._packed(embedded, lengths)
        else:
            outputs, final = self.recurrent(embedded, lengths=lengths)
        states = final if isinstance(final, tuple) else (final,)
        return outputs, tuple(self._side_by_side(state) for state in states)

    def _packed(self, embedded: Tensor, lengths: Any) -> Any:
        """For torch.nn's layers, which `to_torch` puts in: they know lengths of packed sequences alone."""
        lengths = torch.as_tensor(lengths, device="cpu")
        if embedded.dim() != 3 or (lengths < 1).any():
            raise RuntimeError(
                "lengths: expected a batch of sequences of at least 1 step, since torch.nn's layers take no "
                f"others, got {lengths.tolist()} for tokens of size {list(embedded.shape[:-1])}"
            )
        packed, final = self.recurrent(pack_padded_sequence(embedded, lengths, enforce_sorted=False))
        return pad_packed_sequence(packed, total_length=len(embedded))[0], final

    def _side_by_side(self, state: Tensor) -> Tensor:
        """[L D, B, H] -> [L, B, D H]."""
        by_layer = state.unflatten(0, (self.recurrent.num_layers, -1))
        return by_layer.movedim(1, -2).flatten(-2)


class DecoderState(NamedTuple):
    """What a decoder carries from step to step: its layers' states [L, B, H], h first, and with input feeding
    the features [B, H] of the step before.
    """

    hx: tuple[Tensor, ...]
    fed: Tensor | None

    def rows(self, index: Tensor) -> DecoderState:
        """Of some sequences, in that order."""
        hx = tuple(state.index_select(1, index) for state in self.hx)
        return DecoderState(hx, None if self.fed is None else self.fed.index_select(0, index))


class Decoded(NamedTuple):
    """scores [T, B, vocabulary] (before the softmax), attention weights [T, B, S], and the state after."""

    scores: Tensor
    weights: Tensor
    state: DecoderState


class AttentionDecoder(torch.nn.Module):
    """Recurrent layers that attend to an encoder's outputs.

    kind="bahdanau" (Bahdanau et al. 2015): the context of the state before a step enters the step, by
    additive attention. kind="luong" (Luong et al. 2015): the context of the state after the step goes with it
    into the features, tanh(W [h; context]); input_feeding gives these to the next step, too. Without input
    feeding nothing of the recurrence needs a context, and a sequence that is given runs in one call.

    AttentionDecoder(vocabulary_size, embedding_size, hidden_size, memory_size, num_layers=1, cell="lstm",
    kind="bahdanau", score="general", input_feeding=True, dropout=0.0): memory_size is the encoder's
    `output_size`, num_layers the encoder's; score (of `LuongAttention`) and input_feeding are for "luong"
    alone. Raises ValueError for another cell, kind or score.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        hidden_size: int,
        memory_size: int,
        num_layers: int = 1,
        cell: str = "lstm",
        kind: str = "bahdanau",
        score: str = "general",
        input_feeding: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in ("bahdanau", "luong"):
            raise ValueError(f"kind: expected 'bahdanau' or 'luong', got {kind!r}")
        self.kind, self.feeds = kind, kind == "luong" and input_feeding
        self.embedding = torch.nn.Embedding(vocabulary_size, embedding_size)
        self.dropout = torch.nn.Dropout(dropout)
        self.attention: AdditiveAttention | LuongAttention
        entering, beside = embedding_size, hidden_size + memory_size
        if kind == "bahdanau":
            self.attention = AdditiveAttention(hidden_size, memory_size, hidden_size)
            entering, beside = entering + memory_size, beside + embedding_size
        else:
            self.attention = LuongAttention(hidden_size, memory_size, score)
            entering += hidden_size if self.feeds else 0
        self.recurrent = _layers(cell)(
            entering, hidden_size, num_layers, dropout=dropout if num_layers > 1 else 0.0
        )
        count = 2 if cell == "lstm" else 1
        self.bridges = torch.nn.ModuleList(torch.nn.Linear(memory_size, hidden_size) for _ in range(count))
        self.combine = torch.nn.Linear(beside, hidden_size)
        self.scores = torch.nn.Linear(hidden_size, vocabulary_size)

    def prepare(
        self, outputs: Tensor, final: Sequence[Tensor], lengths: Any = None
    ) -> tuple[Memory, DecoderState]:
        """From what an `Encoder` gave, for sources of these lengths: what every step attends to, and the
        state to start from, h = tanh(W final_h + b) and c = W final_c + b, layer by layer.

        Raises RuntimeError for final states of another number or another number of layers.
        """
        layers = self.recurrent.num_layers
        if len(final) != len(self.bridges) or any(state.size(0) != layers for state in final):
            raise RuntimeError(
                f"final: expected {len(self.bridges)} states of {layers} layers, got sizes "
                f"{[list(state.shape) for state in final]}"
            )
        first, *others = (bridge(state) for bridge, state in zip(self.bridges, final, strict=True))
        fed = outputs.new_zeros(outputs.size(1), self.recurrent.hidden_size) if self.feeds else None
        return self.attention.prepare(outputs, lengths=lengths), DecoderState((first.tanh(), *others), fed)

    def forward(
        self, tokens: Tensor, memory: Memory, state: DecoderState, teacher_forcing: float = 1.0
    ) -> Decoded:
        """Scores of what follows each of the tokens [T, B]. memory, state: from `prepare`, or a `Decoded`'s.

        teacher_forcing: the probability with which a step gets the token that is given; otherwise, drawn for
        each sequence, the one that had the highest score (scheduled sampling: Bengio et al. 2015). The first
        step always gets its token. Raises ValueError for another probability.
        """
        if not 0 <= teacher_forcing <= 1:
            raise ValueError(f"teacher_forcing: expected a probability, got {teacher_forcing}")
        if teacher_forcing == 1 and _keeps(self, AttentionDecoder, "step", "_recur"):
            if self.kind == "luong" and not self.feeds:
                return self._at_once(tokens, memory, state)
            if self.kind == "bahdanau" and self._attends_natively(memory, state):
                return self._attended(tokens, memory, state)
        if len(tokens) == 0:
            raise RuntimeError(f"tokens: expected at least one step, got size {list(tokens.shape)}")
        scores: list[Tensor] = []
        weights = []
        for given in tokens:
            if scores and teacher_forcing < 1:
                own = torch.rand(given.shape, device=given.device) >= teacher_forcing
                given = torch.where(own, scores[-1].argmax(-1), given)
            of_step, weighed, state = self.step(given, memory, state)
            scores.append(of_step)
            weights.append(weighed)
        return Decoded(torch.stack(scores), torch.stack(weights), state)

    def step(self, tokens: Tensor, memory: Memory, state: DecoderState) -> Decoded:
        """One step: tokens [B]; scores [B, vocabulary], weights [B, S]."""
        embedded = self.dropout(self.embedding(tokens))
        if self.kind == "bahdanau":
            context, weights = self.attention.attend(state.hx[0][-1], memory)
            h, hx = self._recur(torch.cat((embedded, context), -1), state.hx)
            features = torch.tanh(self.combine(torch.cat((h, context, embedded), -1)))
        else:
            entering = embedded if state.fed is None else torch.cat((embedded, state.fed), -1)
            h, hx = self._recur(entering, state.hx)
            context, weights = self.attention.attend(h, memory)
            features = torch.tanh(self.combine(torch.cat((h, context), -1)))
        fed = features if self.feeds else None
        return Decoded(self.scores(self.dropout(features)), weights, DecoderState(hx, fed))

    def _recur(self, x: Tensor, hx: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, after = self.recurrent(x.unsqueeze(0), hx if len(hx) > 1 else hx[0])
        return y.squeeze(0), after if isinstance(after, tuple) else (after,)

    def _attends_natively(self, memory: Memory, state: DecoderState) -> bool:
        own: Any = self.recurrent
        attention: Any = self.attention
        # The native call reads weights past their modules: these must be nothing but what they were made.
        return (
            isinstance(attention, AdditiveAttention)
            and _is_plain(own, modules._Sequence)
            and _is_plain(attention, AdditiveAttention)
            and _keeps(attention, AdditiveAttention, "attend", "_scores")
            and all(
                _is_plain(p, torch.nn.Linear) and p.bias is None for p in (attention.query, attention.score)
            )
            and own.num_layers == 1
            and not (own.recompute or own.return_cells or (own.weight_drop and own.training))
            and not own._config().varied
            and _attend.serves(memory.keys, memory.values, *state.hx, *own._params())
        )

    def _attended(self, tokens: Tensor, memory: Memory, state: DecoderState) -> Decoded:
        """All steps in one call of the layer, which attends between them."""
        assert isinstance(self.attention, AdditiveAttention)
        embedded = self.dropout(self.embedding(tokens))
        h, hx, entered, weights = _attend.attend(
            self.recurrent._config(),
            embedded,
            state.hx,
            self.recurrent._params(),
            memory.keys,
            memory.values,
            self.attention.query.weight,
            self.attention.score.weight.squeeze(0),
            memory.mask,
        )
        size = embedded.size(-1)
        features = torch.tanh(self.combine(torch.cat((h, entered[..., size:], embedded), -1)))
        return Decoded(self.scores(self.dropout(features)), weights, DecoderState(tuple(hx), None))

    def _at_once(self, tokens: Tensor, memory: Memory, state: DecoderState) -> Decoded:
        embedded = self.dropout(self.embedding(tokens))
        h, after = self.recurrent(embedded, state.hx if len(state.hx) > 1 else state.hx[0])
        context, weights = self.attention.attend(h, memory)
        features = torch.tanh(self.combine(torch.cat((h, context), -1)))
        hx = after if isinstance(after, tuple) else (after,)
        return Decoded(self.scores(self.dropout(features)), weights, DecoderState(hx, None))


# ---- Generation


class Hypothesis(NamedTuple):
    """tokens: without `begin`, with `end` if it was reached. score: the sum of their log probabilities,
    divided by the length penalty. weights [len(tokens), S]: where each step attended.
    """

    tokens: list[int]
    score: float
    weights: Tensor


class _Rows(NamedTuple):
    """Sequences under way: which source each continues, what it has so far, and its score. Those of a source
    lie together.
    """

    source: list[int]
    tokens: list[list[int]]
    weights: list[list[Tensor]]
    score: Tensor  # [rows], float64
    state: DecoderState


@torch.no_grad()
def generate(
    decoder: AttentionDecoder,
    memory: Memory,
    state: DecoderState,
    begin: int,
    end: int,
    max_steps: int,
    *,
    width: int = 1,
    n_best: int = 1,
    length_penalty: float = 0.0,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> list[list[Hypothesis]]:
    """What a decoder says after `begin`, until `end` or for max_steps: of every source the best n_best.
    The decoder runs in eval mode; sequences that have ended leave the batch.

    Without further options the token of the highest score is taken (greedy). width > 1: beam search, which
    keeps that many sequences of each source. length_penalty: scores of either are divided by ((5 + length) /
    6) ** length_penalty (Wu et al. 2016, equation 14). temperature: tokens are drawn instead, from the
    softmax of scores / temperature, of the top_k most probable ones and of the most probable ones that make
    up top_p (Holtzman et al. 2020), by `generator`.

    Raises ValueError for options that are out of range or do not go together.
    """
    _check(width, n_best, max_steps, length_penalty, temperature, top_k, top_p, generator)
    way: _Beams | _Sampling = _Beams(width, end)
    if temperature is not None:
        way = _Sampling(temperature, top_k, top_p, generator)
    rows = _start(memory, state)
    training = [module for module in decoder.modules() if module.training]
    decoder.eval()
    found: list[list[Hypothesis]] = [[] for _ in rows.source]
    try:
        for step in range(max_steps):
            if not rows.source:
                break
            scores, weights, after = _advance(decoder, memory, rows, begin)
            parents, tokens, score = way.grow(rows, scores)
            rows = _continued(rows, parents, tokens, score, weights, after)
            rows = _ended(rows, end, found, length_penalty)
            # A score only falls, and what it is divided by is largest at one end of what may come.
            most = max(_penalty(length, length_penalty) for length in (step + 1, max_steps))
            rows = _still_open(rows, found, most, width, n_best)
    finally:
        for module in training:
            module.training = True
    for row, source in enumerate(rows.source):
        found[source].append(_hypothesis(rows, row, length_penalty))
    return [sorted(of, key=lambda h: -h.score)[:n_best] for of in found]


def _check(
    width: int,
    n_best: int,
    max_steps: int,
    length_penalty: float,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> None:
    for name, value, least in (("width", width, 1), ("n_best", n_best, 1), ("max_steps", max_steps, 1)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if n_best > width:
        raise ValueError(f"n_best: expected at most {width} (width), got {n_best}")
    if temperature is None:
        for name, given in (("top_k", top_k), ("top_p", top_p), ("generator", generator)):
            if given is not None:
                raise ValueError(f"{name}: expected None without a temperature, got {given}")
        return
    if width > 1:
        raise ValueError(f"width: expected 1 with a temperature, got {width}")
    if length_penalty:
        raise ValueError(f"length_penalty: expected 0 with a temperature, got {length_penalty}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected more than 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected more than 0 and at most 1, got {top_p}")


def _log_probabilities(scores: Tensor) -> Tensor:
    """float64: sums of many steps keep apart what the scores of one step do, whatever dtype these have."""
    return scores.double().log_softmax(-1)


# The row that each next one continues, its token and its score, those of a source together and best first.
_Grown = tuple[list[int], list[int], Tensor]


class _Sampling(NamedTuple):
    temperature: float
    top_k: int | None
    top_p: float | None
    generator: torch.Generator | None

    def grow(self, rows: _Rows, scores: Tensor) -> _Grown:
        found = _log_probabilities(scores)
        below = found - found.amax(-1, keepdim=True)  # 0 at most, which no temperature makes infinite
        probable, tokens = (below / self.temperature).softmax(-1).sort(-1, descending=True)
        if self.top_k is not None:
            probable[:, self.top_k :] = 0
        if self.top_p is not None:
            # Those before which less than top_p has been made up, so that one is left at least.
            probable = probable.masked_fill(probable.cumsum(-1) - probable >= self.top_p, 0)
        drawn = tokens.gather(-1, torch.multinomial(probable, 1, generator=self.generator))
        score = rows.score + found.gather(-1, drawn).squeeze(-1)
        return list(range(len(rows.source))), drawn.squeeze(-1).tolist(), score


class _Beams(NamedTuple):
    width: int
    end: int

    def grow(self, rows: _Rows, scores: Tensor) -> _Grown:
        totals = rows.score.unsqueeze(1) + _log_probabilities(scores)
        parents: list[int] = []
        tokens: list[int] = []
        for _, own in _by_source(rows):
            # Each row has one continuation that ends: so many are left to go on.
            best = totals[own].flatten().topk(min(2 * self.width, totals.size(1) * len(own))).indices.tolist()
            for rank, place in enumerate(best):
                parent, token = own[place // totals.size(1)], place % totals.size(1)
                if rank < self.width or token != self.end:  # what ends has to be among the best
                    parents.append(parent)
                    tokens.append(token)
        return parents, tokens, totals[parents, tokens]


def _by_source(rows: _Rows) -> Iterator[tuple[int, list[int]]]:
    """Each source that has rows, and their numbers."""
    for source, own in groupby(range(len(rows.source)), key=rows.source.__getitem__):
        yield source, list(own)


def _of_rows(memory: Memory, index: Tensor) -> Memory:
    keys, values, mask = memory
    mask = None if mask is None else mask.index_select(0, index)
    return Memory(keys.index_select(0, index), values.index_select(0, index), mask)


def _start(memory: Memory, state: DecoderState) -> _Rows:
    batch = memory.keys.size(0)
    score = memory.keys.new_zeros(batch, dtype=torch.float64)
    return _Rows(list(range(batch)), [[] for _ in range(batch)], [[] for _ in range(batch)], score, state)


def _advance(
    decoder: AttentionDecoder, memory: Memory, rows: _Rows, begin: int
) -> tuple[Tensor, Tensor, DecoderState]:
    """Scores and weights of the next step of all rows, and the state after it."""
    device = memory.keys.device
    last = torch.tensor([tokens[-1] if tokens else begin for tokens in rows.tokens], device=device)
    of_rows = _of_rows(memory, torch.tensor(rows.source, device=device))
    return decoder.step(last, of_rows, rows.state)


def _continued(
    rows: _Rows,
    parents: Sequence[int],
    tokens: Sequence[int],
    score: Tensor,
    weights: Tensor,
    state: DecoderState,
) -> _Rows:
    """Rows that each continue one of `rows` by a token."""
    return _Rows(
        [rows.source[parent] for parent in parents],
        [[*rows.tokens[parent], token] for parent, token in zip(parents, tokens, strict=True)],
        [[*rows.weights[parent], weights[parent]] for parent in parents],
        score,
        state.rows(torch.tensor(parents, dtype=torch.long, device=score.device)),
    )


def _penalty(length: int, length_penalty: float) -> float:
    penalty: float = ((5 + length) / 6) ** length_penalty
    return penalty


def _hypothesis(rows: _Rows, row: int, length_penalty: float) -> Hypothesis:
    tokens = rows.tokens[row]
    score = float(rows.score[row]) / _penalty(len(tokens), length_penalty)
    return Hypothesis(tokens, score, torch.stack(rows.weights[row]))


def _chosen(rows: _Rows, keep: Sequence[int]) -> _Rows:
    index = torch.tensor(keep, dtype=torch.long, device=rows.score.device)
    return _Rows(
        [rows.source[row] for row in keep],
        [rows.tokens[row] for row in keep],
        [rows.weights[row] for row in keep],
        rows.score[index],
        rows.state.rows(index),
    )


def _ended(rows: _Rows, end: int, found: list[list[Hypothesis]], length_penalty: float) -> _Rows:
    """Puts away what has ended; the rest."""
    going = []
    for row, tokens in enumerate(rows.tokens):
        if tokens[-1] == end:
            found[rows.source[row]].append(_hypothesis(rows, row, length_penalty))
        else:
            going.append(row)
    return rows if len(going) == len(rows.source) else _chosen(rows, going)


def _still_open(rows: _Rows, found: list[list[Hypothesis]], most: float, width: int, n_best: int) -> _Rows:
    """The best `width` rows of each source, without those that cannot get among its n_best any more.

    most: the largest penalty that there can still be.
    """
    keep = []
    scores = rows.score.tolist()
    for source, own in _by_source(rows):
        ended = sorted((h.score for h in found[source]), reverse=True)
        worst = ended[n_best - 1] if len(ended) >= n_best else float("-inf")
        # Not `>`: NaN goes on, and is seen.
        keep += [row for row in own[:width] if not scores[row] / most <= worst]
    return rows if len(keep) == len(rows.source) else _chosen(rows, keep)
