"""Tensors that are more, or less, than numbers in memory: fake, meta, zero, views, subclasses; and modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from bench.features.check import GRADIENTS, flat, same, trained
from bench.features.layers import CELLS, KINDS, Layers
from bench.features.probes import probe

DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True}


def _shapes(value: Any) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in flat(value)]


@probe("FakeTensorMode", "layer and input made inside; shapes, dtypes and backward", each=KINDS)
def fake(layers: Layers, kind: str) -> None:
    with FakeTensorMode():
        layer = layers.make(kind, 3, 4, **DEEP)
        got = layer(torch.randn(2, 5, 3))
        got[0].sum().backward()
    want = getattr(nn, kind)(3, 4, **DEEP)(torch.randn(2, 5, 3))
    assert all(isinstance(tensor, FakeTensor) for tensor in flat(got))
    assert _shapes(got) == _shapes(want), f"{_shapes(got)}, not {_shapes(want)}"
    for p in layer.parameters():
        assert isinstance(p.grad, FakeTensor) and p.grad.shape == p.shape


@probe("FakeTensorMode with a real layer", "allow_non_fake_inputs; shapes", each=KINDS)
def fake_input(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, **DEEP)
    x = torch.randn(2, 5, 3)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        got = layer(mode.from_tensor(x))
    assert all(isinstance(tensor, FakeTensor) for tensor in flat(got))
    assert _shapes(got) == _shapes(twin(x))


@probe("meta device, forward", "shapes, dtypes and device of the results", each=KINDS + CELLS)
def meta_forward(layers: Layers, kind: str) -> None:
    options = {} if kind in CELLS else DEEP
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(2, 5, 3)
    got = layers.make(kind, 3, 4, device="meta", **options)(x.to("meta"))
    want = getattr(nn, kind)(3, 4, **options)(x)
    assert all(tensor.is_meta for tensor in flat(got))
    assert _shapes(got) == _shapes(want), f"{_shapes(got)}, not {_shapes(want)}"


@probe("meta device, backward", "shapes of the gradients", each=KINDS)
def meta_backward(layers: Layers, kind: str) -> None:
    layer = layers.make(kind, 3, 4, device="meta", **DEEP)
    layer(torch.randn(2, 5, 3, device="meta"))[0].sum().backward()
    for p in layer.parameters():
        assert p.grad is not None and p.grad.is_meta and p.grad.shape == p.shape


@probe("meta device, then to_empty", "load_state_dict, and the layer's numbers", each=KINDS + CELLS)
def to_empty(layers: Layers, kind: str) -> None:
    options = {} if kind in CELLS else DEEP
    twin = getattr(nn, kind)(3, 4, **options)
    layer = layers.make(kind, 3, 4, device="meta", **options).to_empty(device="cpu")
    layer.load_state_dict(twin.state_dict())
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(2, 5, 3)
    same(trained(layer, layer, x), trained(twin, twin, x), **GRADIENTS)


@probe(
    'torch.device("meta") as a context', "load_state_dict(assign=True), and the layer's numbers", each=KINDS
)
def meta_context(layers: Layers, kind: str) -> None:
    twin = getattr(nn, kind)(3, 4, **DEEP)
    with torch.device("meta"):
        layer = layers.make(kind, 3, 4, **DEEP)
        assert flat(layer(torch.randn(2, 5, 3)))[0].is_meta
    layer.load_state_dict(twin.state_dict(), assign=True)
    x = torch.randn(2, 5, 3)
    same(trained(layer, layer, x), trained(twin, twin, x), **GRADIENTS)


@probe("deferred initialisation", "torch.nn.utils.skip_init, then load_state_dict", each=KINDS + CELLS)
def skip_init(layers: Layers, kind: str) -> None:
    twin = getattr(nn, kind)(3, 4)
    layer = nn.utils.skip_init(getattr(layers, kind), 3, 4)
    layer.load_state_dict(twin.state_dict())
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    same(layer(x), twin(x))


@probe("functionalize", "an input changed in place first; the numbers", each=KINDS)
def functionalize(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4, **DEEP)

    def run(module: Any) -> Callable[[Tensor], Any]:
        def inner(x: Tensor) -> Any:
            x = x.clone()
            x[:, 1].mul_(2)
            return module(x)

        return inner

    x = torch.randn(2, 5, 3)
    with torch.no_grad():
        same(torch.func.functionalize(run(layer))(x), run(twin)(x))


@probe("ZeroTensor as outer gradient", "torch.sgn(y).sum().backward()", each=KINDS + CELLS)
def zero_tensor(layers: Layers, kind: str) -> None:
    layer = layers.make(kind, 3, 4)
    x = (torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)).requires_grad_()
    torch.sgn(flat(layer(x))[0]).sum().backward()
    for tensor in [x, *layer.parameters()]:
        assert tensor.grad is not None and not tensor.grad.any()


def _states(kind: str, *size: int, view: Callable[[Tensor], Tensor] = lambda t: t) -> Any:
    h = view(torch.randn(*size))
    return (h, view(torch.randn(*size))) if kind.startswith("LSTM") else h


def _plain(value: Any) -> Any:
    return tree_map(lambda t: t.resolve_neg().clone() if isinstance(t, Tensor) else t, value)


@probe("negative views as input and states", "torch._neg_view; gradients", each=KINDS + CELLS)
def neg_view(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    cell = kind in CELLS
    view = torch._neg_view
    x = view(torch.randn(2, 3) if cell else torch.randn(5, 2, 3))
    hx = _states(kind, 2, 4, view=view) if cell else _states(kind, 1, 2, 4, view=view)
    assert x.is_neg()
    same(layer(x, hx), twin(_plain(x), _plain(hx)))
    layer(x, hx)[0].sum().backward()
    twin(_plain(x), _plain(hx))[0].sum().backward()
    same([p.grad for p in layer.parameters()], [p.grad for p in twin.parameters()], **GRADIENTS)


@probe("negative view as outer gradient", "y.backward(torch._neg_view(g))", each=KINDS)
def neg_gradient(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x, outer = torch.randn(5, 2, 3), torch.randn(5, 2, 4)
    layer(x)[0].backward(torch._neg_view(outer))
    twin(x)[0].backward(-outer)
    same([p.grad for p in layer.parameters()], [p.grad for p in twin.parameters()], **GRADIENTS)


@probe("parts of conjugate views as input", "z.conj().imag and z.real; gradients", each=KINDS)
def conjugate(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    z = torch.randn(5, 2, 3, dtype=torch.complex64)
    for part in (z.conj().imag, z.real, z.conj().real):
        same(layer(part), twin(part.resolve_neg().contiguous()))
    results = []
    for module in (layer, twin):
        leaf = z.clone().requires_grad_()
        part = leaf.conj().imag
        module(part if module is layer else part.resolve_neg())[0].sin().sum().backward()
        results.append([torch.view_as_real(leaf.grad), *(p.grad for p in module.parameters())])
    same(*results, **GRADIENTS)


@probe("strided inputs, states and weights", "transposed, sliced and expanded; gradients", each=KINDS)
def strided(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    for module in (layer, twin):
        module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().t().contiguous().t())
    inputs = (
        torch.randn(3, 2, 5).permute(2, 1, 0),
        torch.randn(10, 4, 6)[::2, 1:3, ::2],
        torch.randn(1, 2, 1).expand(5, 2, 3),
    )
    hx = _states(kind, 4, 2, 1, view=lambda t: t.permute(2, 1, 0))
    for x in inputs:
        assert not x.is_contiguous()
        same(layer(x, hx), twin(x.contiguous(), hx))
        results = []
        for module in (layer, twin):
            module.zero_grad()
            leaf = x.detach().requires_grad_()
            module(leaf, hx)[0].sin().sum().backward()
            results.append([leaf.grad, *(p.grad for p in module.parameters())])
        same(*results, **GRADIENTS)


# Operations that make memory or views of it: to see them is not to see the layer's work.
_BARE = (
    "empty",
    "zeros",
    "new_",
    "view",
    "slice",
    "select",
    "transpose",
    "squeeze",
    "detach",
    "alias",
    "as_strided",
)


class _Made:
    """Which storages the calls that a mode saw have made."""

    def __init__(self) -> None:
        self.storages: set[int] = set()
        self.kept: list[Tensor] = []  # so that no storage's address is used again

    def note(self, name: str, result: Any) -> None:
        for tensor in (
            [result] if isinstance(result, Tensor) else result if isinstance(result, (tuple, list)) else ()
        ):
            if isinstance(tensor, Tensor) and not any(word in name for word in _BARE):
                self.kept.append(tensor)
                self.storages.add(tensor.untyped_storage().data_ptr())

    def made(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.storages


class DispatchMode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = _Made()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen.note(func.__name__, result)
        return result


class FunctionMode(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = _Made()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.seen.note(getattr(func, "__name__", ""), result)
        return result


@probe(
    "TorchDispatchMode sees the call", "the output comes from an operation that it saw", each=KINDS + CELLS
)
def dispatch_mode(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    for context in (torch.no_grad, torch.enable_grad):
        with context(), DispatchMode() as mode:
            got = flat(layer(x))
        assert mode.seen.made(got[0]), f"not seen under {context.__name__}"
        same(got, twin(x))


@probe(
    "TorchDispatchMode sees backward", "the gradients come from operations that it saw", each=KINDS + CELLS
)
def dispatch_mode_backward(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    loss = flat(layer(x))[0].sin().sum()
    with DispatchMode() as mode:
        gradients = torch.autograd.grad(loss, list(layer.parameters()))
    assert mode.seen.made(gradients[1]), "the gradient of W_hh comes from nowhere"
    want = torch.autograd.grad(flat(twin(x))[0].sin().sum(), list(twin.parameters()))
    same(gradients, want, **GRADIENTS)


@probe("TorchFunctionMode sees the call", "the output comes from a function that it saw", each=KINDS + CELLS)
def function_mode(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    with FunctionMode() as mode:
        got = flat(layer(x))
    assert mode.seen.made(got[0]), "the output comes from nowhere"
    same(got, twin(x))


class Wrapped(Tensor):
    """A tensor that holds another, as torchao's and DTensor do; counts the operations that it sees."""

    inner: Tensor
    calls = 0

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Wrapped({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Wrapped.calls += 1
        unwrap = lambda t: t.inner if isinstance(t, Wrapped) else t  # noqa: E731
        result = func(*tree_map(unwrap, args), **tree_map(unwrap, kwargs or {}))
        return tree_map(lambda t: Wrapped(t) if isinstance(t, Tensor) else t, result)


def _unwrapped(value: Any) -> list[Tensor]:
    return [tensor.inner if isinstance(tensor, Wrapped) else tensor for tensor in flat(value)]


@probe(
    "wrapper subclass as input and states", "__torch_dispatch__ sees it; wrapped results", each=KINDS + CELLS
)
def wrapper(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    hx = _states(kind, 2, 4) if kind in CELLS else _states(kind, 1, 2, 4)
    Wrapped.calls = 0
    with torch.no_grad():
        got = flat(layer(Wrapped(x), tree_map(Wrapped, hx)))
    assert Wrapped.calls > 0, "not seen"
    assert all(isinstance(tensor, Wrapped) for tensor in got), [type(tensor) for tensor in got]
    same(_unwrapped(got), twin(x, hx))


@probe("wrapper subclass as input, training", "gradients", each=KINDS + CELLS)
def wrapper_training(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    leaf, plain = Wrapped(x).requires_grad_(), x.clone().requires_grad_()
    flat(layer(leaf))[0].sin().sum().backward()
    flat(twin(plain))[0].sin().sum().backward()
    got = _unwrapped([leaf.grad, *(p.grad for p in layer.parameters())])
    same(got, [plain.grad, *(p.grad for p in twin.parameters())], **GRADIENTS)


@probe("wrapper subclass as weights", "numbers and gradients", each=KINDS + CELLS)
def wrapper_weights(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    for name, p in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(Wrapped(p.detach())))
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    got, want = flat(layer(x)), flat(twin(x))
    got[0].sin().sum().backward()
    want[0].sin().sum().backward()
    same(_unwrapped(got), want)
    same(_unwrapped([p.grad for p in layer.parameters()]), [p.grad for p in twin.parameters()], **GRADIENTS)


class Tagged(Tensor):
    """A subclass without __torch_dispatch__, as torchvision's and fastai's."""


@probe("as_subclass: subclass in, subclass out", "types of output and states; numbers", each=KINDS + CELLS)
def subclass(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            got, want = flat(layer(x.as_subclass(Tagged))), flat(twin(x))
        assert [type(tensor) for tensor in got] == [Tagged] * len(want), [type(tensor) for tensor in got]
        same([tensor.as_subclass(Tensor) for tensor in got], want)


@probe("__torch_function__ of a subclass", "sees the function that makes the output", each=KINDS + CELLS)
def subclass_function(layers: Layers, kind: str) -> None:
    layer, twin = layers.pair(kind, 3, 4)
    seen = _Made()

    class Watching(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = super().__torch_function__(func, types, args, kwargs or {})
            with torch._C.DisableTorchFunctionSubclass():
                seen.note(getattr(func, "__name__", ""), result)
            return result

    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)
    got = [tensor.as_subclass(Tensor) for tensor in flat(layer(x.as_subclass(Watching)))]
    assert seen.made(got[0]), "the output comes from nowhere"
    same(got, twin(x))


@probe(
    "an exception raised in a mode", "reaches the caller; its side effects happen once", each=KINDS + CELLS
)
def mode_raises(layers: Layers, kind: str) -> None:
    layer = layers.make(kind, 3, 4)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(5, 2, 3)

    class Budget(TorchFunctionMode):
        def __init__(self, calls: int) -> None:
            super().__init__()
            self.left = calls
            self.raised = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.left -= 1
            if self.left < 0:
                self.raised += 1
                raise TimeoutError("budget")
            return func(*args, **(kwargs or {}))

    with Budget(10**6) as mode:
        layer(x)
    for calls in range(10**6 - mode.left):
        with Budget(calls) as mode:
            try:
                layer(x)
            except TimeoutError:
                pass
            else:
                raise AssertionError(f"swallowed when raised in call {calls + 1}")
        assert mode.raised == 1, f"raised {mode.raised} times in call {calls + 1}"
