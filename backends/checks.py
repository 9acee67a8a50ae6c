"""What compiled kernels are handed: they read and write by address, so what does not fit must not reach them.

A definition that is given arrays of two sizes raises, or NumPy does for it. Compiled code reads what lies behind the
shorter one, and writes there. So every twin compares sizes and dtypes before its first kernel: some microseconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.base import Array

_FLOATS = np.dtype(np.float32), np.dtype(np.float64)
_WORDS = np.dtype(np.uint32)


def matrix_of_floats(operation: str, name: str, x: Array) -> tuple[int, int]:
    """The rows and columns of the array by which an operation measures its others.

    Raises:
        ValueError: another number of dimensions.
        TypeError: a dtype for which there is no kernel.
    """
    _floats(operation, name, x, 2, "rows and columns")
    rows, columns = x.shape
    return rows, columns


def vector_of_floats(operation: str, name: str, x: Array) -> None:
    """Likewise for the flat arrays.

    Raises:
        ValueError: another number of dimensions.
        TypeError: a dtype for which there is no kernel.
    """
    _floats(operation, name, x, 1, "one flat array")


def _floats(operation: str, name: str, x: Array, dimensions: int, wanted: str) -> None:
    if x.ndim != dimensions:
        raise ValueError(f"{operation}: {name} must be {wanted}, not of the shape {x.shape}")
    if x.dtype not in _FLOATS:
        raise TypeError(f"{operation}: {name} must be float32 or float64, not {x.dtype}")


def same_kind(operation: str, dtype: Any, *expected: tuple[str, Array, tuple[int, ...]]) -> None:
    """Arrays have the dtype and the shapes that the operation's first array asks for.

    Args:
        operation: for the message.
        dtype: of all of them.
        expected: name, array and the shape that it must have.

    Raises:
        ValueError: another shape.
        TypeError: another dtype.
    """
    for name, array, shape in expected:
        if array.shape != shape:
            raise ValueError(f"{operation}: {name} has the shape {array.shape}, but the other arrays ask for {shape}")
        if array.dtype != dtype:
            raise TypeError(f"{operation}: the arrays must share a dtype; {name} is {array.dtype} beside {dtype}")


def row_numbers(operation: str, numbers: Array, rows: int) -> None:
    """Dropout has the number of every row.

    Raises:
        ValueError: more or fewer numbers than rows.
        TypeError: another dtype than uint32, from which other masks would be drawn.
    """
    if numbers.shape != (rows,):
        raise ValueError(f"{operation}: {rows} rows need as many row_numbers of dropout, not the shape {numbers.shape}")
    if numbers.dtype != _WORDS:
        raise TypeError(f"{operation}: the row_numbers of dropout must be uint32, not {numbers.dtype}")


def indices(operation: str, name: str, ids: Array, count: int, size: int) -> None:
    """Every id names a row that is there: compiled code would read and write wherever it points.

    Args:
        operation: for the message.
        name: of the ids, likewise.
        ids: (count,) integers.
        count: how many there must be.
        size: of the table; ids go from 0 to size - 1.

    Raises:
        ValueError: another number of ids.
        TypeError: no integers.
        IndexError: an id outside the table.
    """
    if ids.shape != (count,):
        raise ValueError(f"{operation}: {name} has the shape {ids.shape}, but the other arrays ask for {(count,)}")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{operation}: {name} must be integers, not {ids.dtype}")
    if count and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        wrong = int(np.argmax((ids < 0) | (ids >= size)))
        raise IndexError(
            f"{operation}: {name}[{wrong}] is {int(ids[wrong])}, but the table has {size} rows, from 0 to {size - 1}"
        )
