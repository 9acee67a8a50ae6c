"""Sums over rows (for the gradients of biases and layer norms) and over a whole array (for the gradients' norm)."""

from __future__ import annotations

import numpy as np
from numba import prange

from backends import checks
from backends.base import Array, Backend
from backends.cpu.kernels.jit import BLOCK_ROWS, elementwise, parallel, summing

_BLOCK = 1 << 14  # elements of the flat array that one partial sum covers


@elementwise
def add_row(row, total):
    """Add a row: total += row."""
    for j in range(row.shape[0]):
        total[j] += row[j]


@elementwise
def add_blocks(blocks, total):
    """Write the sum of the rows of `blocks` (blocks, C) into total (C,)."""
    total[:] = 0
    for i in range(blocks.shape[0]):
        add_row(blocks[i], total)


@parallel
def _column_sums(x, partial):
    rows = x.shape[0]
    for block in prange(partial.shape[0]):
        partial[block, :] = 0
        for i in range(block * BLOCK_ROWS, min(rows, (block + 1) * BLOCK_ROWS)):
            add_row(x[i], partial[block])


def column_sums(backend: Backend, x: Array, total: Array) -> None:
    """Write the sum of x (N, C) over its rows into total (C,)."""
    partial = backend.empty((-(-x.shape[0] // BLOCK_ROWS), x.shape[1]), x.dtype)
    _column_sums(x, partial)
    add_blocks(partial, total)


@summing
def _square_sum(x):
    total = x.dtype.type(0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    return np.float64(total)


@parallel
def _square_sums(x, partial):
    size = x.shape[0]
    for block in prange(partial.shape[0]):
        partial[block] = _square_sum(x[block * _BLOCK : min(size, (block + 1) * _BLOCK)])


def squared_norm(backend: Backend, x: Array) -> Array:
    """Return the sum of the squares of x (P,), a 0-d array. Raises the errors of `checks`."""
    checks.check_vector("squared_norm", "x", x)
    partial = np.empty(max(1, -(-x.shape[0] // _BLOCK)), dtype=np.float64)
    _square_sums(x, partial)
    return np.asarray(partial.sum(), dtype=x.dtype)
