"""Matrix products with operands rounded to bfloat16 and sums in float32, for processors with AVX512-BF16.

The structure is that of GotoBLAS (Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008):
blocks of A and B are *packed*, that is rounded and put in the order in which they are read; then tiles of C are
computed, whose sums stay in registers. The packed layouts, with TR = TILE_ROWS and TC = TILE_COLUMNS:

    B: (blocks of k, panels of TC columns, pairs, TC)
    A: (rows, pairs) if the k of a row lie side by side in memory, otherwise (tiles of TR rows, pairs, 16 rows)

Every element of C is summed over k in the same order, however C is divided among the threads.
"""

from __future__ import annotations

from numba import get_num_threads, prange

from backends.base import Array, Backend
from backends.cpu.kernels.bfloat16_instructions import (
    DEPTH,
    PANEL_ROW,
    ROW_BYTES,
    TILE_COLUMNS,
    TILE_ROWS,
    UNROLLED,
    has_bfloat16,
    pair_columns,
    pair_rows,
    round_row,
    tile_of_pairs,
    tile_of_rows,
)
from backends.cpu.kernels.jit import elementwise, parallel
from backends.cpu.kernels.vector_instructions import VECTOR_BYTES

__all__ = ["has_bfloat16", "multiply"]

_TILES = 16  # tiles of rows in a block of A; the block then takes 112 KiB of the second-level cache
_BLOCK_ROWS = _TILES * TILE_ROWS
_TILE_BYTES = DEPTH // 2 * VECTOR_BYTES + VECTOR_BYTES  # tiles whose distance is a power of two would share cache sets
_BLOCK_BYTES = _TILES * max(_TILE_BYTES, TILE_ROWS * ROW_BYTES)
_WORK_BYTES = _BLOCK_BYTES + DEPTH // 2 * PANEL_ROW  # for one thread's block of A and panel of B
_ROWS_AT_ONCE = 8  # of B, from which a panel is packed; more rows are more than the processor prefetches at a time
_STEP = 32  # how many k are packed at once; blocks are filled up with zeros to a multiple


@elementwise
def _panel_bytes(k):
    """Return the bytes of a packed panel of B (k, n) in one block of k."""
    return (min(k, DEPTH) + _STEP - 1) // _STEP * (_STEP // 2) * PANEL_ROW


@elementwise
def _pack_transposed_panel(b, ldb, n, panel, k0, depth, target):
    """Pack one panel of one block of k, of a B (k, n) that is stored as (n, k)."""
    for column in range(0, TILE_COLUMNS, 16):
        j = panel * TILE_COLUMNS + column
        for kk in range(0, depth, _STEP):
            source = b + j * ldb + (k0 + kk) * 4
            pair_columns(source, ldb, n - j, depth - kk, target + kk // 2 * PANEL_ROW + column * 4, PANEL_ROW)


@elementwise
def _pack_panels(transposed, b, ldb, k, n, first_panel, last_panel, panels, target):
    """Pack some panels of B (k, n), in all blocks of k."""
    size = _panel_bytes(k)
    if transposed:
        for panel in range(first_panel, last_panel):
            for k0 in range(0, k, DEPTH):
                to = target + (k0 // DEPTH * panels + panel) * size
                _pack_transposed_panel(b, ldb, n, panel, k0, min(DEPTH, k - k0), to)
        return
    for k0 in range(0, k, DEPTH):
        depth = min(DEPTH, k - k0)
        for kk in range(0, depth + -depth % _STEP, _ROWS_AT_ONCE):
            for panel in range(first_panel, last_panel):
                to = target + (k0 // DEPTH * panels + panel) * size + kk // 2 * PANEL_ROW
                for row in range(0, _ROWS_AT_ONCE, 2):
                    for column in range(0, TILE_COLUMNS, 16):
                        j = panel * TILE_COLUMNS + column
                        source = b + (k0 + kk + row) * ldb + j * 4
                        first = n - j if kk + row < depth else 0
                        second = n - j if kk + row + 1 < depth else 0
                        pair_rows(source, first, source + ldb, second, to + row // 2 * PANEL_ROW + column * 4)


@elementwise
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


@elementwise
def _multiply_share(
    transposed,
    a,
    lda,
    b,
    ldb,
    packed,
    start,
    ld_start,
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

    If not `packed`, B is stored as (n, k), and each of its panels is packed just before it is used. `work` is memory
    for a packed block of A and a packed panel of B.
    """
    panels, size = (n + TILE_COLUMNS - 1) // TILE_COLUMNS, _panel_bytes(k)
    for i in range(first_row, last_row, _BLOCK_ROWS):
        rows = min(_BLOCK_ROWS, last_row - i)
        for k0 in range(0, k, DEPTH):
            depth = min(DEPTH, k - k0)
            pairs = (depth + 2 * UNROLLED - 1) // (2 * UNROLLED) * UNROLLED
            block = a + k0 * lda + i * 4 if transposed else a + i * lda + k0 * 4
            _pack_block(transposed, block, lda, rows, depth, work)
            base, ld_base = (start, ld_start) if k0 == 0 else (c, ldc)
            for number in range(first_panel, last_panel):
                if packed:
                    panel = b + (k0 // DEPTH * panels + number) * size
                else:
                    panel = work + _BLOCK_BYTES
                    _pack_transposed_panel(b, ldb, n, number, k0, depth, panel)
                column = number * TILE_COLUMNS
                columns = min(TILE_COLUMNS, n - column)
                for tile in range(0, rows, TILE_ROWS):
                    count = min(TILE_ROWS, rows - tile)
                    here = base + (i + tile) * ld_base + column * 4
                    to = c + (i + tile) * ldc + column * 4
                    if transposed:
                        packed_a = work + tile // TILE_ROWS * _TILE_BYTES
                        tile_of_pairs(packed_a, panel, pairs, here, ld_base, to, ldc, count, columns)
                    else:
                        packed_a = work + tile * ROW_BYTES
                        tile_of_rows(packed_a, panel, pairs, here, ld_base, to, ldc, count, columns)


# Two kernels, not two loops of one: Numba may fuse neighbouring loops, since it cannot see through addresses that the
# product reads what the packing of another thread writes.


@parallel
def _pack(transposed, n, k, b, ldb, target, parts):
    """Pack B (k, n), its panels divided among the threads."""
    panels = (n + TILE_COLUMNS - 1) // TILE_COLUMNS
    each = (panels + parts - 1) // parts
    for part in prange(parts):
        _pack_panels(transposed, b, ldb, k, n, part * each, min(panels, (part + 1) * each), panels, target)


@parallel
def _divided_product(transposed, m, n, k, a, lda, b, ldb, packed, start, ld_start, c, ldc, work, parts):
    """Compute C = start + A B with the longer side of C (m, n) divided among the threads."""
    panels = (n + TILE_COLUMNS - 1) // TILE_COLUMNS
    each_panels = (panels + parts - 1) // parts
    each_rows = ((m + TILE_ROWS - 1) // TILE_ROWS + parts - 1) // parts * TILE_ROWS
    by_rows = m >= n
    for part in prange(parts):
        first_row, last_row = (part * each_rows, min(m, (part + 1) * each_rows)) if by_rows else (0, m)
        first_panel, last_panel = (
            (0, panels) if by_rows else (part * each_panels, min(panels, (part + 1) * each_panels))
        )
        _multiply_share(
            transposed,
            a,
            lda,
            b,
            ldb,
            packed,
            start,
            ld_start,
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
        TypeError: C is not float32. The other arrays have its dtype.
        TypingError: the processor lacks the instructions; see `has_bfloat16`.
    """
    if c.dtype.name != "float32":
        raise TypeError(f"bfloat16 products need float32 arrays, not {c.dtype}")
    if accumulate:
        start, ld_start = c, 4 * n
    else:
        start, ld_start = bias, 0
        if not bias.size:
            start = backend.empty((n,), c.dtype)
            start[...] = 0
    if k == 0 and not accumulate:
        c[...] = start
    if 0 in (m, n, k):
        return
    parts = get_num_threads()
    # A panel that only one block of A uses is packed just before that use, while it is in the cache. Only the panels of
    # a B stored as (n, k) can be read quickly one by one.
    packed = not transpose_b or m > _BLOCK_ROWS or m >= n
    packed_bytes = -(-n // TILE_COLUMNS) * -(-k // DEPTH) * _panel_bytes(k) if packed else 0
    memory = backend.empty((packed_bytes + parts * _WORK_BYTES + VECTOR_BYTES,), "uint8")
    work = memory.ctypes.data + -memory.ctypes.data % VECTOR_BYTES  # vectors are stored at multiples of their size
    packed_b = work + parts * _WORK_BYTES
    if packed:
        _pack(transpose_b, n, k, b, 4 * ldb, packed_b, parts)
    _divided_product(
        transpose_a,
        m,
        n,
        k,
        a,
        4 * lda,
        packed_b if packed else b,
        4 * ldb,
        packed,
        start.ctypes.data,
        ld_start,
        c.ctypes.data,
        4 * n,
        work,
        parts,
    )
