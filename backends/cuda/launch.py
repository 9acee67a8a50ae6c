"""Compiles the CUDA kernels through CuPy, and launches them by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from backends.base import Array

NULL = np.uint64(0)
"""An address that a kernel takes for "no array"; CuPy would pass None on as garbage."""

_FOLDER = Path(__file__).parent
_SOURCES = ("kernels.cu", "attention.cu")
STORAGE_BITS = {"float16": 16, "float32": 32, "float64": 64}

_THREADS = 256  # of an elementwise block
WARP, _WARPS = 32, 4  # by-row kernels: a warp per row, four rows in a block
COLUMN_TILE, _LANES = 8, 128  # by-column kernels: 8 columns are at least one 32-byte sector of float32
_REAL_BYTES = 8  # of shared memory per number, whatever the dtype
_MOST_BLOCKS_DOWN = 65535  # of a grid, in its second direction


def source() -> str:
    """The CUDA C++ source of all kernels."""
    return "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in _SOURCES)


def options(dtype: str) -> tuple[str, ...]:
    """How NVRTC compiles the source for a dtype."""
    return (f"-DSTORAGE_BITS={STORAGE_BITS[dtype]}",)


def int32(value: int) -> np.int32:
    """A kernel's `int`.

    Raises:
        OverflowError: it does not fit.
    """
    if not -(2**31) <= value < 2**31:
        raise OverflowError(f"{value} rows or columns are too many for the CUDA kernels; divide the batch")
    return np.int32(value)


class CudaKernels:
    """The kernels on one device, compiled for a dtype when it is first used (CuPy keeps them on disk).

    Args:
        cupy: the module.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._modules: dict[str, Any] = {}
        self._functions: dict[tuple[str, str], Any] = {}

    def function(self, name: str, dtype: Any) -> Any:
        """The kernel of that name for a dtype.

        Raises:
            ValueError: a dtype that the kernels are not written for.
        """
        key = name, str(dtype)
        if key not in self._functions:
            if key[1] not in STORAGE_BITS:
                raise ValueError(f"the CUDA kernels compute {', '.join(STORAGE_BITS)}, not {key[1]}")
            if key[1] not in self._modules:
                self._modules[key[1]] = self._cupy.RawModule(code=source(), options=options(key[1]))
            self._functions[key] = self._modules[key[1]].get_function(name)
        return self._functions[key]

    def launch(
        self, name: str, dtype: Any, grid: tuple[int, ...], block: tuple[int, ...], arguments: Any, shared: int = 0
    ) -> None:
        """Queue a kernel on the current stream; a grid without blocks has nothing to do.

        Args:
            name: of the kernel.
            dtype: of the arrays.
            grid: blocks in up to three directions.
            block: threads of a block.
            arguments: arrays of the dtype (or of integers, or float32 statistics of float16), NumPy scalars, `NULL`.
            shared: bytes of dynamic shared memory.
        """
        if 0 not in grid:
            self.function(name, dtype)(grid, block, tuple(arguments), shared_mem=shared)

    def elementwise(self, name: str, dtype: Any, rows: int, columns: int, *arguments: Any) -> None:
        """Launch a kernel with a thread per column, `blockIdx.y` going over the rows."""
        threads = min(_THREADS, _rounded_up(columns, WARP))
        grid = (-(-columns // max(threads, 1)), min(rows, _MOST_BLOCKS_DOWN))
        self.launch(name, dtype, grid, (threads,), arguments)

    def by_row(self, name: str, dtype: Any, rows: int, *arguments: Any) -> None:
        """Launch a kernel with a warp per row."""
        self.launch(name, dtype, (-(-rows // _WARPS),), (WARP * _WARPS,), arguments)

    def by_column(self, name: str, dtype: Any, rows: int, columns: int, *arguments: Any) -> None:
        """Launch a kernel that sums over rows; also over none, which gives zeros."""
        block = column_block(rows)
        grid = (-(-columns // block[0]),)
        self.launch(name, dtype, grid, block, arguments, shared_bytes(block))

    def by_block(self, name: str, dtype: Any, rows: int, columns: int, *arguments: Any) -> None:
        """Launch a kernel with a whole block per row, for long rows."""
        threads = min(_THREADS, _rounded_up(columns, WARP))
        self.launch(name, dtype, (rows,), (threads,), arguments, threads // WARP * _REAL_BYTES)


def shared_bytes(block: tuple[int, int]) -> int:
    """The shared memory in which a by-column block adds up its lanes."""
    return block[0] * block[1] * _REAL_BYTES


def column_block(rows: int, least: int = 1) -> tuple[int, int]:
    """The block of a by-column kernel: columns, and as many lanes (a power of two) as the rows keep busy."""
    lanes = least
    while lanes < _LANES and 2 * lanes < rows:
        lanes *= 2
    return COLUMN_TILE, lanes


def _rounded_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def checked(dtype: Any, *arrays: Array) -> tuple[Array, ...]:
    """The arrays as the kernels read them: of the dtype, contiguous (copied only if they are not).

    Raises:
        TypeError: another dtype, which a kernel would read as garbage.
    """
    for array in arrays:
        if array.dtype != dtype:
            raise TypeError(f"arrays of one operation must share a dtype; got {array.dtype} beside {dtype}")
    return tuple(array if array.flags.c_contiguous else array.copy() for array in arrays)


def output(dtype: Any, shape: tuple[int, ...], *arrays: Array) -> None:
    """Make sure that kernels may write to arrays.

    Raises:
        TypeError, ValueError: another dtype or shape, or not contiguous.
    """
    for array in arrays:
        if array.dtype != dtype:
            raise TypeError(f"the result is {dtype}, the array for it {array.dtype}")
        if array.shape != shape or not array.flags.c_contiguous:
            raise ValueError(f"the result needs a contiguous array of the shape {shape}, not {array.shape}")


def dropout_arguments(dropout: Any) -> tuple[Any, ...]:
    """The five arguments by which kernels take dropout (see DROPOUT in cuda_kernels.cu), or none of it."""
    if dropout is None:
        return NULL, np.uint32(0), np.uint32(0), np.uint32(0), np.float64(0.0)
    low, high = dropout.key
    key = np.uint32(low), np.uint32(high)
    return dropout.row_numbers, *key, np.uint32(dropout.threshold), np.float64(dropout.keep_scale)
