"""torch.nn's names while they are rnnfused's."""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rnnfused

NAMES = ["RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"]
PLACES = [torch.nn, torch.nn.modules, torch.nn.modules.rnn]
TORCHS = {name: getattr(torch.nn, name) for name in NAMES}


def patched() -> bool:
    """Whether the names are rnnfused's; all of them are, or none."""
    found = [(name, getattr(place, name)) for place in PLACES for name in NAMES]
    if all(kind is getattr(rnnfused, name) for name, kind in found):
        return True
    assert all(kind is TORCHS[name] for name, kind in found)
    return False


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    assert not patched()
    yield
    assert not patched()


def test_with() -> None:
    before = torch.nn.LSTM(3, 4)
    with rnnfused.patch():
        assert patched()
        layer = torch.nn.LSTM(3, 4)
        assert type(layer) is rnnfused.LSTM and isinstance(layer, torch.nn.LSTM)
        assert not isinstance(before, torch.nn.LSTM) and isinstance(before, torch.nn.RNNBase)
        assert type(rnnfused.convert(before)) is rnnfused.LSTM
    assert isinstance(layer, torch.nn.LSTM) and isinstance(before, torch.nn.LSTM)


def test_undo() -> None:
    patch = rnnfused.patch()
    assert patched()
    for _ in range(2):
        patch.undo()
        assert not patched()
    with patch:
        assert patched()


def test_an_exception() -> None:
    with pytest.raises(KeyError, match="inside"), rnnfused.patch():
        raise KeyError("inside")


def test_nested() -> None:
    with rnnfused.patch() as outer:
        with rnnfused.patch():
            assert patched()
        assert patched()
        with outer:
            assert patched()
        assert patched()


def test_the_last_to_end_gives_the_names_back() -> None:
    first, second = rnnfused.patch(), rnnfused.patch()
    first.undo()
    first.undo()
    assert patched()
    second.undo()


def test_what_others_put_in_a_place_stays() -> None:
    class Theirs(torch.nn.GRU):
        pass

    try:
        with rnnfused.patch():
            torch.nn.GRU = Theirs  # type: ignore[misc]
        assert torch.nn.GRU is Theirs
        with rnnfused.patch():
            assert torch.nn.GRU is rnnfused.GRU
        assert torch.nn.GRU is Theirs
    finally:
        torch.nn.GRU = TORCHS["GRU"]  # type: ignore[misc]


def test_a_package_that_is_imported_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
import torch.nn as nn
from torch.nn import GRU
from torch.nn.modules.rnn import LSTMCell

class Encoder(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Encoder(3, 4), nn.RNN(3, 4), GRU(3, 4), LSTMCell(3, 4)])
"""
    (tmp_path / "builds_its_own_layers.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with rnnfused.patch():
        package = importlib.import_module("builds_its_own_layers")
    monkeypatch.delitem(sys.modules, package.__name__)

    encoder, rnn, gru, cell = package.Model().layers
    assert isinstance(encoder, rnnfused.LSTM) and isinstance(encoder, torch.nn.LSTM)
    assert encoder(torch.ones(2, 1, 3)).shape == (2, 1, 4)
    assert type(rnn) is TORCHS["RNN"]  # which the package looks up when it makes one
    assert (type(gru), type(cell)) == (rnnfused.GRU, rnnfused.LSTMCell)
    with rnnfused.patch():
        assert type(package.Model().layers[1]) is rnnfused.RNN


def test_pickled_layers() -> None:
    theirs, ours, file = torch.nn.GRU(3, 4), rnnfused.GRU(3, 4), io.BytesIO()
    torch.save(theirs, file)
    file.seek(0)
    x = torch.ones(2, 1, 3)
    with rnnfused.patch():
        assert type(pickle.loads(pickle.dumps(ours))) is rnnfused.GRU
        loaded = torch.load(file, weights_only=False)  # which finds the class by its name
        with pytest.raises(pickle.PicklingError, match="not the same object"):
            pickle.dumps(theirs)
    assert type(loaded) is rnnfused.GRU
    torch.testing.assert_close(loaded(x), theirs(x))
    assert type(pickle.loads(pickle.dumps(theirs))) is torch.nn.GRU


@pytest.mark.filterwarnings("ignore:.*torch.jit.(script|trace)", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("inside", [True, False], ids=["made inside", "made before"])
def test_torchs_own_code_goes_on(inside: bool) -> None:
    model = torch.nn.Sequential(torch.nn.LSTM(3, 4))
    x = torch.ones(2, 1, 3)
    with rnnfused.patch():
        if inside:
            model = torch.nn.Sequential(torch.nn.LSTM(3, 4))
        torch.testing.assert_close(torch.jit.script(model)(x), model(x))
        torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))
        again = torch.nn.Sequential(torch.nn.LSTM(3, 4))
        again.load_state_dict(model.state_dict())
        torch.testing.assert_close(again(x), model(x))


def test_names_that_a_subclass_must_not_give_to_attributes() -> None:
    def made(name: str, value: Any) -> torch.nn.Module:
        class Own(torch.nn.LSTM):
            def __init__(self) -> None:
                super().__init__(3, 4)
                setattr(self, name, value)

        return Own()

    with rnnfused.patch():
        for name in ("layer_norm", "zoneout"):
            with pytest.raises(
                TypeError, match=f"{name}: expected an option of rnnfused's Own, got LayerNorm"
            ):
                made(name, torch.nn.LayerNorm(4))
        for name in ("_hx", "_states", "_config", "_layer", "_params", "_forward"):
            for value in (None, {}, torch.nn.Linear(2, 2)):
                with pytest.raises(
                    AttributeError, match=f"{name}: expected a name that rnnfused's layers leave"
                ):
                    made(name, value)
        for name in ("norm", "hx", "config", "hidden", "state"):
            made(name, None)(torch.zeros(2, 1, 3))
        free = made("forward", lambda x: 2 * x)  # as torch.nn's
        assert free(1) == 2


def test_full_graph() -> None:
    torch._dynamo.reset()
    with rnnfused.patch():
        layer = torch.nn.GRU(3, 4)
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        x = torch.ones(2, 1, 3)
        torch.testing.assert_close(compiled(x), layer(x))
