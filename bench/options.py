"""`python -m bench.options`: what options of the cells cost, and what the loops that they replace.

A training step of one layer without options, with one, and of loops over steps as users of torch write
them, the step as it is and compiled by torch.compile; where Keras 3 is installed also its layer, on torch.
Every way has a process of its own, and they take turns; medians, in ms. The loops' outputs and gradients of x
are those of the layer.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.peers import Prepared
from bench.turns import in_turns, turns_parser
from bench.worker import in_its_turn

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 128
SHAPES = ((32, 256), (1, 64))  # sequences, units
# Layer and options.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "LSTM, layer_norm": ("LSTM", {"layer_norm": "separate"}),
    "LSTM, joint layer_norm, cell_norm": ("LSTM", {"layer_norm": "joint", "cell_norm": "carried"}),
    "LSTM, peephole": ("LSTM", {"peephole": True}),
    "LSTM, zoneout": ("LSTM", {"zoneout": 0.1}),
    "LSTM, recurrent_dropout": ("LSTM", {"recurrent_dropout": 0.2}),
    "LSTM, num_heads=4": ("LSTM", {"num_heads": 4}),
    "GRU, layer_norm": ("GRU", {"layer_norm": "separate"}),
    "GRU, joint layer_norm": ("GRU", {"layer_norm": "joint", "update_bias": -1.0}),
    "GRU, zoneout": ("GRU", {"zoneout": 0.1}),
    "GRU, recurrent_dropout": ("GRU", {"recurrent_dropout": 0.2}),
    "GRU, reset_after=False": ("GRU", {"reset_after": False}),
    "GRU, num_heads=4": ("GRU", {"num_heads": 4}),
}
WAYS = ("plain", "with it", "loop", "compiled loop", "Keras")
RANDOM = ("zoneout", "recurrent_dropout")
KERAS = ("recurrent_dropout", "reset_after")


def has_keras(options: dict[str, Any]) -> bool:
    return importlib.util.find_spec("keras") is not None and set(options) <= set(KERAS)


def recurrent(layer: Any) -> Callable[[Tensor], Tensor]:
    """h -> W_hh h + b_hh, of heads one small product for each."""
    import torch
    from torch.nn.functional import linear

    weight, bias = layer.weight_hh_l0, layer.bias_hh_l0
    if weight.dim() == 2:
        return lambda h: linear(h, weight, bias)
    heads, gates = weight.size(0), weight.size(1) // weight.size(2)

    def by_head(h: Tensor) -> Tensor:
        parts = h.unflatten(1, (heads, -1)).transpose(0, 1)  # [heads, B, H / k]
        products = torch.bmm(parts, weight.transpose(1, 2)).unflatten(2, (gates, -1))
        return products.permute(1, 2, 0, 3).flatten(1) + bias

    return by_head


def lstm_step(layer: Any, options: dict[str, Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """(W_ih x + b_ih or its norm, h, c, mask of h) -> (h', c')."""
    import torch
    from torch.nn.functional import layer_norm

    own, units = dict(layer.named_parameters()), layer.hidden_size
    norm, multiply = options.get("layer_norm"), recurrent(layer)

    def step(x: Tensor, h: Tensor, c: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        product = multiply(h * mask)
        if norm == "separate":
            product = layer_norm(product, (4 * units,), own["norm_hh_weight_l0"], own["norm_hh_bias_l0"])
        gates = x + product
        if norm == "joint":
            gates = layer_norm(gates, (4 * units,), own["norm_weight_l0"], own["norm_bias_l0"])
        i, f, g, o = gates.chunk(4, 1)
        if "peephole" in options:
            p_i, p_f, p_o = own["weight_peephole_l0"]
            i, f = i + p_i * c, f + p_f * c
        new = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        if "cell_norm" in options:
            new = layer_norm(new, (units,), own["norm_c_weight_l0"], own["norm_c_bias_l0"])
        if "peephole" in options:
            o = o + p_o * new
        out = torch.sigmoid(o) * torch.tanh(new)
        if "zoneout" in options:
            keep = torch.rand(2, *h.shape) < options["zoneout"]
            out, new = torch.where(keep[0], h, out), torch.where(keep[1], c, new)
        return out, new

    return step


def gru_step(layer: Any, options: dict[str, Any]) -> Callable[..., tuple[Tensor, Tensor]]:
    """As lstm_step; c is handed through."""
    import torch
    from torch.nn.functional import layer_norm, linear

    own, units = dict(layer.named_parameters()), layer.hidden_size
    norm, multiply = options.get("layer_norm"), recurrent(layer)

    def joint(x: Tensor, h: Tensor, product: Tensor) -> Tensor:
        gates = layer_norm(x + product, (3 * units,), own["norm_weight_l0"], own["norm_bias_l0"])
        r, n, u = gates.chunk(3, 1)
        u = torch.sigmoid(u + options["update_bias"])
        return u * torch.tanh(torch.sigmoid(r) * n) + (1 - u) * h

    def reset_before(x: Tensor, h: Tensor) -> Tensor:
        w, b = own["weight_hh_l0"], own["bias_hh_l0"]
        x_r, x_z, x_n = x.chunk(3, 1)
        r, z = torch.sigmoid(torch.cat((x_r, x_z), 1) + linear(h, w[: 2 * units], b[: 2 * units])).chunk(2, 1)
        n = torch.tanh(x_n + linear(r * h, w[2 * units :], b[2 * units :]))
        return (1 - z) * n + z * h

    def step(x: Tensor, h: Tensor, c: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if "reset_after" in options:
            return reset_before(x, h), c
        product = multiply(h * mask)
        if norm == "joint":
            return joint(x, h, product), c
        if norm == "separate":
            product = layer_norm(product, (3 * units,), own["norm_hh_weight_l0"], own["norm_hh_bias_l0"])
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, 1), product.chunk(3, 1)
        z = torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
        out = (1 - z) * n + z * h
        if "zoneout" in options:
            out = torch.where(torch.rand_like(h) < options["zoneout"], h, out)
        return out, c

    return step


def loop(layer: Any, kind: str, options: dict[str, Any], compiled: bool) -> Callable[[Tensor], Tensor]:
    import torch
    from torch.nn.functional import dropout, layer_norm, linear

    own = dict(layer.named_parameters())
    step = (lstm_step if kind == "LSTM" else gru_step)(layer, options)
    if compiled:
        step = torch.compile(step, dynamic=False)

    def run(x: Tensor) -> Tensor:
        gates = linear(x, own["weight_ih_l0"], own.get("bias_ih_l0"))
        if options.get("layer_norm") == "separate":
            size = (gates.size(-1),)
            gates = layer_norm(gates, size, own["norm_ih_weight_l0"], own["norm_ih_bias_l0"])
        h = c = x.new_zeros(x.size(1), layer.hidden_size)
        mask = dropout(torch.ones_like(h), options.get("recurrent_dropout", 0.0))
        outputs = []
        for row in gates:
            h, c = step(row, h, c, mask)
            outputs.append(h)
        return torch.stack(outputs)

    return run


def keras_layer(kind: str, options: dict[str, Any], batch: int, units: int) -> Callable[[Tensor], Tensor]:
    import keras

    layer = getattr(keras.layers, kind)(units, return_sequences=True, **options)
    layer.build((batch, STEPS, units))
    return lambda x: layer(x.transpose(0, 1), training=True).transpose(0, 1)


def prepare(case: tuple[str, int, int], way: str) -> Prepared:
    """What is timed, and its output and the gradient of x."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import torch

    import rnnfused

    row, batch, units = case
    kind, options = ROWS[row]
    torch.manual_seed(0)
    layer = getattr(rnnfused, kind)(units, units, **({} if way == "plain" else options))
    x, outer = torch.randn(STEPS, batch, units), torch.randn(STEPS, batch, units)
    x.requires_grad_()
    call: Callable[[Tensor], Tensor] = lambda x: layer(x)[0]  # noqa: E731
    if way in ("loop", "compiled loop"):
        call = loop(layer, kind, options, way == "compiled loop")
    elif way == "Keras":
        call = keras_layer(kind, options, batch, units)
    y = torch.empty(0)

    def run() -> None:
        nonlocal y
        layer.zero_grad(set_to_none=True)
        x.grad = None
        y = call(x)
        y.backward(outer)

    def results() -> dict[str, np.ndarray]:
        assert x.grad is not None
        return {"y": y.detach().numpy(), "x": x.grad.numpy()}

    return Prepared(run, results)


def timed(row: str, batch: int, units: int, options: Any) -> dict[str, float]:
    of = ROWS[row][1]

    def check(results: dict[str, dict[str, np.ndarray]]) -> None:
        for way in ("loop", "compiled loop") if not set(of) & set(RANDOM) else ():
            for name, want in results[way].items():
                error = np.abs(results["with it"][name] - want).max() / np.abs(want).max()
                if not error <= 1e-3:
                    raise RuntimeError(f"{row}: {name} of the {way} differs by {error:.2g}")

    names = [way for way in WAYS if way != "Keras" or has_keras(of)]
    ways = {way: (prepare, (row, batch, units), way, options.threads) for way in names}
    taken: dict[str, float] = in_turns(in_its_turn, ways, options.rounds, options.seconds, check)
    cells = [f"{taken['plain']:.2f}", f"{taken['with it']:.2f} ({taken['with it'] / taken['plain']:.2f} x)"]
    for way in WAYS[2:]:
        ratio = taken[way] / taken["with it"] if way in taken else 0
        cells.append(f"{taken[way]:.1f} ({ratio:.1f} x)" if way in taken else "")
    print(f"| {row} | " + " | ".join(cells) + " |", flush=True)
    return taken


def main() -> int:
    parser = turns_parser("bench.options", __doc__)
    parser.add_argument("--match", nargs="+", default=[""], help="rows whose name contains one of these")
    options = parser.parse_args(sys.argv[1:])
    found = []
    for batch, units in SHAPES:
        print(f"training step, T {STEPS}, B {batch}, H {units}, float32, {options.threads} threads, ms\n")
        print("| layer | " + " | ".join(WAYS) + " |")
        print("|---" + "|---" * len(WAYS) + "|")
        for row in (row for row in ROWS if any(part in row for part in options.match)):
            taken = timed(row, batch, units, options)
            found.append({"row": row, "B": batch, "H": units, "threads": options.threads, "ms": taken})
        print(flush=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
