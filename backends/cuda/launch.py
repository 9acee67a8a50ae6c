"""Compile the CUDA kernels through CuPy, and launch them by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from backends import checks
from backends.base import Array

NULL = np.uint64(0)
"""The address that means "no array" to a kernel. A kernel would receive an undefined value for None."""

_FOLDER = Path(__file__).parent
_SOURCES = ("kernels.cu", "attention.cu")
STORAGE_BITS = {"float16": 16, "float32": 32, "float64": 64}
FLOATS = tuple(np.dtype(name) for name in STORAGE_BITS)
"""The dtypes that the kernels compute in."""
INT32 = np.dtype("int32")
"""The dtype of all ids, labels and places that the kernels read."""

_THREADS = 256  # threads in a block of an elementwise kernel
WARP, _WARPS = 32, 4  # by-row kernels: a warp per row, four rows in a block
COLUMN_TILE, _LANES = 8, 128  # by-column kernels: 8 columns are at least one 32-byte sector of float32
_REAL_BYTES = 8  # bytes of shared memory per number, enough for every dtype
_MOST_BLOCKS_DOWN = 65535  # CUDA's limit for the second direction of a grid


def source() -> str:
    """Return the CUDA C++ source of all kernels."""
    return "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SOURCES)


def options(dtype: str) -> tuple[str, ...]:
    """Return NVRTC's options for a dtype."""
    return (f"-DSTORAGE_BITS={STORAGE_BITS[dtype]}",)


def int32(value: int) -> np.int32:
    """Return a number of rows or columns as a kernel's `int`.

    Raises:
        OverflowError: the number is too large.
    """
    if not -(2**31) <= value < 2**31:
        raise OverflowError(f"{value} rows or columns are too many for the CUDA kernels: use a smaller batch")
    return np.int32(value)


class CudaKernels:
    """The kernels on one device. They are compiled for a dtype at its first use, and CuPy keeps them on disk.

    Args:
        cupy: the module.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._modules: dict[str, Any] = {}
        self._functions: dict[tuple[str, str], Any] = {}

    def function(self, name: str, dtype: Any) -> Any:
        """Return a kernel, compiled for a dtype.

        Args:
            name: the kernel's name.
            dtype: the dtype of its arrays.

        Raises:
            ValueError: the kernels are not written for this dtype.
        """
        key = name, str(dtype)
        if key not in self._functions:
            if key[1] not in STORAGE_BITS:
                raise ValueError(f"the CUDA kernels compute in {', '.join(STORAGE_BITS)}, not in {key[1]}")
            if key[1] not in self._modules:
                self._modules[key[1]] = self._cupy.RawModule(code=source(), options=options(key[1]))
            self._functions[key] = self._modules[key[1]].get_function(name)
        return self._functions[key]

    def launch(
        self,
        name: str,
        dtype: Any,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: tuple[Any, ...],
        shared: int = 0,
    ) -> None:
        """Queue a kernel on the current stream. A grid without blocks is not launched, since it has nothing to do.

        Args:
            name: the kernel's name.
            dtype: the dtype of the arrays.
            grid: the numbers of blocks in up to three directions.
            block: the numbers of threads of a block in up to three directions.
            arguments: in the order of the kernel's parameters. Arrays have the dtype (but ids are int32, and the
                statistics of float16 are float32); numbers are NumPy scalars; `NULL` stands for an absent array.
            shared: bytes of dynamic shared memory.
        """
        if 0 not in grid:
            self.function(name, dtype)(grid, block, arguments, shared_mem=shared)

    def elementwise(self, name: str, dtype: Any, rows: int, columns: int, arguments: tuple[Any, ...]) -> None:
        """Launch a kernel with a thread per column. `blockIdx.y` counts the rows."""
        threads = min(_THREADS, _rounded_up(columns, WARP))
        grid = (-(-columns // max(threads, 1)), min(rows, _MOST_BLOCKS_DOWN))
        self.launch(name, dtype, grid, (threads,), arguments)

    def flat(self, name: str, dtype: Any, size: int, arguments: tuple[Any, ...]) -> None:
        """Launch a kernel with a thread per element of a flat array."""
        self.launch(name, dtype, (-(-size // _THREADS),), (_THREADS,), arguments)

    def by_row(self, name: str, dtype: Any, rows: int, arguments: tuple[Any, ...]) -> None:
        """Launch a kernel with a warp per row."""
        self.launch(name, dtype, (-(-rows // _WARPS),), (WARP * _WARPS,), arguments)

    def by_column(self, name: str, dtype: Any, rows: int, columns: int, arguments: tuple[Any, ...]) -> None:
        """Launch a kernel that sums over rows. If there are no rows, it still runs, and writes zeros."""
        block = column_block(rows)
        grid = (-(-columns // block[0]),)
        self.launch(name, dtype, grid, block, arguments, shared_bytes(block))

    def by_block(self, name: str, dtype: Any, rows: int, columns: int, arguments: tuple[Any, ...]) -> None:
        """Launch a kernel with a whole block per row, for long rows."""
        threads = min(_THREADS, _rounded_up(columns, WARP))
        self.launch(name, dtype, (rows,), (threads,), arguments, threads // WARP * _REAL_BYTES)


def shared_bytes(block: tuple[int, int]) -> int:
    """Return the bytes of shared memory in which a by-column block adds up its lanes."""
    return block[0] * block[1] * _REAL_BYTES


def column_block(rows: int, least: int = 1) -> tuple[int, int]:
    """Return the block of a by-column kernel as (columns, lanes).

    Args:
        rows: the number of rows to sum.
        least: the smallest number of lanes, a power of two. It is doubled while each lane has more than two rows.
    """
    lanes = least
    while lanes < _LANES and 2 * lanes < rows:
        lanes *= 2
    return COLUMN_TILE, lanes


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def contiguous(x: Array) -> Array:
    """Return an input as kernels read it, without gaps: the array itself, or a copy of it (one launch)."""
    return x if x.flags.c_contiguous else x.copy()


def dropout_arguments(operation: str, dropout: Any, rows: int) -> tuple[Any, ...]:
    """Return the five arguments by which kernels take dropout (see DROPOUT in kernels.cu).

    Args:
        operation: the operation's name, for the error message.
        dropout: a `Dropout` of `minibert.ops`, or None.
        rows: the number of rows to which dropout is applied.

    Raises:
        ValueError, TypeError: `check_row_numbers` refuses the row numbers.
    """
    if dropout is None:
        return NULL, np.uint32(0), np.uint32(0), np.uint32(0), np.float64(0.0)
    checks.check_row_numbers(operation, dropout.row_numbers, rows)
    row_key, column_key = dropout.key
    return (
        contiguous(dropout.row_numbers),
        np.uint32(row_key),
        np.uint32(column_key),
        np.uint32(dropout.threshold),
        np.float64(dropout.keep_scale),
    )
