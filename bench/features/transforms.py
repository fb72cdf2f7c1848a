"""torch.func, and the batched forms of torch.autograd."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

from bench.features.check import GRADIENTS, flat, same
from bench.features.layers import CELLS, KINDS, Layers
from bench.features.probes import probe

# Derivatives of higher order are compared in float64.
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}
DOUBLE = torch.float64


def _weights(layer: Any) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in layer.named_parameters()}


def _input(kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, dtype=dtype) if kind in CELLS else torch.randn(5, 2, 3, dtype=dtype)


def _loss(layer: Any, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    results = flat(functional_call(layer, weights, (x,)))
    return torch.stack([result.sin().sum() for result in results]).sum()


def _gradients(twin: Any, x: Tensor) -> dict[str, Tensor]:
    twin.zero_grad()
    torch.stack([result.sin().sum() for result in flat(twin(x))]).sum().backward()
    return {name: p.grad.clone() for name, p in twin.named_parameters()}


@probe("torch.func.functional_call", "other weights, gradients by autograd", each=KINDS + CELLS)
def functional(layers: Layers, kind: str) -> None:
    layer, other = layers.make(kind, 3, 4), getattr(torch.nn, kind)(3, 4)
    weights = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    x = _input(kind)
    _loss(layer, weights, x).backward()
    same({name: w.grad for name, w in weights.items()}, _gradients(other, x), **GRADIENTS)


@probe("torch.func.grad", "gradients of the weights", each=KINDS + CELLS)
def func_grad(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = _input(kind)
    got = grad(lambda w: _loss(layer, w, x))(_weights(layer))
    same(got, _gradients(twin, x), **GRADIENTS)


@probe("torch.func.vjp", "of input, output and states", each=KINDS + CELLS)
def func_vjp(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = _input(kind)
    results, pull = vjp(lambda x: tuple(flat(layer(x))), x)
    outer = tuple(torch.randn_like(result) for result in results)
    leaf = x.clone().requires_grad_()
    want = flat(twin(leaf))
    same(results, want)
    same(pull(outer)[0], torch.autograd.grad(want, leaf, outer)[0], **GRADIENTS)


def _jacobian(twin: Any, x: Tensor) -> Tensor:
    return torch.autograd.functional.jacobian(lambda x: flat(twin(x))[0], x)


@probe("torch.func.jacrev", "the Jacobian of the output by the input", each=KINDS + CELLS)
def func_jacrev(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, dtype=DOUBLE)
    x = _input(kind, DOUBLE)
    same(jacrev(lambda x: flat(layer(x))[0])(x), _jacobian(twin, x), **EXACT)


@probe("torch.func.jacrev, float32", "the Jacobian of the output by the input", each=KINDS + CELLS)
def func_jacrev_float(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = _input(kind)
    same(jacrev(lambda x: flat(layer(x))[0])(x), _jacobian(twin, x), **GRADIENTS)


@probe("torch.func.jacfwd", "the Jacobian of the output by the input", each=KINDS + CELLS)
def func_jacfwd(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, dtype=DOUBLE)
    x = _input(kind, DOUBLE)
    same(jacfwd(lambda x: flat(layer(x))[0])(x), _jacobian(twin, x), **EXACT)


def _jvp(layers: Layers, kind: str, dtype: torch.dtype, **bounds: Any) -> None:
    layer, twin = layers.pair(kind, 3, 4, dtype=dtype)
    x = _input(kind, dtype)
    tangent = torch.randn_like(x)
    tangents = {name: torch.randn_like(w) for name, w in _weights(layer).items()}

    def run(module: Any) -> Any:
        return lambda x, weights: functional_call(module, weights, (x,))

    _, got = jvp(lambda x, w: tuple(flat(run(layer)(x, w))), (x, _weights(layer)), (tangent, tangents))
    # By two reverse passes: the derivative of the pull-back by its outer gradient.
    names = list(tangents)
    twin = twin.double()
    leaves = [x.double().requires_grad_(), *(w.double().requires_grad_() for w in _weights(twin).values())]
    results = flat(run(twin)(leaves[0], dict(zip(names, leaves[1:], strict=True))))
    outer = [torch.zeros_like(result, requires_grad=True) for result in results]
    pulled = torch.autograd.grad(results, leaves, outer, create_graph=True)
    pushed = [tangent.double(), *(tangents[name].double() for name in names)]
    want = torch.autograd.grad(pulled, outer, pushed)
    same(got, [w.to(dtype) for w in want], **bounds)


@probe("torch.func.jvp, float32", "tangents of input and weights", each=KINDS + CELLS)
def func_jvp(layers: Layers, kind: str) -> None:
    _jvp(layers, kind, torch.float32, **GRADIENTS)


@probe("torch.func.jvp, float64", "tangents of input and weights", each=KINDS + CELLS)
def func_jvp_double(layers: Layers, kind: str) -> None:
    _jvp(layers, kind, DOUBLE, **EXACT)


@probe("torch.func.linearize", "the linear map applied twice", each=KINDS)
def func_linearize(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, dtype=DOUBLE)
    x = _input(kind, DOUBLE)
    _, push = linearize(lambda x: flat(layer(x))[0], x)
    jacobian = _jacobian(twin, x)
    for _ in range(2):
        tangent = torch.randn_like(x)
        same(push(tangent), torch.tensordot(jacobian, tangent, 3), **EXACT)


@probe("torch.func.hessian", "of a loss by the input", each=KINDS + CELLS)
def func_hessian(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 2, 3, dtype=DOUBLE)
    x = torch.randn(2, 2, dtype=DOUBLE) if kind in CELLS else torch.randn(3, 2, 2, dtype=DOUBLE)
    got = hessian(lambda x: flat(layer(x))[0].sin().sum())(x)
    same(got, torch.autograd.functional.hessian(lambda x: flat(twin(x))[0].sin().sum(), x), **EXACT)


@probe("torch.func.grad of grad", "second derivatives of the weights", each=KINDS)
def func_grad_grad(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, dtype=DOUBLE)
    x = _input(kind, DOUBLE)

    def norm(w: dict[str, Tensor]) -> Tensor:
        return torch.stack([g.square().sum() for g in grad(lambda w: _loss(layer, w, x))(w).values()]).sum()

    parameters = list(twin.parameters())
    loss = torch.stack([result.sin().sum() for result in flat(twin(x))]).sum()
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), parameters)
    got = grad(norm)(_weights(layer))
    same([got[name] for name, _ in twin.named_parameters()], second, **EXACT)


@probe("vmap over the batch", "one sequence a call, mapped", each=KINDS + CELLS)
def vmap_batch(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = _input(kind)
    if kind in CELLS:
        same(flat(vmap(layer)(x)), flat(twin(x)))
        return
    got = vmap(layer, in_dims=1, out_dims=1)(x)
    same(flat(got), flat(twin(x)))


@probe("vmap over a batch of batches", "input and states mapped", each=KINDS)
def vmap_batches(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x, h = torch.randn(6, 5, 2, 3), torch.randn(6, 1, 2, 4)
    hx = (h, torch.randn(6, 1, 2, 4)) if kind == "LSTM" else h
    got = flat(vmap(layer)(x, hx))
    parts = [flat(twin(x[i], tuple(s[i] for s in hx) if kind == "LSTM" else hx[i])) for i in range(6)]
    same(got, [torch.stack(part) for part in zip(*parts, strict=True)])


@probe("ensemble by stack_module_state", "vmap over weights", each=KINDS + CELLS)
def ensemble(layers: Layers, kind: str) -> None:
    pairs = [layers.pair(kind, 3, 4) for _ in range(3)]
    weights, buffers = stack_module_state([layer for layer, _ in pairs])
    base = copy.deepcopy(pairs[0][0]).to("meta")
    x = _input(kind)
    got = vmap(lambda w, b, x: functional_call(base, (w, b), (x,)), in_dims=(0, 0, None))(weights, buffers, x)
    parts = [flat(twin(x)) for _, twin in pairs]
    same(flat(got), [torch.stack(part) for part in zip(*parts, strict=True)])


@probe("per-sample gradients", "vmap of grad over the batch", each=KINDS + CELLS)
def per_sample(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    samples = torch.randn(6, 3) if kind in CELLS else torch.randn(6, 5, 3)

    def loss(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return _loss(layer, weights, sample.unsqueeze(0 if kind in CELLS else 1))

    got = vmap(grad(loss), in_dims=(None, 0))(_weights(layer), samples)
    each = [_gradients(twin, sample.unsqueeze(0 if kind in CELLS else 1)) for sample in samples]
    same(got, {name: torch.stack([g[name] for g in each]) for name in got}, **GRADIENTS)


@probe("is_grads_batched", "autograd.grad with a batch of outer gradients", each=KINDS + CELLS)
def grads_batched(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = _input(kind).requires_grad_()
    outer = torch.randn(4, *flat(twin(x))[0].shape)
    leaves = [x, *layer.parameters()]
    got = torch.autograd.grad(flat(layer(x))[0], leaves, outer, is_grads_batched=True)
    leaves = [x, *twin.parameters()]
    each = [torch.autograd.grad(flat(twin(x))[0], leaves, g) for g in outer]
    same(got, [torch.stack(part) for part in zip(*each, strict=True)], **GRADIENTS)


@probe("autograd.functional.jacobian(vectorize=True)", "reverse mode", each=KINDS + CELLS)
def jacobian_vectorized(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = _input(kind)
    got = torch.autograd.functional.jacobian(lambda x: flat(layer(x))[0], x, vectorize=True)
    same(got, _jacobian(twin, x), **GRADIENTS)


@probe("autograd.functional.jacobian, forward mode", "vectorize=True, strategy='forward-mode'", each=KINDS)
def jacobian_forward(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, dtype=DOUBLE)
    x = _input(kind, DOUBLE)
    got = torch.autograd.functional.jacobian(
        lambda x: flat(layer(x))[0], x, vectorize=True, strategy="forward-mode"
    )
    same(got, _jacobian(twin, x), **EXACT)


@probe("autograd.functional.hvp", "a Hessian times a vector", each=KINDS + CELLS)
def hvp(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, dtype=DOUBLE)
    x = _input(kind, DOUBLE)
    vector = torch.randn_like(x)
    got, want = (
        torch.autograd.functional.hvp(lambda x, m=module: flat(m(x))[0].sin().sum(), x, vector)
        for module in (layer, twin)
    )
    same(got, want, **EXACT)
