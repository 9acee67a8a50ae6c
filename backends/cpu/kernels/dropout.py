"""Dropout alone, and what every kernel that draws a dropout mask needs to know."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numba import prange

from backends import checks
from backends.base import Array, Backend
from backends.cpu.kernels.bits import column_words, counter_word, kept
from backends.cpu.kernels.elementary import type_of
from backends.cpu.kernels.jit import elementwise, parallel

_NO_ROWS = np.empty(0, dtype=np.uint32)


class DropoutPlan(Protocol):
    """`minibert.ops.Dropout`, which this package does not import."""

    @property
    def threshold(self) -> int: ...  # noqa: D102

    @property
    def keep_scale(self) -> float: ...  # noqa: D102

    @property
    def key(self) -> tuple[int, int]: ...  # noqa: D102

    @property
    def row_numbers(self) -> Array: ...  # noqa: D102


def plan(operation: str, dropout: DropoutPlan | None, rows: int, dtype: Any) -> tuple[Array, tuple[Any, Any, Any, Any]]:
    """What kernels take: the numbers of the rows (none without dropout), and four numbers.

    These are the threshold that an element's bits must reach to be kept, the two words of the key, and the
    factor on what is kept. `operation` is for the message about row numbers that are not one for each row.
    """
    if dropout is None:
        return _NO_ROWS, (np.uint32(0), np.uint32(0), np.uint32(0), dtype.type(1.0))
    checks.check_row_numbers(operation, dropout.row_numbers, rows)
    row_key, column_key = dropout.key
    factor = dtype.type(dropout.keep_scale)
    factors = np.uint32(dropout.threshold), np.uint32(row_key), np.uint32(column_key), factor
    return np.ascontiguousarray(dropout.row_numbers), factors


@elementwise
def _drop_row(x, row_word, words, threshold, keep_scale, y):
    for j in range(x.shape[0]):
        y[j] = x[j] * (keep_scale if kept(row_word, words[j], threshold) else type_of(keep_scale, 0.0))


@parallel
def _drop(x, dropout, numbers, y):
    threshold, row_key, column_key, keep_scale = dropout
    words = column_words(x.shape[1], column_key)
    for i in prange(x.shape[0]):
        _drop_row(x[i], counter_word(numbers[i], row_key), words, threshold, keep_scale, y[i])


def dropout_forward(backend: Backend, x: Array, dropout: DropoutPlan | None) -> Array:
    """y = x * mask; without dropout, x itself."""
    if dropout is None:
        return x
    rows, _ = checks.check_matrix("dropout", "x", x)
    numbers, factors = plan("dropout", dropout, rows, x.dtype)
    y = backend.empty(x.shape, x.dtype)
    _drop(np.ascontiguousarray(x), factors, numbers, y)
    return y


def dropout_backward(backend: Backend, dy: Array, dropout: DropoutPlan | None) -> Array:
    """Returns dx: dropping out the gradient is dropout's gradient."""
    return dropout_forward(backend, dy, dropout)
