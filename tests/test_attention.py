"""Attention against NumPy's in float64, torch's own where it has one, and what is asked of it wrongly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rnnfused import attention_reference as reference
from rnnfused.attention import AdditiveAttention, LuongAttention

T, B, S, Q, K, V, A = 4, 3, 5, 6, 7, 2, 8
LENGTHS = torch.tensor([5, 2, 0])

KINDS: dict[str, Callable[..., Any]] = {
    "additive": lambda **options: AdditiveAttention(Q, K, A, **options),
    "additive without bias": lambda **options: AdditiveAttention(Q, K, A, bias=False, **options),
    "dot": lambda **options: LuongAttention(Q, Q, "dot", **options),
    "general": lambda **options: LuongAttention(Q, K, **options),
    "concat": lambda **options: LuongAttention(Q, K, "concat", A, **options),
}
EVERY = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, **options: Any) -> Any:
    torch.manual_seed(1)
    return KINDS[kind](**options).double()


def tensors(module: Any, own_values: bool) -> dict[str, Tensor]:
    torch.manual_seed(2)
    found = {"query": torch.randn(T, B, Q), "keys": torch.randn(S, B, module.key_size)}
    if own_values:
        found["values"] = torch.randn(S, B, V)
    return {name: t.double().requires_grad_() for name, t in found.items()}


def numpy(t: Tensor) -> np.ndarray:
    return t.detach().numpy()


def expected_scores(kind: str, module: Any, query: np.ndarray, keys: np.ndarray) -> reference.Scores:
    if kind in ("dot", "general"):
        return reference.multiplicative(query, keys, numpy(module.key.weight) if kind == "general" else None)
    inner = module.additive if kind == "concat" else module
    bias = None if inner.key.bias is None else numpy(inner.key.bias)
    weights = (numpy(inner.query.weight), numpy(inner.key.weight), numpy(inner.score.weight)[0])
    return reference.additive(query, keys, *weights, bias)


def named_gradients(kind: str, module: Any) -> dict[str, Tensor | None]:
    if kind == "dot":
        return {}
    if kind == "general":
        return {"w": module.key.weight.grad}
    inner = module.additive if kind == "concat" else module
    found = {"w_q": inner.query.weight.grad, "w_k": inner.key.weight.grad, "v": inner.score.weight.grad[0]}
    return found if inner.key.bias is None else found | {"b": inner.key.bias.grad}


@EVERY
@pytest.mark.parametrize("own_values", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_results_and_gradients_are_numpys(kind: str, own_values: bool, lengths: Tensor | None) -> None:
    module = made(kind)
    given = tensors(module, own_values)
    context, weights = module(**given, lengths=lengths)
    dcontext, dweights = torch.randn_like(context), torch.randn_like(weights)
    torch.autograd.backward([context, weights], [dcontext, dweights])

    by_batch = {name: numpy(t).transpose(1, 0, 2) for name, t in given.items()}
    scores = expected_scores(kind, module, by_batch["query"], by_batch["keys"])
    values = by_batch["values" if own_values else "keys"]
    want = reference.attention(scores, values, None if lengths is None else lengths.numpy())
    np.testing.assert_allclose(numpy(context), want.context.transpose(1, 0, 2), rtol=0, atol=1e-14)
    np.testing.assert_allclose(numpy(weights), want.weights.transpose(1, 0, 2), rtol=0, atol=1e-14)

    outer = (numpy(t).transpose(1, 0, 2) for t in (dcontext, dweights))
    gradients = reference.attention_backward(scores, values, want, *outer)
    if not own_values:
        gradients["keys"] = gradients["keys"] + gradients.pop("values")
    got = {name: t.grad.transpose(0, 1) for name, t in given.items()} | named_gradients(kind, module)
    assert got.keys() <= gradients.keys()
    for name, gradient in got.items():
        np.testing.assert_allclose(numpy(gradient), gradients[name], rtol=0, atol=1e-12, err_msg=name)


@EVERY
def test_the_gradients_are_those_of_finite_differences(kind: str) -> None:
    module = made(kind)
    given = tensors(module, own_values=True)
    assert torch.autograd.gradcheck(lambda *all: module(*all, lengths=LENGTHS), tuple(given.values()))


def test_dot_is_torchs_scaled_dot_product() -> None:
    module = made("dot", batch_first=True)
    query, keys = (torch.randn(B, n, Q, dtype=torch.float64) for n in (T, S))
    there = torch.arange(S) < LENGTHS[:2].unsqueeze(1)
    want = torch.nn.functional.scaled_dot_product_attention(
        query[:2], keys[:2], keys[:2], attn_mask=there.unsqueeze(1), scale=1.0
    )
    context, weights = module(query, keys, lengths=LENGTHS)
    torch.testing.assert_close(context[:2], want)
    torch.testing.assert_close(weights.sum(-1), torch.tensor([1.0, 1, 0]).double().unsqueeze(1).expand(B, T))
    assert not context[2].any()


@EVERY
def test_layouts_and_steps_agree(kind: str) -> None:
    module, by_batch = made(kind), made(kind, batch_first=True)
    given = tensors(module, own_values=True)
    context, weights = module(**given, lengths=LENGTHS)
    other = by_batch(**{name: t.transpose(0, 1) for name, t in given.items()}, lengths=LENGTHS)
    torch.testing.assert_close(other[0].transpose(0, 1), context)
    torch.testing.assert_close(other[1].transpose(0, 1), weights)
    memory = module.prepare(given["keys"], given["values"], LENGTHS)
    for t in range(T):
        one = module.attend(given["query"][t], memory)
        torch.testing.assert_close(one[0], context[t])
        torch.testing.assert_close(one[1], weights[t])


@EVERY
def test_nothing_beyond_a_sequence_is_read(kind: str) -> None:
    module = made(kind)
    given = tensors(module, own_values=True)
    want = module(**given, lengths=LENGTHS)
    there = (torch.arange(S).unsqueeze(1) < LENGTHS).unsqueeze(-1)
    odd = {
        name: t if name == "query" else t.detach().masked_fill(~there, float("nan")).requires_grad_()
        for name, t in given.items()
    }
    got = module(**odd, lengths=LENGTHS)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    (got[0].sum() + got[1].square().sum()).backward()
    for name in ("keys", "values"):
        assert torch.isfinite(odd[name].grad).all()
        assert not odd[name].grad.masked_fill(there, 0).any()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


@EVERY
def test_it_compiles_whole(kind: str) -> None:
    module = made(kind)
    given = tensors(module, own_values=False)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**given, lengths=LENGTHS), module(**given, lengths=LENGTHS))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(kind: str, dtype: torch.dtype) -> None:
    module = made(kind)
    given = tensors(module, own_values=True)
    want = module(**given, lengths=LENGTHS)
    got = module.to(dtype)(**{name: t.to(dtype) for name, t in given.items()}, lengths=LENGTHS)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"query": torch.zeros(T, B, Q + 1)}, rf"^query: expected size \[T, {B}, {Q}\] or \[{B}, {Q}\], got"),
        ({"query": torch.zeros(T, B + 1, Q)}, rf"^query: expected size \[T, {B}, {Q}\]"),
        ({"query": torch.zeros(Q)}, "^query: expected size"),
        (
            {"keys": torch.zeros(S, B, K + 1)},
            rf"^keys: expected size \[S, B, {K}\], got \[{S}, {B}, {K + 1}\]",
        ),
        ({"keys": torch.zeros(B, K)}, r"^keys: expected size \[S, B"),
        ({"values": torch.zeros(S + 1, B, V)}, "^values: expected .* the sizes of time and batch"),
        ({"values": torch.zeros(S, B)}, "^values: expected 3 dimensions"),
        ({"lengths": torch.ones(B + 1)}, rf"^lengths: expected size \[{B}\], one for each sequence, got"),
    ],
)
def test_other_sizes_are_refused(wrong: dict[str, Tensor], message: str) -> None:
    given = {"query": torch.zeros(T, B, Q), "keys": torch.zeros(S, B, K)} | wrong
    with pytest.raises(RuntimeError, match=message):
        LuongAttention(Q, K)(**given)


def test_other_options_are_refused() -> None:
    with pytest.raises(ValueError, match="score: expected one of 'dot', 'general', 'concat', got 'cosine'"):
        LuongAttention(Q, K, "cosine")
    with pytest.raises(ValueError, match=rf"key_size: expected {Q} \(query_size\) with score='dot', got {K}"):
        LuongAttention(Q, K, "dot")
    with pytest.raises(ValueError, match="attention_size: expected None with score='general', got 3"):
        LuongAttention(Q, K, attention_size=3)
    with pytest.raises(ValueError, match="attention_size: expected at least 1, got 0"):
        AdditiveAttention(Q, K, 0)
    with pytest.raises(ValueError, match="query_size: expected at least 1, got 0"):
        AdditiveAttention(0, K, A)


def test_their_words() -> None:
    assert repr(LuongAttention(6, 6, "dot")) == (
        "LuongAttention(query_size=6, key_size=6, batch_first=False, score='dot')"
    )
    assert repr(AdditiveAttention(6, 7, 8, batch_first=True)).startswith(
        "AdditiveAttention(\n  query_size=6, key_size=7, batch_first=True\n"
    )
