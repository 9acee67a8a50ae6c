"""AVX512-BF16 instructions for compiled code: rounding to bfloat16, and the product of one tile of a matrix.

Numba has no bfloat16, so the functions here are *intrinsics*, which write LLVM instructions themselves. Their arguments
are integers: addresses, counts, and strides in bytes. A *pair* is what the instruction `vdpbf16ps` multiplies: the
bfloat16 values for k and k + 1, side by side in 32 bits.

The instructions take subnormal numbers as zero. They round to nearest, ties to even.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numba.extending import intrinsic

TILE_ROWS = 14
_VECTORS = 2  # vectors in a row of a tile; 14 x 2 sums fill 28 of the processor's 32 vector registers
_LANES = 16  # float32 numbers, or pairs, in a vector of 512 bits
TILE_COLUMNS = _LANES * _VECTORS
UNROLLED = 2  # pairs in one pass of the tile's loop

VECTOR_BYTES = 4 * _LANES
PANEL_ROW = 4 * TILE_COLUMNS
"""Bytes of one pair of every column of a tile."""

DEPTH = 512
"""How many k one block has. A packed panel of TILE_COLUMNS columns then takes 32 KiB, as a first-level cache has."""

ROW_BYTES = 2 * DEPTH
"""Bytes of one row of A in a block, packed as (rows, pairs)."""

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_PAIRS = ir.VectorType(_I32, _LANES)
_HALVES = ir.VectorType(ir.IntType(16), 2 * _LANES)
_MASK = ir.VectorType(ir.IntType(1), _LANES)
_NO_LANES = ir.Constant(_MASK, None)


def has_bfloat16() -> bool:
    """Return True if the processor that Numba compiles for has AVX512-BF16.

    This asks Numba's code generator, not the machine. The two differ where NUMBA_CPU_NAME or NUMBA_CPU_FEATURES is set,
    and an instruction that the code generator does not know would make LLVM end the process.
    """
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return "+avx512bf16" in features.split(",")


def _write_with(write: Callable[..., None], arguments: Sequence[Any]) -> tuple[Any, Callable[..., Any]]:
    """Return what an intrinsic must return: its signature, and the function that writes its instructions.

    Args:
        write: (builder, *arguments) -> None; writes the instructions.
        arguments: Numba's types of the arguments. All are converted to int64.

    Raises:
        TypingError: the processor lacks the instructions.
    """
    if not has_bfloat16():
        raise TypingError("the processor that Numba compiles for has no AVX512-BF16; use the precision float32")

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        write(builder, *values)
        return context.get_dummy_value()

    return types.void(*[types.int64] * len(arguments)), generate


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _constant(number: int) -> Any:
    return ir.Constant(_I64, number)


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _offset(builder: Any, address: Any, number: int, stride: Any) -> Any:
    """Return address + number * stride."""
    return builder.add(address, builder.mul(_constant(number), stride))


def _shuffle(builder: Any, x: Any, y: Any, order: Sequence[int]) -> Any:
    """Return the elements of two vectors, numbered through, in an order."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(_I32, len(order)), list(order)))


def _broadcast(builder: Any, x: Any) -> Any:
    """Return a vector with the same number in all lanes."""
    undefined = ir.Constant(ir.VectorType(x.type, _LANES), ir.Undefined)
    return _shuffle(builder, builder.insert_element(undefined, x, ir.Constant(_I32, 0)), undefined, [0] * _LANES)


def _first_lanes(builder: Any, count: Any) -> Any:
    """Return the mask of the first `count` lanes: none for a count below 1, all for one above 15."""
    numbers = ir.Constant(_PAIRS, list(range(_LANES)))
    return builder.icmp_signed("<", numbers, _broadcast(builder, builder.trunc(count, _I32)))


def _load(builder: Any, address: Any, mask: Any) -> Any:
    """Return a vector of float32 from memory, with zeros in the lanes outside the mask, which are not read."""
    align, zeros = ir.Constant(_I32, 4), ir.Constant(_FLOATS, None)
    pointer = _pointer(builder, address, _FLOATS)
    return _call(builder, "llvm.masked.load.v16f32.p0", _FLOATS, pointer, align, mask, zeros)


def _store(builder: Any, x: Any, address: Any, mask: Any) -> None:
    """Write the lanes of a vector of float32 that are in the mask."""
    align = ir.Constant(_I32, 4)
    pointer = _pointer(builder, address, _FLOATS)
    _call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), x, pointer, align, mask)


def _rounded(builder: Any, x: Any, y: Any) -> Any:
    """Return 32 bfloat16 values, rounded from two vectors of float32."""
    return _call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", _HALVES, y, x)


@intrinsic
def round_row(typingctx, source, count, target):
    """Write 32 bfloat16 values to `target`: the first `count` float32 at `source`, then zeros."""

    def write(b, source, count, target):
        x = _load(b, source, _first_lanes(b, count))
        y = _load(b, b.add(source, _constant(VECTOR_BYTES)), _first_lanes(b, b.sub(count, _constant(_LANES))))
        b.store(_rounded(b, x, y), _pointer(b, target, _HALVES), align=VECTOR_BYTES)

    return _write_with(write, [source, count, target])


@intrinsic
def pair_rows(typingctx, first, first_count, second, second_count, target):
    """Write 16 pairs to `target`, made of two rows of float32: the first so many of each row, then zeros."""

    def write(b, first, first_count, second, second_count, target):
        x = _load(b, first, _first_lanes(b, first_count))
        y = _load(b, second, _first_lanes(b, second_count))
        halves = _rounded(b, x, y)
        pairs = _shuffle(b, halves, halves, [lane // 2 + _LANES * (lane % 2) for lane in range(2 * _LANES)])
        b.store(pairs, _pointer(b, target, _HALVES), align=VECTOR_BYTES)

    return _write_with(write, [first, first_count, second, second_count, target])


@intrinsic
def pair_columns(typingctx, source, stride, rows, count, target, target_stride):
    """Transpose 16 rows of 32 float32 to 16 rows of 16 pairs: row p holds the pair 2p, 2p + 1 of each source row.

    Only the first `rows` rows and the first `count` numbers of a row exist; zeros take the place of the others.
    """

    def write(b, source, stride, rows, count, target, target_stride):
        low, high = _first_lanes(b, count), _first_lanes(b, b.sub(count, _constant(_LANES)))
        vectors = []
        for row in range(_LANES):
            exists = b.icmp_signed("<", _constant(row), rows)
            address = _offset(b, source, row, stride)
            x = _load(b, address, b.select(exists, low, _NO_LANES))
            y = _load(b, b.add(address, _constant(VECTOR_BYTES)), b.select(exists, high, _NO_LANES))
            vectors.append(b.bitcast(_rounded(b, x, y), _PAIRS))
        # A transposition exchanges each bit of the row number with the same bit of the lane number.
        for bit in (1, 2, 4, 8):
            upper = [_LANES + (lane ^ bit) if lane & bit else lane for lane in range(_LANES)]
            lower = [_LANES + lane if lane & bit else lane ^ bit for lane in range(_LANES)]
            for row in range(_LANES):
                if not row & bit:
                    x, y = vectors[row], vectors[row | bit]
                    vectors[row], vectors[row | bit] = _shuffle(b, x, y, upper), _shuffle(b, x, y, lower)
        for row in range(_LANES):
            b.store(vectors[row], _pointer(b, _offset(b, target, row, target_stride), _PAIRS), align=VECTOR_BYTES)

    return _write_with(write, [source, stride, rows, count, target, target_stride])


def _tile_product(row_stride: int, pair_stride: int) -> Callable[..., None]:
    """Return the writer of a product of one tile, C = start + A B; see `tile_of_rows` for its arguments.

    Args:
        row_stride: bytes from one row of packed A to the next.
        pair_stride: bytes from one pair of packed A to the next.
    """
    tile = [(row, vector) for row in range(TILE_ROWS) for vector in range(_VECTORS)]

    def write(b, a, panel, pairs, start, start_stride, c, stride, rows, columns):
        masks = [_first_lanes(b, b.sub(columns, _constant(_LANES * vector))) for vector in range(_VECTORS)]
        exists = [b.icmp_signed("<", _constant(row), rows) for row in range(TILE_ROWS)]
        # Rows that do not exist read the last one that does, and are not written.
        last = b.sub(rows, _constant(1))
        numbers = [b.select(exists[row], _constant(row), last) for row in range(TILE_ROWS)]

        def element(base: Any, base_stride: Any, row: int, vector: int) -> Any:
            in_row = b.add(base, _constant(VECTOR_BYTES * vector))
            return b.add(in_row, b.mul(numbers[row], base_stride))

        starts = [_load(b, element(start, start_stride, row, vector), masks[vector]) for row, vector in tile]
        targets = [element(c, stride, row, vector) for row, vector in tile]
        for target in targets:  # the loop below leaves time to fetch the memory that it will be written to
            for_writing = [ir.Constant(_I32, number) for number in (1, 3, 1)]
            _call(b, "llvm.prefetch.p0", ir.VoidType(), _pointer(b, target, _FLOATS), *for_writing)

        before, loop, after = b.basic_block, b.append_basic_block("pairs"), b.append_basic_block("store")
        b.branch(loop)
        b.position_at_end(loop)
        a_here, panel_here, left = b.phi(_I64), b.phi(_I64), b.phi(_I64)
        sums = [b.phi(_FLOATS) for _ in tile]
        new = list(sums)
        for step in range(UNROLLED):
            columns_of_b = []
            for vector in range(_VECTORS):
                address = b.add(panel_here, _constant(step * PANEL_ROW + vector * VECTOR_BYTES))
                columns_of_b.append(b.load(_pointer(b, address, _PAIRS), align=VECTOR_BYTES))
            for row in range(TILE_ROWS):
                address = b.add(a_here, _constant(step * pair_stride + row * row_stride))
                pair = _broadcast(b, b.load(_pointer(b, address, _I32), align=4))
                for vector in range(_VECTORS):
                    n = row * _VECTORS + vector
                    name = "llvm.x86.avx512bf16.dpbf16ps.512"
                    new[n] = _call(b, name, _FLOATS, new[n], pair, columns_of_b[vector])
        a_next = b.add(a_here, _constant(UNROLLED * pair_stride))
        panel_next = b.add(panel_here, _constant(UNROLLED * PANEL_ROW))
        left_next = b.sub(left, _constant(UNROLLED))
        loop_variables = [(a_here, a, a_next), (panel_here, panel, panel_next), (left, pairs, left_next)]
        for variable, first, following in [*loop_variables, *zip(sums, starts, new, strict=True)]:
            variable.add_incoming(first, before)
            variable.add_incoming(following, loop)
        b.cbranch(b.icmp_signed(">", left_next, _constant(0)), loop, after)

        b.position_at_end(after)
        for n, (row, vector) in enumerate(tile):
            _store(b, new[n], targets[n], b.select(exists[row], masks[vector], _NO_LANES))

    return write


@intrinsic
def tile_of_rows(typingctx, a, panel, pairs, start, start_stride, c, stride, rows, columns):
    """Compute C = start + A B for one tile of C. A is packed as (rows, pairs), with ROW_BYTES from row to row.

    Args:
        typingctx: Numba's; not passed by callers.
        a: address of the packed rows of A.
        panel: address of the packed panel of B: (pairs, TILE_COLUMNS).
        pairs: how many pairs to multiply; at least one, a multiple of UNROLLED.
        start: address of what the sums start from; may be C.
        start_stride: bytes from one row of it to the next; 0 for the same row everywhere.
        c: address of the tile in C.
        stride: bytes from one row of C to the next.
        rows: rows of the tile that exist, from 1 to TILE_ROWS.
        columns: columns of the tile that exist, from 1 to TILE_COLUMNS.
    """
    arguments = [a, panel, pairs, start, start_stride, c, stride, rows, columns]
    return _write_with(_tile_product(ROW_BYTES, 4), arguments)


@intrinsic
def tile_of_pairs(typingctx, a, panel, pairs, start, start_stride, c, stride, rows, columns):
    """Compute what `tile_of_rows` computes, for A packed as (pairs, 16 rows)."""
    arguments = [a, panel, pairs, start, start_stride, c, stride, rows, columns]
    return _write_with(_tile_product(4, VECTOR_BYTES), arguments)
