"""JAX: lax.scan under jit, the input projection of all steps as one product before it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.cases import Case, inputs, weights
from bench.peers import Prepared

__all__ = ["prepare"]


def prepare(case: Case, threads: int) -> Prepared:
    # XLA sizes its thread pool by the processors that the process may use.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp
    from jax import lax

    def cell(projected: Any, h_w: Any, h_b: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
        recurrent = states[0] @ h_w.T + h_b
        if case.cell == "rnn":
            return (jnp.tanh(projected + recurrent),)
        if case.cell == "lstm":
            i, f, g, o = jnp.split(projected + recurrent, 4, axis=-1)
            c = jax.nn.sigmoid(f) * states[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
            return jax.nn.sigmoid(o) * jnp.tanh(c), c
        x_r, x_z, x_n = jnp.split(projected, 3, axis=-1)
        h_r, h_z, h_n = jnp.split(recurrent, 3, axis=-1)
        n = jnp.tanh(x_n + jax.nn.sigmoid(x_r + h_r) * h_n)
        return (n + jax.nn.sigmoid(x_z + h_z) * (states[0] - n),)

    def zeros() -> tuple[Any, ...]:
        state = jnp.zeros((case.batch, case.hidden), jnp.float32)
        return (state, state) if case.cell == "lstm" else (state,)

    def direction(parameters: dict[str, Any], x: Any, suffix: str, states: tuple[Any, ...]) -> Any:
        w_ih, w_hh, b_ih, b_hh = (
            parameters[f"{name}_{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )

        def step(states: tuple[Any, ...], projected: Any) -> tuple[tuple[Any, ...], Any]:
            states = cell(projected, w_hh, b_hh, states)
            return states, states[0]

        return lax.scan(step, states, x @ w_ih.T + b_ih, reverse=suffix.endswith("reverse"))

    def forward(parameters: dict[str, Any], x: Any) -> Any:
        for layer in range(case.layers):
            suffixes = (f"l{layer}", f"l{layer}_reverse")[: case.directions]
            x = jnp.concatenate([direction(parameters, x, suffix, zeros())[1] for suffix in suffixes], -1)
        return x

    parameters = {name: jnp.asarray(value) for name, value in weights(case).items()}
    x = jnp.asarray(inputs(case))
    if case.mode == "streaming":
        return _streaming(jax.jit(lambda p, x, states: direction(p, x, "l0", states)), parameters, x, zeros())
    if not case.trains:
        return _calls(jax.jit(forward), (parameters, x), lambda y: {"y": y})

    def loss(parameters: dict[str, Any], x: Any) -> tuple[Any, Any]:
        y = forward(parameters, x)
        return y.sum(), y

    return _calls(
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)),
        (parameters, x),
        lambda found: {"y": found[0][1], "x": found[1][1], **found[1][0]},
    )


def _calls(
    function: Callable[..., Any], arguments: tuple[Any, ...], named: Callable[[Any], dict[str, Any]]
) -> Prepared:
    import jax

    found: Any = None

    def run() -> None:
        nonlocal found
        found = jax.block_until_ready(function(*arguments))

    return Prepared(run, lambda: {name: np.asarray(value) for name, value in named(found).items()})


def _streaming(function: Callable[..., Any], parameters: Any, x: Any, states: Any) -> Prepared:
    import jax

    first: Any = None

    def run() -> None:
        nonlocal states, first
        states, y = jax.block_until_ready(function(parameters, x, states))
        first = y if first is None else first

    return Prepared(run, lambda: {"y": np.asarray(first)})
