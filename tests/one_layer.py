"""One layer of any registered cell, called by the cell's name: the operator without a module around it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rnnfused._layer import LayerConfig
from rnnfused._ops import recurrent

__all__ = ["layer"]

SLOTS = 5  # of a direction's weights: W_ih, W_hh, b_ih, b_hh, W_hr, the last three possibly None


def layer(
    cell: str,
    x: Tensor,
    initial: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    batch_sizes: Tensor | None = None,
    recompute: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """x: [T, B, I] or packed rows; initial: h [D, B, P], c [D, B, H]. Returns y and the final states."""
    config = LayerConfig(
        cell,
        bidirectional=len(weights) == 2 * SLOTS,
        bias=weights[2] is not None,
        projected=weights[4] is not None,
        recompute=recompute,
    )
    y, *final = recurrent(config, x, initial, [w for w in weights if w is not None], batch_sizes)
    return y, tuple(final)
