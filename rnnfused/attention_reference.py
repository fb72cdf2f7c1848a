"""Attention's forward and hand-written backward in NumPy: what `rnnfused.attention` is tested against.

Batch first: queries [B, T, Q], keys [B, S, K], values [B, S, V]; A is the size of an additive score. The code
follows the equations; speed is not its purpose.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Attended", "Scores", "additive", "attention", "attention_backward", "multiplicative"]

Array = NDArray[Any]


class Scores(NamedTuple):
    """Scores [B, T, S], and the gradients of everything that they are made of from theirs, by name."""

    value: Array
    backward: Any  # (Array [B, T, S]) -> dict[str, Array]


class Attended(NamedTuple):
    """What attention gives: the context [B, T, V] and the weights [B, T, S]."""

    context: Array
    weights: Array


def additive(query: Array, keys: Array, w_q: Array, w_k: Array, v: Array, b: Array | None = None) -> Scores:
    """score = v . tanh(W_q q + W_k k + b): w_q [A, Q], w_k [A, K], v [A], b [A]."""
    summed = (query @ w_q.T)[:, :, None] + (keys @ w_k.T)[:, None]
    hidden = np.tanh(summed if b is None else summed + b)  # [B, T, S, A]

    def backward(dscores: Array) -> dict[str, Array]:
        dsum = dscores[..., None] * v * (1 - hidden**2)
        over_keys, over_queries = dsum.sum(2), dsum.sum(1)  # [B, T, A], [B, S, A]
        return {
            "query": over_keys @ w_q,
            "keys": over_queries @ w_k,
            "w_q": np.einsum("bta,btq->aq", over_keys, query),
            "w_k": np.einsum("bsa,bsk->ak", over_queries, keys),
            "v": np.einsum("bts,btsa->a", dscores, hidden),
            "b": dsum.sum((0, 1, 2)),
        }

    return Scores(hidden @ v, backward)


def multiplicative(query: Array, keys: Array, w: Array | None = None) -> Scores:
    """score = q . W k, w [Q, K]; without w q . k."""
    projected = keys if w is None else keys @ w.T  # [B, S, Q]

    def backward(dscores: Array) -> dict[str, Array]:
        dprojected = np.einsum("bts,btq->bsq", dscores, query)
        found = {"query": dscores @ projected}
        if w is None:
            return found | {"keys": dprojected}
        return found | {"keys": dprojected @ w, "w": np.einsum("bsq,bsk->qk", dprojected, keys)}

    return Scores(np.einsum("btq,bsq->bts", query, projected), backward)


def attention(scores: Scores, values: Array, lengths: Array | None = None) -> Attended:
    """Softmax over the steps that each sequence of keys has, and the values' mean by it; zeros for a sequence
    of no steps.
    """
    steps = scores.value.shape[2]
    there = np.arange(steps) < (np.full(len(values), steps) if lengths is None else lengths)[:, None]
    raised = np.where(there[:, None], np.exp(scores.value - scores.value.max(-1, keepdims=True)), 0)
    total = raised.sum(-1, keepdims=True)
    weights = raised / np.where(total > 0, total, 1)
    return Attended(weights @ values, weights)


def attention_backward(
    scores: Scores, values: Array, attended: Attended, dcontext: Array, dweights: Array
) -> dict[str, Array]:
    """Gradients of the values and of what the scores are made of, from those of context and weights."""
    weights = attended.weights
    dw = dweights + dcontext @ values.transpose(0, 2, 1)
    dscores = weights * (dw - (weights * dw).sum(-1, keepdims=True))
    return scores.backward(dscores) | {"values": np.einsum("bts,btv->bsv", weights, dcontext)}
