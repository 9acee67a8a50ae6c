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
    """Check the array whose shape and dtype the operation's other arrays must match.

    Args:
        operation: for the message.
        name: of the array, for the message.
        x: (rows, columns).
        dtypes: those for which there is a kernel.

    Returns:
        Its rows and columns.

    Raises:
        ValueError: it has not two dimensions.
        TypeError: its dtype is none of `dtypes`.
    """
    if x.ndim != 2:
        raise ValueError(f"{operation}: {name} must have the shape (rows, columns), not {x.shape}")
    _check_dtype(operation, name, x, dtypes)
    rows, columns = x.shape
    return rows, columns


def check_vector(operation: str, name: str, x: Array, dtypes: Sequence[np.dtype[Any]] = FLOATS) -> int:
    """Check an operation's first array, where it is a flat one.

    Args:
        operation: for the message.
        name: of the array, for the message.
        x: (size,).
        dtypes: those for which there is a kernel.

    Returns:
        Its size.

    Raises:
        ValueError: it has not one dimension.
        TypeError: its dtype is none of `dtypes`.
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
        operation: for the message.
        dtype: of all the arrays.
        expected: for each array its name, the array, and the shape it must have.

    Raises:
        ValueError: another shape.
        TypeError: another dtype.
    """
    for name, array, shape in expected:
        _check_shape(operation, name, array, shape)
        if array.dtype != dtype:
            raise TypeError(f"{operation}: the arrays must share a dtype, but {name} is {array.dtype} beside {dtype}")


def _check_shape(operation: str, name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{operation}: {name} has the shape {array.shape}, but the other arrays ask for {shape}")


def check_contiguous(operation: str, *outputs: tuple[str, Array]) -> None:
    """Check that a kernel may write to arrays from the first element to the last, without gaps.

    Args:
        operation: for the message.
        outputs: name and array. Inputs need no such check, since a contiguous copy of them serves as well.

    Raises:
        ValueError: the rows of an array do not follow one another in memory.
    """
    for name, array in outputs:
        if not array.flags.c_contiguous:
            raise ValueError(f"{operation}: {name} must be contiguous, because the kernel writes it without gaps")


def check_row_numbers(operation: str, row_numbers: Array, rows: int) -> None:
    """Check that dropout has a number for every row.

    Args:
        operation: for the message.
        row_numbers: must be (rows,) uint32.
        rows: of the array to which dropout is applied.

    Raises:
        ValueError: more or fewer numbers than rows.
        TypeError: a dtype other than uint32, from which other masks would be drawn.
    """
    if row_numbers.shape != (rows,):
        raise ValueError(
            f"{operation}: {rows} rows need as many row_numbers of dropout, not the shape {row_numbers.shape}"
        )
    if row_numbers.dtype != _UINT32:
        raise TypeError(f"{operation}: the row_numbers of dropout must be uint32, not {row_numbers.dtype}")


def check_integers(
    operation: str, name: str, integers: Array, shape: tuple[int, ...], dtype: np.dtype[Any] | None = None
) -> None:
    """Check the shape and dtype of ids, labels or places, but not their values.

    Args:
        operation: for the message.
        name: of the integers, for the message.
        integers: must have the shape `shape`.
        shape: of the integers.
        dtype: the only dtype that the kernel reads; None if it reads integers of any size.

    Raises:
        ValueError: another shape.
        TypeError: another dtype.
    """
    _check_shape(operation, name, integers, shape)
    if integers.dtype.kind not in "iu":
        raise TypeError(f"{operation}: {name} must be integers, not {integers.dtype}")
    if dtype is not None and integers.dtype != dtype:
        raise TypeError(f"{operation}: {name} must be {dtype}, not {integers.dtype}")


def check_indices(operation: str, name: str, ids: Array, count: int, size: int) -> None:
    """Check that every id names a row of its table. For host arrays only: this reads all ids.

    Args:
        operation: for the message.
        name: of the ids, for the message.
        ids: must be (count,) integers.
        count: how many ids there must be.
        size: rows of the table; ids go from 0 to size - 1.

    Raises:
        ValueError: another number of ids.
        TypeError: no integers.
        IndexError: an id outside the table.
    """
    check_integers(operation, name, ids, (count,))
    if count and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        wrong = int(np.argmax((ids < 0) | (ids >= size)))
        raise IndexError(
            f"{operation}: {name}[{wrong}] is {int(ids[wrong])}, but the table has {size} rows, from 0 to {size - 1}"
        )


def check_linear_forward(x: Array, weight: Array, bias: Array | None, dtypes: Sequence[np.dtype[Any]] = FLOATS) -> None:
    """Check x (N, in), weight (out, in) and, if there is one, bias (out,). Raises as the functions above do."""
    _, inputs = check_matrix("linear_forward", "x", x, dtypes)
    outputs, _ = check_matrix("linear_forward", "weight", weight, dtypes)
    check_arrays("linear_forward", x.dtype, ("weight", weight, (outputs, inputs)))
    if bias is not None:
        check_arrays("linear_forward", x.dtype, ("bias", bias, (outputs,)))


def check_linear_backward_weight(
    dy: Array, x: Array, dweight: Array, dbias: Array | None, dtypes: Sequence[np.dtype[Any]] = FLOATS
) -> None:
    """Check dy (N, out), x (N, in), dweight (out, in) and, if there is one, dbias (out,).

    Raises as the functions above do, also if dweight is not contiguous.
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

    Raises as the functions above do, also if add_to is not contiguous.
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
        operation: for the message.
        queries: (Nq, H).
        keys: (N, H).
        values: (N, H), or None where only weights are computed.
        layout: an `AttentionLayout` of `minibert.ops`: rows of the queries and the keys, mask, attention_heads.
        dtypes: those for which there is a kernel.

    Raises:
        ValueError: shapes that do not match.
        TypeError: dtypes that do not match.
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
        raise ValueError(f"{operation}: queries of {layout.queries.sequences} sequences, but keys of {sequences}")
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
    """Check that gradients have the shapes and the dtype of what they are gradients of. Raises as `check_arrays`."""
    check_arrays(
        operation,
        queries.dtype,
        ("dcontext", dcontext, queries.shape),
        ("dqueries", dqueries, queries.shape),
        ("dkeys", dkeys, keys.shape),
        ("dvalues", dvalues, keys.shape),
    )


def _check_rows(operation: str, name: str, count: int, rows: Any) -> None:
    """Check a `minibert.rows.Rows` and the number of rows for which it stands, that of the queries or of the keys."""
    slots = rows.sequences * rows.slots
    slot_of_row, row_of_slot = rows.slot_of_row, rows.row_of_slot
    if (slot_of_row is None) != (row_of_slot is None):
        raise ValueError(f"{operation}: the layout of the {name} needs both slot_of_row and row_of_slot, or neither")
    expected = slots if slot_of_row is None else slot_of_row.size
    if count != expected:
        raise ValueError(f"{operation}: {count} rows of {name}, but the layout has {expected}")
    if slot_of_row is not None:
        check_integers(operation, f"slot_of_row of the {name}", slot_of_row, (count,))
        check_integers(operation, f"row_of_slot of the {name}", row_of_slot, (slots,))
