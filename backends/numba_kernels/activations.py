"""Bias + GELU and its gradient, one pass over the array each."""

from __future__ import annotations

import numpy as np
from numba import prange

from backends.base import Array, Backend
from backends.numba_kernels.elementary import gelu, gelu_and_slope
from backends.numba_kernels.jit import BLOCK_ROWS, elementwise, parallel
from backends.numba_kernels.sums import add_blocks, add_row


@elementwise
def _gelu_row(x, bias, y):
    for j in range(x.shape[0]):
        y[j] = gelu(x[j] + bias[j])


@elementwise
def _gelu_backward_row(dy, x, bias, y):
    for j in range(x.shape[0]):
        y[j], slope = gelu_and_slope(x[j] + bias[j])
        dy[j] *= slope


@parallel
def _gelu_forward(x, bias, y):
    for i in prange(x.shape[0]):
        _gelu_row(x[i], bias, y[i])


@parallel
def _gelu_backward(dy, x, bias, y, partial_dbias):
    rows = x.shape[0]
    for block in prange(partial_dbias.shape[0]):
        partial_dbias[block, :] = 0
        for i in range(block * BLOCK_ROWS, min(rows, (block + 1) * BLOCK_ROWS)):
            _gelu_backward_row(dy[i], x[i], bias, y[i])
            add_row(dy[i], partial_dbias[block])


def bias_gelu_forward(backend: Backend, x: Array, bias: Array) -> Array:
    """y = gelu(x + bias)."""
    y = backend.empty(x.shape, x.dtype)
    _gelu_forward(np.ascontiguousarray(x), bias, y)
    return y


def bias_gelu_backward(backend: Backend, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Writes dbias; returns dx, in the memory of dy, which is in the cache already, and y."""
    dy, y = np.ascontiguousarray(dy), backend.empty(x.shape, x.dtype)
    partial_dbias = backend.empty((-(-x.shape[0] // BLOCK_ROWS), x.shape[1]), x.dtype)
    _gelu_backward(dy, np.ascontiguousarray(x), bias, y, partial_dbias)
    add_blocks(partial_dbias, dbias)
    return dy, y
