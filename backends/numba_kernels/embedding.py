"""Looking rows up in tables, and the scatter-add that is its gradient."""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, prange

from backends.base import Array, Backend
from backends.numba_kernels.jit import elementwise, parallel
from backends.numba_kernels.sums import add_row

_BLOCK_COLUMNS = 32  # two cache lines of float32


@elementwise
def _look_up_row(tables, ids, i, y):
    first = tables[0][ids[0][i]]
    for j in range(y.shape[0]):
        y[j] = first[j]
    for k in range(1, len(tables)):
        add_row(tables[k][ids[k][i]], y)


@parallel
def _look_up(tables, ids, y):
    for i in prange(y.shape[0]):
        _look_up_row(tables, ids, i, y[i])


@parallel
def _scatter(target, ids, rows, parts):
    """Each thread takes some columns of all rows, so that none meets another, in whatever order ids come."""
    columns = rows.shape[1]
    chunk = (columns + parts - 1) // parts
    for part in prange(parts):
        start, end = part * chunk, min(columns, (part + 1) * chunk)
        if end > start:
            for i in range(rows.shape[0]):
                add_row(rows[i, start:end], target[ids[i], start:end])


def scatter_add(target: Array, ids: Array, rows: Array) -> None:
    """Add rows[i] to target[ids[i]], in place, in the order of i."""
    parts = max(1, min(get_num_threads(), rows.shape[1] // _BLOCK_COLUMNS))
    _scatter(target, np.ascontiguousarray(ids), np.ascontiguousarray(rows), parts)


def embedding_forward(backend: Backend, tables: tuple[Array, ...], ids: tuple[Array, ...]) -> Array:
    """The sum of one row of each table."""
    y = backend.empty((ids[0].shape[0], tables[0].shape[1]), tables[0].dtype)
    contiguous = tuple(np.ascontiguousarray(table) for table in tables)
    _look_up(contiguous, tuple(np.ascontiguousarray(rows) for rows in ids), y)
    return y
