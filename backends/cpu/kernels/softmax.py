"""Find the maximum of a row, and clip scores to a bound, for attention and cross-entropy."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from backends.cpu.kernels.jit import elementwise, summing


@elementwise
def clip(x, bound):
    """Clip x to the range from -bound to bound; NaN stays NaN."""
    x = -bound if x < -bound else x
    return bound if x > bound else x


@summing
def _largest32(bits):
    largest = np.int32(-0x7FFFFFFF - 1)
    for j in range(bits.shape[0]):
        word = bits[j]
        word = np.int32(word ^ np.int32((word >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        largest = max(largest, word)
    return np.int32(largest ^ np.int32((largest >> np.int32(31)) & np.int32(0x7FFFFFFF)))


def row_maximum(x):
    """Return the maximum of a row; for compiled code.

    Read as integers, the bits of floats have the order of the floats, once the bits of the negative floats are
    inverted. The compiler finds the largest integer with vector instructions. It would not do so for floats, since any
    of them could be NaN. (A positive NaN counts as the largest; a negative NaN makes the sum of exponentials NaN.)
    """
    return x.max()


@overload(row_maximum)
def _row_maximum(x):
    if x.dtype == types.float32:
        return lambda x: np.int32(_largest32(x.view(np.int32))).view(np.float32)
    return lambda x: _largest_float(x)


@elementwise
def _largest_float(x):
    largest = x[0]
    for j in range(1, x.shape[0]):
        if x[j] > largest or x[j] != x[j]:
            largest = x[j]
    return largest
