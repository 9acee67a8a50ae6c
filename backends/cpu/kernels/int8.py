"""The product of linear layers in int8, for processors with AVX512-VNNI: y = x weight.T + bias.

The structure is that of `bfloat16`: blocks of A = x and of B = weight.T are quantised and *packed*, that is put in the
order in which they are read; then tiles of C = y are computed, whose sums stay in registers. A row of A has one scale,
so it is packed as a whole, and k is not divided into blocks. The packed layouts, with TC = TILE_COLUMNS:

    B: (panels of TC columns, quads, TC), then (columns,) scales and sums
    A: (tiles of TR = TILE_ROWS rows, steps of STEP numbers, TR, STEP), then (rows,) scales and lowest numbers

Sums of int8 products are exact. So the result does not depend on how C is divided among the threads, and has the bits
of the definition in NumPy.
"""

from __future__ import annotations

from numba import get_num_threads, prange

from backends.base import LONGEST_INT8_ROW, Array, Backend
from backends.cpu.kernels.bfloat16 import share_of_tiles
from backends.cpu.kernels.int8_instructions import (
    PANEL_ROW,
    STEP,
    TILE_STEP,
    has_int8,
    quantise_channels,
    quantise_row,
    tile_product,
)
from backends.cpu.kernels.jit import called, parallel
from backends.cpu.kernels.vector_instructions import TILE_COLUMNS, TILE_ROWS, VECTOR_BYTES, aligned

__all__ = ["has_int8", "multiply"]

_BLOCK_BYTES = 128 << 10  # of a block of A, an eighth of the second-level cache of the processors in question
_MOST_TILES = 16  # tiles of rows in a block of A


@called
def _steps(k):
    """Return how many steps of packed numbers a row of A or B has."""
    return (k + STEP - 1) // STEP


@called
def _panel_bytes(k):
    """Return the bytes of a packed panel of B."""
    return _steps(k) * (STEP // 4) * PANEL_ROW


@called
def _pack_panels(b, ldb, n, k, first_panel, last_panel, target, scales, sums):
    """Quantise and pack some panels of B, which is stored as (n, k)."""
    for panel in range(first_panel, last_panel):
        for column in range(0, TILE_COLUMNS, 16):
            j = panel * TILE_COLUMNS + column
            to = target + panel * _panel_bytes(k) + column * 4
            quantise_channels(b + j * ldb, ldb, n - j, k, to, PANEL_ROW, scales + j * 4, sums + j * 4)


@called
def _multiply_share(
    a, lda, packed_b, scales_b, sums, bias, c, ldc, first_row, last_row, first_panel, last_panel, n, k, block_rows, work
):
    """Compute some rows and panels of C; `work` is memory for a block of A."""
    steps = _steps(k)
    scales_a = work + block_rows * steps * STEP
    lowest = scales_a + block_rows * 4
    for i in range(first_row, last_row, block_rows):
        rows = min(block_rows, last_row - i)
        for row in range(rows):
            to = work + row // TILE_ROWS * steps * TILE_STEP + row % TILE_ROWS * STEP
            quantise_row(a + (i + row) * lda, k, to, scales_a + row * 4, lowest + row * 4)
        for panel in range(first_panel, last_panel):
            column = panel * TILE_COLUMNS
            for row in range(0, rows, TILE_ROWS):
                tile_product(
                    work + row * steps * STEP,
                    scales_a + row * 4,
                    lowest + row * 4,
                    packed_b + panel * _panel_bytes(k),
                    steps,
                    scales_b + column * 4,
                    sums + column * 4,
                    bias + column * 4,
                    c + (i + row) * ldc + column * 4,
                    ldc,
                    min(TILE_ROWS, rows - row),
                    min(TILE_COLUMNS, n - column),
                )


# Two kernels, not two loops of one, for the reason that `bfloat16` gives.


@parallel
def _pack(n, k, b, ldb, target, scales, sums, parts):
    """Pack B, its panels divided among the threads."""
    panels = (n + TILE_COLUMNS - 1) // TILE_COLUMNS
    each = (panels + parts - 1) // parts
    for part in prange(parts):
        _pack_panels(b, ldb, n, k, part * each, min(panels, (part + 1) * each), target, scales, sums)


@parallel
def _divided_product(m, n, k, a, lda, packed_b, scales_b, sums, bias, c, block_rows, work, work_bytes, parts):
    """Compute C = A B + bias with the longer side of C (m, n) divided among the threads; B is packed."""
    for part in prange(parts):
        first_row, last_row, first_panel, last_panel = share_of_tiles(part, parts, m, n)
        _multiply_share(
            a,
            lda,
            packed_b,
            scales_b,
            sums,
            bias,
            c,
            4 * n,
            first_row,
            last_row,
            first_panel,
            last_panel,
            n,
            k,
            block_rows,
            work + part * work_bytes,
        )


def multiply(
    backend: Backend, m: int, n: int, k: int, a: int, lda: int, b: int, ldb: int, bias: Array, c: Array
) -> None:
    """Compute C = A B.T + bias, with the rows of A and of B quantised to 8 bits, on all threads.

    `backends.cpu.kernels.blas.multiply` has checked the shapes.

    Args:
        backend: gives memory for the packed matrices.
        m: rows of A and of C.
        n: rows of B and columns of C.
        k: columns of A and of B, over which the products are summed.
        a: address of A, float32.
        lda: elements from one row of A to the next.
        b: address of B, float32.
        ldb: elements from one row of B to the next.
        bias: (n,), or (0,) for no bias; contiguous.
        c: (m, n) float32, contiguous.

    Raises:
        TypeError: C is not float32. The other arrays have its dtype.
        ValueError: k is too large for sums of 32 bits.
        TypingError: the processor lacks the instructions; see `has_int8`.
    """
    if c.dtype.name != "float32":
        raise TypeError(f"int8 products need float32 arrays, not {c.dtype}")
    if k > LONGEST_INT8_ROW:
        raise ValueError(f"int8 products sum over at most {LONGEST_INT8_ROW:,} numbers, not {k:,}")
    if not bias.size:
        bias = backend.empty((n,), c.dtype)
        bias[...] = 0
    if k == 0:
        c[...] = bias
    if 0 in (m, n, k):
        return
    parts = get_num_threads()
    panels, tile_bytes = -(-n // TILE_COLUMNS), _steps(k) * TILE_STEP
    columns = panels * TILE_COLUMNS
    tiles = min(max(_BLOCK_BYTES // tile_bytes, 1), _MOST_TILES, -(-m // TILE_ROWS))
    block_rows = tiles * TILE_ROWS
    work_bytes = tiles * tile_bytes + block_rows * 8 + -(block_rows * 8) % VECTOR_BYTES
    packed_bytes = panels * _panel_bytes(k)
    memory = backend.empty((packed_bytes + columns * 8 + parts * work_bytes + VECTOR_BYTES,), "uint8")
    target = aligned(memory)
    scales = target + packed_bytes
    sums = scales + columns * 4
    work = sums + columns * 4
    _pack(n, k, b, 4 * ldb, target, scales, sums, parts)
    start, result = bias.ctypes.data, c.ctypes.data
    _divided_product(m, n, k, a, 4 * lda, target, scales, sums, start, result, block_rows, work, work_bytes, parts)
