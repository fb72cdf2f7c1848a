"""The registered operators: what torch's own checks say of them, who sees their calls, and what becomes of
errors, hooks, lazy views and memory that there is not.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from operator_cases import Case, cases, one_of_each
from results import assert_same_bits, tensors
from tolerances import FLOAT64
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import rnnfused
from rnnfused._load import _C

LAYERS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
FORWARD, BACKWARD = "rnnfused::recurrent", "rnnfused::recurrent_backward"


# ---- torch.library.opcheck


@pytest.mark.parametrize("case", cases(), ids=str)
def test_schemas_and_tensors_without_memory(case: Case) -> None:
    for op, arguments in case.calls():
        opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
    for op, arguments in list(case.calls(requires_grad=True))[:3]:
        opcheck(op, arguments, test_utils=("test_faketensor", "test_autograd_registration"))


@pytest.mark.long
@pytest.mark.parametrize("case", one_of_each(), ids=str)
def test_traced_calls_with_sizes_as_symbols(case: Case) -> None:
    for op, arguments in comparable(list(case.calls(requires_grad=True))[:3]):
        opcheck(op, arguments, test_utils="test_aot_dispatch_dynamic")


@pytest.mark.long
@pytest.mark.parametrize("case", one_of_each()[::4], ids=str)
def test_traced_calls(case: Case) -> None:
    for op, arguments in comparable(case.calls()):
        opcheck(op, arguments, test_utils=("test_aot_dispatch_static", "test_aot_dispatch_dynamic"))


def comparable(calls: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Without those whose results hold memory that nobody wrote: the tape of what lies beyond lengths."""
    return [
        (op, arguments)
        for op, arguments in calls
        if not (op is torch.ops.rnnfused.recurrent.default and arguments[-1] and arguments[4] is not None)
    ]


@pytest.mark.long
@pytest.mark.parametrize("case", [Case("gru", steps=2), Case("lstm", layout="step")], ids=str)
def test_traced_third_derivatives(case: Case) -> None:
    op, arguments = list(case.calls(requires_grad=True))[3]
    opcheck(op, arguments, test_utils="test_aot_dispatch_static")


@pytest.mark.parametrize("layers", ["lstm layers=2 bidirectional", "gru layers=3", "lstm layers=2 projected"])
def test_several_layers_in_one_call(layers: str) -> None:
    module = build(layers)
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    for requires_grad in (False, True):
        arguments = (
            x.clone().requires_grad_(requires_grad),
            [],
            [p.detach().clone().requires_grad_(requires_grad) for p in module.parameters()],
            *(None, None, None),
            layers,
            False,
        )
        opcheck(torch.ops.rnnfused.recurrent.default, arguments)


def build(text: str) -> Any:
    cell, *words = text.split()
    layers = int(words[0].removeprefix("layers=")) if words and words[0].startswith("layers=") else 1
    options: dict[str, Any] = {"bidirectional": "bidirectional" in words}
    if "projected" in words:
        options["proj_size"] = 2
    return getattr(rnnfused, cell.upper())(3, 4, layers, dtype=torch.float64, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_narrow_types_without_memory(dtype: torch.dtype) -> None:
    case = Case("lstm", True, "batch_first", 2, dtype=dtype)
    for op, arguments in case.calls():
        opcheck(op, arguments, test_utils="test_faketensor")


def test_wide_states_of_narrow_input_without_memory() -> None:
    case = Case("gru", layout="batch_first", dtype=torch.bfloat16)
    x, hx, params = case.split(case.leaves())
    arguments = (x, [s.float() for s in hx], params, None, None, None, case.config.text, True)
    opcheck(torch.ops.rnnfused.recurrent.default, arguments, test_utils="test_faketensor")


def test_recomputed_gates_without_memory() -> None:
    case = Case("gru", steps=600, hidden=2)
    arguments = (*case.split(case.leaves()), *case.where, "gru recompute", True)
    opcheck(torch.ops.rnnfused.recurrent.default, arguments, test_utils="test_faketensor")


def test_a_gradient_may_be_wanted_twice() -> None:
    case = Case("gru")
    leaves, outer = case.leaves(requires_grad=True), case.outer()
    arguments = (outer, *case.split(leaves), *case.where, *case.kept(leaves), case.config.text)
    found = []
    for wanted in ([0, 0], [0]):
        gradients = torch.ops.rnnfused.recurrent_backward(*arguments, wanted)
        along = [torch.ones_like(t) / len(wanted) for t in gradients]
        found.append(torch.autograd.grad(gradients, leaves, along))
    for twice, once in zip(*found, strict=True):
        torch.testing.assert_close(twice, once, rtol=FLOAT64, atol=FLOAT64)


def test_outputs_alias_nothing() -> None:
    case = Case("gru")
    leaves = case.leaves()
    arguments = (case.outer(), *case.split(leaves), *case.where, *case.kept(leaves), case.config.text)
    one, other = torch.ops.rnnfused.recurrent_backward(*arguments, [0, 0])
    assert one.data_ptr() != other.data_ptr()


# ---- Who wants to see a call


class CountOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func._name.removesuffix(".default")] += 1
        return func(*args, **(kwargs or {}))


class CountFunctions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Wrapper(Tensor):
    """Holds another tensor, and sees every operation."""

    seen: ClassVar[Counter[str]] = Counter()
    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> Wrapper:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            dtype=inner.dtype,
            device=inner.device,
            requires_grad=requires_grad,
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen[func._name.removesuffix(".default")] += 1
        args, kwargs = torch.utils._pytree.tree_map_only(Wrapper, lambda t: t.inner, (args, kwargs or {}))
        return torch.utils._pytree.tree_map_only(Tensor, cls, func(*args, **kwargs))


class Tagged(Tensor):
    """A Python subclass of no tensor but its own memory."""

    seen: ClassVar[Counter[str]] = Counter()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen[str(func)] += 1
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    Wrapper.seen.clear()
    Tagged.seen.clear()


def module_and_input(kind: str, **options: Any) -> tuple[Any, Tensor]:
    x = torch.randn(2, 3) if kind.endswith("Cell") else torch.randn(4, 2, 3)
    return getattr(rnnfused, kind)(3, 5, **options), x


def first(result: Any) -> Tensor:
    return tensors(result)[0]


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_a_dispatch_mode_sees_forward_and_backward(kind: str) -> None:
    module, x = module_and_input(kind)
    want = module(x)
    with CountOps() as forward:
        y = module(x)
    with CountOps() as backward:
        first(y).sum().backward()
    with torch.no_grad(), CountOps() as inference:
        assert_same_bits(module(x), want)
    assert forward.seen[FORWARD] == inference.seen[FORWARD] == 1
    assert backward.seen[BACKWARD] == 1 and backward.seen[FORWARD] == 0


@pytest.mark.parametrize("kind", LAYERS)
def test_a_dispatch_mode_sees_every_layer_that_is_differentiated(kind: str) -> None:
    module, x = module_and_input(kind, num_layers=3, bidirectional=True)
    with CountOps() as mode:
        first(module(x)).sum().backward()
    assert mode.seen[FORWARD] == mode.seen[BACKWARD] == 3
    with torch.no_grad(), CountOps() as mode:
        module(x)
    assert mode.seen[FORWARD] == 1


def test_a_dispatch_mode_sees_second_derivatives() -> None:
    module, x = module_and_input("LSTM")
    x.requires_grad_()
    with CountOps() as mode:
        (g,) = torch.autograd.grad(first(module(x)).square().sum(), x, create_graph=True)
        g.sum().backward()
    assert mode.seen["rnnfused::recurrent_tangent"] == 1


@pytest.mark.parametrize("kind", LAYERS + CELLS)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_function_mode_sees_forward(kind: str, gradients: bool) -> None:
    module, x = module_and_input(kind)
    with torch.set_grad_enabled(gradients), CountFunctions() as mode:
        module(x)
    assert mode.seen["rnnfused.recurrent"] == 1


@pytest.mark.parametrize("kind", LAYERS + CELLS)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_wrapper_sees_forward_and_backward(kind: str, gradients: bool) -> None:
    module, x = module_and_input(kind)
    with torch.set_grad_enabled(gradients):
        y = module(Wrapper(x, requires_grad=gradients))
        assert all(type(t) is Wrapper for t in tensors(y))
        if gradients:
            first(y).sum().backward()
    assert Wrapper.seen[FORWARD] == 1 and Wrapper.seen[BACKWARD] == gradients


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_weights_may_be_wrappers(kind: str) -> None:
    module, x = module_and_input(kind)
    want = module(x)
    given = {name: Wrapper(p.detach(), requires_grad=True) for name, p in module.named_parameters()}
    y = torch.func.functional_call(module, given, (x,))
    first(y).sum().backward()
    assert_same_bits([t.inner for t in tensors(y)], want)
    assert all(type(w.grad) is Wrapper for w in given.values())


@pytest.mark.parametrize("kind", LAYERS + CELLS)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_python_subclass_sees_forward_and_comes_back(kind: str, gradients: bool) -> None:
    module, x = module_and_input(kind)
    with torch.set_grad_enabled(gradients):
        y = module(x.as_subclass(Tagged))
    assert all(type(t) is Tagged for t in tensors(y))
    assert Tagged.seen["rnnfused.recurrent"] == 1


@pytest.mark.parametrize("place", ["hx", "weight", "batch_sizes"])
def test_a_python_subclass_in_any_place(place: str) -> None:
    module = rnnfused.GRU(3, 5)
    x, hx, sizes = torch.randn(3, 3), torch.randn(1, 2, 5), torch.tensor([2, 1])
    weights = list(module.parameters())
    if place == "hx":
        hx = hx.as_subclass(Tagged)
    elif place == "weight":
        weights[1] = torch.nn.Parameter(weights[1].detach()).as_subclass(Tagged)
    else:
        sizes = sizes.as_subclass(Tagged)
    y, _ = rnnfused.functional.gru(x, hx, weights, batch_sizes=sizes)
    assert type(y) is Tagged and Tagged.seen["rnnfused.recurrent"] == 1


class TestFrozen:
    def make(self) -> tuple[Any, Any, Tensor]:
        module = rnnfused.LSTM(3, 5).requires_grad_(False)
        return rnnfused.Frozen(module), module, torch.randn(4, 2, 3)

    def test_modes(self) -> None:
        frozen, _, x = self.make()
        with CountOps() as ops:
            frozen(x)
        with CountFunctions() as functions:
            frozen(x)
        assert ops.seen[FORWARD] == functions.seen["rnnfused.recurrent"] == 1

    def test_wrapper(self) -> None:
        frozen, _, x = self.make()
        assert type(frozen(Wrapper(x))[0]) is Wrapper and Wrapper.seen[FORWARD] == 1

    def test_python_subclass(self) -> None:
        frozen, _, x = self.make()
        y, _ = frozen(x.as_subclass(Tagged))
        assert type(y) is Tagged and Tagged.seen["rnnfused.recurrent"] == 1

    def test_python_subclass_as_state(self) -> None:
        frozen, _, x = self.make()
        state = torch.zeros(1, 2, 5)
        assert type(frozen(x, (state, state.as_subclass(Tagged)))[0]) is Tagged

    def test_functions_are_transformed(self) -> None:
        frozen, module, x = self.make()
        batch = torch.stack([x, x + 1])
        want = torch.stack([module(one)[0] for one in batch])
        torch.testing.assert_close(torch.func.vmap(lambda t: frozen(t)[0])(batch), want)


def test_a_stepper_under_a_device() -> None:
    stepper, x = rnnfused.Stepper(rnnfused.GRU(3, 5).requires_grad_(False)), torch.randn(1, 3)
    want = stepper(x)
    stepper.reset()
    with torch.device("cpu"):
        assert torch.equal(stepper(x), want)


@contextlib.contextmanager
def dual_level() -> Iterator[None]:
    with forward_ad.dual_level():
        yield


WATCHED: dict[str, Callable[[], Any]] = {
    "dispatch mode": CountOps,
    "function mode": CountFunctions,
    "device": lambda: torch.device("cpu"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "fake tensors": lambda: torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True),
    "FLOP counter": lambda: FlopCounterMode(display=False),
    "functionalization": lambda: torch._C._ForceDispatchKeyGuard(
        torch._C._dispatch_tls_local_include_set().add(torch._C.DispatchKey.Functionalize),
        torch._C._dispatch_tls_local_exclude_set(),
    ),
}
UNWATCHED: dict[str, Callable[[], Any]] = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "saved tensors' hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t),
    "profiler": torch.profiler.profile,
    "anomalies": lambda: torch.autograd.detect_anomaly(check_nan=False),
    "a level for dual tensors": dual_level,
    "autocast of another device": lambda: torch.autocast("cuda", torch.float16, enabled=True),
}


def gru_weights(device: str = "cpu") -> list[Tensor]:
    return [torch.randn(s, device=device) for s in ((15, 3), (15, 5), (15,), (15,))]


def fast(x: Tensor, hx: Any = (), weights: Any = None) -> bool:
    return _C.recurrent("gru", x, hx, weights or gru_weights(), None, None, None) is not None


@pytest.mark.parametrize("who", WATCHED)
def test_what_is_watched_goes_through_the_operator(who: str) -> None:
    weights, x = gru_weights(), torch.randn(4, 2, 3)
    with WATCHED[who]():
        assert not fast(x, (), weights)


@pytest.mark.filterwarnings("ignore:.*CUDA.*", "ignore:Anomaly")
@pytest.mark.parametrize("who", UNWATCHED)
def test_what_nobody_watches_does_not(who: str) -> None:
    with UNWATCHED[who]():
        assert fast(torch.randn(4, 2, 3)) and fast(torch.randn(2, 4, 3).transpose(0, 1))


def test_tensors_that_are_more_than_memory_go_through_the_operator() -> None:
    x, h = torch.randn(4, 2, 3), torch.randn(1, 2, 5)
    assert not fast(torch._neg_view(x)) and not fast(x, [torch._neg_view(h)])
    assert not fast(torch._efficientzerotensor(4, 2, 3))
    assert not fast(x.to("meta"), (), gru_weights("meta"))
    assert not fast(x.as_subclass(Tagged)) and not fast(x, [h.as_subclass(Tagged)])
    with forward_ad.dual_level():
        assert not fast(forward_ad.make_dual(x, x)) and not fast(x, [forward_ad.make_dual(h, h)])

    weights = gru_weights()

    def transformed(t: Tensor) -> Tensor:
        assert not fast(t, (), weights)
        return t.sum()

    torch.func.grad(transformed)(x)
    torch.func.vmap(transformed)(torch.stack([x, x]))
    torch.func.jvp(transformed, (x,), (x,))


# ---- Errors


class Failed(Exception):
    pass


class Failing(TorchDispatchMode):
    """Raises at the operator of that name, and counts how often."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.times = name, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._name == self.name:
            self.times += 1
            raise Failed
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_what_a_mode_raises_is_raised_once(kind: str, gradients: bool) -> None:
    module, x = module_and_input(kind)
    mode = Failing(FORWARD)
    with torch.set_grad_enabled(gradients), pytest.raises(Failed), mode:
        module(x)
    assert mode.times == 1
    y = first(module(x)).sum()
    mode = Failing(BACKWARD)
    with pytest.raises(Failed), mode:
        y.backward()
    assert mode.times == 1


def test_what_a_function_mode_raises_is_raised_once() -> None:
    times = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if str(func) == "rnnfused.recurrent":
                times.append(1)
                raise Failed
            return func(*args, **(kwargs or {}))

    for kind in LAYERS + CELLS:
        module, x = module_and_input(kind)
        with pytest.raises(Failed), Mode():
            module(x)
    assert len(times) == len(LAYERS + CELLS)


def test_what_a_subclass_raises_is_raised_once() -> None:
    times = []

    class Odd(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if str(func) == "rnnfused.recurrent":
                times.append(1)
                raise Failed
            return super().__torch_function__(func, types, args, kwargs or {})

    for kind in LAYERS + CELLS:
        module, x = module_and_input(kind)
        with pytest.raises(Failed):
            module(x.as_subclass(Odd))
    assert len(times) == len(LAYERS + CELLS)


@pytest.mark.parametrize("kind", LAYERS + CELLS)
@pytest.mark.parametrize("when", ["pack", "unpack"])
def test_what_a_hook_of_saved_tensors_raises_is_raised_once(kind: str, when: str) -> None:
    times = []

    def fail(t: Tensor) -> Tensor:
        times.append(1)
        raise Failed

    module, x = module_and_input(kind)
    pack, unpack = (fail, lambda t: t) if when == "pack" else (lambda t: t, fail)
    with pytest.raises(Failed), torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        first(module(x)).sum().backward()
    assert len(times) == 1
    first(module(x)).sum().backward()  # and nothing is left of it


def test_what_a_hook_of_a_gradient_raises_is_raised_once() -> None:
    module, x = module_and_input("LSTM")
    times = []

    def fail(grad: Tensor) -> None:
        times.append(1)
        raise Failed

    x.requires_grad_()
    x.register_hook(fail)
    with pytest.raises(Failed):
        first(module(x)).sum().backward()
    assert len(times) == 1


def bad_calls() -> dict[str, Callable[[Tensor], Any]]:
    """Calls that raise, of every layer and cell, by what is wrong; they take what they would keep alive."""
    calls: dict[str, Callable[[Tensor], Any]] = {}
    for kind in LAYERS:
        layer = getattr(rnnfused, kind)(3, 4, 2)
        frozen = rnnfused.Frozen(layer)

        def state(sizes: tuple[int, ...], kind: str = kind) -> Any:
            return (torch.zeros(sizes),) * 2 if kind == "LSTM" else torch.zeros(sizes)

        def dropping(x: Tensor, kind: str = kind) -> Any:
            return getattr(rnnfused, kind)(3, 4, 2, dropout=0.5)(x[..., :2])

        def in_mode(x: Tensor, layer: Any = layer) -> Any:
            with Failing(FORWARD):
                return layer(x)

        def in_backward(x: Tensor, layer: Any = layer) -> Any:
            y = layer(x * 1)[0].sum()
            with Failing(BACKWARD):
                y.backward()

        def changed(x: Tensor, layer: Any = layer) -> Any:
            x = x * 1
            y = layer(x)[0].sum()
            with torch.no_grad():
                x.add_(1)
            y.backward()

        def twice(x: Tensor, layer: Any = layer) -> Any:
            y = layer(x)[0].sum()
            y.backward()
            y.backward()

        calls |= {
            f"{kind} features": lambda x, m=layer: m(x[..., :2]),
            f"{kind} dimensions": lambda x, m=layer: m(x[None]),
            f"{kind} dtype": lambda x, m=layer: m(x.double()),
            f"{kind} empty": lambda x, m=layer: m(x[:0]),
            f"{kind} state": lambda x, m=layer, s=state: m(x, s((2, 3, 4))),
            f"{kind} states": lambda x, m=layer: m(x, (x, x, x)),
            f"{kind} dropout": dropping,
            f"{kind} subclass": lambda x, m=layer: m(x.as_subclass(Tagged)[..., :2]),
            f"{kind} meta weights": lambda x, k=kind: getattr(rnnfused, k)(3, 4, device="meta")(x),
            f"{kind} transformed": lambda x, m=layer: torch.func.vmap(lambda t: m(t[..., :2])[0])(x[None]),
            f"{kind} frozen": lambda x, m=frozen: m(x[..., :2]),
            f"{kind} frozen, differentiated": lambda x, m=frozen: m(x),
            f"{kind} mode": in_mode,
            f"{kind} backward": in_backward,
            f"{kind} changed": changed,
            f"{kind} twice": twice,
        }
    for kind in CELLS:
        cell = getattr(rnnfused, kind)(3, 4)
        calls |= {
            f"{kind} features": lambda x, m=cell: m(x[0, :, :2]),
            f"{kind} dimensions": lambda x, m=cell: m(x),
            f"{kind} states": lambda x, m=cell: m(x[0], (x, x, x)),
        }
    return calls


@pytest.mark.parametrize("what", bad_calls())
def test_nothing_is_kept_of_a_call_that_failed(what: str) -> None:
    call = bad_calls()[what]
    x = torch.randn(4, 2, 3, requires_grad=True)
    alive = weakref.ref(x)
    gc.collect()
    gc.disable()
    try:
        try:
            call(x)
        except (RuntimeError, ValueError, TypeError, AttributeError, Failed):
            raised = True
        else:
            raised = False
        assert raised
        del x
        assert alive() is None
    finally:
        gc.enable()


# ---- Graphs


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_what_is_saved_passes_through_hooks(kind: str) -> None:
    module, x = module_and_input(kind)
    x.requires_grad_()
    want = torch.autograd.grad(first(module(x)).sum(), [x, *module.parameters()])
    packed: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        packed.append(t)
        return t.detach().clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = first(module(x)).sum()
    assert any(t is x for t in packed)
    assert_same_bits(torch.autograd.grad(y, [x, *module.parameters()]), want)
    with torch.autograd.graph.save_on_cpu():
        y = first(module(x)).sum()
    assert_same_bits(torch.autograd.grad(y, [x, *module.parameters()]), want)


@pytest.mark.parametrize("which", ["input", "hx", "weight_ih", "weight_hh", "h"])
@pytest.mark.parametrize("kind", CELLS)
def test_in_place_changes_of_what_a_step_has_saved(kind: str, which: str) -> None:
    """A change is caught, or else the gradients are those of torch.nn, which keeps other tensors."""
    outcomes = []
    for library in (rnnfused, torch.nn):
        torch.manual_seed(3)
        module = getattr(library, kind)(3, 5, dtype=torch.float64)
        x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        hx = [
            torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
            for _ in range(1 + (kind == "LSTMCell"))
        ]
        own = [x * 1, *(s * 1 for s in hx)]
        result = module(own[0], tuple(own[1:]) if kind == "LSTMCell" else own[1])
        changes = {"input": own[0], "hx": own[1], "h": first(result)}
        total = sum(t.sum() for t in tensors(result))
        with torch.no_grad():
            (changes[which] if which in changes else getattr(module, which)).mul_(2)
        try:
            outcomes.append(torch.autograd.grad(total, [x, *hx, *module.parameters()]))
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            outcomes.append(None)
    ours, theirs = outcomes
    if theirs is not None and ours is not None:
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=FLOAT64, atol=FLOAT64)
    # What torch.nn takes must be taken.
    assert (ours is None) <= (theirs is None)


@pytest.mark.parametrize("kind", CELLS)
def test_a_step_in_place_on_its_result(kind: str) -> None:
    """h *= mask, as loops over cells have it: in the graph, so nothing may be lost."""
    found = []
    for library in (torch.nn, rnnfused):
        torch.manual_seed(3)
        module = getattr(library, kind)(3, 5, dtype=torch.float64)
        x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        try:
            first(h := module(x)).mul_(0.5)
            found.append(torch.autograd.grad(first(h).sum(), [x, *module.parameters()]))
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            found.append(None)
    if found[0] is not None:
        assert found[1] is not None
        for a, b in zip(found[1], found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("kind", CELLS)
class TestGraphOfAStep:
    def test_backward_twice(self, kind: str) -> None:
        module, x = module_and_input(kind)
        y = first(module(x)).sum()
        targets = list(module.parameters())
        one = torch.autograd.grad(y, targets, retain_graph=True)
        assert_same_bits(torch.autograd.grad(y, targets), one)
        with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
            torch.autograd.grad(y, targets)


def test_second_derivatives_of_a_freed_graph_are_refused() -> None:
    module, x = module_and_input("GRU")
    x.requires_grad_()
    (g,) = torch.autograd.grad(first(module(x)).square().sum(), x, create_graph=True)
    total = g.square().sum()
    one = torch.autograd.grad(total, x, retain_graph=True)
    assert_same_bits(torch.autograd.grad(total, x), one)
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        torch.autograd.grad(total, x)


@pytest.mark.parametrize("watched", [False, True])
def test_threads_that_go_back_through_one_graph(watched: bool) -> None:
    module, x = rnnfused.LSTM(3, 20, 2), torch.randn(16, 4, 3, requires_grad=True)
    hooks = (lambda t: t.clone(), lambda t: t + 0) if watched else (lambda t: t, lambda t: t)
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        y = module(x)[0].sum()
    want = torch.autograd.grad(y, [x, *module.parameters()], retain_graph=True)
    found: list[Any] = []

    def run() -> None:
        for _ in range(10):
            found.append(torch.autograd.grad(y, [x, *module.parameters()], retain_graph=True))

    workers = [threading.Thread(target=run) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert len(found) == 40
    for one in found:
        assert_same_bits(one, want)


def test_one_tensor_in_several_places() -> None:
    """The same weights in both directions, and the input as the initial state."""
    found = []
    for through in ("op", "twin"):
        torch.manual_seed(4)
        case = Case("rnn_tanh", directions=2, steps=2, batch=3, input=4, hidden=4)
        x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
        w = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
        b = torch.randn(4, dtype=torch.float64, requires_grad=True)
        run = case.run if through == "op" else case.twin
        outputs = run(x, x, w, w, b, b, w, w, b, b)
        gradients = torch.autograd.grad(sum(t.square().sum() for t in outputs), (x, w, b), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in gradients), (x, w, b))
        found.append([*outputs, *gradients, *second])
    for a, z in zip(*found, strict=True):
        torch.testing.assert_close(a, z, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("layout", ["padded", "batch_first", "packed", "step"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_gradients_of_some(cell: str, layout: str) -> None:
    case = Case(cell, layout=layout, directions=1 if layout == "step" else 2)
    leaves, outer = case.leaves(requires_grad=True), case.outer()
    every = torch.autograd.grad(case.run(*leaves), leaves, outer)
    for index in range(len(leaves)):
        some = [t.detach().requires_grad_(i == index) for i, t in enumerate(leaves)]
        (found,) = torch.autograd.grad(case.run(*some), some[index], outer)
        assert_same_bits(found, every[index])
        (found,) = torch.autograd.grad(case.run(*leaves), leaves[index], outer)
        assert_same_bits(found, every[index])
    for index in range(len(outer)):  # and of one output alone
        alone = torch.autograd.grad(case.run(*leaves)[index], leaves, outer[index], allow_unused=True)
        want = torch.autograd.grad(case.twin(*leaves)[index], leaves, outer[index], allow_unused=True)
        for a, b, leaf in zip(alone, want, leaves, strict=True):
            zero = torch.zeros_like(leaf)
            torch.testing.assert_close(
                zero if a is None else a, zero if b is None else b, rtol=FLOAT64, atol=FLOAT64
            )


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_a_node_has_a_name_and_hooks(kind: str) -> None:
    module, x = module_and_input(kind)
    for context in (contextlib.nullcontext, CountOps):
        with context():
            y = first(module(x))
        node = y.grad_fn
        assert node is not None and node.name() == "RecurrentBackward"
        seen = []
        node.register_prehook(lambda grads, seen=seen: seen.append(("before", len(grads))))
        node.register_hook(lambda into, out, seen=seen: seen.append(("after", len(into), len(out))))
        y.sum().backward()
        outputs = len(tensors(module(x)))
        assert seen == [("before", outputs), ("after", len(node.next_functions), outputs)]


def test_a_hook_may_change_an_outer_gradient() -> None:
    module, x = module_and_input("GRU")
    x.requires_grad_()
    y = module(x)[0]
    want = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
    y.grad_fn.register_prehook(lambda grads: tuple(None if g is None else g * 0 for g in grads))
    assert want.any() and not torch.autograd.grad(y.sum(), x)[0].any()


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected")
def test_anomaly_mode() -> None:
    for kind in LAYERS + CELLS:
        module, x = module_and_input(kind)
        x.requires_grad_()
        with torch.autograd.detect_anomaly():
            first(module(x)).sum().backward()
            y = first(module(x))
            y.register_hook(lambda grad: grad * float("nan"))
            with pytest.raises(RuntimeError, match="Function 'RecurrentBackward' returned nan values"):
                y.sum().backward()


def test_tensors_of_inference_mode_are_refused_as_by_torch() -> None:
    with torch.inference_mode():
        x = torch.randn(4, 2, 3)
    messages = []
    for library in (torch.nn, rnnfused):
        with pytest.raises(RuntimeError) as error:
            library.GRU(3, 5)(x)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def below_autograd(module: torch.nn.Module, *args: Tensor) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return module(*args)


def asking_for_gradients_in_inference_mode(module: torch.nn.Module, *args: Tensor) -> Any:
    with torch.inference_mode(), torch.enable_grad():
        return module(*args)


@pytest.mark.parametrize("call", [below_autograd, asking_for_gradients_in_inference_mode])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"])
def test_no_graph_below_autograd(call: Callable[..., Any], name: str) -> None:
    for library in (torch.nn, rnnfused):
        module = getattr(library, name)(3, 5)
        for t in torch.utils._pytree.tree_leaves(call(module, torch.randn(4, 3).requires_grad_())):
            assert not t.requires_grad and t.grad_fn is None


# ---- Lazy views


def negated(t: Tensor) -> Tensor:
    return torch._neg_view(-t)


def conjugated(t: Tensor) -> Tensor:
    """The same numbers as the imaginary part of a lazily conjugated tensor."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag


@pytest.mark.parametrize("lazy", [negated, conjugated])
@pytest.mark.parametrize("case", one_of_each()[::3], ids=str)
def test_lazily_negated_tensors(case: Case, lazy: Callable[[Tensor], Tensor]) -> None:
    leaves, outer = case.leaves(requires_grad=True), case.outer()
    outputs = case.run(*leaves)
    want = [*outputs, *torch.autograd.grad(outputs, leaves, outer, retain_graph=True)]
    for index in range(len(leaves)):
        given = [lazy(t) if i == index else t for i, t in enumerate(leaves)]
        assert given[index].is_neg()
        own = case.run(*given)
        assert_equal([*own, *torch.autograd.grad(own, leaves, outer)], want)
    assert_equal(torch.autograd.grad(outputs, leaves, [lazy(g) for g in outer]), want[len(outputs) :])


def assert_equal(got: Any, want: Any) -> None:
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("place", range(6))
def test_lazily_negated_tensors_of_every_operator(place: int) -> None:
    case = Case("lstm", layout="batch_first")
    torch.manual_seed(1)
    plain = list(case.calls())
    torch.manual_seed(1)
    for (op, given), (_, arguments) in zip(case.calls(), plain, strict=True):
        swapped = list(given)
        if place >= len(swapped) or not tensors_in(swapped[place]):
            continue
        swapped[place] = torch.utils._pytree.tree_map_only(Tensor, negated, swapped[place])
        assert_equal(op(*swapped), op(*arguments))


def tensors_in(value: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_zeros_that_torch_has_not_written(kind: str, watched: bool) -> None:
    module, x = module_and_input(kind)
    x.requires_grad_()
    targets = [x, *module.parameters()]
    with CountOps() if watched else contextlib.nullcontext():
        for gradient in torch.autograd.grad(torch.sgn(first(module(x))).sum(), targets, allow_unused=True):
            assert gradient is None or not gradient.any()


@pytest.mark.parametrize("place", range(7))
def test_zeros_that_torch_has_not_written_as_arguments(place: int) -> None:
    """Of every operator, in every place but the tape's, alone and in a list."""
    case = Case("gru")
    for op, arguments in case.calls():
        given, plain = list(arguments), list(arguments)
        if place >= len(given) or not tensors_in(given[place]):
            continue
        if op._schema.arguments[place].name == "tape":
            continue
        given[place] = torch.utils._pytree.tree_map_only(
            Tensor, lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype), given[place]
        )
        plain[place] = torch.utils._pytree.tree_map_only(Tensor, torch.zeros_like, plain[place])
        assert_equal(op(*given), op(*plain))


def test_zeros_that_torch_has_not_written_in_second_derivatives() -> None:
    module, x = module_and_input("LSTM")
    x.requires_grad_()
    (g,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(torch.sgn(g).sum(), x, allow_unused=True)
    assert second is None or not second.any()


def test_zeros_that_torch_has_not_written_as_tangents() -> None:
    module, x = module_and_input("GRU")
    zero = torch._efficientzerotensor(x.shape)
    with forward_ad.dual_level():
        y, h = module(forward_ad.make_dual(x, zero))
        for t in (y, h):
            tangent = forward_ad.unpack_dual(t).tangent
            assert tangent is None or not tangent.any()


# ---- Tensors without memory


@pytest.mark.parametrize("case", cases(), ids=str)
def test_meta_tensors_look_as_real_ones(case: Case) -> None:
    leaves = case.leaves()
    real, bare = case.run(*leaves), case.run(*(t.to("meta") for t in leaves))
    for a, b in zip(real, bare, strict=True):
        assert b.is_meta and (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_training_without_memory(kind: str) -> None:
    module, x = module_and_input(kind)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = getattr(rnnfused, kind)(3, 5)
        given = mode.from_tensor(x).requires_grad_()
        first(fake(given)).sum().backward()
        assert given.grad is not None and given.grad.shape == x.shape
        assert all(p.grad is not None and p.grad.shape == p.shape for p in fake.parameters())
    bare = module.to("meta")
    first(bare(x.to("meta"))).sum().backward()
    assert all(p.grad is not None and p.grad.is_meta for p in bare.parameters())


@pytest.mark.parametrize("remove", ["mutations", "mutations_and_views"])
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_functionalized(kind: str, remove: str) -> None:
    module, x = module_and_input(kind)

    def run(t: Tensor) -> Any:
        t = t.clone()
        t.add_(1)
        return tensors(module(t))

    assert_equal(torch.func.functionalize(run, remove=remove)(x), run(x))

    def slope(t: Tensor) -> Tensor:
        return torch.func.grad(lambda u: run(u)[0].sum())(t)

    assert_equal([torch.func.functionalize(slope, remove=remove)(x)], [slope(x)])


# ---- What is measured


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_the_profiler_has_rows_of_that_name(kind: str, watched: bool) -> None:
    module, x = module_and_input(kind)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        with CountOps() if watched else contextlib.nullcontext():
            y = module(x)
            first(y).sum().backward()
        with torch.no_grad():
            module(x)
    counts = {row.key: row.count for row in profile.key_averages()}
    # What a mode sees it calls again.
    assert counts[FORWARD] == 2 + watched and counts[BACKWARD] == 1 + watched


def flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("form", ["padded", "batch_first", "unbatched", "packed"])
@pytest.mark.parametrize(
    "kind, options", [("RNN", {}), ("GRU", {}), ("LSTM", {}), ("LSTM", {"proj_size": 2})]
)
def test_operations_are_counted_as_torchs_own(kind: str, options: dict[str, Any], form: str) -> None:
    """In float64, where torch.nn's layers are products one by one."""
    counts = []
    for library in (torch.nn, rnnfused):
        module = getattr(library, kind)(
            3, 5, 2, bidirectional=True, batch_first=form == "batch_first", dtype=torch.float64, **options
        )
        x = torch.randn((4, 3) if form == "unbatched" else (4, 2, 3), dtype=torch.float64, requires_grad=True)
        middle = () if form == "unbatched" else (4,) if form == "batch_first" else (2,)
        states = [
            torch.randn(4, *middle, options.get("proj_size", 5), dtype=torch.float64, requires_grad=True)
        ]
        if kind == "LSTM":
            states.append(torch.randn(4, *middle, 5, dtype=torch.float64, requires_grad=True))
        given: Any = x
        if form == "packed":
            given = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 2]))
        hx = tuple(states) if kind == "LSTM" else states[0]
        with torch.no_grad():
            inference = flops(lambda m=module, g=given, h=hx: m(g, h))
        result: list[Any] = []
        forward = flops(lambda m=module, g=given, h=hx, r=result: r.append(m(g, h)))
        total = sum(t.sum() for t in tensors(result[0]))
        counts.append((inference, forward, flops(total.backward)))
    assert counts[1] == counts[0]


@pytest.mark.parametrize("kind", CELLS)
def test_operations_of_a_step_are_counted_as_torchs_own(kind: str) -> None:
    counts = []
    for library in (torch.nn, rnnfused):
        module = getattr(library, kind)(3, 5, dtype=torch.float64)
        x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        h = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
        hx = (h, h) if kind == "LSTMCell" else h
        result: list[Any] = []
        forward = flops(lambda m=module, g=x, s=hx, r=result: r.append(m(g, s)))
        counts.append((forward, flops(first(result[0]).sum().backward)))
    assert counts[1] == counts[0]


def test_operations_of_modules() -> None:
    model = torch.nn.Sequential(rnnfused.GRU(3, 5), torch.nn.Identity())
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(4, 2, 3, requires_grad=True))[0].sum().backward()
    by_module = counter.get_flop_counts()
    want = {
        torch.ops.rnnfused.recurrent: 2 * 8 * 15 * 8,
        torch.ops.rnnfused.recurrent_backward: 4 * 8 * 15 * 8,
    }
    assert by_module["Sequential.0"] == want == by_module["Global"]


def test_operations_of_second_derivatives_are_counted() -> None:
    case = Case("gru")
    leaves = case.leaves(requires_grad=True)
    first_ones = torch.autograd.grad(case.run(*leaves)[0].square().sum(), leaves, create_graph=True)
    total = sum(g.sum() for g in first_ones)
    assert flops(total.backward) > 0


def test_the_module_tracker() -> None:
    from torch.utils.module_tracker import ModuleTracker

    seen = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func._name in (FORWARD, BACKWARD):
                seen.append((func._name, set(tracker.parents), tracker.is_bw))
            return func(*args, **(kwargs or {}))

    model = torch.nn.Sequential(torch.nn.Linear(3, 3), rnnfused.LSTM(3, 5))
    with ModuleTracker() as tracker, Look():
        model(torch.randn(4, 2, 3))[0].sum().backward()
    assert [(name, is_backward) for name, _, is_backward in seen] == [(FORWARD, False), (BACKWARD, True)]
    assert all("Sequential.1" in parents for _, parents, _ in seen)


# ---- Memory that there is not

NO_MEMORY = """
import resource, sys, torch, rnnfused

HARD = resource.getrlimit(resource.RLIMIT_AS)[1]
WORDS = "DefaultCPUAllocator: can't allocate memory"
torch.set_num_threads(2)


def outcome(mib, call):
    "What the call raises where the process may grow by so much; None if nothing."
    rnnfused.empty_cache()
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(mib * 2**20), HARD))
    try:
        call()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (HARD, HARD))


def grow(call):
    "The same call with ever more memory: every place that takes some is the one that fails, once."
    mib = 1.0
    while (error := outcome(mib, call)) is not None:
        if not (error.startswith("RuntimeError") and WORDS in error):
            print(mib, error)
        mib *= 1.4


def infer(module, x):
    with torch.no_grad():
        module(x)


def double(module, x):
    (g,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
    g.sum().backward()


def training(module, x):
    module(x)[0].sum().backward()


SIZES = (256, 32, 64)
CASES = {
    "layers": [
        lambda m=rnnfused.LSTM(64, 128, 2), x=torch.randn(SIZES): infer(m, x),
        lambda m=rnnfused.GRU(64, 128), x=torch.randn(SIZES): training(m, x),
        lambda m=rnnfused.LSTM(64, 128).bfloat16(), x=torch.randn(SIZES).bfloat16(): training(m, x),
    ],
    "step": [lambda m=rnnfused.LSTMCell(512, 512), x=torch.randn(1024, 512): training(m, x)],
    "second derivatives": [
        lambda m=rnnfused.GRU(16, 128), x=torch.randn(64, 32, 16, requires_grad=True): double(m, x)
    ],
}


def huge(steps, batch, requires_grad):
    x = torch.zeros(1, 1, 1).expand(steps, batch, 1)
    for kind in ("RNN", "LSTM", "GRU"):
        module = getattr(rnnfused, kind)(1, 2).requires_grad_(requires_grad)
        error = outcome(64, lambda: module(x))
        if not (error.startswith("RuntimeError") and (WORDS in error or "overflow" in error)):
            print(kind, requires_grad, error)


if sys.argv[1] == "huge":
    for sizes in ((2**40, 1), (1, 2**40), (2**62, 1), (1, 2**62), (2**22, 4)):
        for requires_grad in (False, True):
            huge(*sizes, requires_grad)
    print("done")
else:
    for call in CASES[sys.argv[1]]:
        grow(call)
    print("done")
"""


@pytest.mark.parametrize("what", ["huge", "layers", "step", "second derivatives"])
def test_out_of_memory_is_said_in_torchs_words(what: str) -> None:
    if sys.platform != "linux":
        pytest.skip("memory is limited by RLIMIT_AS")
    # Large blocks come from the system and go back to it at once.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", NO_MEMORY, what], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "done\n"


@pytest.mark.parametrize(
    "layer, seeds, layout",
    [
        ("gru zoneout=0.3,0.0 drawn", [1], {}),
        ("gru", [], {"batch_sizes": torch.Size([3])}),
        ("lstm", [], {"lengths": torch.Size([2])}),
    ],
)
def test_tensors_on_the_cpu_beside_input_on_a_gpu(
    layer: str, seeds: list[int], layout: dict[str, torch.Size]
) -> None:
    """Without memory: what compilers ask about seeds, batch sizes and lengths that are on the CPU."""
    with torch._subclasses.FakeTensorMode():
        gates = 4 if layer.startswith("lstm") else 3
        x = torch.empty(3, 2, 4, device="cuda")
        hx = [torch.empty(1, 2, 8, device="cuda") for _ in range(1 + (gates == 4))]
        params = [torch.empty(gates * 8, n, device="cuda") for n in (4, 8)]
        params += [torch.empty(gates * 8, device="cuda") for _ in range(2)]
        params += [torch.empty(n, dtype=torch.int64) for n in seeds]
        where = [
            torch.empty(layout[name], dtype=torch.int64) if name in layout else None
            for name in ("batch_sizes", "lengths", "resets")
        ]
        given = x.flatten(0, 1) if "batch_sizes" in layout else x
        *outputs, tape = torch.ops.rnnfused.recurrent(given, hx, params, *where, layer, True)
        assert outputs[0].shape == (*given.shape[:-1], 8)
        wanted = range(1 + len(hx) + 4)
        gradients = torch.ops.rnnfused.recurrent_backward(
            outputs, given, hx, params, *where, outputs[0], tape, layer, [*wanted]
        )
        assert [d.shape for d in gradients] == [t.shape for t in (given, *hx, *params[:4])]
        assert {t.device.type for t in (*outputs, tape, *gradients)} == {"cuda"}
