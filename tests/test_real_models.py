"""bench.real_models on a small model of its own: no package is needed, and no time matters."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import rnnfused  # noqa: E402
from bench import real_models  # noqa: E402
from bench.published import MODELS, Built, Published  # noqa: E402
from bench.real_models import PARTS, Failed, NotBuilt, Ready, Row  # noqa: E402


class Small(torch.nn.Module):
    """A packed sequence, layers with dropout between them, and a loop of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = torch.nn.GRU(3, 5, batch_first=True)
        self.stack = torch.nn.LSTM(5, 4, 2, dropout=0.5, bidirectional=True)
        self.cell = torch.nn.LSTMCell(8, 6)
        self.unused = torch.nn.RNN(2, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, _ = self.packed(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        padded, _ = pad_packed_sequence(y)
        y, (h, _) = self.stack(padded, (torch.zeros(4, 2, 4), torch.zeros(4, 2, 4)))
        state = None
        for step in y:
            state = self.cell(step, state)
        assert state is not None
        return torch.cat((state[0], h[-1]), 1)


def small() -> Built:
    model, x, lengths = Small(), torch.randn(2, 7, 3), torch.tensor([4, 7])

    def loss() -> Tensor:
        return model(x, lengths).square().mean()

    return Built(model, lambda: model(x, lengths), loss)


def not_there() -> Built:
    raise ImportError("no such module")


CALLS = [
    "GRU T7 B2 I3 H5 packed",
    "LSTM T7 B2 I5 H4 L2 bidirectional",
    "LSTMCell T1 B2 I8 H6, 7 calls",
]


@pytest.mark.parametrize(
    "layer, shape, words",
    [
        (torch.nn.GRU(3, 4), (7, 2, 3), "GRU T7 B2 I3 H4"),
        (torch.nn.GRU(3, 4, batch_first=True), (2, 7, 3), "GRU T7 B2 I3 H4"),
        (torch.nn.RNN(3, 4, batch_first=True), (7, 3), "RNN T7 B1 I3 H4"),
        (torch.nn.GRUCell(3, 4), (2, 3), "GRUCell T1 B2 I3 H4"),
        (torch.nn.RNNCell(3, 4), (3,), "RNNCell T1 B1 I3 H4"),
    ],
)
def test_calls_are_described(layer: torch.nn.Module, shape: tuple[int, ...], words: str) -> None:
    model = torch.nn.Sequential(layer)
    x = torch.zeros(shape)
    calls = real_models.capture(model, lambda: [model(x), model(x)])
    assert real_models.described(calls) == [f"{words}, 2 calls"]
    assert not layer._forward_hooks and not layer._forward_pre_hooks


def test_layers_of_one_shape_are_counted() -> None:
    model = torch.nn.ModuleList([torch.nn.GRUCell(3, 3) for _ in range(2)])
    x = torch.zeros(2, 3)
    calls = real_models.capture(model, lambda: [model[0](x), model[1](x), model[1](x)])
    assert real_models.described(calls) == ["2 x GRUCell T1 B2 I3 H3, 3 calls"]


def test_what_is_kept_of_a_call_stays() -> None:
    layer, x = torch.nn.GRU(3, 4), torch.randn(5, 2, 3)
    before = x.clone()
    (call,) = real_models.capture(layer, lambda: layer(x, hx=torch.zeros(1, 2, 4)))
    want = layer(before)
    x.zero_()
    torch.testing.assert_close(call.again(), list(want), rtol=0, atol=0)
    assert list(call.named) == ["hx"]


def prepared(way: str) -> tuple[Built, dict[str, Any], Ready]:
    torch.manual_seed(0)
    built = small()
    return built, *real_models.prepare(built, way)


def test_every_part_is_the_same_on_both() -> None:
    theirs, _, before = prepared("torch.nn")
    ours, parts, after = prepared("rnnfused")
    assert not any(isinstance(layer, rnnfused.LSTM) for layer in theirs.model.modules())
    assert isinstance(ours.model.stack, rnnfused.LSTM)
    assert (after.layers, after.converted) == (4, 4)
    assert before.calls == after.calls == {"inference": CALLS, "training": CALLS}
    assert set(parts) == set(before.results) == set(PARTS)

    row = Row("package", "1.0", "model")
    real_models.compare(row, before, after)
    assert set(row.differences) == set(PARTS) and max(row.differences.values()) < 1e-5
    for part in parts.values():
        with part.context():
            part.run()


def test_the_recurrent_part_gets_the_gradients_of_the_model() -> None:
    torch.manual_seed(0)
    built = small()
    built.model.stack.dropout = 0.0  # of which masks would differ from call to call
    _, ready = real_models.prepare(built, "torch.nn")
    found = [
        array.flatten()
        for name, array in ready.results["recurrent training"].items()
        if name.startswith("gradient")
    ]
    assert all(array.any() for array in found)
    # Those of inputs and states are the recurrent part's own; every weight's is the model's.
    whole = ready.results["model training"]["gradient"]
    for name, weight in built.model.named_parameters():
        if not name.startswith("unused"):
            size, gradient = weight.numel(), whole[: weight.numel()]
            assert any(a.size == size and np.allclose(a, gradient, atol=1e-7) for a in found), name
            whole = whole[size:]
    assert whole.size == 0


def test_a_difference_is_refused() -> None:
    def ready(**arrays: list[float]) -> Ready:
        named = {name: np.array(values, np.float32) for name, values in arrays.items()}
        return Ready(1, 1, {}, {part: named for part in PARTS})

    row = Row("package", "1.0", "model")
    one = ready(output=[1.0, 100.0], gradient=[3.0, 4.0])
    real_models.compare(row, one, ready(output=[1.01, 100.0], gradient=[3.0, 4.01]))
    assert row.differences == pytest.approx(dict.fromkeys(PARTS, 2e-3), rel=1e-3)
    with pytest.raises(Failed, match=r"recurrent inference, output differs by 1\.0e-03"):
        real_models.compare(row, one, ready(output=[1.1, 100.0], gradient=[3.0, 4.0]))
    with pytest.raises(Failed, match=r"gradient differs by 2\.0e-02"):
        real_models.compare(row, one, ready(output=[1.0, 100.0], gradient=[3.0, 4.1]))
    with pytest.raises(Failed, match="output differs by nan"):
        real_models.compare(row, one, ready(output=[1.0, float("nan")], gradient=[3.0, 4.0]))


def options(**changed: Any) -> argparse.Namespace:
    parsed = real_models.parse(["--rounds=1", "--seconds=0.001", "--threads=1"])
    return argparse.Namespace(**{**vars(parsed), **changed})


@pytest.mark.long
def test_a_row_is_measured_and_printed(tmp_path: Path) -> None:
    row = Row("package", "1.0", "model")
    real_models.measure(row, small, options())
    assert set(row.milliseconds) == set(PARTS)
    assert all(set(of_part) == set(real_models.WAYS) for of_part in row.milliseconds.values())

    row.milliseconds = {part: {"torch.nn": 3.0, "rnnfused": 1.5} for part in PARTS}
    slower = Row("other", "2.0", "slow", milliseconds={p: {"torch.nn": 1.0, "rnnfused": 2.0} for p in PARTS})
    row.differences = dict.fromkeys(PARTS, 3e-7) | {"model training": 4e-6}
    columns = real_models.head().splitlines()[0].count("|")
    line = real_models.line(row)
    assert line.count("|") == columns
    assert line.startswith(
        f"| package 1.0 | model | 4 of 4 | {'; '.join(CALLS)} | 3e-07 | 4e-06 | 3.00 / 1.50 = 2.00"
    )
    assert real_models.summary([row, slower]).splitlines() == [
        f"{part}: geometric mean 1.00, worst row 0.50 (other slow)" for part in PARTS
    ]

    row.calls["inference"] = ["LSTM T1 B2 I5 H4"]
    assert f"inference: LSTM T1 B2 I5 H4; training: {'; '.join(CALLS)}" in real_models.line(row)

    real_models.save(tmp_path / "out.json", [row], options())
    record = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert set(record) == {"commit", "processor", "versions", "settings", "rows"}
    assert record["versions"] == {"torch": torch.__version__, "package": "1.0"}
    assert record["rows"][0]["ratio"] == dict.fromkeys(PARTS, 2.0)


@pytest.mark.long
def test_only_checked(capsys: pytest.CaptureFixture[str]) -> None:
    row = Row("package", "1.0", "model")
    real_models.measure(row, small, options(check_only=True))
    assert row.milliseconds == {} and max(row.differences.values()) < 1e-5


def test_a_model_that_cannot_be_built() -> None:
    with pytest.raises(NotBuilt, match="ImportError: no such module"):
        real_models.measure(Row("package", "1.0", "model"), not_there, options())


def test_a_package_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    there, missing = Published("torch", "one", small), Published("no-such-package", "two", small)
    assert real_models.installed([there, missing]) == [(there, importlib.metadata.version("torch"))]
    assert capsys.readouterr().out == "no-such-package is not installed: left out\n"


def test_models_have_names_of_their_own() -> None:
    assert len({str(model) for model in MODELS}) == len(MODELS)
