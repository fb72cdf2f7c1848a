"""Attention between two sequences: additive (Bahdanau et al. 2015) and multiplicative (Luong et al. 2015).

A query, as a decoder's state is one, is scored against every key, as an encoder's outputs are; the softmax of
the scores weighs the values, which are the keys unless others are given. Sequences lie as the recurrent
layers have them: time first, or batch first if `batch_first`.

The keys of a sequence are the same for all queries: `prepare` does once what depends on them alone, for code
that asks step by step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["AdditiveAttention", "LuongAttention", "Memory"]

_LUONG_SCORES = ("dot", "general", "concat")


class Memory(NamedTuple):
    """What queries are held against, batch first.

    keys [B, S, A]: as the score takes them. values [B, S, V]. mask, bool [B, S]: which of the steps there
    are; None for all. What lies beyond a sequence's end is zero.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Along the last dimension, over what the mask says is there; zeros elsewhere, also where nothing is."""
    if mask is None:
        return scores.softmax(-1)
    # The lowest number in place of -inf: of a sequence of no steps the softmax is then no NaN.
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(-1).masked_fill(~mask, 0)


class _Attention(torch.nn.Module):
    """What the kinds of attention share: everything but the score."""

    def __init__(self, query_size: int, key_size: int, batch_first: bool) -> None:
        super().__init__()
        for name, size in (("query_size", query_size), ("key_size", key_size)):
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        self.query_size, self.key_size, self.batch_first = query_size, key_size, batch_first

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor | None = None, lengths: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the context and the weights.

        query: [T, B, Q], [B, T, Q] if batch_first, or [B, Q] for one step. keys: [S, B, K] ([B, S, K] if
        batch_first). values: [S, B, V], likewise; None for the keys. lengths [B], integers: how many of its
        steps each sequence of keys has, all that there are if more; nothing beyond them is read. The context
        is [T, B, V] (or as the query lies), the weights of all steps of the keys are [T, B, S], or [B, T, S],
        or [B, S] for one step.
        They add up to one, but for a sequence of no steps, whose weights and context are zero.

        Raises RuntimeError, naming the argument, for other sizes.
        """
        return self.attend(query, self.prepare(keys, values, lengths))

    def prepare(self, keys: Tensor, values: Tensor | None = None, lengths: Any = None) -> Memory:
        """What of the keys and values does not depend on a query. Arguments and errors: as `forward`'s."""
        if keys.dim() != 3 or keys.size(-1) != self.key_size:
            raise RuntimeError(
                f"keys: expected size {self._laid_out('S', self.key_size)}, got {list(keys.shape)}"
            )
        if values is not None and (values.dim() != 3 or values.shape[:2] != keys.shape[:2]):
            raise RuntimeError(
                f"values: expected 3 dimensions, {list(keys.shape[:2])} as the sizes of time and batch, the "
                f"keys' own, got {list(values.shape)}"
            )
        if not self.batch_first:
            keys = keys.transpose(0, 1)
            values = None if values is None else values.transpose(0, 1)
        mask = None
        if lengths is not None:
            lengths = torch.as_tensor(lengths, device=keys.device)
            if lengths.shape != keys.shape[:1]:
                expected = f"[{keys.size(0)}], one for each sequence"
                raise RuntimeError(f"lengths: expected size {expected}, got {list(lengths.shape)}")
            if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
                raise RuntimeError(f"lengths: expected an integer dtype, got {lengths.dtype}")
            mask = torch.arange(keys.size(1), device=keys.device) < lengths.unsqueeze(1)
            # Not by the weights alone: zero times NaN is NaN, and so would gradients be.
            beyond = ~mask.unsqueeze(-1)
            keys = keys.masked_fill(beyond, 0)
            values = None if values is None else values.masked_fill(beyond, 0)
        return Memory(self._prepared(keys), keys if values is None else values, mask)

    def attend(self, query: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Context and weights of queries on what `prepare` gave. query and results: as `forward`'s."""
        keys, values, mask = memory
        one = query.dim() == 2
        sized = query.dim() in (2, 3) and query.size(-1) == self.query_size
        batch = 0 if one or self.batch_first else 1
        if not sized or query.size(batch) != keys.size(0):
            raise RuntimeError(
                f"query: expected size {self._laid_out('T', self.query_size, keys.size(0))} or "
                f"[{keys.size(0)}, {self.query_size}], got {list(query.shape)}"
            )
        if one:
            query = query.unsqueeze(1)
        elif not self.batch_first:
            query = query.transpose(0, 1)
        weights = masked_softmax(self._scores(query, keys), None if mask is None else mask.unsqueeze(1))
        context = weights @ values
        if one:
            return context.squeeze(1), weights.squeeze(1)
        return (context, weights) if self.batch_first else (context.transpose(0, 1), weights.transpose(0, 1))

    def extra_repr(self) -> str:
        return f"query_size={self.query_size}, key_size={self.key_size}, batch_first={self.batch_first}"

    def _laid_out(self, time: str, size: int, batch: int | str = "B") -> str:
        return f"[{batch}, {time}, {size}]" if self.batch_first else f"[{time}, {batch}, {size}]"

    def _prepared(self, keys: Tensor) -> Tensor:
        """[B, S, K] -> what the score takes."""
        raise NotImplementedError

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        """[B, T, Q] and `_prepared` keys -> [B, T, S]."""
        raise NotImplementedError


class AdditiveAttention(_Attention):
    """score(q, k) = v . tanh(W_q q + W_k k + b) (Bahdanau, Cho and Bengio 2015, "Neural machine translation
    by jointly learning to align and translate", appendix A.1.2).

    AdditiveAttention(query_size, key_size, attention_size, bias=True, batch_first=False): attention_size is
    that of v. Parameters: `query.weight` [A, Q], `key.weight` [A, K], `key.bias` [A], `score.weight` [1, A].
    Called with (query, keys, values=None, lengths=None): see `forward`. Raises ValueError for sizes below 1.
    """

    def __init__(
        self,
        query_size: int,
        key_size: int,
        attention_size: int,
        bias: bool = True,
        batch_first: bool = False,
    ) -> None:
        super().__init__(query_size, key_size, batch_first)
        if attention_size < 1:
            raise ValueError(f"attention_size: expected at least 1, got {attention_size}")
        self.query = torch.nn.Linear(query_size, attention_size, bias=False)
        self.key = torch.nn.Linear(key_size, attention_size, bias=bias)
        self.score = torch.nn.Linear(attention_size, 1, bias=False)

    def _prepared(self, keys: Tensor) -> Tensor:
        projected: Tensor = self.key(keys)
        return projected

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        scores: Tensor = self.score(torch.tanh(self.query(query).unsqueeze(2) + keys.unsqueeze(1)))
        return scores.squeeze(-1)


class LuongAttention(_Attention):
    """The scores of Luong, Pham and Manning (2015), "Effective approaches to attention-based neural machine
    translation", section 3.1: "dot": q . k; "general": q . W k; "concat": v . tanh(W [q; k]).

    LuongAttention(query_size, key_size, score="general", attention_size=None, batch_first=False): "dot" takes
    queries and keys of one size; attention_size, of v, is for "concat" alone, by default the query's.
    Parameters: of "general" `key.weight` [Q, K]; of "concat" `additive.query.weight` [A, Q] and
    `additive.key.weight` [A, K] (the two halves of W), `additive.score.weight` [1, A]. Called with (query,
    keys, values=None, lengths=None): see `forward`. Raises ValueError for another score and for sizes that do
    not go with it.
    """

    def __init__(
        self,
        query_size: int,
        key_size: int,
        score: str = "general",
        attention_size: int | None = None,
        batch_first: bool = False,
    ) -> None:
        super().__init__(query_size, key_size, batch_first)
        if score not in _LUONG_SCORES:
            raise ValueError(f"score: expected one of {', '.join(map(repr, _LUONG_SCORES))}, got {score!r}")
        if score == "dot" and query_size != key_size:
            raise ValueError(f"key_size: expected {query_size} (query_size) with score='dot', got {key_size}")
        if score != "concat" and attention_size is not None:
            raise ValueError(f"attention_size: expected None with score={score!r}, got {attention_size}")
        self.kind = score
        self.additive: AdditiveAttention | None = None
        if score == "general":
            self.key = torch.nn.Linear(key_size, query_size, bias=False)
        elif score == "concat":
            size = query_size if attention_size is None else attention_size
            self.additive = AdditiveAttention(query_size, key_size, size, bias=False)

    def _prepared(self, keys: Tensor) -> Tensor:
        if self.additive is not None:
            return self.additive._prepared(keys)
        return self.key(keys) if self.kind == "general" else keys

    def _scores(self, query: Tensor, keys: Tensor) -> Tensor:
        if self.additive is not None:
            return self.additive._scores(query, keys)
        return query @ keys.transpose(1, 2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, score={self.kind!r}"
