"""The only numbers that tests compare with, each with its reason."""

from __future__ import annotations

import numpy as np

# Against an exact result, an error may be this many times that of torch.nn in the same dtype (the project's
# bound)...
TORCH_ERRORS = 2.0
# ... or this many units of the last place of the largest value, where torch happens to be nearly exact: one
# rounding of each of the about five operations between a product and what is compared, twice over for their
# own bounds.
FLOOR_ULPS = 10.0

# float64 against NumPy in float64: sums of up to some hundred terms in another order.
FLOAT64 = 1e-12


def eps(dtype: object) -> float:
    return float(np.finfo(np.dtype(dtype)).eps)
