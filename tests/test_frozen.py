"""Frozen modules: weights packed once, the module's bits."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from results import assert_same_bits, tensors
from torch.fx.proxy import TraceError
from torch.nn.utils import prune
from torch.nn.utils.rnn import pack_sequence

import rnnfused

INPUT, H = 7, 37
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"num_layers": 3, "batch_first": True, "dropout": 0.5}),
    ("LSTM", {"num_layers": 2, "proj_size": 9, "bias": False, "bidirectional": True}),
    ("GRU", {"num_layers": 2, "dtype": torch.float64, "bidirectional": True}),
    ("GRU", {"bias": False}),
    ("RNN", {"num_layers": 2, "nonlinearity": "relu"}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "dtype": torch.bfloat16}),
    ("GRU", {"dtype": torch.float16}),
]


@pytest.mark.parametrize("kind, options", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_modules_bits_for_any_form_of_input(kind: str, options: dict[str, Any], threads: int) -> None:
    module = getattr(rnnfused, kind)(INPUT, H, **options).eval()
    frozen, before = rnnfused.Frozen(module), torch.get_num_threads()
    dtype = options.get("dtype", torch.float32)
    torch.set_num_threads(threads)
    try:
        # Few rows and many in turn, so that packed weights are found and are packed again.
        for steps, batch in ((40, 1), (9, 20), (33, 3), (17, 2), (12, 1)):
            x = torch.randn(steps, batch, INPUT, dtype=dtype)
            if module.batch_first:
                x = x.transpose(0, 1)
            ragged = pack_sequence([torch.randn(n, INPUT, dtype=dtype) for n in (11, 40, 23)], False)
            with torch.no_grad():
                _, hx = module(x)
                for arguments in ((x,), (x, hx), (x.select(0 if module.batch_first else 1, 0),), (ragged,)):
                    assert_same_bits(frozen(*arguments), module(*arguments))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("weights, dtype", [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_weights_in_16_bits(kind: str, weights: str, dtype: torch.dtype) -> None:
    module = getattr(rnnfused, kind)(INPUT, H, num_layers=2, bidirectional=True)
    narrow = copy.deepcopy(module).to(dtype)
    frozen = rnnfused.Frozen(module, weights=weights)
    assert repr(frozen) == f"Frozen({module!r}, weights='{weights}')"
    x = torch.randn(20, 3, INPUT)
    hx = tuple(torch.randn(4, 3, H) for _ in range(1 + (kind == "LSTM")))
    ragged = pack_sequence([torch.randn(n, INPUT) for n in (11, 40, 23)], False)
    lengths, resets = torch.tensor([3, 0, 20]), torch.rand(20, 3) < 0.2
    for copied in (frozen, copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
        for options in ({}, {"lengths": lengths}, {"resets": resets}):
            want = tensors(narrow(x.to(dtype), **options))
            found = tensors(copied(x, **options))
            assert all(t.dtype == torch.float32 for t in found)
            assert_same_bits(found, [t.float() for t in want])
        given = hx if kind == "LSTM" else hx[0]
        assert_same_bits(copied(x, given), narrow(x.to(dtype), given))
        assert_same_bits(copied(ragged)[0].data, narrow(ragged.to(dtype))[0].data.float())
    with pytest.raises(RuntimeError, match=r"input: expected dtype torch.float32, got torch.float64"):
        frozen(x.double())
    with pytest.raises(
        ValueError, match="weights: expected None or one of 'bf16', 'f16', 'int8', got 'bfloat16'"
    ):
        rnnfused.Frozen(module, weights="bfloat16")


def test_a_few_rows_are_summed_in_the_order_of_many() -> None:
    module = rnnfused.LSTM(INPUT, H)
    x = torch.randn(20, 1, INPUT)
    with torch.no_grad():
        whole, _ = module(x)
        first, hx = rnnfused.Frozen(module)(x[:5])
        second, _ = rnnfused.Frozen(module)(x[5:8], hx)
    assert torch.equal(torch.cat((first, second)), whole[:8])


def test_changed_weights_are_taken_when_asked_for() -> None:
    module = rnnfused.GRU(INPUT, H)
    frozen, x = rnnfused.Frozen(module), torch.randn(12, 4, INPUT)
    old = module(x)
    assert_same_bits(frozen(x), old)
    with torch.no_grad():
        module.weight_hh_l0.mul_(1.5)
    assert_same_bits(frozen(x), old)
    module.weight_ih_l0 = torch.nn.Parameter(module.weight_ih_l0 * 0.5)
    frozen.refresh()
    assert_same_bits(frozen(x), module(x))


def test_refused() -> None:
    with pytest.raises(TypeError, match=r"module: expected an rnnfused.RNN, LSTM or GRU, got GRU"):
        rnnfused.Frozen(torch.nn.GRU(2, 3))  # type: ignore[arg-type]
    module = rnnfused.LSTM(INPUT, H)
    frozen, x = rnnfused.Frozen(module), torch.randn(3, 2, INPUT)
    with pytest.raises(RuntimeError, match=r"input: .* packed layers have no derivative"):
        frozen(x.clone().requires_grad_())
    with pytest.raises(RuntimeError, match=r"hx: .* packed layers have no derivative"):
        frozen(x, (torch.zeros(1, 2, H), torch.zeros(1, 2, H, requires_grad=True)))
    for wrong in (torch.randn(3, 2, INPUT + 1), torch.randn(2, 3, 4, 5), torch.zeros(0, 2, INPUT)):
        with pytest.raises((RuntimeError, ValueError)) as want:
            module(wrong)
        with pytest.raises(type(want.value)) as got:
            frozen(wrong)
        assert str(got.value) == str(want.value)
    assert rnnfused.Frozen(rnnfused.GRU(INPUT, H, device="meta"))(x.to("meta"))[0].is_meta
    assert repr(frozen) == "Frozen(LSTM(7, 37))"


def test_many_callers() -> None:
    module = rnnfused.GRU(INPUT, H)
    frozen = rnnfused.Frozen(module)
    inputs = [torch.randn(5 + n, 1 + n % 4, INPUT) for n in range(24)]
    with torch.no_grad():
        want = [module(x) for x in inputs]
    with ThreadPoolExecutor(6) as callers:
        found = list(callers.map(frozen, inputs))
    for got, wanted, x in zip(found, want, inputs, strict=True):
        if x.shape[0] * x.shape[1] > 8:
            assert_same_bits(got, wanted)


@pytest.mark.parametrize("steps, batch", [(1, 1), (3, 2), (9, 1), (40, 5)])
def test_weights_are_those_of_the_beginning(steps: int, batch: int, threads: int) -> None:
    module = rnnfused.LSTM(INPUT, H, num_layers=2)
    frozen, x = rnnfused.Frozen(module), torch.randn(steps, batch, INPUT)
    before = frozen(x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    assert_same_bits(frozen(x), before)
    # Another layout, which packs the weights anew, packs the same ones.
    torch.set_num_threads(3 - threads)
    assert_same_bits(frozen(x), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_hold_the_weights(copied: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    module = rnnfused.GRU(INPUT, H, bidirectional=True)
    model.frozen = rnnfused.Frozen(module)  # type: ignore[assignment]
    x = torch.randn(20, 3, INPUT)
    want = model.frozen(x)
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    twin = copied(model)
    assert_same_bits(twin.frozen(x), want)
    assert not any(name.startswith("frozen") for name in model.state_dict())


class EveryOther(prune.BasePruningMethod):
    PRUNING_TYPE = "unstructured"

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        mask = default_mask.clone()
        mask.view(-1)[::2] = 0
        return mask


PRUNED = [
    lambda module: prune.random_unstructured(module, "weight_hh_l0", 0.5),
    lambda module: EveryOther.apply(module, "weight_ih_l0"),
    lambda module: torch.nn.utils.weight_norm(module, "weight_ih_l0"),
    lambda module: torch.nn.utils.spectral_norm(module, "weight_hh_l0"),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "kind", [rnnfused.Frozen, rnnfused.Stepper, pytest.param(rnnfused.Quantized, marks=pytest.mark.cpu)]
)
@pytest.mark.parametrize("treat", PRUNED)
def test_weights_that_are_computed_before_a_call(kind: Any, treat: Any) -> None:
    torch.manual_seed(0)
    module = rnnfused.GRU(INPUT, 64)
    treat(module)
    module.eval()
    x = torch.randn(9, 2, INPUT)
    module(x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)  # as an optimizer's step does; the weight follows in the next call

    def outputs(taken: Any) -> torch.Tensor:
        return torch.stack([taken(step) for step in x]) if kind is rnnfused.Stepper else taken(x)[0]

    batch = (2,) if kind is rnnfused.Stepper else ()
    module.train()  # the module's own weights and buffers are nobody else's to change
    own = [(module.weight_ih_l0, module.weight_hh_l0), copy.deepcopy(dict(module.named_buffers()))]
    got = outputs(kind(module, *batch))
    assert module.weight_ih_l0 is own[0][0] and module.weight_hh_l0 is own[0][1] and module.training
    torch.testing.assert_close(dict(module.named_buffers()), own[1], rtol=0, atol=0)
    module.eval()
    with torch.no_grad():
        module(x)
    assert_same_bits(got, outputs(kind(module, *batch)))


def test_another_description_and_another_dtype_are_taken_when_asked_for() -> None:
    module, x = rnnfused.LSTM(INPUT, H), torch.randn(20, 20, INPUT)
    frozen = rnnfused.Frozen(module)
    before = frozen(x)
    for name in ("batch_first", "return_cells"):
        setattr(module, name, True)
        with pytest.raises(
            RuntimeError, match=r"module: expected 'lstm', as it was, got 'lstm .*: call refresh"
        ):
            frozen(x)
        with torch.no_grad():
            frozen.refresh()
            assert_same_bits(frozen(x), module(x))
        setattr(module, name, False)
        frozen.refresh()
    assert_same_bits(frozen(x), before)
    module.double()
    assert_same_bits(frozen(x), before)
    frozen.refresh()
    with torch.no_grad():
        assert_same_bits(frozen(x.double()), module(x.double()))
    narrow = rnnfused.Frozen(rnnfused.GRU(INPUT, H), "bf16")
    narrow._module.half()
    with pytest.raises(ValueError, match=r"module: expected dtype torch\.float32 with weights"):
        narrow.refresh()
    assert narrow(x)[0].dtype == torch.float32


def test_a_module_that_has_become_torchs() -> None:
    module = rnnfused.GRU(INPUT, H)
    frozen, stepper = rnnfused.Frozen(module), rnnfused.Stepper(module)
    rnnfused.to_torch(module)
    for call in (lambda: frozen(torch.zeros(2, 1, INPUT)), frozen.refresh, stepper.refresh):
        with pytest.raises(
            TypeError, match=r"module: expected an rnnfused\.RNN, LSTM or GRU, got GRU, which"
        ):
            call()
    assert stepper(torch.zeros(1, INPUT)).shape == (1, H)
    assert stepper.state.shape == (1, 1, H)


def test_a_symbolic_trace_is_refused() -> None:
    class Served(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = rnnfused.GRU(INPUT, H)
            self.frozen = rnnfused.Frozen(self.layer)

        def forward(self, x: Any) -> Any:
            return self.frozen(x)[0]

    with pytest.raises(TraceError, match="a Frozen cannot be traced symbolically"):
        torch.fx.symbolic_trace(Served())


def test_lengths_by_position() -> None:
    module, x, lengths = rnnfused.GRU(INPUT, H), torch.randn(9, 3, INPUT), torch.tensor([3, 9, 0])
    with torch.no_grad():
        assert_same_bits(rnnfused.Frozen(module)(x, None, lengths), module(x, None, lengths))


def test_a_trace_holds_the_weights_and_no_output() -> None:
    frozen = rnnfused.Frozen(rnnfused.LSTM(INPUT, H))
    traced = torch.jit.trace(lambda x: frozen(x)[0], torch.randn(12, 2, INPUT), check_trace=False)
    other = torch.randn(15, 4, INPUT)
    torch.testing.assert_close(traced(other), frozen(other)[0])


def test_a_forward_of_its_own_is_not_passed_over() -> None:
    class First(rnnfused.GRU):
        def forward(self, *given: Any, **options: Any) -> Any:
            return super().forward(*given, **options)[0]

    for packed in (rnnfused.Frozen, rnnfused.Stepper):
        with pytest.raises(TypeError, match="expected rnnfused's own forward, which First has replaced"):
            packed(First(2, 3))
