"""`python -m bench.recurrent_ppo`: sb3-contrib's RecurrentPPO with rnnfused's adapter and without.

Frames a second of learning (rollouts and updates) on CartPole, whose episodes are short: most sequences hold
several. Each way has a process of its own, and they take turns; medians. Needs pip install sb3-contrib.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

from bench.turns import in_turns

SIZES = [(8, 128, 64), (8, 128, 256)]  # environments, steps of a rollout, units
WAYS = ("torch.nn", "rnnfused")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.recurrent_ppo", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    return parser.parse_args(arguments)


def work(way: str, size: tuple[int, int, int], parent: Connection) -> None:
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env

    from rnnfused import adapters

    environments, steps, units = size
    model = RecurrentPPO(
        "MlpLstmPolicy",
        make_vec_env("CartPole-v1", environments, seed=0),
        n_steps=steps,
        batch_size=environments * steps // 4,
        n_epochs=4,
        seed=0,
        device="cpu",
        policy_kwargs={"lstm_hidden_size": units},
    )
    if way == "rnnfused":
        adapters.recurrent_ppo(model.policy)
    frames = environments * steps
    model.learn(frames)
    parent.send(None)
    while parent.recv():
        start = time.perf_counter()
        model.learn(frames, reset_num_timesteps=False)
        parent.send(frames / (time.perf_counter() - start))


def main() -> int:
    options = parse(sys.argv[1:])
    versions = {name: version(name) for name in ("sb3-contrib", "stable-baselines3", "gymnasium", "torch")}
    print(", ".join(f"{name} {number}" for name, number in versions.items()) + "\n")
    print(
        "| environments, steps, units | torch.nn, frames/s | rnnfused, frames/s | ratio |\n|---|---|---|---|"
    )
    found = []
    for size in SIZES:
        rates = in_turns(
            work, {way: (way, size) for way in WAYS}, options.rounds, "a rollout and its updates"
        )
        before, after = (rates[way] for way in WAYS)
        print(f"| {size} | {before:.0f} | {after:.0f} | {after / before:.2f} |", flush=True)
        found.append({"size": size, "frames_per_second": rates})
    if options.output:
        options.output.write_text(json.dumps({"versions": versions, "rows": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
