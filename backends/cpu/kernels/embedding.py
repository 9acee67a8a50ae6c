"""Looking rows up in tables, and the scatter-add that is its gradient."""

from __future__ import annotations

import numpy as np
from numba import prange

from backends import checks
from backends.base import Array, Backend
from backends.cpu.kernels.jit import elementwise, parallel
from backends.cpu.kernels.sums import add_row


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
    count, columns = checks.check_matrix("embedding_backward", "dy", rows)
    checks.check_arrays("embedding_backward", rows.dtype, ("dtable", target, (*target.shape[:1], columns)))
    checks.check_indices("embedding_backward", "ids", ids, count, target.shape[0])
    _scatter(target, np.ascontiguousarray(ids), np.ascontiguousarray(rows))


def embedding_forward(backend: Backend, tables: tuple[Array, ...], ids: tuple[Array, ...]) -> Array:
    """The sum of one row of each table."""
    _, columns = checks.check_matrix("embedding_forward", "tables[0]", tables[0])
    for number, (table, rows) in enumerate(zip(tables, ids, strict=True)):
        shape = *table.shape[:1], columns
        checks.check_arrays("embedding_forward", tables[0].dtype, (f"tables[{number}]", table, shape))
        checks.check_integers("embedding_forward", f"ids[{number}]", rows, (ids[0].size,), ids[0].dtype)
        checks.check_indices("embedding_forward", f"ids[{number}]", rows, ids[0].size, table.shape[0])
    y = backend.empty((ids[0].shape[0], tables[0].shape[1]), tables[0].dtype)
    contiguous = tuple(np.ascontiguousarray(table) for table in tables)
    _look_up(contiguous, tuple(np.ascontiguousarray(rows) for rows in ids), y)
    return y


def embedding_backward(backend: Backend, dy: Array, ids: tuple[Array, ...], dtables: tuple[Array, ...]) -> None:
    """Adds dy to the rows of each table that were looked up."""
    for rows, dtable in zip(ids, dtables, strict=True):
        scatter_add(dtable, rows, dy)
