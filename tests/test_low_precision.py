"""bfloat16 and float16 on the CPU: modules of these types, and autocast. The dtypes are torch.nn's, and no
error is larger than twice torch.nn's in the same type.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import pytest
import torch
from results import assert_same_bits, tensors
from tolerances import NARROW_ROUNDINGS, TORCH_ERRORS
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import rnnfused

DRAWS = 8
LAYERS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("RNN", {"nonlinearity": "relu"}),
    ("RNN", {"num_layers": 2, "bidirectional": True, "bias": False}),
    ("LSTM", {"batch_first": True}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", {"proj_size": 7}),
    ("GRU", {}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("RNNCell", {}),
    ("LSTMCell", {}),
    ("GRUCell", {"bias": False}),
]
EACH = pytest.mark.parametrize("kind, options", KINDS)

Call = Callable[[Any, Tensor], Any]


def outcome(module: Any, call: Call, x: Tensor) -> list[Tensor]:
    """Outputs, and the gradients of x and of every parameter."""
    x = x.clone().requires_grad_()
    outputs = tensors(call(module, x))
    generator = torch.Generator().manual_seed(1)
    outer = [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).bfloat16().to(t.dtype) for t in outputs
    ]
    return [*(t.detach() for t in outputs), *torch.autograd.grad(outputs, [x, *module.parameters()], outer)]


def theirs_and_ours(kind: str, options: dict[str, Any], dtype: torch.dtype) -> tuple[Any, Any, Tensor]:
    theirs = getattr(torch.nn, kind)(9, 17, **options).to(dtype)
    return theirs, rnnfused.convert(copy.deepcopy(theirs)), draw(kind).to(dtype)


def draw(kind: str) -> Tensor:
    return torch.randn(*((6,) if kind in CELLS else (12, 6)), 9)


def attempt(module: Any, call: Call, x: Tensor) -> list[Tensor] | None:
    """Nothing where torch.nn has no such kernel on this machine."""
    try:
        return outcome(module, call, x)
    except (RuntimeError, NotImplementedError):
        return None


@dataclass
class Found:
    ours: list[Tensor]
    theirs: list[Tensor] | None
    exact: list[Tensor]


def assert_errors(draw_and_run: Callable[[], Found], dtype: torch.dtype) -> None:
    """Root mean squares over several draws: which way a single number is rounded is luck."""
    ours, theirs, exact = [], [], []  # sums of squares
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        found = draw_and_run()
        ours.append([squared(got, want) for got, want in zip(found.ours, found.exact, strict=True)])
        exact.append([squared(want, torch.zeros_like(want)) for want in found.exact])
        if found.theirs is not None:
            theirs.append([squared(got, want) for got, want in zip(found.theirs, found.exact, strict=True)])
    for got, torchs, want in zip(
        map(sum, zip(*ours, strict=True)),
        map(sum, zip(*theirs, strict=True)) if theirs else repeat(None),
        map(sum, zip(*exact, strict=True)),
        strict=False,
    ):
        allowed = NARROW_ROUNDINGS * torch.finfo(dtype).eps * want**0.5
        assert got**0.5 <= (allowed if torchs is None else TORCH_ERRORS * torchs**0.5)


def squared(got: Tensor, want: Tensor) -> float:
    return float((got.detach().double() - want.detach()).square().sum())


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


# ---- Modules


@DTYPES
@EACH
def test_modules(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    def call(module: Any, x: Tensor) -> Any:
        return module(x)

    def run() -> Found:
        theirs, ours, x = theirs_and_ours(kind, options, dtype)
        found = outcome(ours, call, x)
        assert all(t.dtype == dtype for t in found)
        exact = outcome(copy.deepcopy(theirs).double(), call, x.double())
        return Found(found, attempt(theirs, call, x), exact)

    assert_errors(run, dtype)


@DTYPES
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("form", ["packed", "unbatched", "strided", "given states"])
def test_forms_of_input(kind: str, form: str, dtype: torch.dtype) -> None:
    states = torch.randn(2, 2, 6, 17).to(dtype)

    def call(module: Any, x: Tensor) -> Any:
        if form == "packed":
            return module(pack_padded_sequence(x, torch.tensor([12, 10, 5, 5, 2, 1])))
        if form == "unbatched":
            return module(x[:, 0])
        if form == "strided":
            return module(torch.stack([x, x], -1)[..., 0])
        hx = tuple(states.to(x.dtype)) if kind == "LSTM" else states[0].to(x.dtype)
        return module(x, hx)

    def run() -> Found:
        theirs, ours, x = theirs_and_ours(kind, {"bidirectional": True}, dtype)
        exact = outcome(copy.deepcopy(theirs).double(), call, x.double())
        return Found(outcome(ours, call, x), attempt(theirs, call, x), exact)

    assert_errors(run, dtype)


@DTYPES
@pytest.mark.parametrize("kind", LAYERS)
def test_recompute(kind: str, dtype: torch.dtype) -> None:
    module = getattr(rnnfused, kind)(9, 17, dtype=dtype)
    other = getattr(rnnfused, kind)(9, 17, dtype=dtype, recompute=True)
    other.load_state_dict(module.state_dict())
    x = torch.randn(700, 2, 9).to(dtype)
    assert_same_bits(outcome(other, lambda m, x: m(x), x), outcome(module, lambda m, x: m(x), x))


@DTYPES
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_what_is_watched_has_the_same_bits(kind: str, dtype: torch.dtype) -> None:
    _, module, x = theirs_and_ours(kind, {}, dtype)
    with Watching():
        watched = outcome(module, lambda m, x: m(x), x)
    assert_same_bits(watched, outcome(module, lambda m, x: m(x), x))


@DTYPES
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_second_derivatives(kind: str, dtype: torch.dtype) -> None:
    """As near to float64 as one rounding of each of the two derivatives leaves them."""
    theirs, ours, x = theirs_and_ours(kind, {}, dtype)
    found = []
    for module, input in ((ours, x), (rnnfused.convert(theirs.double()), x.double())):
        input = input.clone().requires_grad_()
        (g,) = torch.autograd.grad(module(input)[0].sum(), input, create_graph=True)
        assert g.dtype == input.dtype
        found.append(torch.autograd.grad(g.sum(), [input, *module.parameters()]))
    for got, want in zip(*found, strict=True):
        allowed = NARROW_ROUNDINGS * torch.finfo(dtype).eps * float(want.abs().max())
        assert float((got.double() - want).abs().max()) <= allowed


def test_large_values_become_infinite_as_torchs() -> None:
    """float16 ends at 65504; sums of float32 do not."""
    found = []
    for library in (torch.nn, rnnfused):
        module = library.RNN(3, 4, nonlinearity="relu").half()
        for weight in module.parameters():
            torch.nn.init.constant_(weight, 0.25)
        found.append(module(torch.full((4, 2, 3), 60000.0).half())[0].isinf())
    assert torch.equal(*found) and found[0].any()


@DTYPES
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", LAYERS)
def test_states_may_be_wide(kind: str, layers: int, dtype: torch.dtype) -> None:
    """float32 states of a narrow layer, as autocast gives them to the operator: so are the outputs then."""
    count = 1 + (kind == "LSTM")

    def outcome_of(module: Any, x: Tensor, states: list[Tensor]) -> list[Tensor]:
        outputs = tensors(module(x, tuple(states) if kind == "LSTM" else states[0]))
        total = sum(t.sin().sum() for t in outputs)
        return [*outputs, *torch.autograd.grad(total, [*states, *module.parameters()])]

    def run() -> Found:
        module, x = getattr(rnnfused, kind)(9, 17, layers, dtype=dtype), draw(kind).to(dtype)
        states = [torch.randn(layers, 6, 17).requires_grad_() for _ in range(count)]
        found = outcome_of(module, x, states)
        assert all(t.dtype == torch.float32 for t in found[: 1 + 2 * count])
        assert all(t.dtype == dtype for t in found[1 + 2 * count :])
        exact = outcome_of(copy.deepcopy(module).double(), x.double(), [s.double() for s in states])
        return Found(found, None, exact)

    assert_errors(run, dtype)


@DTYPES
def test_training(dtype: torch.dtype) -> None:
    module = rnnfused.LSTM(9, 17, dtype=dtype)
    head = torch.nn.Linear(17, 1, dtype=dtype)
    optimizer = torch.optim.SGD([*module.parameters(), *head.parameters()], lr=0.1)
    losses = fit(lambda x: head(module(x)[0][-1]).float(), optimizer, torch.randn(12, 6, 9).to(dtype))
    assert losses[-1] < losses[0] / 2


def fit(run: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, x: Tensor) -> list[float]:
    """Losses of thirty steps towards the sign of the first feature's sum."""
    target = x.float().sum(0)[:, :1].sign()
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (run(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# ---- Autocast


def autocast_outcome(module: Any, call: Call, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        outputs = tensors(call(module, x))
        total = sum(t.float().sin().sum() for t in outputs)
    return [*(t.detach() for t in outputs), *torch.autograd.grad(total, [x, *module.parameters()])]


def assert_as_torchs(kind: str, options: dict[str, Any], call: Call, dtype: torch.dtype) -> None:
    """Dtypes, and results as near to float64."""

    def run() -> Found:
        theirs, x = getattr(torch.nn, kind)(9, 17, **options), draw(kind)
        ours = rnnfused.convert(copy.deepcopy(theirs))
        found = autocast_outcome(ours, call, x, dtype)
        outputs = len(tensors(call(ours, x)))
        assert [t.dtype for t in found[outputs + 1 :]] == [torch.float32 for _ in ours.parameters()]
        exact = autocast_outcome(copy.deepcopy(theirs).double(), call, x.double(), torch.bfloat16)
        try:
            want = autocast_outcome(theirs, call, x, dtype)
        except (RuntimeError, NotImplementedError):
            want = None  # torch.nn has no such kernel on this machine
        else:
            assert [t.dtype for t in found] == [t.dtype for t in want]
        return Found(found, want, exact)

    assert_errors(run, dtype)


@DTYPES
@EACH
def test_autocast(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    assert_as_torchs(kind, options, lambda m, x: m(x), dtype)


@DTYPES
@pytest.mark.parametrize(
    "kind, options", [("RNN", {}), ("LSTM", {"proj_size": 260}), ("LSTM", {}), ("GRU", {})]
)
@pytest.mark.parametrize("rows", [1, 2])
def test_few_rows_of_large_layers_have_the_bits_of_several(
    kind: str, options: dict[str, Any], dtype: torch.dtype, rows: int, threads: int
) -> None:
    # Where 16 bits are widened, the weights of few rows are laid out otherwise than those of many.
    layer = getattr(rnnfused, kind)(301, 300, **options).to(dtype).eval()
    frozen = rnnfused.Frozen(layer)
    with torch.no_grad():
        for steps in (40, 1):
            x = torch.randn(steps, 5, 301).to(dtype)
            want, x = frozen(x)[0][:, :rows], x[:, :rows].contiguous()
            assert torch.equal(frozen(x)[0], want)
            if steps > 1:  # a module's one step takes its weights as they lie
                assert torch.equal(layer(x)[0], want)


@DTYPES
@pytest.mark.parametrize("kind", LAYERS + CELLS)
@pytest.mark.parametrize("given", [torch.float32, "narrow"], ids=str)
@pytest.mark.parametrize("features", [torch.float32, "narrow"], ids=str)
def test_dtypes_of_states_under_autocast(kind: str, features: Any, given: Any, dtype: torch.dtype) -> None:
    """As in a model whose layer is fed by a Linear, or a loop over a cell that starts with zeros."""
    types = []
    for library in (torch.nn, rnnfused):
        torch.manual_seed(0)
        module = getattr(library, kind)(9, 17)
        x = draw(kind).to(dtype if features == "narrow" else features)
        state = torch.randn(*((6,) if kind in CELLS else (1, 6)), 17).to(
            dtype if given == "narrow" else given
        )
        hx = (state, state.clone()) if kind.startswith("LSTM") else state
        with torch.autocast("cpu", dtype), torch.no_grad():
            try:
                types.append([t.dtype for t in tensors(module(x, hx))])
            except RuntimeError as error:  # torch.nn's float16 LSTM, where the machine has none
                assert library is torch.nn and "primitive" in str(error)
                pytest.skip("torch.nn has no such kernel on this machine")
    if kind == "LSTM" and (dtype == torch.float16 or not torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return  # which of two kernels torch takes, and with it the dtype, depends on the machine
    assert types[1] == types[0]


@DTYPES
@pytest.mark.parametrize("kind", LAYERS)
def test_packed_sequences_under_autocast(kind: str, dtype: torch.dtype) -> None:
    def call(module: Any, x: Tensor) -> Any:
        return module(pack_padded_sequence(x, torch.tensor([12, 10, 5, 5, 2, 1])))

    assert_as_torchs(kind, {"num_layers": 2}, call, dtype)


@DTYPES
@pytest.mark.parametrize("kind", CELLS)
def test_loops_under_autocast(kind: str, dtype: torch.dtype) -> None:
    def call(module: Any, x: Tensor) -> Any:
        state = None
        for _ in range(3):
            state = module(x, state)
        return state

    assert_as_torchs(kind, {}, call, dtype)


def test_float64_is_not_cast() -> None:
    for kind in LAYERS + CELLS:
        module = getattr(rnnfused, kind)(9, 17, dtype=torch.float64)
        x = draw(kind).double()
        with torch.autocast("cpu", torch.bfloat16):
            found = tensors(module(x))
        assert_same_bits(found, tensors(module(x)))


def test_autocast_may_be_off() -> None:
    module, x = rnnfused.LSTM(9, 17), draw("LSTM")
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert_same_bits(module(x), module(x))
        assert module(x)[0].dtype == torch.float32


@DTYPES
@pytest.mark.parametrize("kind", LAYERS + CELLS)
def test_backward_inside_of_autocast_is_that_outside(kind: str, dtype: torch.dtype) -> None:
    module, x = getattr(rnnfused, kind)(9, 17), draw(kind)
    found = []
    for inside in (False, True):
        with torch.autocast("cpu", dtype):
            total = sum(t.float().sin().sum() for t in tensors(module(x)))
        with torch.autocast("cpu", dtype) if inside else contextlib.nullcontext():
            found.append(torch.autograd.grad(total, list(module.parameters())))
    assert_same_bits(found[1], found[0])


@DTYPES
@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_second_derivatives_under_autocast(kind: str, dtype: torch.dtype) -> None:
    """Inside of the context they are those outside of it."""
    module, found = getattr(rnnfused, kind)(9, 17), []
    x = draw(kind).requires_grad_()
    for inside in (False, True):
        with torch.autocast("cpu", dtype):
            total = tensors(module(x))[0].float().sin().sum()
        with torch.autocast("cpu", dtype) if inside else contextlib.nullcontext():
            (g,) = torch.autograd.grad(total, x, create_graph=True)
            found.append(torch.autograd.grad(g.square().sum(), [x, *module.parameters()]))
    for a, b in zip(*found, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b)


@DTYPES
@pytest.mark.parametrize("kind", ["LSTM", "GRUCell"])
def test_forward_mode_under_autocast(kind: str, dtype: torch.dtype) -> None:
    def run() -> Found:
        module, x = getattr(rnnfused, kind)(9, 17), draw(kind)
        double, v = copy.deepcopy(module).double(), torch.randn_like(x)

        def value(t: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype):
                return tensors(module(t))[0].float()

        _, tangent = torch.func.jvp(value, (x,), (v,))
        _, exact = torch.func.jvp(lambda t: tensors(double(t))[0], (x.double(),), (v.double(),))
        return Found([tangent], None, [exact])

    assert_errors(run, dtype)


@DTYPES
@pytest.mark.parametrize("compiled", [False, True])
def test_training_under_autocast(dtype: torch.dtype, compiled: bool) -> None:
    torch._dynamo.reset()
    losses = []
    for backend in (None, "aot_eager") if compiled else (None,):
        torch.manual_seed(0)
        module, head = rnnfused.GRU(9, 17), torch.nn.Linear(17, 1)
        optimizer = torch.optim.SGD([*module.parameters(), *head.parameters()], lr=0.1)

        def run(x: Tensor, module: Any = module, head: Any = head) -> Tensor:
            with torch.autocast("cpu", dtype):
                return head(module(x)[0][-1]).float()

        if backend:
            run = torch.compile(run, fullgraph=True, backend=backend)
        losses.append(fit(run, optimizer, torch.randn(12, 6, 9)))
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.parameters())
        assert losses[-1][-1] < losses[-1][0] / 2
    assert losses[-1] == losses[0]


@DTYPES
def test_frozen_layers_under_autocast(dtype: torch.dtype) -> None:
    module, x = rnnfused.GRU(9, 17).requires_grad_(False), draw("GRU")
    frozen = rnnfused.Frozen(module)
    with torch.autocast("cpu", dtype):
        assert_same_bits(frozen(x), module(x))


@DTYPES
def test_a_stepper_under_autocast(dtype: torch.dtype) -> None:
    """It runs in its own type, as all that autocast does not know."""
    stepper, x = rnnfused.Stepper(rnnfused.GRU(9, 17).requires_grad_(False)), torch.randn(1, 9)
    want = stepper(x)
    stepper.reset()
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(stepper(x).float(), want, rtol=0, atol=torch.finfo(dtype).eps)
