"""Training that torch spreads over processes, saves, recomputes and compiles equals that of one process which
does none of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import Group
from tolerances import FLOAT64
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import rnnfused

VOCABULARY, EMBEDDING, HIDDEN = 11, 6, 5
STEPS, BATCH = 7, 4
UPDATES = 3

Module = Callable[..., Any]


@dataclass(frozen=True)
class Variant:
    kind: str
    packed: bool = False
    hidden: int = HIDDEN
    options: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "lstm": Variant("LSTM"),
    "gru": Variant("GRU"),
    "rnn": Variant("RNN"),
    "projected": Variant("LSTM", options={"proj_size": 3}),
    "packed": Variant("LSTM", packed=True),
    "recompute": Variant("GRU", packed=True, options={"recompute": True}),
}
LSTM, GRU = VARIANTS["lstm"], VARIANTS["gru"]
WIDE = Variant("LSTM", hidden=96)  # over 1 MiB of parameters: torch's first bucket is never smaller
each_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


class CharModel(nn.Module):
    """Embedding, two recurrent layers in both directions, and scores; `through` calls the layers."""

    def __init__(self, variant: Variant, through: Module, library: Any = rnnfused) -> None:
        super().__init__()
        self.packed, self.through = variant.packed, through
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING)
        self.recurrent = getattr(library, variant.kind)(
            EMBEDDING, variant.hidden, num_layers=2, bidirectional=True, **variant.options
        )
        self.scores = nn.Linear(2 * variant.options.get("proj_size", variant.hidden), VOCABULARY)

    def forward(self, characters: Tensor, lengths: Tensor) -> Tensor:
        """Characters [T, B] of which lengths [B] count -> scores [T, B, vocabulary]."""
        input = self.embedding(characters)
        if self.packed:
            input = pack_padded_sequence(input, lengths, enforce_sorted=False)
        output, _ = self.through(self.recurrent, input)
        return self.scores(pad_packed_sequence(output, total_length=STEPS)[0] if self.packed else output)


def directly(layers: nn.Module, input: Any) -> Any:
    return layers(input)


def alone(model: nn.Module) -> nn.Module:
    return model


def batch(update: int, part: int, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Characters and targets [T, B], lengths [B]: of the update's batch, a part of its sequences."""
    random = torch.Generator().manual_seed(update)
    text = torch.randint(VOCABULARY, (STEPS + 1, BATCH), generator=random)
    lengths = torch.randint(1, STEPS + 1, (BATCH,), generator=random)
    lengths[update % BATCH :: 2] = STEPS  # every part has a whole sequence
    columns = slice(part * BATCH // parts, (part + 1) * BATCH // parts)
    return text[:-1, columns], text[1:, columns], lengths[columns]


def loss_of(module: Module, update: int, part: int, parts: int) -> Tensor:
    """A mean over sequences, so that the mean over parts of equal size is that of the whole."""
    characters, targets, lengths = batch(update, part, parts)
    losses = cross_entropy(module(characters, lengths).flatten(0, 1), targets.flatten(), reduction="none")
    counted = torch.arange(STEPS)[:, None] < lengths
    return (losses.view(counted.shape) * counted).sum() / len(lengths)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may hold a part, as one process holds it."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def train(
    variant: Variant = LSTM,
    wrap: Callable[[nn.Module], Module] = alone,
    *,
    through: Module = directly,
    library: Any = rnnfused,
    updates: tuple[int, int] = (0, UPDATES),
    accumulate: int = 1,
    load: Path | None = None,
    save: Path | None = None,
) -> dict[str, Tensor]:
    """Trains on this process's share of every batch, in `accumulate` parts, all but the last without
    synchronisation; returns the loss and every gradient of the last update, and all weights after it.
    """
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(0)
    model = CharModel(variant, through, library).double()
    module = wrap(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if load is not None:
        weights, momenta = get_state_dict(model, optimizer)
        dcp.load({"model": weights, "optimizer": momenta}, checkpoint_id=load)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=momenta)
    for update in range(*updates):
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for turn in range(accumulate):
            last = turn == accumulate - 1
            with contextlib.nullcontext() if last else module.no_sync():
                loss = loss_of(module, update, rank * accumulate + turn, size * accumulate) / accumulate
                loss.backward()
            total += loss.detach()
        gradients = {f"grad {name}": whole(p.grad) for name, p in model.named_parameters()}
        optimizer.step()
    if size > 1:
        dist.all_reduce(total)
    if save is not None:
        weights, momenta = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": momenta}, checkpoint_id=save)
    results = {name: whole(parameter) for name, parameter in model.named_parameters()}
    return {"loss": total / size, **gradients, **results}


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(
            got[name], tensor, rtol=FLOAT64, atol=FLOAT64, msg=partial("{}: {}".format, name)
        )


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    pair = Group(tmp_path_factory.mktemp("group"))
    yield pair
    pair.close()


# What wraps a model, in its process.


def ddp(model: nn.Module, **options: Any) -> nn.Module:
    return DistributedDataParallel(model, **options)


def fsdp(model: nn.Module, **options: Any) -> nn.Module:
    """As usual: the large part is a unit of its own, gathered when it is called."""
    fully_shard(model.recurrent, **options)
    return fully_shard(model, **options)


WRAPS = {"ddp": ddp, "fsdp": fsdp}
each_wrap = pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)


@pytest.mark.long
@each_wrap
@each_variant
def test_two_processes_equal_one(group: Group, variant: Variant, wrap: Module) -> None:
    expected = train(variant)
    for results in group.run(train, variant, wrap):
        assert_equal(results, expected)


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"static_graph": True},
        {"find_unused_parameters": True},
        {"gradient_as_bucket_view": True},
        {"bucket_cap_mb": 1e-4},  # a bucket for every parameter or two
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_ddp(group: Group, options: dict[str, Any]) -> None:
    expected = train()
    for results in group.run(train, LSTM, partial(ddp, **options)):
        assert_equal(results, expected)


def test_fsdp_keeps_what_it_gathered(group: Group) -> None:
    expected = train()
    for results in group.run(train, LSTM, partial(fsdp, reshard_after_forward=False)):
        assert_equal(results, expected)


def test_fsdp_holds_a_share_of_every_parameter(group: Group) -> None:
    sizes = {name: p.numel() for name, p in CharModel(LSTM, directly).named_parameters()}
    shares = group.run(local_sizes)
    for name, size in sizes.items():
        assert sum(share[name] for share in shares) == size
        assert shares[0][name] < size


def local_sizes() -> dict[str, int]:
    model = fsdp(CharModel(LSTM, directly))
    return {name: p.to_local().numel() for name, p in model.named_parameters()}


@each_variant
def test_accumulated_gradients(group: Group, variant: Variant) -> None:
    expected = train(variant)
    for results in group.run(partial(train, accumulate=2), variant, ddp):
        assert_equal(results, expected)


# Checkpoints: the optimizer's state goes with the weights, so that the updates after it are the same.


@pytest.mark.parametrize("library", [rnnfused, nn], ids=["rnnfused", "torch.nn"])
@each_wrap
def test_one_process_continues_what_two_saved(
    group: Group, wrap: Module, library: Any, tmp_path: Path
) -> None:
    group.run(partial(train, updates=(0, 2), save=tmp_path), LSTM, wrap)
    continued = train(updates=(2, UPDATES), load=tmp_path, library=library)
    assert_equal(continued, train())


@each_wrap
def test_two_processes_continue_what_one_saved(group: Group, wrap: Module, tmp_path: Path) -> None:
    train(updates=(0, 2), save=tmp_path)
    for continued in group.run(partial(train, updates=(2, UPDATES), load=tmp_path), LSTM, wrap):
        assert_equal(continued, train())


def test_sharded_processes_continue_what_replicated_ones_saved(group: Group, tmp_path: Path) -> None:
    group.run(partial(train, updates=(0, 2), save=tmp_path), LSTM, ddp)
    for continued in group.run(partial(train, updates=(2, UPDATES), load=tmp_path), LSTM, fsdp):
        assert_equal(continued, train())


# Activation checkpointing.


def recomputed(layers: nn.Module, input: Any, **options: Any) -> Any:
    return checkpoint(layers, input, **options)


SEEN: set[str] = set()


def keep_the_layer(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    """Of all operators, the layer's results alone are kept."""
    SEEN.add(operator.namespace)
    ours = operator.namespace == "rnnfused"
    return CheckpointPolicy.MUST_SAVE if ours else CheckpointPolicy.PREFER_RECOMPUTE


def keep_nothing(_context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    SEEN.add(operator.namespace)
    return CheckpointPolicy.MUST_RECOMPUTE


def selectively(layers: nn.Module, input: Any, policy: Module) -> Any:
    contexts = partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(layers, input, use_reentrant=False, context_fn=contexts)


WAYS = {
    "reentrant": partial(recomputed, use_reentrant=True),
    "not reentrant": partial(recomputed, use_reentrant=False),
    "the layer kept": partial(selectively, policy=keep_the_layer),
    "nothing kept": partial(selectively, policy=keep_nothing),
}
each_way = pytest.mark.parametrize("through", WAYS.values(), ids=WAYS)
DROPOUT = Variant("LSTM", options={"dropout": 0.5})


@each_way
@pytest.mark.parametrize("variant", [*VARIANTS.values(), DROPOUT], ids=[*VARIANTS, "dropout"])
def test_activation_checkpointing(variant: Variant, through: Module) -> None:
    if variant.packed and through is WAYS["reentrant"]:
        pytest.skip("the reentrant form follows tensors alone, and a PackedSequence is none")
    assert_equal(train(variant, through=through), train(variant))


@pytest.mark.parametrize("policy", [keep_the_layer, keep_nothing])
def test_a_policy_sees_the_layer(policy: Module) -> None:
    SEEN.clear()
    train(through=partial(selectively, policy=policy), updates=(0, 1))
    assert "rnnfused" in SEEN


@each_way
@each_wrap
def test_activation_checkpointing_in_two_processes(group: Group, wrap: Module, through: Module) -> None:
    expected = train()
    for results in group.run(partial(train, through=through), LSTM, wrap):
        assert_equal(results, expected)


# The compiler. aot_eager is quick and sees what inductor sees; inductor itself has one case.


def compiled(model: nn.Module, wrap: Module = alone, inner: bool = False, **options: Any) -> Any:
    """The wrapped model compiled, or, if inner, the compiled model wrapped."""
    torch._dynamo.reset()
    if inner:
        model.compile(**options)
        return wrap(model)
    return torch.compile(wrap(model), **options)


eager = partial(compiled, backend="aot_eager")
COMPILED = {
    "around ddp": (LSTM, partial(eager, wrap=ddp)),
    "around ddp, gru": (GRU, partial(eager, wrap=ddp)),
    "around ddp, static": (LSTM, partial(eager, wrap=partial(ddp, static_graph=True))),
    "around ddp in buckets": (WIDE, partial(eager, wrap=partial(ddp, bucket_cap_mb=1))),
    "within ddp": (LSTM, partial(eager, wrap=ddp, inner=True, fullgraph=True)),
    "within fsdp": (LSTM, partial(eager, wrap=fsdp, inner=True)),
    "around ddp, inductor": (LSTM, partial(compiled, wrap=ddp, backend="inductor")),
}


@pytest.mark.long
@pytest.mark.parametrize("variant, wrap", COMPILED.values(), ids=COMPILED)
def test_compiled_in_two_processes(group: Group, variant: Variant, wrap: Module) -> None:
    expected = train(variant)
    for results in group.run(train, variant, wrap, seconds=300):
        assert_equal(results, expected)


@pytest.mark.parametrize("variant", [LSTM, GRU], ids=["lstm", "gru"])
def test_compiled_in_one_graph(variant: Variant) -> None:
    assert_equal(train(variant, partial(eager, fullgraph=True)), train(variant))
