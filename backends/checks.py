"""Checks of the arrays that twins receive, the same on every device.

Compiled kernels read and write by address. An array that is shorter than the others would be read beyond its end, or
written there, without any error. So every twin checks all its arrays before it starts its first kernel.

The checks look only at shapes, dtypes and memory order. The host knows these even for arrays on a GPU, so a check takes
a microsecond or so, starts nothing on the device and never waits for it. The exception is `check_indices`, which reads
values: it is for host arrays only. Ids and labels that go to a GPU are checked on the host before the transfer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from backends.base import Array

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
"""The dtypes of kernels unless a device says otherwise. CuPy's dtypes are NumPy's."""

_UINT32 = np.dtype(np.uint32)


def check_matrix(operation: str, name: str, x: Array, dtypes: Sequence[np.dtype[Any]] = FLOATS) -> tuple[int, int]:
    """Check an operation's first array, a matrix. The shapes and dtypes of the other arrays must match it.

    Args:
        operation: the operation's name, for the error message.
        name: the array's name, for the error message.
        x: (rows, columns).
        dtypes: the dtypes for which there is a kernel.

    Returns:
        The numbers of rows and columns.

    Raises:
        ValueError: the array does not have two dimensions.
        TypeError: the array's dtype is none of `dtypes`.
    """
    if x.ndim != 2:
        raise ValueError(f"{operation}: {name} must have the shape (rows, columns), not {x.shape}")
    _check_dtype(operation, name, x, dtypes)
    rows, columns = x.shape
    return rows, columns


def check_vector(operation: str, name: str, x: Array, dtypes: Sequence[np.dtype[Any]] = FLOATS) -> int:
    """Check an operation's first array, a vector. The shapes and dtypes of the other arrays must match it.

    Args:
        operation: the operation's name, for the error message.
        name: the array's name, for the error message.
        x: (size,).
        dtypes: the dtypes for which there is a kernel.

    Returns:
        The number of elements.

    Raises:
        ValueError: the array does not have one dimension.
        TypeError: the array's dtype is none of `dtypes`.
    """
    if x.ndim != 1:
        raise ValueError(f"{operation}: {name} must have the shape (size,), not {x.shape}")
    _check_dtype(operation, name, x, dtypes)
    return int(x.shape[0])


def _check_dtype(operation: str, name: str, x: Array, dtypes: Sequence[np.dtype[Any]]) -> None:
    if x.dtype not in dtypes:
        raise TypeError(f"{operation}: {name} must be {' or '.join(map(str, dtypes))}, not {x.dtype}")


def check_arrays(operation: str, dtype: Any, *expected: tuple[str, Array, tuple[int, ...]]) -> None:
    """Check that arrays have the dtype and the shapes that follow from the operation's first array.

    Args:
        operation: the operation's name, for the error message.
        dtype: the dtype that all arrays must have.
        expected: for each array: its name, the array itself, and the shape that it must have.

    Raises:
        ValueError: a shape is wrong.
        TypeError: a dtype is wrong.
    """
    for name, array, shape in expected:
        check_shape(operation, name, array, shape)
        if array.dtype != dtype:
            raise TypeError(f"{operation}: the arrays must share a dtype, but {name} is {array.dtype} beside {dtype}")


def check_shape(operation: str, name: str, array: Array, shape: tuple[int, ...]) -> None:
    """Check that an array has the shape that follows from the operation's first array.

    Raises:
        ValueError: the shape is wrong.
    """
    found, wanted = tuple(array.shape), tuple(shape)  # PyTorch's shapes are no plain tuples
    if found != wanted:
        raise ValueError(f"{operation}: {name} has the shape {found}, but the other arrays ask for {wanted}")


def check_contiguous(operation: str, *outputs: tuple[str, Array]) -> None:
    """Check that a kernel may write to arrays from the first element to the last, without gaps.

    Args:
        operation: the operation's name, for the error message.
        outputs: the name and the array of each output. Inputs need no such check, since a kernel can read a contiguous
            copy of them.

    Raises:
        ValueError: the rows of an array do not follow one another in memory.
    """
    for name, array in outputs:
        if not array.flags.c_contiguous:
            raise ValueError(f"{operation}: {name} must be contiguous, because the kernel writes it without gaps")


def check_row_numbers(operation: str, row_numbers: Array, rows: int) -> None:
    """Check that dropout has a number for every row.

    Args:
        operation: the operation's name, for the error message.
        row_numbers: must be (rows,) uint32.
        rows: the number of rows to which dropout is applied.

    Raises:
        ValueError: there are more or fewer numbers than rows.
        TypeError: the dtype is not uint32; other dtypes would give other masks.
    """
    if row_numbers.shape != (rows,):
        raise ValueError(
            f"{operation}: dropout needs one row number for each of {rows} rows, not the shape {row_numbers.shape}"
        )
    if row_numbers.dtype != _UINT32:
        raise TypeError(f"{operation}: the row_numbers of dropout must be uint32, not {row_numbers.dtype}")


def check_integers(
    operation: str, name: str, integers: Array, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None
) -> None:
    """Check the shape and dtype of ids, labels or places, but not their values.

    Args:
        operation: the operation's name, for the error message.
        name: the integers' name, for the error message.
        integers: the ids, labels or places.
        shape: the shape that they must have.
        dtype: the only dtype that the kernel reads; None if it reads integers of any size.

    Raises:
        ValueError: a shape is wrong.
        TypeError: a dtype is wrong.
    """
    check_shape(operation, name, integers, shape)
    if integers.dtype.kind not in "iu":
        raise TypeError(f"{operation}: {name} must be integers, not {integers.dtype}")
    if dtype is not None and integers.dtype != dtype:
        raise TypeError(f"{operation}: {name} must be {dtype}, not {integers.dtype}")


def check_indices(operation: str, name: str, ids: Array, count: int, size: int) -> None:
    """Check that every id is the number of a row of its table. This reads all ids, so it takes host arrays only.

    Args:
        operation: the operation's name, for the error message.
        name: the ids' name, for the error message.
        ids: must be (count,) integers.
        count: how many ids there must be.
        size: rows of the table; ids go from 0 to size - 1.

    Raises:
        ValueError: there are more or fewer ids than `count`.
        TypeError: the ids are not integers.
        IndexError: an id is outside the table.
    """
    check_integers(operation, name, ids, (count,))
    if count and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        wrong = int(np.argmax((ids < 0) | (ids >= size)))
        raise IndexError(
            f"{operation}: {name}[{wrong}] is {int(ids[wrong])}, but the table has {size} rows, from 0 to {size - 1}"
        )


def check_linear_forward(x: Array, weight: Array, bias: Array | None, dtypes: Sequence[np.dtype[Any]] = FLOATS) -> None:
    """Check x (N, in), weight (out, in) and, if there is one, bias (out,). Raises the errors of `check_arrays`."""
    _, inputs = check_matrix("linear_forward", "x", x, dtypes)
    outputs, _ = check_matrix("linear_forward", "weight", weight, dtypes)
    check_arrays("linear_forward", x.dtype, ("weight", weight, (outputs, inputs)))
    if bias is not None:
        check_arrays("linear_forward", x.dtype, ("bias", bias, (outputs,)))


def check_linear_backward_weight(
    dy: Array, x: Array, dweight: Array, dbias: Array | None, dtypes: Sequence[np.dtype[Any]] = FLOATS
) -> None:
    """Check dy (N, out), x (N, in), dweight (out, in) and, if there is one, dbias (out,).

    Raises the errors of `check_arrays`, and a ValueError if dweight is not contiguous.
    """
    operation = "linear_backward_weight"
    rows, outputs = check_matrix(operation, "dy", dy, dtypes)
    _, inputs = check_matrix(operation, "x", x, dtypes)
    check_arrays(operation, dy.dtype, ("x", x, (rows, inputs)), ("dweight", dweight, (outputs, inputs)))
    check_contiguous(operation, ("dweight", dweight))
    if dbias is not None:
        check_arrays(operation, dy.dtype, ("dbias", dbias, (outputs,)))


def check_linear_backward_input(
    dy: Array, weight: Array, add_to: Array | None, dtypes: Sequence[np.dtype[Any]] = FLOATS
) -> None:
    """Check dy (N, out), weight (out, in) and, if there is one, add_to (N, in).

    Raises the errors of `check_arrays`, and a ValueError if add_to is not contiguous.
    """
    operation = "linear_backward_input"
    rows, outputs = check_matrix(operation, "dy", dy, dtypes)
    _, inputs = check_matrix(operation, "weight", weight, dtypes)
    check_arrays(operation, dy.dtype, ("weight", weight, (outputs, inputs)))
    if add_to is not None:
        check_arrays(operation, dy.dtype, ("add_to", add_to, (rows, inputs)))
        check_contiguous(operation, ("add_to", add_to))


def check_attention(
    operation: str,
    queries: Array,
    keys: Array,
    values: Array | None,
    layout: Any,
    dtypes: Sequence[np.dtype[Any]] = FLOATS,
) -> None:
    """Check the arrays of attention against each other and against its layout.

    Args:
        operation: the operation's name, for the error message.
        queries: (Nq, H).
        keys: (N, H).
        values: (N, H), or None where only weights are computed.
        layout: an `AttentionLayout` of `minibert.ops`: rows of the queries and the keys, mask, attention_heads.
        dtypes: the dtypes for which there is a kernel.

    Raises:
        ValueError: shapes do not match.
        TypeError: dtypes do not match.
    """
    query_rows, width = check_matrix(operation, "queries", queries, dtypes)
    key_rows, _ = check_matrix(operation, "keys", keys, dtypes)
    dtype = queries.dtype
    check_arrays(operation, dtype, ("keys", keys, (key_rows, width)))
    if values is not None:
        check_arrays(operation, dtype, ("values", values, (key_rows, width)))
    if width % layout.attention_heads:
        raise ValueError(f"{operation}: {width} columns cannot be shared by {layout.attention_heads} attention heads")
    sequences = layout.keys.sequences
    if layout.queries.sequences != sequences:
        found = layout.queries.sequences
        raise ValueError(f"{operation}: the queries have {found} sequences, but the keys have {sequences}")
    _check_rows(operation, "queries", query_rows, layout.queries)
    _check_rows(operation, "keys", key_rows, layout.keys)
    if layout.mask is not None:
        check_arrays(operation, dtype, ("mask", layout.mask, (sequences, 1, 1, layout.keys.slots)))


def check_attention_gradients(
    operation: str,
    queries: Array,
    keys: Array,
    dcontext: Array,
    dqueries: Array,
    dkeys: Array,
    dvalues: Array,
) -> None:
    """Check that each gradient has the shape and dtype of its array. Raises the errors of `check_arrays`."""
    check_arrays(
        operation,
        queries.dtype,
        ("dcontext", dcontext, queries.shape),
        ("dqueries", dqueries, queries.shape),
        ("dkeys", dkeys, keys.shape),
        ("dvalues", dvalues, keys.shape),
    )


def _check_rows(operation: str, name: str, count: int, rows: Any) -> None:
    """Check the `minibert.rows.Rows` of the queries or of the keys, and that it describes `count` rows."""
    slots = rows.sequences * rows.slots
    slot_of_row, row_of_slot = rows.slot_of_row, rows.row_of_slot
    if (slot_of_row is None) != (row_of_slot is None):
        raise ValueError(f"{operation}: the layout of the {name} needs both slot_of_row and row_of_slot, or neither")
    expected = slots if slot_of_row is None else slot_of_row.size
    if count != expected:
        raise ValueError(f"{operation}: the {name} have {count} rows, but the layout has {expected}")
    if slot_of_row is not None:
        check_integers(operation, f"slot_of_row of the {name}", slot_of_row, (count,))
        check_integers(operation, f"row_of_slot of the {name}", row_of_slot, (slots,))
