"""Matrix products with operands rounded to bfloat16 and sums in float32, for processors with AVX512-BF16.

The structure is that of GotoBLAS (Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008):
blocks of A and B are *packed*, that is rounded and put in the order in which they are read; then tiles of C are
computed, whose sums stay in registers. The packed layouts, with TR = TILE_ROWS and TC = TILE_COLUMNS:

    B: (blocks of k, panels of TC columns, pairs, TC)
    A: (rows, pairs) if the k of a row lie side by side in memory, otherwise (tiles of TR rows, pairs, 16 rows)

Every element of C is summed over k in the same order, however C is divided among the threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import get_num_threads, prange

from backends.base import Array, Backend
from backends.cpu.kernels.bfloat16_instructions import (
    DEPTH,
    PANEL_ROW,
    ROW_BYTES,
    UNROLLED,
    has_bfloat16,
    pair_columns,
    pair_rows,
    round_row,
    tile_of_pairs,
    tile_of_rows,
)
from backends.cpu.kernels.jit import called, parallel
from backends.cpu.kernels.vector_instructions import TILE_COLUMNS, TILE_ROWS, VECTOR_BYTES, aligned

__all__ = ["Workspace", "has_bfloat16", "multiply", "multiply_on_this_thread", "workspace"]

_TILES = 16  # tiles of rows in a block of A; the block then takes 112 KiB of the second-level cache
_BLOCK_ROWS = _TILES * TILE_ROWS
_TILE_BYTES = DEPTH // 2 * VECTOR_BYTES + VECTOR_BYTES  # tiles whose distance is a power of two would share cache sets
_BLOCK_BYTES = _TILES * max(_TILE_BYTES, TILE_ROWS * ROW_BYTES)
_WORK_BYTES = _BLOCK_BYTES + DEPTH // 2 * PANEL_ROW  # for one thread's block of A and panel of B
_ROWS_AT_ONCE = 8  # of B, from which a panel is packed; more rows are more than the processor prefetches at a time
_SMALL = 1 << 22  # multiplications that take about as long as the start of a parallel kernel
_STEP = 32  # how many k are packed at once; blocks are filled up with zeros to a multiple

_ZEROS = np.zeros(TILE_COLUMNS, dtype=np.float32)
"""The numbers that the products of a tile's row are added to, if there are no others."""


@called
def _panel_bytes(k):
    """Return the bytes of a packed panel of B (k, n) in one block of k."""
    return (min(k, DEPTH) + _STEP - 1) // _STEP * (_STEP // 2) * PANEL_ROW


@called
def _pack_rows(b, ldb, n, panel, first_row, rows, existing, target):
    """Pack some rows of one panel of B (k, n); the first `existing` of them exist, the others are zeros."""
    for row in range(0, rows, 2):
        for column in range(0, TILE_COLUMNS, 16):
            j = panel * TILE_COLUMNS + column
            source = b + (first_row + row) * ldb + j * 4
            first = n - j if row < existing else 0
            second = n - j if row + 1 < existing else 0
            pair_rows(source, first, source + ldb, second, target + row // 2 * PANEL_ROW + column * 4)


@called
def _pack_panel(transposed, b, ldb, n, panel, k0, depth, target):
    """Pack one panel of one block of k; B is stored as (n, k) if `transposed`, otherwise as (k, n)."""
    if not transposed:
        _pack_rows(b, ldb, n, panel, k0, depth + -depth % _STEP, depth, target)
        return
    for column in range(0, TILE_COLUMNS, 16):
        j = panel * TILE_COLUMNS + column
        for kk in range(0, depth, _STEP):
            source = b + j * ldb + (k0 + kk) * 4
            pair_columns(source, ldb, n - j, depth - kk, target + kk // 2 * PANEL_ROW + column * 4, PANEL_ROW)


@called
def _pack_panels(transposed, b, ldb, k, n, first_panel, last_panel, panels, target):
    """Pack some panels of B, in all blocks of k."""
    size = _panel_bytes(k)
    for k0 in range(0, k, DEPTH):
        depth, to = min(DEPTH, k - k0), target + k0 // DEPTH * panels * size
        if transposed:
            for panel in range(first_panel, last_panel):
                _pack_panel(transposed, b, ldb, n, panel, k0, depth, to + panel * size)
        else:  # a few rows of all panels, as these rows lie in memory
            for kk in range(0, depth + -depth % _STEP, _ROWS_AT_ONCE):
                for panel in range(first_panel, last_panel):
                    here = to + panel * size + kk // 2 * PANEL_ROW
                    _pack_rows(b, ldb, n, panel, k0 + kk, _ROWS_AT_ONCE, depth - kk, here)


@called
def _pack_block(transposed, a, lda, rows, depth, target):
    """Pack a block of A (rows, depth)."""
    if not transposed:
        for i in range(rows):
            for kk in range(0, depth, _STEP):
                round_row(a + i * lda + kk * 4, depth - kk, target + i * ROW_BYTES + kk * 2)
        return
    for kk in range(0, depth + -depth % _STEP, 2):
        for tile in range(0, rows, TILE_ROWS):
            count = min(TILE_ROWS, rows - tile)
            source = a + kk * lda + tile * 4
            first = count if kk < depth else 0
            second = count if kk + 1 < depth else 0
            pair_rows(
                source, first, source + lda, second, target + tile // TILE_ROWS * _TILE_BYTES + kk // 2 * VECTOR_BYTES
            )


@called
def _multiply_share(
    transpose_a,
    transpose_b,
    a,
    lda,
    b,
    ldb,
    packed,
    start,
    start_strides,
    c,
    ldc,
    first_row,
    last_row,
    first_panel,
    last_panel,
    n,
    k,
    work,
):
    """Compute some rows and panels of C.

    If not `packed`, each panel of B is packed just before it is used. `work` is memory of _WORK_BYTES.
    """
    panels, size = (n + TILE_COLUMNS - 1) // TILE_COLUMNS, _panel_bytes(k)
    for i in range(first_row, last_row, _BLOCK_ROWS):
        rows = min(_BLOCK_ROWS, last_row - i)
        for k0 in range(0, k, DEPTH):
            depth = min(DEPTH, k - k0)
            pairs = (depth + 2 * UNROLLED - 1) // (2 * UNROLLED) * UNROLLED
            block = a + k0 * lda + i * 4 if transpose_a else a + i * lda + k0 * 4
            _pack_block(transpose_a, block, lda, rows, depth, work)
            base, (ld_base, base_step) = (start, start_strides) if k0 == 0 else (c, (ldc, 4))
            for number in range(first_panel, last_panel):
                if packed:
                    panel = b + (k0 // DEPTH * panels + number) * size
                else:
                    panel = work + _BLOCK_BYTES
                    _pack_panel(transpose_b, b, ldb, n, number, k0, depth, panel)
                column = number * TILE_COLUMNS
                columns = min(TILE_COLUMNS, n - column)
                for tile in range(0, rows, TILE_ROWS):
                    count = min(TILE_ROWS, rows - tile)
                    here = base + (i + tile) * ld_base + column * base_step
                    to = c + (i + tile) * ldc + column * 4
                    if transpose_a:
                        packed_a = work + tile // TILE_ROWS * _TILE_BYTES
                        tile_of_pairs(packed_a, panel, pairs, here, ld_base, to, ldc, count, columns)
                    else:
                        packed_a = work + tile * ROW_BYTES
                        tile_of_rows(packed_a, panel, pairs, here, ld_base, to, ldc, count, columns)


@called
def _multiply_on_this_thread(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc, work, zeros):
    """Compute C = A B, or C += A B, inside a kernel. The matrices are given as for `backends.cpu.kernels.blas.product`.

    Args:
        transpose_a: True if A (m, k) is stored as (k, m).
        transpose_b: True if B (k, n) is stored as (n, k).
        m: rows of C.
        n: columns of C.
        k: columns of A and rows of B, over which the products are summed; at least 1.
        a: address of A.
        lda: elements from one stored row of A to the next.
        b: address of B.
        ldb: elements from one stored row of B to the next.
        accumulate: True to add to C, False to overwrite C.
        c: address of C.
        ldc: elements from one row of C to the next.
        work: address of this thread's part of `Workspace`.
        zeros: as in `Workspace`.
    """
    panels = (n + TILE_COLUMNS - 1) // TILE_COLUMNS
    start, start_strides = (c, (4 * ldc, 4)) if accumulate else (zeros, (0, 0))
    _multiply_share(
        transpose_a,
        transpose_b,
        a,
        4 * lda,
        b,
        4 * ldb,
        False,
        start,
        start_strides,
        c,
        4 * ldc,
        0,
        m,
        0,
        panels,
        n,
        k,
        work,
    )


@called
def _multiply_nowhere(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc, work, zeros):
    """Do nothing, and need no instructions; never called, since `workspace` raises an error first."""


multiply_on_this_thread = _multiply_on_this_thread if has_bfloat16() else _multiply_nowhere
"""The function that kernels call. A kernel is compiled as a whole, on processors without the instructions, too."""


class Workspace(NamedTuple):
    """Memory for `multiply_on_this_thread`, for all threads.

    Attributes:
        memory: keeps the memory alive.
        address: of the first thread's part; 0 in the precision "float32", where it is not used.
        part: bytes from one thread's part to the next.
        zeros: address of TILE_COLUMNS zeros.
    """

    memory: Array
    address: int
    part: int
    zeros: int


def workspace(backend: Backend, dtype: Any) -> Workspace:
    """Return memory for the products of all threads; no memory in the precision "float32".

    Raises:
        TypeError: the precision is "bfloat16", but the dtype is not float32 or the processor lacks the instructions.
    """
    if backend.precision != "bfloat16":
        return Workspace(_ZEROS, 0, 0, 0)
    check_rounding(dtype)
    memory = backend.empty((get_num_threads() * _WORK_BYTES + VECTOR_BYTES,), "uint8")
    return Workspace(memory, aligned(memory), _WORK_BYTES, _ZEROS.ctypes.data)


def check_rounding(dtype: Any) -> None:
    """Check that matrices of a dtype can be multiplied in bfloat16 here.

    Raises:
        TypeError: the dtype is not float32, or the processor lacks the instructions.
    """
    if dtype != "float32":
        raise TypeError(f"bfloat16 products need float32 arrays, not {dtype}")
    if not has_bfloat16():
        raise TypeError("the processor that Numba compiles for lacks avx512bf16; use the precision float32")


# Two kernels, not two loops of one: Numba may fuse neighbouring loops, since it cannot see through addresses that the
# product reads what the packing of another thread writes.


@called
def share_of_tiles(part, parts, m, n):
    """Return the first and last row, and the first and last panel, of one part of C (m, n) in whole tiles.

    The longer side of C is divided. The division decides no bit of the result.
    """
    panels = (n + TILE_COLUMNS - 1) // TILE_COLUMNS
    if m >= n:
        rows = ((m + TILE_ROWS - 1) // TILE_ROWS + parts - 1) // parts * TILE_ROWS
        return part * rows, min(m, (part + 1) * rows), 0, panels
    each = (panels + parts - 1) // parts
    return 0, m, part * each, min(panels, (part + 1) * each)


@parallel
def _pack(transposed, n, k, b, ldb, target, parts):
    """Pack B (k, n), its panels divided among the threads."""
    panels = (n + TILE_COLUMNS - 1) // TILE_COLUMNS
    each = (panels + parts - 1) // parts
    for part in prange(parts):
        _pack_panels(transposed, b, ldb, k, n, part * each, min(panels, (part + 1) * each), panels, target)


@parallel
def _divided_product(
    transpose_a, transpose_b, m, n, k, a, lda, b, ldb, packed, start, start_strides, c, ldc, work, parts
):
    """Compute C = start + A B with the longer side of C (m, n) divided among the threads."""
    for part in prange(parts):
        first_row, last_row, first_panel, last_panel = share_of_tiles(part, parts, m, n)
        _multiply_share(
            transpose_a,
            transpose_b,
            a,
            lda,
            b,
            ldb,
            packed,
            start,
            start_strides,
            c,
            ldc,
            first_row,
            last_row,
            first_panel,
            last_panel,
            n,
            k,
            work + part * _WORK_BYTES,
        )


def multiply(
    backend: Backend,
    transpose_a: bool,
    transpose_b: bool,
    m: int,
    n: int,
    k: int,
    a: int,
    lda: int,
    b: int,
    ldb: int,
    accumulate: bool,
    bias: Array,
    c: Array,
) -> None:
    """Compute C = A B, C = bias + A B or C += A B, with A and B rounded to bfloat16, on all threads.

    `backends.cpu.kernels.blas.multiply` has checked the shapes.

    Args:
        backend: gives memory for the packed matrices.
        transpose_a: True if A (m, k) is stored as (k, m).
        transpose_b: True if B (k, n) is stored as (n, k).
        m: rows of C.
        n: columns of C.
        k: columns of A and rows of B, over which the products are summed.
        a: address of A, float32.
        lda: elements from one stored row of A to the next.
        b: address of B, float32.
        ldb: elements from one stored row of B to the next.
        accumulate: True to add to C, False to overwrite C.
        bias: (n,), or (0,) for no bias; contiguous.
        c: (m, n) float32, contiguous.

    Raises:
        TypeError: C is not float32 (the other arrays have its dtype), or the processor lacks the instructions.
    """
    check_rounding(c.dtype)
    if k == 0 and not accumulate:
        c[...] = bias if bias.size else 0.0
    if 0 in (m, n, k):
        return
    if accumulate:
        start, start_strides = c, (4 * n, 4)
    else:
        start, start_strides = (bias, (0, 4)) if bias.size else (_ZEROS, (0, 0))
    parts = get_num_threads()
    # Packing B beforehand pays if several blocks of A use its panels, or if the panels are long strips of a B stored as
    # (k, n), which are read faster side by side. Otherwise each panel is packed just before it is used.
    packed = (m > _BLOCK_ROWS and m * n * k > _SMALL) or (not transpose_b and k > DEPTH)
    packed_bytes = -(-n // TILE_COLUMNS) * -(-k // DEPTH) * _panel_bytes(k) if packed else 0
    memory = backend.empty((packed_bytes + parts * _WORK_BYTES + VECTOR_BYTES,), "uint8")
    work = aligned(memory)
    packed_b = work + parts * _WORK_BYTES
    if packed:
        _pack(transpose_b, n, k, b, 4 * ldb, packed_b, parts)
    _divided_product(
        transpose_a,
        transpose_b,
        m,
        n,
        k,
        a,
        4 * lda,
        packed_b if packed else b,
        4 * ldb,
        packed,
        start.ctypes.data,
        start_strides,
        c.ctypes.data,
        4 * n,
        work,
        parts,
    )
