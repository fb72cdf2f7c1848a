"""Drop-in behaviour: against torch.nn's modules on random configurations, and torch's own errors."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from results import tensors
from tolerances import FLOAT64
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfused

LAYERS = ("RNN", "LSTM", "GRU")
CELLS = ("RNNCell", "LSTMCell", "GRUCell")


def pair(kind: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    theirs = getattr(torch.nn, kind)(*args, **kwargs)
    ours = getattr(rnnfused, kind)(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def outcome(
    module: torch.nn.Module, call: Callable[[torch.nn.Module], Any], leaves: list[Tensor]
) -> list[Tensor]:
    """Outputs, and the gradients of the leaves and of every parameter."""
    targets = leaves + [p for p in module.parameters() if p.requires_grad]
    outputs = tensors(call(module))
    generator = torch.Generator().manual_seed(3)
    outer = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in outputs]
    return [t.detach() for t in outputs] + list(torch.autograd.grad(outputs, targets, outer))


def assert_same(theirs: Any, ours: Any, call: Callable[[Any], Any], leaves: list[Tensor]) -> None:
    torch.manual_seed(7)
    want = outcome(theirs, call, leaves)
    torch.manual_seed(7)
    got = outcome(ours, call, leaves)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("index", range(60))
def test_random_configurations(index: int) -> None:
    pick = random.Random(index)
    kind = pick.choice(LAYERS)
    i, h, layers = pick.randint(1, 20), pick.randint(2, 40), pick.randint(1, 3)
    options: dict[str, Any] = {
        "bias": pick.random() < 0.7,
        "batch_first": pick.random() < 0.5,
        "bidirectional": pick.random() < 0.5,
        "dropout": 0.3 if layers > 1 and pick.random() < 0.5 else 0.0,
        "dtype": torch.float64,
    }
    if kind == "LSTM" and pick.random() < 0.4:
        options["proj_size"] = pick.randint(1, h - 1)
    if kind == "RNN":
        options["nonlinearity"] = pick.choice(["tanh", "relu"])
    theirs, ours = pair(kind, i, h, layers, **options)
    assert repr(theirs) == repr(ours)
    if pick.random() < 0.3:
        theirs.eval()
        ours.eval()

    t, b = pick.randint(1, 9), pick.randint(1, 7)
    form = pick.choice(["batched", "unbatched", "packed", "non-contiguous"])
    sizes = (b, t, i) if options["batch_first"] else (t, b, i)
    x = torch.randn(*((t, i) if form == "unbatched" else sizes), dtype=torch.float64)
    if form == "non-contiguous":
        x = torch.randn(*sizes[::-1], dtype=torch.float64).permute(2, 1, 0)
    x.requires_grad_()
    leaves, hx = [x], None
    if pick.random() < 0.5:
        first = layers * (2 if options["bidirectional"] else 1)
        middle = () if form == "unbatched" else (b,)
        states = [torch.randn(first, *middle, options.get("proj_size") or h, dtype=torch.float64)]
        if kind == "LSTM":
            # Every other column of a wider tensor: states may be strided too.
            states.append(torch.randn(first, *middle, 2 * h, dtype=torch.float64)[..., ::2])
        leaves += [s.requires_grad_() for s in states]
        hx = tuple(states) if kind == "LSTM" else states[0]
    lengths = [pick.randint(1, t) for _ in range(b)]
    lengths[0] = t

    def call(module: Any) -> Any:
        if form != "packed":
            return module(x, hx)
        packed = pack_padded_sequence(x, lengths, options["batch_first"], enforce_sorted=False)
        result = module(packed, hx)
        assert torch.equal(result[0].sorted_indices, packed.sorted_indices)
        return result

    assert_same(theirs, ours, call, leaves)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind: str, bias: bool, given: bool, batched: bool) -> None:
    theirs, ours = pair(kind, 3, 20, bias=bias, dtype=torch.float64)
    shape = (5,) if batched else ()
    x = torch.randn(*shape, 3, dtype=torch.float64, requires_grad=True)
    states = [
        torch.randn(*shape, 20, dtype=torch.float64, requires_grad=True)
        for _ in range(1 + (kind == "LSTMCell"))
    ]
    hx = None if not given else tuple(states) if kind == "LSTMCell" else states[0]
    assert_same(theirs, ours, lambda m: m(x, hx), [x, *(states if given else [])])


@pytest.mark.parametrize("change", [{"bias": False}, {"bias_ih": None}, {"bias_hh": None}, {"bias": True}])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_take_the_biases_that_are_there(kind: str, change: dict[str, Any]) -> None:
    """As torch.nn's, whatever `bias` says: True of a cell that is made without any, and given one."""
    theirs, ours = pair(kind, 3, 20, bias="bias" not in change or not change["bias"], dtype=torch.float64)
    for cell in (theirs, ours):
        for name, value in change.items():
            setattr(cell, name, value)
        if cell.bias_ih is None and cell.bias_hh is None:
            cell.bias_ih = torch.nn.Parameter(torch.linspace(-1, 1, len(cell.weight_ih), dtype=torch.float64))
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert_same(theirs, ours, lambda m: m(x), [x])
    for cell in (theirs, ours):
        cell.bias_ih = cell.bias_hh = None
    assert_same(theirs, ours, lambda m: m(x), [x])


def test_relu_cell() -> None:
    theirs, ours = pair("RNNCell", 3, 4, nonlinearity="relu", dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert_same(theirs, ours, lambda m: m(x), [x])


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_without_initialisation(kind: str) -> None:
    theirs = getattr(torch.nn, kind)(3, 4)
    ours = torch.nn.utils.skip_init(getattr(rnnfused, kind), 3, 4, dtype=torch.float32)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3)
    for a, b in zip(tensors(ours(x)), tensors(theirs(x)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", LAYERS)
def test_copies_and_pickles(kind: str) -> None:
    layers = getattr(rnnfused, kind)(3, 5, 2, bidirectional=True)
    x = torch.randn(4, 2, 3)
    want = tensors(layers(x))
    for other in (copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))):
        assert type(other) is type(layers)
        assert all(torch.equal(a, b) for a, b in zip(tensors(other(x)), want, strict=True))


@pytest.mark.parametrize("kind", LAYERS)
def test_parametrised_frozen_and_functional(kind: str) -> None:
    theirs, ours = pair(kind, 3, 5, dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    replaced = {name: torch.randn_like(p) for name, p in theirs.named_parameters()}
    for g, w in zip(
        tensors(torch.func.functional_call(ours, replaced, (x,))),
        tensors(torch.func.functional_call(theirs, replaced, (x,))),
        strict=True,
    ):
        torch.testing.assert_close(g, w, rtol=FLOAT64, atol=FLOAT64)
    for module in (theirs, ours):
        module.bias_ih_l0.requires_grad_(False)
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        torch.manual_seed(0)  # of the power iteration's vectors
        torch.nn.utils.parametrizations.spectral_norm(module, "weight_ih_l0")
        module.eval()  # in training every read of the weight takes a step of the power iteration
    assert_same(theirs, ours, lambda m: m(x), [x])
    assert ours.bias_ih_l0.grad is None


def test_empty_batch() -> None:
    y, h = rnnfused.GRU(3, 5)(torch.randn(4, 0, 3))
    assert y.shape == (4, 0, 5) and h.shape == (1, 0, 5)


def test_weights_may_be_strided() -> None:
    theirs, ours = pair("LSTM", 3, 5, dtype=torch.float64)
    for module in (theirs, ours):
        wide = torch.arange(200.0, dtype=torch.float64).reshape(20, 10).sin()[:, ::2]
        module.weight_hh_l0 = torch.nn.Parameter(wide)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert_same(theirs, ours, lambda m: m(x), [x])


BAD_CALLS: list[tuple[str, Callable[[Any], Any]]] = [
    ("LSTM", lambda m: m(torch.randn(2, 3, 4, 5))),
    ("GRU", lambda m: m(torch.randn(2, 3, 4, 5))),
    ("RNN", lambda m: m(torch.randn(5))),
    ("LSTM", lambda m: m(torch.randn(2, 3, 5))),
    ("GRU", lambda m: m(torch.randn(0, 2, 3))),
    ("LSTM", lambda m: m(torch.randn(0, 2, 3))),
    ("RNN", lambda m: m(torch.randn(0, 3))),
    ("LSTM", lambda m: m(torch.randn(2, 2, 3).double())),
    ("GRU", lambda m: m(torch.randn(2, 2, 3), torch.randn(1, 4))),
    ("RNN", lambda m: m(torch.randn(2, 3), torch.randn(1, 1, 4))),
    ("GRU", lambda m: m(torch.randn(2, 2, 3), torch.randn(1, 3, 4))),
    ("LSTM", lambda m: m(torch.randn(2, 2, 3), (torch.randn(1, 2, 4), torch.randn(1, 4)))),
    ("LSTM", lambda m: m(torch.randn(2, 2, 3), (torch.randn(1, 2, 4), torch.randn(1, 3, 4)))),
    ("LSTM", lambda m: m(torch.randn(2, 2, 3), (torch.randn(1, 2, 5), torch.randn(1, 2, 4)))),
    ("LSTM", lambda m: m(torch.randn(2, 3), (torch.randn(1, 1, 4), torch.randn(1, 4)))),
    ("LSTMCell", lambda m: m(torch.randn(2, 5))),
    ("LSTMCell", lambda m: m(torch.randn(2, 2, 3))),
    ("LSTMCell", lambda m: m(torch.randn(2, 3), (torch.randn(3, 4), torch.randn(2, 4)))),
    ("LSTMCell", lambda m: m(torch.randn(2, 3), (torch.randn(2, 4), torch.randn(2, 5)))),
    ("GRUCell", lambda m: m(torch.randn(2, 3), torch.randn(2, 7))),
    ("GRUCell", lambda m: m(torch.randn(2, 3), torch.randn(1, 1, 4))),
    ("RNNCell", lambda m: m(torch.randn(2, 3), torch.randn(3, 4))),
]


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind, call", BAD_CALLS)
def test_errors_are_torchs_own(kind: str, call: Callable[[Any], Any], gradients: bool) -> None:
    theirs, ours = pair(kind, 3, 4)
    with torch.set_grad_enabled(gradients):
        with pytest.raises((RuntimeError, ValueError)) as want:
            call(theirs)
        with pytest.raises(type(want.value)) as got:
            call(ours)
    assert str(got.value) == str(want.value)


@pytest.mark.parametrize(
    "kind, args, kwargs",
    [
        ("RNN", (3, 4), {"nonlinearity": "sine"}),
        ("GRU", (3, 4), {"proj_size": 2}),
        ("RNN", (3, 4), {"proj_size": 2}),
        ("LSTM", (3, 4), {"proj_size": 4}),
        ("LSTM", (3, 0), {}),
        ("LSTM", (3, 4), {"dropout": 1.5}),
        ("GRU", (3, 4, 0), {}),
    ],
)
def test_constructor_errors_are_torchs_own(kind: str, args: tuple[int, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as want:
        getattr(torch.nn, kind)(*args, **kwargs)
    with pytest.raises(type(want.value)) as got:
        getattr(rnnfused, kind)(*args, **kwargs)
    assert str(got.value) == str(want.value)


@pytest.mark.parametrize("kind", LAYERS)
def test_unsupported_dtype(kind: str) -> None:
    module = getattr(rnnfused, kind)(3, 4, dtype=torch.complex64)
    with pytest.raises(RuntimeError, match=r"input: expected dtype float32, float64, .*, got ComplexFloat"):
        module(torch.zeros(2, 2, 3, dtype=torch.complex64))


@pytest.mark.parametrize("kind", LAYERS)
def test_tensors_without_memory(kind: str) -> None:
    output, _ = getattr(rnnfused, kind)(3, 4, device="meta")(torch.zeros(2, 5, 3, device="meta"))
    assert output.is_meta and output.shape == (2, 5, 4)


def test_states_of_another_dtype() -> None:
    with pytest.raises(RuntimeError, match="h0: expected dtype Float, got Double"):
        rnnfused.GRU(3, 4)(torch.zeros(2, 2, 3), torch.zeros(1, 2, 4, dtype=torch.float64))
