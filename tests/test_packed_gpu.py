"""Steppers and Frozen modules by the CUDA drivers: on a GPU, or on the CPU where that plays one, against the
layer's own forward. Tests marked `gpu` ask for more of torch than the emulation has.
"""

from __future__ import annotations

import copy
import os
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from results import tensors
from test_gpu import KINDS
from tolerances import FLOAT64, FLOOR_ULPS
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import rnnfused
from bench.gpu.timing import capture
from rnnfused import _packed

CASES = min(100, int(os.environ.get("RNNFUSED_WALK_CASES", "300")))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NARROW = {"bf16": torch.bfloat16, "f16": torch.float16}
# One, and units that a thread takes one by one, four at a time and in more than one block.
SIZES = (1, 2, 3, 4, 7, 8, 12, 33, 64, 132)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "LSTM": [
        {"layer_norm": "separate", "cell_norm": "carried"},
        {"peephole": True, "zoneout": (0.2, 0.4), "layer_norm": "separate", "cell_norm": "output"},
        {"coupled_gates": True, "cell_clip": 0.3},
    ],
    "GRU": [
        {"layer_norm": "joint", "update_bias": -1.0},
        {"reset_after": False, "zoneout": 0.3},
        {"layer_norm": "separate", "recurrent_dropout": 0.5},
    ],
    "RNN": [{"layer_norm": "separate", "gate_clip": 0.5}, {"zoneout": 0.5}],
}


def assert_as(got: Any, want: Any, gpu: str, dtype: torch.dtype) -> None:
    """The same bits; on a GPU, whose products may sum a row in another order where there are more of them, to
    some roundings to the dtype of what is multiplied.
    """
    for one, other in zip(tensors(got), tensors(want), strict=True):
        if gpu == "cpu":
            assert torch.equal(one, other)
            continue
        bound = FLOAT64 if other.dtype == torch.float64 else 8 * FLOOR_ULPS * torch.finfo(dtype).eps
        torch.testing.assert_close(one, other, rtol=bound, atol=bound)


def drawn(pick: random.Random, gpu: str, directions: bool) -> tuple[Any, str | None]:
    """A module and a kind of weights."""
    kind, hidden = pick.choice(KINDS), pick.choice(SIZES)
    options: dict[str, Any] = {
        "bias": pick.random() < 0.8,
        "num_layers": pick.choice((1, 1, 2, 3)),
        "dtype": pick.choice((torch.float32, *DTYPES)),
        "learn_initial_state": pick.random() < 0.3,
        "bidirectional": directions and pick.random() < 0.5,
    }
    varied = False
    if kind == "LSTM" and hidden > 1 and pick.random() < 0.3:
        options["proj_size"] = pick.randint(1, hidden - 1)
    elif varied := pick.random() < 0.4:
        options |= pick.choice(OPTIONS[kind])
    # The narrow module would round what it has learned, too.
    may_be_narrow = options["dtype"] == torch.float32 and not varied and not options["learn_initial_state"]
    weights = pick.choice((None, "bf16", "f16")) if may_be_narrow else None
    torch.manual_seed(pick.randrange(1 << 30))
    module = getattr(rnnfused, kind)(pick.choice(SIZES), hidden, device=gpu, **options).eval()
    for parameter in module.parameters():
        parameter.data.uniform_(-0.5, 0.5)
    return module, weights


def as_computed(module: Any, weights: str | None) -> Callable[..., Any]:
    """The module's own forward, with such weights; given and giving what a Frozen is given and gives."""
    if weights is None:
        return module
    narrow = copy.deepcopy(module).to(NARROW[weights])

    def forward(x: Any, *hx: Any, **how: Any) -> Any:
        y, final = narrow(x.to(NARROW[weights]), *hx, **how)
        wide = [t.float() for t in tensors(final)]
        return y.float() if isinstance(y, Tensor) else y.to(torch.float32), wide

    return forward


@pytest.fixture(autouse=True)
def narrow_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU plays the GPU, that has kernels of 16 bits for layers with options, too."""
    if "RNNFUSED_TEST_EXTENSION" in os.environ:
        own = lambda layer, input: None if layer.projected else input.dtype  # noqa: E731
        monkeypatch.setattr(_packed, "native_dtype", own)
        monkeypatch.setattr(rnnfused.functional, "native_dtype", own)


# ---- Steppers


@pytest.mark.parametrize("index", range(CASES))
@torch.no_grad()
def test_a_walk_of_steps(index: int, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row against the layer's forward over all its steps since its state was last set."""
    monkeypatch.setenv("RNNFUSED_CUDA_DRIVER", "stepwise")  # which is what runs a step
    pick = random.Random(index)
    module, weights = drawn(pick, gpu, directions=False)
    batch, dtype = pick.choice((1, 2, 5, 9)), module.weight_ih_l0.dtype
    stepper = rnnfused.Stepper(module, batch, weights=weights)
    stored, forward = NARROW[weights] if weights else dtype, as_computed(module, weights)
    history: list[list[Tensor]] = [[] for _ in range(batch)]
    addresses = [state.data_ptr() for state in stepper._states]

    def mask(share: float) -> Tensor:
        return torch.rand(batch, device=gpu) < share

    for _ in range(6):
        if pick.random() < 0.3:
            ends = mask(0.4)
            stepper.reset_rows(ends)
            history = [[] if end else past for past, end in zip(history, ends.tolist(), strict=True)]
        if pick.random() < 0.2:
            order = torch.randperm(batch, device=gpu)
            stepper.state = stepper.get_rows(order)
            history = [list(history[row]) for row in order.tolist()]
        if pick.random() < 0.2:
            stepper.set_rows(0, stepper.get_rows(batch - 1))
            history[0] = list(history[-1])
        active = pick.choice((None, mask(0.6), mask(0.0)))
        taking = [True] * batch if active is None else active.tolist()
        x = torch.randn(batch, module.input_size, device=gpu).to(dtype)
        given = x if active is None else x.masked_fill(~active.unsqueeze(1), float("nan"))
        width = module.proj_size or module.hidden_size
        out = pick.choice((None, torch.full((batch, width), 7.0, dtype=dtype, device=gpu)))
        y = stepper(given, active, out)
        assert y.dtype == dtype and (out is None or y is out)
        for row, takes in enumerate(taking):
            if not takes:
                assert not y[row].any()
                continue
            history[row].append(x[row])
            want, _ = forward(torch.stack(history[row]).unsqueeze(1))
            assert_as(y[row], want[-1, 0], gpu, stored)
    for row, past in enumerate(history):
        if past:
            _, want = forward(torch.stack(past).unsqueeze(1))
            assert_as([t.to(stored).to(dtype) for t in tensors(stepper.get_rows(row))], want, gpu, stored)
    assert addresses == [state.data_ptr() for state in stepper._states]


def test_a_step_allocates_nothing_and_moves_nothing(gpu: str) -> None:
    """With `out`, torch is asked for products alone."""
    for kind, options in (("GRU", {}), ("LSTM", {"proj_size": 5}), ("LSTM", {"layer_norm": "separate"})):
        for dtype in (torch.float32, torch.bfloat16):
            module = getattr(rnnfused, kind)(6, 8, 2, device=gpu, dtype=dtype, **options)
            stepper = rnnfused.Stepper(module, 4)
            x = torch.randn(4, 6, device=gpu).to(dtype)
            out = torch.empty(4, options.get("proj_size", 8), device=gpu, dtype=dtype)
            active = torch.tensor([True, False, True, True], device=gpu)
            stepper(x, active, out)
            with torch.profiler.profile() as profile:
                stepper(x, active, out)
            asked = {event.name for event in profile.events() if event.name.startswith("aten::")}
            assert asked <= {"aten::mm", "aten::bmm"}


@pytest.mark.parametrize("weights", [None, "bf16"])
def test_weights_are_prepared_once(weights: str | None, gpu: str) -> None:
    module = rnnfused.GRU(6, 8, bidirectional=True, device=gpu).eval()
    x = torch.randn(5, 3, 6, device=gpu)

    def concatenations(layer: Any) -> int:
        with torch.no_grad(), torch.profiler.profile() as profile:
            layer(x)
        return sum(event.name == "aten::cat" for event in profile.events())

    assert concatenations(module) > 0
    assert concatenations(rnnfused.Frozen(module, weights)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_copies_refreshed_and_unpickled_steppers(kind: str, gpu: str) -> None:
    module = getattr(rnnfused, kind)(6, 8, 2, device=gpu, dtype=torch.float16)
    stepper, x = rnnfused.Stepper(module, 3), torch.randn(3, 6, device=gpu).half()
    stepper(x)
    twins = [copy.deepcopy(stepper), pickle.loads(pickle.dumps(stepper))]
    want = stepper(x)
    for twin in twins:
        assert torch.equal(twin(x), want)
        assert tensors(twin.state)[0].device.type == gpu
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    state, addresses = stepper.state, [t.data_ptr() for t in stepper._states]
    stepper.refresh()
    for got, kept in zip(tensors(stepper.state), tensors(state), strict=True):
        assert torch.equal(got, kept)
    assert addresses == [t.data_ptr() for t in stepper._states]
    assert not torch.equal(stepper(x), twins[0](x))


def test_a_refresh_that_fails_changes_nothing(gpu: str) -> None:
    module = rnnfused.GRU(6, 8, device=gpu)
    stepper, x = rnnfused.Stepper(module, 2), torch.randn(2, 6, device=gpu)
    twin = copy.deepcopy(stepper)
    weight = module.weight_hh_l0
    module.weight_hh_l0 = torch.nn.Parameter(torch.zeros(24, 7, device=gpu))
    with pytest.raises(RuntimeError, match="weight_hh"):
        stepper.refresh()
    assert torch.equal(stepper(x), twin(x))
    # torch copies no module on a GPU whose weights do not fit together.
    module.weight_hh_l0 = torch.nn.Parameter(torch.zeros_like(weight))
    assert torch.equal(copy.deepcopy(stepper)(x), twin(x))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("mode", [torch.autocast, torch.device])
def test_frozen_where_a_mode_watched(gpu: str, mode: Any, layers: int) -> None:
    """Its weights are prepared by the first call, which nothing watches; gradients' mode is on."""
    module, x = rnnfused.LSTM(6, 8, layers, device=gpu), torch.randn(5, 2, 6, device=gpu)
    with mode(gpu):
        frozen = rnnfused.Frozen(module)
    got = frozen(x)
    with torch.no_grad():
        assert_as(got, module(x), gpu, torch.float32)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda stepper: pickle.loads(pickle.dumps(stepper)), rnnfused.Stepper.refresh]
)
@pytest.mark.parametrize("weights", [None, "bf16"])
def test_steppers_outlive_inference_mode(gpu: str, weights: str | None, again: Callable[..., Any]) -> None:
    module, x = rnnfused.LSTM(6, 8, 2, device=gpu), torch.randn(3, 6, device=gpu)
    want = rnnfused.Stepper(module, 3, weights=weights)(x)
    with torch.inference_mode():
        stepper = rnnfused.Stepper(module, 3, weights=weights)
        stepper = again(stepper) or stepper
    assert torch.equal(stepper(x), want)


def test_words_for_what_is_wrong(gpu: str) -> None:
    module = rnnfused.LSTM(6, 8, device=gpu)
    for packed in (rnnfused.Frozen, rnnfused.Stepper):
        with pytest.raises(
            RuntimeError, match="module: expected tensors on the CPU with weights of 8 bits, got "
        ):
            packed(module, weights="int8")
    with pytest.raises(RuntimeError, match=r"module: expected tensors on the CPU.*, got meta"):
        rnnfused.Stepper(rnnfused.GRU(6, 8, device="meta"))
    stepper = rnnfused.Stepper(module, 2)
    x = torch.randn(2, 6, device=gpu)
    stepper(x)
    state = stepper.state
    y = torch.empty(2, 8, device=gpu)
    room = torch.zeros(28, device=gpu)
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((x[:1],), r"input: expected size \[2, 6\], got \[1, 6\]"),
        ((x.double(),), "input: expected dtype Float, got Double"),
        ((x.to("meta"),), "input: expected a tensor on .*, got meta"),
        ((x.clone().requires_grad_(),), "input: .* packed layers have no derivative"),
        ((x, torch.ones(2, device=gpu)), "active: expected dtype Bool, got Float"),
        ((x, torch.ones(3, device=gpu).bool()), r"active: expected size \[2\], got \[3\]"),
        ((x, torch.ones(2, device="meta").bool()), "active: expected a tensor on .*, got meta"),
        ((x, None, y[:1]), r"out: expected size \[2, 8\], got \[1, 8\]"),
        ((x, None, y.half()), "out: expected dtype Float, got Half"),
        ((x, None, y.to("meta")), "out: expected a tensor on .*, got meta"),
        ((x, None, y.t().contiguous().t()), r"out: expected a contiguous tensor, got strides \[1, 2\]"),
        ((x, None, y.clone().requires_grad_()), "out: .* packed layers have no derivative"),
        ((room[:12].view(2, 6), None, room[8:24].view(2, 8)), "memory location"),
    ]
    for given, words in wrong:
        with pytest.raises(RuntimeError, match=words):
            stepper(*given)
    with pytest.raises(IndexError):
        stepper.reset_rows(torch.zeros(3, dtype=torch.bool, device=gpu))
    with pytest.raises(ValueError, match=r"state: expected size \[1, 2, 8\], got \[1, 3, 8\]"):
        stepper.state = (torch.zeros(1, 3, 8, device=gpu), torch.zeros(1, 2, 8, device=gpu))
    for got, kept in zip(tensors(stepper.state), tensors(state), strict=True):
        assert torch.equal(got, kept)


def test_outputs_that_are_not_aligned(gpu: str) -> None:
    module = rnnfused.LSTM(6, 8, device=gpu)
    aligned, shifted = rnnfused.Stepper(module, 3), rnnfused.Stepper(module, 3)
    out = torch.zeros(25, device=gpu)[1:].view(3, 8)
    for x in torch.randn(4, 3, 6, device=gpu):
        assert_as(shifted(x, None, out), aligned(x), gpu, torch.float32)
    assert out._version == 4  # so that autograd sees that it was written to


# ---- Frozen modules


@pytest.mark.parametrize("index", range(CASES))
@torch.no_grad()
def test_a_walk_of_sequences(index: int, gpu: str) -> None:
    pick = random.Random(index)
    module, weights = drawn(pick, gpu, directions=True)
    module.batch_first = pick.random() < 0.3
    frozen, forward = rnnfused.Frozen(module, weights), as_computed(module, weights)
    dtype = module.weight_ih_l0.dtype
    for _ in range(3):
        steps, batch = pick.choice((1, 3, 6)), pick.choice((1, 2, 5))
        leading = (batch, steps) if module.batch_first else (steps, batch)
        x = torch.randn(*leading, module.input_size, device=gpu).to(dtype)
        lengths = [steps, *(pick.randint(1, steps) for _ in range(batch - 1))]
        how: dict[str, Any] = {}
        if pick.random() < 0.3:
            how["lengths"] = torch.tensor(lengths, device=gpu)
        if pick.random() < 0.3:
            how["resets"] = torch.rand(*leading, device=gpu) < 0.3
        form = pick.choice(("padded", "padded", "packed", "states"))
        if form == "packed":
            given: tuple[Any, ...] = (
                pack_sequence(
                    [torch.randn(n, module.input_size, device=gpu).to(dtype) for n in lengths], False
                ),
            )
            how = {}
        else:
            given = (x,)
        if form == "states":
            # Of a number that is no rounded one where weights are of 16 bits.
            given = (x, frozen(x)[1])
        assert_as(frozen(*given, **how), forward(*given, **how), gpu, NARROW[weights] if weights else dtype)


def test_options_that_a_projection_refuses(gpu: str) -> None:
    module = rnnfused.LSTM(6, 8, proj_size=4, zoneout=0.5, device=gpu)
    for packed in (rnnfused.Frozen, rnnfused.Stepper):
        with pytest.raises(ValueError, match=r"module: expected .* no projection with zoneout"):
            packed(module)


def test_autocast_is_for_modules(gpu: str) -> None:
    """What a Stepper multiplies was settled when it was made."""
    stepper, x = rnnfused.Stepper(rnnfused.GRU(6, 8, device=gpu), 2), torch.randn(2, 6, device=gpu)
    want = copy.deepcopy(stepper)(x)
    with torch.autocast(gpu, torch.bfloat16):
        assert torch.equal(stepper(x), want)


# ---- What only a GPU shows


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True], ids=["all-rows", "masked"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "kind, options",
    [("RNN", {}), ("GRU", {}), ("LSTM", {"proj_size": 24}), ("GRU", {"layer_norm": "separate"})],
)
def test_a_captured_step_is_replayed(
    kind: str, options: dict[str, Any], dtype: torch.dtype, masked: bool
) -> None:
    """Also with rows that sit steps out or are reset, by masks that change from replay to replay."""
    module = getattr(rnnfused, kind)(32, 64, 2, device="cuda", dtype=dtype, **options)
    stepper, eager = rnnfused.Stepper(module, 8), rnnfused.Stepper(module, 8)
    x = torch.randn(8, 32, device="cuda", dtype=dtype)
    active, ends = torch.ones(8, device="cuda").bool(), torch.zeros(8, device="cuda").bool()
    out = torch.empty(8, options.get("proj_size", 64), device="cuda", dtype=dtype)

    def step(one: Any, into: Tensor | None) -> Tensor:
        if not masked:
            return one(x, out=into)
        one.reset_rows(ends)
        return one(x, active, into)

    graph, y = capture(lambda: step(stepper, out))
    assert y is out
    stepper.reset()
    for _ in range(10):
        x.normal_()
        active.copy_(torch.rand(8, device="cuda") < 0.7)
        ends.copy_(torch.rand(8, device="cuda") < 0.3)
        graph.replay()
        assert torch.equal(out, step(eager, None))
    for got, want in zip(tensors(stepper.state), tensors(eager.state), strict=True):
        assert torch.equal(got, want)


@pytest.mark.gpu
def test_a_step_takes_no_memory_and_waits_for_nothing() -> None:
    stepper = rnnfused.Stepper(rnnfused.LSTM(32, 64, 2, device="cuda", dtype=torch.bfloat16), 8)
    x = torch.randn(8, 32, device="cuda", dtype=torch.bfloat16)
    out, mask = torch.empty(8, 64, device="cuda", dtype=torch.bfloat16), torch.ones(8, device="cuda").bool()
    stepper(x, mask, out)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepper(x, mask, out)
        assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
        stepper.reset_rows(mask)
        stepper.state = stepper.get_rows(torch.arange(8, device="cuda").flip(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_captured_frozen_module_is_replayed() -> None:
    module = rnnfused.GRU(32, 64, bidirectional=True, device="cuda")
    frozen, x = rnnfused.Frozen(module), torch.randn(7, 4, 32, device="cuda")
    graph, (y, _) = capture(lambda: frozen(x))
    x.normal_()
    graph.replay()
    assert torch.equal(y, frozen(x)[0])


@pytest.mark.gpu
def test_a_module_that_moves_takes_its_stepper_along() -> None:
    module = rnnfused.LSTM(6, 8, 2)
    stepper, there = (rnnfused.Stepper(module, 3) for _ in range(2))
    frozen, x = rnnfused.Frozen(module), torch.randn(3, 6)
    torch.testing.assert_close(stepper(x), there(x))
    module.cuda()
    with pytest.raises(RuntimeError, match="input: expected a tensor on cpu, got cuda:0"):
        there(x.cuda())
    there.refresh(), frozen.refresh()
    torch.testing.assert_close(there(x.cuda()).cpu(), stepper(x))
    assert frozen(x.cuda().unsqueeze(0))[0].is_cuda
    with pytest.raises(RuntimeError, match="active: expected a tensor on cuda:0, got cpu"):
        there(x.cuda(), torch.ones(3).bool())
