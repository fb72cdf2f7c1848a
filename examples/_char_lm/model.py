"""The character language model, and text sampled from it."""

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


def detach(state: State) -> State:
    """The same state, cut off from the graph: truncated backpropagation goes no further back."""
    return state.detach() if isinstance(state, Tensor) else tuple(part.detach() for part in state)


@torch.no_grad()
def sample(model: CharModel, vocabulary: str, length: int, temperature: float, seed: int) -> str:
    """Draw `length` characters, one by one, as what follows the start of a line."""
    generator = torch.Generator().manual_seed(seed)
    device = model.scores.weight.device
    character = torch.tensor(max(vocabulary.find("\n"), 0))
    state: State | None = None
    drawn = []
    model.eval()
    for _ in range(length):
        scores, state = model(character.view(1, 1).to(device), state)
        # Index 0 stands for characters the model has never seen: there is nothing to write for it.
        known = scores[0, 0, 1:].double().cpu() / temperature
        character = 1 + torch.multinomial(known.softmax(0), 1, generator=generator)
        drawn.append(vocabulary[character])
    return "".join(drawn)
