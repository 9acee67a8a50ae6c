"""Compute dropout, and the arguments of every kernel that draws a dropout mask."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numba import prange

from backends import checks
from backends.base import Array, Backend
from backends.cpu.kernels.bits import counter_word, counter_words, kept
from backends.cpu.kernels.elementary import type_of
from backends.cpu.kernels.jit import elementwise, parallel

_NO_ROWS = np.empty(0, dtype=np.uint32)


class DropoutPlan(Protocol):
    """The attributes of `minibert.ops.Dropout` that kernels need; this package does not import minibert."""

    @property
    def threshold(self) -> int: ...  # noqa: D102

    @property
    def keep_scale(self) -> float: ...  # noqa: D102

    @property
    def key(self) -> tuple[int, int]: ...  # noqa: D102

    @property
    def row_numbers(self) -> Array: ...  # noqa: D102


def plan(operation: str, dropout: DropoutPlan | None, rows: int, dtype: Any) -> tuple[Array, tuple[Any, Any, Any, Any]]:
    """Return dropout as kernels take it: the row numbers, and (threshold, row_key, column_key, keep_scale).

    Args:
        operation: the operation's name, for error messages.
        dropout: the dropout, or None; then the row numbers are empty.
        rows: how many row numbers there must be.
        dtype: the dtype of keep_scale.

    Raises:
        ValueError: there is not one row number for each row.
        TypeError: the row numbers are not uint32.
    """
    if dropout is None:
        return _NO_ROWS, (np.uint32(0), np.uint32(0), np.uint32(0), dtype.type(1.0))
    checks.check_row_numbers(operation, dropout.row_numbers, rows)
    row_key, column_key = dropout.key
    keep_scale = dtype.type(dropout.keep_scale)
    factors = np.uint32(dropout.threshold), np.uint32(row_key), np.uint32(column_key), keep_scale
    return np.ascontiguousarray(dropout.row_numbers), factors


@elementwise
def _drop_row(x, row_word, column_words, threshold, keep_scale, y):
    for j in range(x.shape[0]):
        keep = kept(row_word, column_words[j], threshold)
        dropout_mask = keep_scale if keep else type_of(keep_scale, 0.0)
        y[j] = x[j] * dropout_mask


@parallel
def _drop(x, dropout, row_numbers, y):
    threshold, row_key, column_key, keep_scale = dropout
    column_words = counter_words(x.shape[1], column_key)
    for i in prange(x.shape[0]):
        _drop_row(x[i], counter_word(row_numbers[i], row_key), column_words, threshold, keep_scale, y[i])


def dropout_forward(backend: Backend, x: Array, dropout: DropoutPlan | None) -> Array:
    """Return y = x * dropout_mask; without dropout (None), x itself. Raises the errors of `checks`."""
    if dropout is None:
        return x
    rows, _ = checks.check_matrix("dropout", "x", x)
    row_numbers, factors = plan("dropout", dropout, rows, x.dtype)
    y = backend.empty(x.shape, x.dtype)
    _drop(np.ascontiguousarray(x), factors, row_numbers, y)
    return y


def dropout_backward(backend: Backend, dy: Array, dropout: DropoutPlan | None) -> Array:
    """Return dx = dy * dropout_mask, with the mask of the forward pass."""
    # y = x * dropout_mask
    return dropout_forward(backend, dy, dropout)
