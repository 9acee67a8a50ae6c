"""Looking rows up in tables, and the scatter-add that is its gradient."""

from __future__ import annotations

import numpy as np
from numba import prange

from backends.base import Array, Backend
from backends.numba_kernels.jit import elementwise, parallel
from backends.numba_kernels.sums import add_row


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


@elementwise
def _scatter(target, ids, rows):
    for i in range(rows.shape[0]):
        add_row(rows[i], target[ids[i]])


def scatter_add(target: Array, ids: Array, rows: Array) -> None:
    """Add rows[i] to target[ids[i]], in place, in the order of i.

    On one thread: waking the others takes as long as all the additions of a usual batch.
    """
    _scatter(target, np.ascontiguousarray(ids), np.ascontiguousarray(rows))


def embedding_forward(backend: Backend, tables: tuple[Array, ...], ids: tuple[Array, ...]) -> Array:
    """The sum of one row of each table."""
    y = backend.empty((ids[0].shape[0], tables[0].shape[1]), tables[0].dtype)
    contiguous = tuple(np.ascontiguousarray(table) for table in tables)
    _look_up(contiguous, tuple(np.ascontiguousarray(rows) for rows in ids), y)
    return y
