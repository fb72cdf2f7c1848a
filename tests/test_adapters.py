"""Reinforcement learning packages as they are, beside rnnfused in their place. Runs where they are installed
(pip install sb3-contrib torchrl rsl-rl-lib tensorboard); bench/recurrent_ppo.py measures one of them.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import rnnfused
from rnnfused import adapters


class Policy(torch.nn.Module):
    """What sb3-contrib's policies do with their LSTMs, step by step where an episode begins inside."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm_actor = torch.nn.LSTM(3, 5, 2)

    def _process_sequence(
        self, features: Tensor, states: Any, episode_starts: Tensor, lstm: torch.nn.LSTM
    ) -> tuple[Tensor, Any]:
        batch = states[0].shape[1]
        outputs = []
        starts = episode_starts.view(batch, -1).t()
        for x, start in zip(features.view(batch, -1, 3).transpose(0, 1), starts, strict=True):
            keep = (1 - start).view(1, batch, 1)
            y, states = lstm(x.unsqueeze(0), (keep * states[0], keep * states[1]))
            outputs.append(y)
        return torch.cat(outputs).transpose(0, 1).flatten(0, 1), states


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("steps", [1, 12])
def test_a_recurrent_policy(steps: int, share: float) -> None:
    before = Policy().double()
    after = adapters.recurrent_ppo(copy.deepcopy(before))
    assert isinstance(after.lstm_actor, rnnfused.LSTM)
    features = torch.randn(4 * steps, 3, dtype=torch.float64)
    states = tuple(torch.randn(2, 4, 5, dtype=torch.float64) for _ in range(2))
    starts = (torch.rand(4 * steps) < share).double()
    results = []
    for policy in (before, after):
        x = features.clone().requires_grad_()
        y, final = policy._process_sequence(x, states, starts, policy.lstm_actor)
        loss = y.square().sum() + final[1].sum()
        results.append([y, *final, *torch.autograd.grad(loss, [x, *policy.parameters()])])
    torch.testing.assert_close(results[0], results[1])


def test_what_is_no_such_policy() -> None:
    with pytest.raises(TypeError, match=r"expected a recurrent policy of sb3-contrib's .*, got Linear"):
        adapters.recurrent_ppo(torch.nn.Linear(2, 3))


def test_sb3_contrib_learns_the_same() -> None:
    pytest.importorskip("sb3_contrib")
    from sb3_contrib import RecurrentPPO

    parameters = []
    for adapted in (False, True):
        model = RecurrentPPO(
            "MlpLstmPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu"
        )
        if adapted:
            adapters.recurrent_ppo(model.policy)
        model.learn(256)
        parameters.append([p.detach() for p in model.policy.parameters()])
    torch.testing.assert_close(parameters[0], parameters[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_torchrl_means_the_same_by_is_init(kind: str) -> None:
    modules = pytest.importorskip("torchrl.modules")
    tensordict = pytest.importorskip("tensordict")
    batch, steps = 3, 7
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    theirs = getattr(modules, f"{kind}Module")(
        input_size=3,
        hidden_size=5,
        in_keys=["x", *states],
        out_keys=["y", *(("next", s) for s in states)],
    )
    ours = rnnfused.convert(copy.deepcopy(getattr(theirs, kind.lower())))
    x, is_init = torch.randn(batch, steps, 3), torch.rand(batch, steps, 1) < 0.3
    is_init[:, 0] = True
    data = tensordict.TensorDict(
        {"x": x, "is_init": is_init, **{s: torch.zeros(batch, steps, 1, 5) for s in states}}, [batch, steps]
    )
    with modules.set_recurrent_mode(True):
        want = theirs(data)["y"]
    y, _ = ours(x, resets=is_init.squeeze(-1))
    torch.testing.assert_close(y, want)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_rsl_rl_splits_where_we_reset(kind: str) -> None:
    """Its memory runs trajectories, cut out and padded; ours the rollout as it is."""
    modules, utils = pytest.importorskip("rsl_rl.modules"), pytest.importorskip("rsl_rl.utils")
    steps, batch = 9, 4
    memory = modules.RNN(3, 5, num_layers=2, type=kind)
    x, dones = torch.randn(steps, batch, 3), torch.rand(steps, batch) < 0.3
    trajectories, masks = utils.split_and_pad_trajectories(x, dones)
    zeros = torch.zeros(2, trajectories.shape[1], 5)
    hidden = (zeros, zeros) if kind == "lstm" else zeros
    want = memory(trajectories, masks, hidden)
    ours = rnnfused.convert(copy.deepcopy(memory))
    torch.testing.assert_close(ours(trajectories, masks, hidden), want)
    resets = torch.cat((torch.zeros(1, batch, dtype=torch.bool), dones[:-1]))
    torch.testing.assert_close(ours.rnn(x, resets=resets)[0], want)
