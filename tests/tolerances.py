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

# float64 against float64 from NumPy or torch: sums of up to some hundred terms of order 1 in another order.
FLOAT64 = 1e-12
# The same of third derivatives, sums of some thousand terms up to some hundred in size.
FLOAT64_DERIVATIVES = 1e-9

# A central difference is off by step^2 (truncation) and by the rounding of a loss of order 10 over the step.
# Both stay near 1e-10 at this step: 1e-6 of a gradient of order 1 leaves room, and no wrong term hides in it.
DIFFERENCE_STEP = 1e-5
DIFFERENCE_RTOL = 1e-6
DIFFERENCE_ATOL = 1e-8

# Loss curves, in bits per character. Rounding differs between backends and grows from step to step:
# torch.nn's own distance from float64, after the same steps, says how much is normal; the floor is a few
# float32 roundings of a loss of 6 bits (2**-22). In float64 the same growth leaves all but the last third of
# the digits alone.
CURVE_TORCH_ERRORS = 8
CURVE_BITS = 8 * 2**-22
CURVE_FLOAT64_BITS = 2**-30

# Losses of the examples' first three steps, of order 1, in float32: some roundings of sums of some hundred
# terms, and what two updates by Adam, which divides small gradients by their own size, make of them.
EXAMPLES_CURVE = 1e-4

# float64 against float64 where a compiler fuses what is beside the layers: roundings of a few operations on
# values of order 1, and of sums of some ten terms.
COMPILED = 1e-14

# bfloat16 and float16, in units of their last place: sums, gates and c are float32; h, what is kept for
# backward and the gate gradients are rounded, each by half a unit at most.
NARROW_ROUNDINGS = 1.0


def eps(dtype: object) -> float:
    return float(np.finfo(np.dtype(dtype)).eps)


# ONNX Runtime against rnnfused in float32, in units of the last place of the largest value: each may be as
# far from the exact result as FLOOR_ULPS, ONNX Runtime with functions exp and tanh of its own.
ONNX_ULPS = 2 * FLOOR_ULPS
# Of 16-bit layers, which both compute in float32 and round once: they may round to either side.
ONNX_NARROW_ULPS = 1.5

# Layers of torch's operations in 16 bits, whose every operation rounds values of order 1 by half a unit: of a
# few steps of some twenty operations, in units of the last place of 1.
NARROW_OPERATIONS = 32.0

# Of about a thousand means of what is drawn by chance none is as many standard deviations off.
DEVIATIONS = 5.0
