"""AVX512-BF16 instructions for compiled code: rounding to bfloat16, and the product of one tile of a matrix.

The functions are intrinsics (see `vector_instructions`): their arguments are addresses, counts and strides in bytes. A
*pair* is what the instruction `vdpbf16ps` multiplies: the
bfloat16 values for k and k + 1, side by side in 32 bits.

The instructions take subnormal numbers as zero. They round to nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from backends.cpu.kernels.vector_instructions import (
    FLOATS,
    I32,
    I64,
    LANES,
    NO_LANES,
    TILE_COLUMNS,
    TILE_ROWS,
    TILE_VECTORS,
    VECTOR_BYTES,
    WORDS,
    broadcast,
    call,
    constant,
    first_lanes,
    has_features,
    load,
    offset,
    pointer,
    shuffle,
    store,
    transpose,
    write_with,
)

UNROLLED = 2  # pairs in one pass of the tile's loop

PANEL_ROW = 4 * TILE_COLUMNS
"""Bytes of one pair of every column of a tile."""

DEPTH = 1024
"""How many k one block has. So wide that BERT's products have one or few blocks: every further block reads C again."""

ROW_BYTES = 2 * DEPTH + VECTOR_BYTES
"""Bytes from one row of A in a block to the next, packed as (rows, pairs).

With a power of two, the rows of a tile would share the same few sets of the first-level cache."""

_HALVES = ir.VectorType(ir.IntType(16), 2 * LANES)
_NEEDED = ["avx512bf16"]


def has_bfloat16() -> bool:
    """Return True if the processor that Numba compiles for has AVX512-BF16; see `has_features`."""
    return has_features(*_NEEDED)


def _rounded(builder: Any, x: Any, y: Any) -> Any:
    """Return 32 bfloat16 values, rounded from two vectors of float32."""
    return call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", _HALVES, y, x)


@intrinsic
def round_row(typingctx, source, count, target):
    """Write 32 bfloat16 values to `target`: the first `count` float32 at `source`, then zeros."""

    def write(b, source, count, target):
        x = load(b, source, first_lanes(b, count))
        y = load(b, b.add(source, constant(VECTOR_BYTES)), first_lanes(b, b.sub(count, constant(LANES))))
        b.store(_rounded(b, x, y), pointer(b, target, _HALVES), align=VECTOR_BYTES)

    return write_with(write, [source, count, target], _NEEDED)


@intrinsic
def pair_rows(typingctx, first, first_count, second, second_count, target):
    """Write 16 pairs to `target`, made of two rows of float32: the first so many of each row, then zeros."""

    def write(b, first, first_count, second, second_count, target):
        x = load(b, first, first_lanes(b, first_count))
        y = load(b, second, first_lanes(b, second_count))
        halves = _rounded(b, x, y)
        pairs = shuffle(b, halves, halves, [lane // 2 + LANES * (lane % 2) for lane in range(2 * LANES)])
        b.store(pairs, pointer(b, target, _HALVES), align=VECTOR_BYTES)

    return write_with(write, [first, first_count, second, second_count, target], _NEEDED)


@intrinsic
def pair_columns(typingctx, source, stride, rows, count, target, target_stride):
    """Transpose 16 rows of 32 float32 to 16 rows of 16 pairs: row p holds the pair 2p, 2p + 1 of each source row.

    Only the first `rows` rows and the first `count` numbers of a row exist; zeros take the place of the others.
    """

    def write(b, source, stride, rows, count, target, target_stride):
        low, high = first_lanes(b, count), first_lanes(b, b.sub(count, constant(LANES)))
        vectors = []
        for row in range(LANES):
            exists = b.icmp_signed("<", constant(row), rows)
            address = offset(b, source, row, stride)
            x = load(b, address, b.select(exists, low, NO_LANES))
            y = load(b, b.add(address, constant(VECTOR_BYTES)), b.select(exists, high, NO_LANES))
            vectors.append(b.bitcast(_rounded(b, x, y), WORDS))
        for row, vector in enumerate(transpose(b, vectors)):
            b.store(vector, pointer(b, offset(b, target, row, target_stride), WORDS), align=VECTOR_BYTES)

    return write_with(write, [source, stride, rows, count, target, target_stride], _NEEDED)


def _tile_product(row_stride: int, pair_stride: int) -> Callable[..., None]:
    """Return the writer of a product of one tile, C = start + A B; see `tile_of_rows` for its arguments.

    Args:
        row_stride: bytes from one row of packed A to the next.
        pair_stride: bytes from one pair of packed A to the next.
    """
    tile = [(row, vector) for row in range(TILE_ROWS) for vector in range(TILE_VECTORS)]

    def write(b, a, panel, pairs, start, start_stride, c, stride, rows, columns):
        masks = [first_lanes(b, b.sub(columns, constant(LANES * vector))) for vector in range(TILE_VECTORS)]
        exists = [b.icmp_signed("<", constant(row), rows) for row in range(TILE_ROWS)]
        # Rows that do not exist read the last one that does, and are not written.
        last = b.sub(rows, constant(1))
        numbers = [b.select(exists[row], constant(row), last) for row in range(TILE_ROWS)]

        def element(base: Any, base_stride: Any, row: int, vector: int) -> Any:
            in_row = b.add(base, constant(VECTOR_BYTES * vector))
            return b.add(in_row, b.mul(numbers[row], base_stride))

        starts = [element(start, start_stride, row, vector) for row, vector in tile]
        targets = [element(c, stride, row, vector) for row, vector in tile]
        for target in targets:  # the loop below leaves time to fetch the memory that it will be written to
            for_writing = [ir.Constant(I32, number) for number in (1, 3, 1)]
            call(b, "llvm.prefetch.p0", ir.VoidType(), pointer(b, target, FLOATS), *for_writing)

        before, loop, after = b.basic_block, b.append_basic_block("pairs"), b.append_basic_block("store")
        b.branch(loop)
        b.position_at_end(loop)
        a_here, panel_here, left = b.phi(I64), b.phi(I64), b.phi(I64)
        zeros = ir.Constant(FLOATS, None)
        sums = [b.phi(FLOATS) for _ in tile]
        new = list(sums)
        for step in range(UNROLLED):
            columns_of_b = []
            for vector in range(TILE_VECTORS):
                address = b.add(panel_here, constant(step * PANEL_ROW + vector * VECTOR_BYTES))
                columns_of_b.append(b.load(pointer(b, address, WORDS), align=VECTOR_BYTES))
            for row in range(TILE_ROWS):
                address = b.add(a_here, constant(step * pair_stride + row * row_stride))
                pair = broadcast(b, b.load(pointer(b, address, I32), align=4))
                for vector in range(TILE_VECTORS):
                    n = row * TILE_VECTORS + vector
                    name = "llvm.x86.avx512bf16.dpbf16ps.512"
                    new[n] = call(b, name, FLOATS, new[n], pair, columns_of_b[vector])
        a_next = b.add(a_here, constant(UNROLLED * pair_stride))
        panel_next = b.add(panel_here, constant(UNROLLED * PANEL_ROW))
        left_next = b.sub(left, constant(UNROLLED))
        loop_variables = [(a_here, a, a_next), (panel_here, panel, panel_next), (left, pairs, left_next)]
        for variable, first, following in [
            *loop_variables,
            *((one, zeros, other) for one, other in zip(sums, new, strict=True)),
        ]:
            variable.add_incoming(first, before)
            variable.add_incoming(following, loop)
        b.cbranch(b.icmp_signed(">", left_next, constant(0)), loop, after)

        b.position_at_end(after)
        for n, (row, vector) in enumerate(tile):
            total = b.fadd(load(b, starts[n], masks[vector]), new[n])
            store(b, total, targets[n], b.select(exists[row], masks[vector], NO_LANES))

    return write


@intrinsic
def tile_of_rows(typingctx, a, panel, pairs, start, start_stride, c, stride, rows, columns):
    """Compute C = start + A B for one tile of C. A is packed as (rows, pairs), with ROW_BYTES from row to row.

    Args:
        typingctx: Numba's; not passed by callers.
        a: address of the packed rows of A.
        panel: address of the packed panel of B: (pairs, TILE_COLUMNS).
        pairs: how many pairs to multiply; at least one, a multiple of UNROLLED.
        start: address of what the sums are added to at the end; may be C. The sums start from zero, so that this memory
            is fetched while they are computed.
        start_stride: bytes from one row of it to the next; 0 for the same row everywhere.
        c: address of the tile in C.
        stride: bytes from one row of C to the next.
        rows: rows of the tile that exist, from 1 to TILE_ROWS.
        columns: columns of the tile that exist, from 1 to TILE_COLUMNS.
    """
    arguments = [a, panel, pairs, start, start_stride, c, stride, rows, columns]
    return write_with(_tile_product(ROW_BYTES, 4), arguments, _NEEDED)


@intrinsic
def tile_of_pairs(typingctx, a, panel, pairs, start, start_stride, c, stride, rows, columns):
    """Compute what `tile_of_rows` computes, for A packed as (pairs, 16 rows)."""
    arguments = [a, panel, pairs, start, start_stride, c, stride, rows, columns]
    return write_with(_tile_product(4, VECTOR_BYTES), arguments, _NEEDED)
