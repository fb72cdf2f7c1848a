"""torch.autograd: higher derivatives, forward mode, what is saved and when it is freed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from bench.features.check import GRADIENTS, bits, flat, raises, same, trained
from bench.features.layers import CELLS, KINDS, Layers
from bench.features.probes import probe

DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True}
DOUBLE = torch.float64
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


def _pair(layers: Layers, kind: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Tensor]:
    if kind in CELLS:
        return *layers.pair(kind, 3, 4, dtype=dtype), torch.randn(2, 3, dtype=dtype)
    return *layers.pair(kind, 3, 4, dtype=dtype, **DEEP), torch.randn(2, 5, 3, dtype=dtype)


def _nth(module: Any, x: Tensor, order: int) -> list[Tensor]:
    """Derivatives of that order, by the input and the weights, of nested norms of gradients."""
    leaves = [x.clone().requires_grad_(), *module.parameters()]
    value = torch.stack([result.sin().sum() for result in flat(module(leaves[0]))]).sum()
    for _ in range(order - 1):
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        value = torch.stack([g.sin().sum() for g in gradients]).sum()
    return list(torch.autograd.grad(value, leaves))


@probe("double backward", "create_graph=True; by input and weights", each=KINDS + CELLS)
def double_backward(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind, DOUBLE)
    same(_nth(layer, x, 2), _nth(twin, x, 2), **EXACT)


@probe("double backward, float32", "create_graph=True; by input and weights", each=KINDS + CELLS)
def double_backward_float(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    want = [g.float() for g in _nth(twin.double(), x.double(), 2)]
    same(_nth(layer, x, 2), want, **GRADIENTS)


@probe("third derivative", "by input and weights", each=KINDS + CELLS)
def third(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind, DOUBLE)
    same(_nth(layer, x, 3), _nth(twin, x, 3), **EXACT)


def _dual(layers: Layers, kind: str, dtype: torch.dtype, **bounds: Any) -> None:
    layer, twin, x = _pair(layers, kind, dtype)
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        results = flat(layer(forward_ad.make_dual(x, tangent)))
        duals = [forward_ad.unpack_dual(result) for result in results]
    assert all(dual.tangent is not None for dual in duals), "no tangent"
    twin, exact = twin.double(), x.double()
    want = torch.autograd.functional.jvp(lambda x: tuple(flat(twin(x))), exact, tangent.double())
    same([dual.primal for dual in duals], [w.to(dtype) for w in want[0]], **bounds)
    same([dual.tangent for dual in duals], [w.to(dtype) for w in want[1]], **bounds)


@probe("forward AD with dual numbers, float32", "tangents of output and states", each=KINDS + CELLS)
def dual(layers: Layers, kind: str) -> None:
    _dual(layers, kind, torch.float32, **GRADIENTS)


@probe("forward AD with dual numbers, float64", "tangents of output and states", each=KINDS + CELLS)
def dual_double(layers: Layers, kind: str) -> None:
    _dual(layers, kind, DOUBLE, **EXACT)


def _checked(layers: Layers, kind: str) -> tuple[Callable[..., Any], list[Tensor]]:
    cell = kind in CELLS
    layer = layers.make(kind, 2, 3, dtype=DOUBLE)
    x = torch.randn(2, 2, dtype=DOUBLE) if cell else torch.randn(3, 2, 2, dtype=DOUBLE)
    states = [
        torch.randn(*((2, 3) if cell else (1, 2, 3)), dtype=DOUBLE)
        for _ in range(1 + kind.startswith("LSTM"))
    ]
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *rest: Tensor) -> Any:
        hx = tuple(rest[: len(states)]) if len(states) == 2 else rest[0]
        weights = dict(zip(names, rest[len(states) :], strict=True))
        return tuple(flat(torch.func.functional_call(layer, weights, (x, hx))))

    inputs = [x, *states, *(p.detach().clone() for p in layer.parameters())]
    return run, [tensor.requires_grad_() for tensor in inputs]


@probe("gradcheck", "by input, states and weights", each=KINDS + CELLS)
def gradcheck(layers: Layers, kind: str) -> None:
    run, inputs = _checked(layers, kind)
    assert torch.autograd.gradcheck(run, inputs)


@probe("gradcheck, batched and forward AD", "check_batched_grad, check_forward_ad", each=KINDS + CELLS)
def gradcheck_all(layers: Layers, kind: str) -> None:
    run, inputs = _checked(layers, kind)
    assert torch.autograd.gradcheck(run, inputs, check_batched_grad=True, check_forward_ad=True)


@probe("gradgradcheck", "by input, states and weights", each=KINDS + CELLS)
def gradgradcheck(layers: Layers, kind: str) -> None:
    run, inputs = _checked(layers, kind)
    assert torch.autograd.gradgradcheck(run, inputs)


@probe("some inputs only", "frozen weights; only the input; only W_hh", each=KINDS + CELLS)
def some(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    hh = [name for name, _ in layer.named_parameters() if "weight_hh" in name]

    def gradients(module: Any, leaves: Callable[[dict[str, Tensor], Tensor], list[Tensor]]) -> Any:
        weights, leaf = dict(module.named_parameters()), x.clone()
        for p in weights.values():
            p.requires_grad_(False)
        wanted = [tensor.requires_grad_() for tensor in leaves(weights, leaf)]
        return torch.autograd.grad(flat(module(leaf))[0].sin().sum(), wanted)

    for leaves in (lambda w, x: [x], lambda w, x: [w[name] for name in hh], lambda w, x: [x, w[hh[0]]]):
        same(gradients(layer, leaves), gradients(twin, leaves), **GRADIENTS)


@probe(
    "in-place change before backward",
    "of input, output or weight: an error, or right gradients",
    each=KINDS + CELLS,
)
def in_place(layers: Layers, kind: str) -> None:
    raised = 0
    for changed in ("input", "output", "weight"):
        layer, twin, x = _pair(layers, kind)
        want = torch.autograd.grad(flat(twin(x))[0].sum(), list(twin.parameters()))
        inner = x * 1
        y = flat(layer(inner))[0]
        loss = y.sum()
        weight = next(p for name, p in layer.named_parameters() if "weight_hh" in name)
        with torch.no_grad():
            {"input": inner, "output": y, "weight": weight}[changed].add_(1)
        try:
            got = torch.autograd.grad(loss, list(layer.parameters()))
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error), f"{changed}: {error}"
            raised += 1
        else:
            same(got, want, **GRADIENTS)
    assert raised, "no change was detected"


@probe("retain_graph", "backward twice gives the same bits; freed without it", each=KINDS + CELLS)
def retain(layers: Layers, kind: str) -> None:
    layer, _, x = _pair(layers, kind)
    leaves = [x.requires_grad_(), *layer.parameters()]
    loss = flat(layer(x))[0].sin().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    bits(torch.autograd.grad(loss, leaves), first)
    error = raises(lambda: torch.autograd.grad(loss, leaves))
    assert "Trying to backward through the graph a second time" in str(error), str(error)


@probe("gradient accumulation", "two backward passes add up", each=KINDS + CELLS)
def accumulate(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    for module in (layer, twin):
        for part in (x, 2 * x):
            flat(module(part))[0].sin().sum().backward()
    same([p.grad for p in layer.parameters()], [p.grad for p in twin.parameters()], **GRADIENTS)


@probe("tensor hooks", "on output, weights (also post_accumulate_grad) and all gradients", each=KINDS + CELLS)
def tensor_hooks(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    results = []
    for module in (layer, twin):
        first: list[Tensor] = []
        every: list[Tensor] = []
        weights = list(module.parameters())
        weights[1].register_hook(lambda g: g * 2)
        weights[0].register_post_accumulate_grad_hook(lambda p, seen=first: seen.append(p.grad.clone()))
        torch.autograd.graph.register_multi_grad_hook(weights, lambda gs, seen=every: seen.extend(gs))
        y = flat(module(x))[0]
        y.register_hook(lambda g: g * 3)
        y.sin().sum().backward()
        results.append([*first, *every, *(p.grad for p in weights)])
    same(*results, **GRADIENTS)


@probe("anomaly detection", "torch.autograd.detect_anomaly; a NaN in backward is found", each=KINDS + CELLS)
def anomaly(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    with torch.autograd.detect_anomaly(check_nan=True):
        same(trained(layer, layer, x), trained(twin, twin, x), **GRADIENTS)
        y = flat(layer(x))[0]
        error = raises((y.sum() * float("nan")).backward)
    assert "returned nan values" in str(error), str(error)


@probe("saved_tensors_hooks", "save_on_cpu, and hooks that pack to NumPy", each=KINDS + CELLS)
def saved(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    want = trained(twin, twin, x)
    with torch.autograd.graph.save_on_cpu():
        same(trained(layer, layer, x), want, **GRADIENTS)
    packed: list[int] = []

    def pack(tensor: Tensor) -> Any:
        packed.append(tensor.numel())
        return tensor.detach().numpy().copy()

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        same(trained(layer, layer, x), want, **GRADIENTS)
        packed.clear()
        flat(layer(x.requires_grad_()))
    assert sum(packed) >= x.numel(), f"elements that the hooks saw: {sum(packed)}"


@probe("an exception in a saved-tensors hook", "reaches the caller; raised once", each=KINDS + CELLS)
def saved_raises(layers: Layers, kind: str) -> None:
    layer, _, x = _pair(layers, kind)
    raised: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        raised.append(1)
        raise TimeoutError("pack")

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        error = raises(lambda: layer(x))
    assert isinstance(error, TimeoutError) and len(raised) == 1, f"{error!r}, raised {len(raised)} times"


@probe("allow_mutation_on_saved_tensors", "gradients as before the change", each=KINDS + CELLS)
def mutation(layers: Layers, kind: str) -> None:
    layer, twin, x = _pair(layers, kind)
    results = []
    for module in (layer, twin):
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            inner = x.clone()
            loss = flat(module(inner))[0].sin().sum()
            inner.zero_()
            results.append(torch.autograd.grad(loss, list(module.parameters())))
    same(*results, **GRADIENTS)


def _checkpointed(layers: Layers, kind: str, **options: Any) -> None:
    layer, twin, x = _pair(layers, kind)
    # Flat results: the reentrant form takes no others.
    got = trained(lambda x: checkpoint(lambda x: tuple(flat(layer(x))), x, **options), layer, x)
    same(got, trained(twin, twin, x), **GRADIENTS)


@probe("activation checkpointing, use_reentrant=False", "gradients", each=KINDS + CELLS)
def checkpointing(layers: Layers, kind: str) -> None:
    _checkpointed(layers, kind, use_reentrant=False)


@probe("activation checkpointing, use_reentrant=True", "gradients", each=KINDS + CELLS)
def checkpointing_reentrant(layers: Layers, kind: str) -> None:
    _checkpointed(layers, kind, use_reentrant=True)


@probe("activation checkpointing with dropout", "the random state is that of forward", each=KINDS)
def checkpointing_dropout(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, num_layers=3, dropout=0.5)
    x = torch.randn(5, 2, 3)
    torch.manual_seed(1)
    got = trained(lambda x: checkpoint(layer, x, use_reentrant=False), layer, x)
    torch.manual_seed(1)
    same(got, trained(twin, twin, x), **GRADIENTS)


def _selective(layers: Layers, kind: str, kept: tuple[str, ...]) -> None:
    seen: list[str] = []

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        seen.append(str(op))
        keep = any(part in str(op) for part in kept)
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    _checkpointed(layers, kind, use_reentrant=False, context_fn=contexts)
    assert any(part in op for op in seen for part in ("mm", "rnn")), (
        f"the policy saw only {sorted(set(seen))}"
    )


@probe(
    "selective activation checkpointing", "a policy that recomputes everything; gradients", each=KINDS + CELLS
)
def selective(layers: Layers, kind: str) -> None:
    _selective(layers, kind, ())


@probe(
    "selective activation checkpointing, products kept",
    "a policy that keeps products and whole layers; gradients",
    each=KINDS + CELLS,
)
def selective_kept(layers: Layers, kind: str) -> None:
    _selective(layers, kind, ("mm", "mkldnn_rnn", "rnnfused"))
