"""Encoder, decoder and generation: against plain torch, step by step against at once, beams against all there
are.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from decoders import by_steps
from results import tensors
from torch import Tensor
from torch.nn.utils import skip_init

import rnnfused
from rnnfused.seq2seq import AttentionDecoder, Decoded, Encoder, Hypothesis, generate

SOURCE, VOCABULARY, E, H, S, B, T = 9, 6, 5, 8, 7, 3, 4
LENGTHS = torch.tensor([7, 2, 4])
BEGIN, END = 1, 2
KINDS: dict[str, dict[str, Any]] = {
    "bahdanau": {"kind": "bahdanau"},
    "luong": {"kind": "luong", "input_feeding": False},
    "luong, concat": {"kind": "luong", "score": "concat", "input_feeding": False},
    "luong, feeding": {"kind": "luong"},
}
EVERY = pytest.mark.parametrize("kind", KINDS)
CELLS = pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])


def made(
    kind: str, cell: str = "lstm", layers: int = 1, dropout: float = 0.0
) -> tuple[Encoder, AttentionDecoder]:
    torch.manual_seed(1)
    encoder = Encoder(SOURCE, E, H, layers, cell, dropout=dropout)
    size = encoder.output_size
    decoder = AttentionDecoder(VOCABULARY, E, H, size, layers, cell, dropout=dropout, **KINDS[kind])
    return encoder.double(), decoder.double()


def started(encoder: Encoder, decoder: AttentionDecoder) -> tuple[Any, Any]:
    torch.manual_seed(2)
    source = torch.randint(SOURCE, (S, B))
    outputs, final = encoder(source, LENGTHS)
    return decoder.prepare(outputs, final, LENGTHS)


def target() -> Tensor:
    return torch.randint(VOCABULARY, (T, B), generator=torch.Generator().manual_seed(3))


def assert_same(one: Decoded, other: Decoded) -> None:
    torch.testing.assert_close(one.scores, other.scores)
    torch.testing.assert_close(one.weights, other.weights)
    torch.testing.assert_close(one.state.hx, other.state.hx)
    assert (one.state.fed is None) == (other.state.fed is None)
    if one.state.fed is not None:
        torch.testing.assert_close(one.state.fed, other.state.fed)


@EVERY
@CELLS
@pytest.mark.parametrize("layers", [1, 2])
def test_a_sequence_is_its_steps(kind: str, cell: str, layers: int) -> None:
    encoder, decoder = made(kind, cell, layers)
    memory, state = started(encoder, decoder)
    whole = decoder(target(), memory, state)
    assert whole.scores.shape == (T, B, VOCABULARY)
    assert whole.weights.shape == (T, B, S)
    assert_same(whole, by_steps(decoder, target(), memory, state))
    # In two parts, the state carried over.
    first = decoder(target()[:2], memory, state)
    second = decoder(target()[2:], memory, first.state)
    torch.testing.assert_close(torch.cat((first.scores, second.scores)), whole.scores)
    whole.scores.logsumexp(-1).sum().backward()
    for module in (encoder, decoder):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.any(), name


def test_bahdanaus_step_in_plain_torch() -> None:
    encoder, decoder = made("bahdanau")
    memory, (hx, _) = started(encoder, decoder)
    cell = skip_init(torch.nn.LSTMCell, E + 2 * H, H, dtype=torch.float64)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in decoder.recurrent.state_dict().items()})
    h, c = (state[0] for state in hx)
    a = decoder.attention
    scores = []
    for tokens in target():
        embedded = decoder.embedding(tokens)
        energy = (
            torch.tanh(h @ a.query.weight.T.unsqueeze(0) + memory.keys.transpose(0, 1)) @ a.score.weight[0]
        )
        there = torch.arange(S).unsqueeze(1) < LENGTHS
        weights = energy.masked_fill(~there, -torch.inf).softmax(0)
        context = (weights.unsqueeze(-1) * memory.values.transpose(0, 1)).sum(0)
        h, c = cell(torch.cat((embedded, context), -1), (h, c))
        scores.append(decoder.scores(torch.tanh(decoder.combine(torch.cat((h, context, embedded), -1)))))
    got = decoder(target(), memory, started(encoder, decoder)[1])
    torch.testing.assert_close(got.scores, torch.stack(scores))


@EVERY
def test_a_source_is_read_to_its_end(kind: str) -> None:
    encoder, decoder = made(kind)
    torch.manual_seed(2)
    source = torch.randint(SOURCE, (S, B))
    whole = decoder(target(), *started(encoder, decoder))
    for b, length in enumerate(LENGTHS.tolist()):
        outputs, final = encoder(source[:length, b : b + 1])
        alone = decoder(target()[:, b : b + 1], *decoder.prepare(outputs, final))
        torch.testing.assert_close(alone.scores[:, 0], whole.scores[:, b])
        torch.testing.assert_close(alone.weights[:, 0], whole.weights[:, b, :length])
        assert not whole.weights[:, b, length:].any()


@EVERY
def test_scheduled_sampling(kind: str) -> None:
    encoder, decoder = made(kind)
    memory, state = started(encoder, decoder)
    own = decoder(target(), memory, state, teacher_forcing=0.0)
    said = own.scores.argmax(-1)
    fed = torch.cat((target()[:1], said[:-1]))
    assert_same(own, by_steps(decoder, fed, memory, state))
    torch.manual_seed(4)
    half = decoder(target().repeat(10, 1), memory, state, teacher_forcing=0.5)
    assert not torch.equal(half.scores, decoder(target().repeat(10, 1), memory, state).scores)
    with pytest.raises(ValueError, match=r"teacher_forcing: expected a probability, got 1\.5"):
        decoder(target(), memory, state, teacher_forcing=1.5)


def test_dropout_is_for_training() -> None:
    encoder, decoder = made("luong", layers=2, dropout=0.5)
    assert not torch.equal(
        encoder(torch.ones(S, B, dtype=torch.long))[0], encoder(torch.ones(S, B, dtype=torch.long))[0]
    )
    encoder.eval(), decoder.eval()
    memory, state = started(encoder, decoder)
    assert_same(decoder(target(), memory, state), decoder(target(), memory, state))
    decoder.train()
    generate(decoder, memory, state, BEGIN, END, 3)
    assert decoder.training


# ---- Generation


def score_of(decoder: AttentionDecoder, memory: Any, state: Any, b: int, tokens: tuple[int, ...]) -> float:
    """The log probability of a whole sequence for one source."""
    index = torch.tensor([b])
    own = type(memory)(*(None if part is None else part[index] for part in memory))
    given = torch.tensor([[BEGIN, *tokens[:-1]]]).T
    scores = decoder(given, own, state.rows(index)).scores.log_softmax(-1)
    return float(scores[range(len(tokens)), 0, list(tokens)].sum())


def everything(steps: int) -> list[tuple[int, ...]]:
    """All sequences that end at END or after so many steps."""
    others = [token for token in range(VOCABULARY) if token != END]
    found: list[tuple[int, ...]] = list(itertools.product(others, repeat=steps))
    for length in range(steps):
        found += [(*tokens, END) for tokens in itertools.product(others, repeat=length)]
    return found


@EVERY
@pytest.mark.parametrize("length_penalty", [0.0, 0.8])
@torch.no_grad()
def test_a_wide_beam_finds_the_best_of_all(kind: str, length_penalty: float) -> None:
    encoder, decoder = made(kind, "gru")
    decoder.scores.weight *= 6  # opinions
    memory, state = started(encoder, decoder)
    steps, n_best = 3, 4
    found = generate(
        decoder, memory, state, BEGIN, END, steps, width=200, n_best=n_best, length_penalty=length_penalty
    )
    for b in range(B):
        all_of = {tokens: score_of(decoder, memory, state, b, tokens) for tokens in everything(steps)}
        scored = {t: s / ((5 + len(t)) / 6) ** length_penalty for t, s in all_of.items()}
        best = sorted(scored, key=lambda tokens: -scored[tokens])[:n_best]
        assert [tuple(h.tokens) for h in found[b]] == best
        for h in found[b]:
            assert h.score == pytest.approx(scored[tuple(h.tokens)], abs=1e-10)
            assert h.weights.shape == (len(h.tokens), S)
            torch.testing.assert_close(h.weights.sum(-1), torch.ones(len(h.tokens)).double())


@EVERY
@torch.no_grad()
def test_a_narrow_beam_is_no_worse_than_greedy_and_no_better_than_the_best(kind: str) -> None:
    encoder, decoder = made(kind)
    decoder.scores.weight *= 6
    memory, state = started(encoder, decoder)
    by_width = [generate(decoder, memory, state, BEGIN, END, 3, width=width) for width in (1, 2, 200)]
    for narrow, wider, widest in zip(*by_width, strict=True):
        assert len(narrow) == len(wider) == len(widest) == 1
        assert narrow[0].score <= widest[0].score + 1e-12
        assert wider[0].score <= widest[0].score + 1e-12


def greedy(decoder: AttentionDecoder, memory: Any, state: Any, b: int, steps: int) -> list[int]:
    tokens: list[int] = []
    index = torch.tensor([b])
    own, state = type(memory)(*(p if p is None else p[index] for p in memory)), state.rows(index)
    while len(tokens) < steps and END not in tokens:
        of_step = decoder.step(torch.tensor([tokens[-1] if tokens else BEGIN]), own, state)
        state = of_step.state
        tokens.append(int(of_step.scores.argmax()))
    return tokens


def tokens_of(found: list[list[Hypothesis]]) -> list[list[int]]:
    return [of[0].tokens for of in found]


@EVERY
@CELLS
@torch.no_grad()
def test_greedy_and_samples_of_one_candidate(kind: str, cell: str) -> None:
    encoder, decoder = made(kind, cell)
    decoder.scores.weight *= 6
    memory, state = started(encoder, decoder)
    want = [greedy(decoder, memory, state, b, 12) for b in range(B)]
    assert tokens_of(generate(decoder, memory, state, BEGIN, END, 12)) == want
    for options in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-300}):
        found = generate(decoder, memory, state, BEGIN, END, 12, **{"temperature": 0.7} | options)
        assert tokens_of(found) == want
        for b, (h,) in enumerate(found):
            assert h.score == pytest.approx(score_of(decoder, memory, state, b, tuple(h.tokens)), abs=1e-10)


@pytest.mark.parametrize("how", ["bfloat16", "float16", "autocast"])
@torch.no_grad()
def test_greedy_in_few_bits_takes_the_highest_score_at_every_step(how: str) -> None:
    torch.manual_seed(3)
    encoder, decoder = Encoder(40, 16, 32), AttentionDecoder(200, 16, 32, 64)
    decoder.scores.weight *= 3
    if how != "autocast":
        encoder, decoder = (module.to(getattr(torch, how)) for module in (encoder, decoder))
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        memory, state = decoder.prepare(*encoder(torch.randint(40, (9, 8))))
        # A token that there is not ends none: who leaves the batch may change how the others are rounded.
        found = generate(decoder, memory, state, BEGIN, 200, 40)
        tokens = torch.full((8,), BEGIN)
        for step in range(40):
            scores, _, state = decoder.step(tokens, memory, state)
            tokens = torch.tensor([of[0].tokens[step] for of in found])
            chosen = scores.gather(1, tokens.unsqueeze(1)).squeeze(1)
            assert torch.equal(chosen, scores.amax(-1))  # several may have it, in few bits


@torch.no_grad()
def test_generation_leaves_every_modules_mode_alone() -> None:
    encoder, decoder = made("bahdanau", "gru")
    decoder.train()
    decoder.dropout.eval()
    before = [module.training for module in decoder.modules()]
    generate(decoder, *started(encoder, decoder), BEGIN, END, 2)
    assert [module.training for module in decoder.modules()] == before
    memory, state = started(encoder, decoder)
    with pytest.raises(AttributeError):
        generate(decoder, state, memory, BEGIN, END, 2)  # type: ignore[arg-type]
    assert [module.training for module in decoder.modules()] == before


@pytest.mark.parametrize("lengths", [None, [2, 4, 1], torch.tensor([3, 1, 3])])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_an_encoder_of_torchs_layers(cell: str, lengths: Any) -> None:
    encoder, _ = made("bahdanau", cell)
    theirs, tokens = rnnfused.to_torch(copy.deepcopy(encoder)), target()
    for got, want in zip(tensors(theirs(tokens, lengths)), tensors(encoder(tokens, lengths)), strict=True):
        torch.testing.assert_close(got, want)


def test_what_torchs_layers_cannot_encode() -> None:
    encoder, tokens = rnnfused.to_torch(made("bahdanau", "gru")[0]), target()
    for given, lengths in ((tokens, [2, 0, 1]), (tokens[:, 0], [2])):
        with pytest.raises(RuntimeError, match=r"^lengths: expected a batch of sequences of at least 1 step"):
            encoder(given, lengths)


@torch.no_grad()
def test_scores_that_are_no_numbers_are_seen() -> None:
    encoder, decoder = made("bahdanau", "gru")
    memory, state = started(encoder, decoder)
    state.hx[0][:, 1] = float("nan")
    found = generate(decoder, memory, state, BEGIN, END, 3)
    assert [len(of) for of in found] == [1] * B
    assert math.isnan(found[1][0].score) and not math.isnan(found[0][0].score)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_one_source_without_a_batch(cell: str, bidirectional: bool) -> None:
    encoder = Encoder(SOURCE, E, H, num_layers=2, cell=cell, bidirectional=bidirectional).double()
    source = torch.randint(SOURCE, (S, 1))
    outputs, final = encoder(source[:, 0])
    with_batch = encoder(source)
    torch.testing.assert_close(outputs, with_batch[0][:, 0])
    for state, other in zip(final, with_batch[1], strict=True):
        torch.testing.assert_close(state, other[:, 0])


def test_lengths_may_be_a_list() -> None:
    encoder, decoder = made("bahdanau", "gru")
    source = torch.randint(SOURCE, (S, B))
    want = decoder.prepare(*encoder(source, LENGTHS), LENGTHS)
    got = decoder.prepare(*encoder(source, LENGTHS.tolist()), LENGTHS.tolist())
    torch.testing.assert_close(got, want)
    with pytest.raises(RuntimeError, match=r"lengths: expected an integer dtype, got torch\.float32"):
        decoder.prepare(*encoder(source), LENGTHS.float())


@torch.no_grad()
def test_samples_follow_the_probabilities() -> None:
    encoder, decoder = made("luong, feeding")
    decoder.scores.weight *= 3
    memory, state = started(encoder, decoder)
    index = torch.zeros(4000, dtype=torch.long)
    memory = type(memory)(*(None if part is None else part[index] for part in memory))
    state = state.rows(index)
    scores = decoder.step(
        torch.tensor([BEGIN]), type(memory)(*(p[:1] for p in memory)), state.rows(index[:1])
    ).scores

    def shares(**options: Any) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        found = generate(decoder, memory, state, BEGIN, END, 1, generator=generator, **options)
        return torch.bincount(torch.tensor([h.tokens[0] for (h,) in found]), minlength=VOCABULARY) / len(
            found
        )

    hot = (scores[0] / 0.5).softmax(-1).float()
    torch.testing.assert_close(shares(temperature=0.5), hot, atol=0.03, rtol=0)
    torch.testing.assert_close(shares(temperature=0.5), shares(temperature=0.5), atol=0, rtol=0)
    kept = hot.topk(2).indices
    of_two = torch.zeros(VOCABULARY).index_copy(0, kept, hot[kept] / hot[kept].sum())
    torch.testing.assert_close(shares(temperature=0.5, top_k=2), of_two, atol=0.03, rtol=0)
    reached = float(hot[kept].sum()) - 1e-4
    torch.testing.assert_close(shares(temperature=0.5, top_p=reached), of_two, atol=0.03, rtol=0)


@torch.no_grad()
def test_sequences_that_have_ended_leave_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = made("bahdanau")
    decoder.scores.bias[END] += 1.5
    memory, state = started(encoder, decoder)
    sizes, step = [], AttentionDecoder.step

    def counted(self: AttentionDecoder, tokens: Tensor, *others: Any) -> Decoded:
        sizes.append(len(tokens))
        return step(self, tokens, *others)

    monkeypatch.setattr(AttentionDecoder, "step", counted)
    found = generate(
        decoder, memory, state, BEGIN, END, 40, temperature=1.0, generator=torch.Generator().manual_seed(1)
    )
    lengths = [len(h.tokens) for (h,) in found]
    assert max(lengths) < 40
    assert sizes == [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert all(h.tokens[-1] == END and h.tokens.count(END) == 1 for (h,) in found)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"n_best": 2}, r"n_best: expected at most 1 \(width\), got 2"),
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0"),
        ({"top_k": 3}, "top_k: expected None without a temperature, got 3"),
        ({"top_p": 0.5}, "top_p: expected None without a temperature, got 0.5"),
        ({"generator": torch.Generator()}, "generator: expected None without a temperature"),
        (
            {"temperature": 1.0, "length_penalty": 0.5},
            "length_penalty: expected 0 with a temperature, got 0.5",
        ),
        ({"temperature": 1.0, "width": 2}, "width: expected 1 with a temperature, got 2"),
        ({"temperature": 0.0}, "temperature: expected more than 0, got 0.0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k: expected at least 1, got 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p: expected more than 0 and at most 1, got 1.5"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    encoder, decoder = made("luong")
    memory, state = started(encoder, decoder)
    with pytest.raises(ValueError, match=message):
        generate(decoder, memory, state, BEGIN, END, **{"max_steps": 3, **options})


def test_others_are_refused() -> None:
    with pytest.raises(ValueError, match="cell: expected one of 'rnn', 'lstm', 'gru', got 'qrnn'"):
        Encoder(SOURCE, E, H, cell="qrnn")
    with pytest.raises(ValueError, match="kind: expected 'bahdanau' or 'luong', got 'none'"):
        AttentionDecoder(VOCABULARY, E, H, 2 * H, kind="none")
    encoder, decoder = made("luong")
    outputs, final = encoder(torch.zeros(S, B, dtype=torch.long))
    with pytest.raises(RuntimeError, match="final: expected 2 states of 1 layers, got sizes"):
        decoder.prepare(outputs, final[:1])
