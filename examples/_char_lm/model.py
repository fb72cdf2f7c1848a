"""The character language model, and text sampled from it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import rnnfused

from .options import Recipe

RNNFUSED, TORCH = "rnnfused", "torch.nn"
# The same under autocast to bfloat16.
RNNFUSED_BF16, TORCH_BF16 = "rnnfused bf16", "torch.nn bf16"

State = Tensor | tuple[Tensor, ...]

_RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class CharModel(nn.Module):
    """Embedding, recurrent layers, and scores that a softmax turns into the next character's distribution."""

    def __init__(self, vocabulary_size: int, recipe: Recipe) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, recipe.embedding)
        self.recurrent = _RECURRENT[recipe.cell](recipe.embedding, recipe.hidden, recipe.layers)
        self.scores = nn.Linear(recipe.hidden, vocabulary_size)

    def forward(self, characters: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Characters [T, B] -> scores [T, B, vocabulary], and the state after the last step."""
        output, state = self.recurrent(self.embedding(characters), state)
        return self.scores(output), state


class Inference(nn.Module):
    """rnnfused's layers with their weights packed once, in fewer bits."""

    def __init__(self, layers: nn.Module, kind: str) -> None:
        super().__init__()
        self._frozen = rnnfused.Frozen(layers, weights=kind)

    def forward(self, inputs: Tensor, state: State | None) -> tuple[Tensor, State]:
        return self._frozen(inputs, state)


def build_model(backend: str, vocabulary_size: int, recipe: Recipe) -> CharModel:
    """A model whose initial weights depend on the recipe alone: both backends start from the same numbers."""
    torch.manual_seed(recipe.seed)
    model = CharModel(vocabulary_size, recipe)
    return rnnfused.convert(model) if is_ours(backend) else model


def is_ours(backend: str) -> bool:
    return backend in (RNNFUSED, RNNFUSED_BF16)


def is_bf16(backend: str) -> bool:
    return backend in (RNNFUSED_BF16, TORCH_BF16)


def refusal(backend: str, recipe: Recipe, device: str) -> str | None:
    """Why a backend cannot be trained here: torch.nn's layers under autocast need a processor whose bfloat16
    oneDNN knows.
    """
    if backend != TORCH_BF16:
        return None
    layers = _RECURRENT[recipe.cell](1, 1, device=device)
    try:
        with torch.autocast(device, torch.bfloat16):
            layers(torch.zeros(1, 1, 1, device=device))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def detach(state: State) -> State:
    """The same state, cut off from the graph: truncated backpropagation goes no further back."""
    return state.detach() if isinstance(state, Tensor) else tuple(part.detach() for part in state)


def stepper(model: CharModel, weights: str | None = None) -> Callable[[Tensor], Tensor]:
    """The recurrent layers, one embedded character [1, embedding] a call, their state kept: rnnfused's on the
    CPU as a Stepper with such weights, others as they are called in a loop.
    """
    layers = model.recurrent
    if isinstance(layers, (rnnfused.RNN, rnnfused.LSTM, rnnfused.GRU)) and model.scores.weight.is_cpu:
        return rnnfused.Stepper(layers, weights=weights)
    state: State | None = None

    def step(embedded: Tensor) -> Tensor:
        nonlocal state
        output, state = layers(embedded.unsqueeze(0), state)
        return output.squeeze(0)

    return step


@torch.no_grad()
def sample(
    model: CharModel,
    vocabulary: str,
    length: int,
    temperature: float,
    seed: int,
    weights: str | None = None,
) -> str:
    """Draw `length` characters, one by one, as what follows the start of a line."""
    # Index 0 stands for characters the model has never seen: there is nothing to write for it. The largest of
    # scores to which Gumbel noise is added is a draw from their softmax (Maddison, Tarlow and Minka 2014).
    noise = torch.empty(length, len(vocabulary) - 1).exponential_(
        generator=torch.Generator().manual_seed(seed)
    )
    noise = (-temperature * noise.log()).to(model.scores.weight.device)
    character = max(vocabulary.find("\n"), 0)
    drawn = []
    model.eval()
    step, embedding = stepper(model, weights), model.embedding.weight.detach()
    for own_noise in noise:
        scores = model.scores(step(embedding[character : character + 1]))
        character = 1 + int((scores[0, 1:] + own_noise).argmax())
        drawn.append(vocabulary[character])
    return "".join(drawn)
