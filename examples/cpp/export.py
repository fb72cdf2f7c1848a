"""Exports a model with a recurrent layer for examples/cpp/main.cpp, which needs no Python.

    python examples/cpp/export.py --output cpp-output

writes model.pt2, compiled by AOTInductor for every number of steps and every batch, and numbers.pt: inputs
with the results that Python has for them, and the layer's weights for a call of the operator itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import rnnfused

SIZES = ((2, 5), (3, 17))  # (batch, steps)


class Tagger(nn.Module):
    """Scores for every step of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = rnnfused.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, 8]; returns [B, T, 4]."""
        output, _ = self.rnn(x)
        return self.head(output)


def export(model: nn.Module, file: Path) -> None:
    batch, steps = torch.export.Dim("batch"), torch.export.Dim("steps")
    with torch.no_grad():  # a program for inference
        program = torch.export.export(
            model.eval(), (torch.randn(2, 5, 8),), dynamic_shapes={"x": {0: batch, 1: steps}}
        )
    torch._inductor.aoti_compile_and_package(program, package_path=str(file))


def numbers(model: Tagger) -> dict[str, list[Tensor]]:
    """What the C++ program reads: lists of tensors, since it knows no other types."""
    inputs = [torch.randn(batch, steps, 8) for batch, steps in SIZES]
    with torch.no_grad():
        return {
            "inputs": inputs,
            "scores": [model(x) for x in inputs],
            "params": [p.detach() for p in model.rnn.parameters()],
            "outputs": [model.rnn(x)[0] for x in inputs],
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("cpp-output"), help="a folder (cpp-output)")
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = Tagger()
    export(model, folder / "model.pt2")
    torch.save(numbers(model), folder / "numbers.pt")
    print(f"{folder / 'model.pt2'} and {folder / 'numbers.pt'} written; library: {rnnfused.library_path()}")


if __name__ == "__main__":
    main()
