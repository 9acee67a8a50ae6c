"""AVX512-VNNI instructions for compiled code: quantisation to 8 bits, and the product of one tile of a matrix.

The functions are intrinsics (see `vector_instructions`): their arguments are addresses, counts and strides in bytes. A
*quad* is what the instruction `vpdpbusd` multiplies in one lane: four bytes for k, k + 1, k + 2 and k + 3, side by side
in 32 bits. It multiplies unsigned bytes of A by signed bytes of B, and adds to a sum of 32 bits without saturation.

`minibert/ops/precision.py` defines the quantised numbers. A row of x has whole numbers from `lowest` to lowest + 255,
and its bytes are those numbers minus `lowest`. So the sum of the products of bytes lacks lowest * (sum of the column of
B), which is added at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from backends.cpu.kernels.vector_instructions import (
    FLOATS,
    I32,
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
    loop,
    offset,
    pointer,
    reduce,
    shuffle,
    store,
    transpose,
    write_with,
)

PANEL_ROW = 4 * TILE_COLUMNS
"""Bytes of one quad of every column of a tile."""

STEP = 64
"""How many k are quantised and multiplied at once. Packed rows and panels are filled up to a multiple."""

TILE_STEP = TILE_ROWS * STEP
"""Bytes of one step of all rows of a tile."""

_F32, _I8 = ir.FloatType(), ir.IntType(8)
_BYTES = ir.VectorType(_I8, LANES)
_SMALLEST_NORMAL = 2.0**-126
_ALL_BUT_SIGN = 0x7FFFFFFF
_NEEDED = ["avx512vnni"]


def has_int8() -> bool:
    """Return True if the processor that Numba compiles for has AVX512-VNNI; see `has_features`."""
    return has_features(*_NEEDED)


def _floats(number: float) -> Any:
    """Return a vector of float32 with the same number in all lanes."""
    return ir.Constant(FLOATS, [ir.Constant(_F32, number)] * LANES)


def _words(number: int) -> Any:
    """Return a vector of int32 with the same number in all lanes."""
    return ir.Constant(WORDS, [ir.Constant(I32, number)] * LANES)


def _rounded(b: Any, x: Any) -> Any:
    """Return a vector of float32 rounded to int32, ties to even."""
    every, current_mode = ir.Constant(ir.IntType(LANES), -1), ir.Constant(I32, 4)
    return call(b, "llvm.x86.avx512.mask.cvtps2dq.512", WORDS, x, _words(0), every, current_mode)


def _inverse(b: Any, scale: Any) -> Any:
    """Return 1 / scale; 0 where the scale is below the normal numbers or is NaN."""
    normal = b.fcmp_ordered(">=", scale, _floats(_SMALLEST_NORMAL))
    return b.select(normal, b.fdiv(_floats(1.0), b.select(normal, scale, _floats(1.0))), _floats(0.0))


def _store_first(b: Any, x: Any, address: Any) -> None:
    """Write the first lane of a vector to memory."""
    b.store(b.extract_element(x, ir.Constant(I32, 0)), pointer(b, address, x.type.element), align=4)


def _in_steps(b: Any, count: Any, initial: Sequence[Any], body: Callable[..., Sequence[Any]]) -> list[Any]:
    """Write a loop over a row of `count` numbers, STEP at once, and its last step, which may be shorter.

    Args:
        b: LLVM's builder.
        count: numbers in the row.
        initial: the values that the loop changes, before the first pass.
        body: (number, masks, values) -> values after the pass that begins at `number`. The masks of the numbers that
            exist are constants in all steps but the last, since computing them takes as long as the rest.
    """
    whole = b.and_(count, constant(-STEP))
    all_lanes = [ir.Constant(NO_LANES.type, [1] * LANES)] * (STEP // LANES)

    def last(number: Any, values: Sequence[Any]) -> Sequence[Any]:
        left = b.sub(count, number)
        masks = [first_lanes(b, b.sub(left, constant(first))) for first in range(0, STEP, LANES)]
        return body(number, masks, values)

    values = loop(b, constant(0), whole, STEP, initial, lambda number, values: body(number, all_lanes, values))
    return loop(b, whole, count, STEP, values, last)


def _parts(b: Any, row: Any, number: Any, masks: Sequence[Any]) -> list[Any]:
    """Load STEP float32 of a row from `number` on; zeros outside the masks."""
    here = b.add(row, b.mul(number, constant(4)))
    return [load(b, b.add(here, constant(n * VECTOR_BYTES)), mask) for n, mask in enumerate(masks)]


def _least(b: Any, x: Any, y: Any) -> Any:
    """Return the least of two vectors, lane by lane; `y` where `x` is NaN."""
    return b.select(b.fcmp_ordered("<", x, y), x, y)


def _greatest(b: Any, x: Any, y: Any) -> Any:
    """Return the greatest of two vectors, lane by lane; `y` where `x` is NaN."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def _greatest_bits(b: Any, x: Any, y: Any) -> Any:
    """Return the greatest of positive float32, given by their bits; NaN is greater than infinity."""
    return b.select(b.icmp_signed(">", x, y), x, y)


def _combined(b: Any, combine: Callable[..., Any], vectors: Sequence[Any]) -> Any:
    """Return a vector whose lanes all hold the combination of all lanes of some vectors."""
    total = vectors[0]
    for x in vectors[1:]:
        total = combine(b, total, x)
    return reduce(b, functools.partial(combine, b), total)


@intrinsic
def quantise_row(typingctx, source, count, target, scale, lowest):
    """Write the bytes of one row of A, and the two numbers that give them their meaning.

    Args:
        typingctx: Numba's; not passed by callers.
        source: address of the row, float32.
        count: numbers in the row.
        target: where the bytes go, with TILE_STEP from one step to the next. Bytes that mean 0 fill up the last step.
        scale: where the scale goes, float32; NaN if the row has a NaN or an infinity.
        lowest: where the lowest number goes, int32; at most 0.
    """

    def write(b, source, count, target, scale, lowest):
        def widen(number: Any, masks: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
            parts = _parts(b, source, number, masks)
            low = [_least(b, x, y) for x, y in zip(parts, values[:4], strict=True)]
            high = [_greatest(b, x, y) for x, y in zip(parts, values[4:8], strict=True)]
            # 0 * x is NaN exactly where x is not finite.
            zero = _floats(0.0)
            wrong = [call(b, "llvm.fma.v16f32", FLOATS, x, zero, y) for x, y in zip(parts, values[8:], strict=True)]
            return [*low, *high, *wrong]

        values = _in_steps(b, count, [_floats(0.0)] * 12, widen)
        low, high = _combined(b, _least, values[:4]), _combined(b, _greatest, values[4:8])
        wrong = _combined(b, lambda b, x, y: b.fadd(x, y), values[8:])
        row_scale = b.fsub(b.fdiv(high, _floats(255.0)), b.fdiv(low, _floats(255.0)))
        inverse = _inverse(b, row_scale)
        row_lowest = _rounded(b, b.fmul(low, inverse))
        _store_first(b, b.fadd(row_scale, wrong), scale)
        _store_first(b, row_lowest, lowest)

        def quantise(number: Any, masks: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
            here = b.add(target, b.mul(number, constant(TILE_ROWS)))
            for n, x in enumerate(_parts(b, source, number, masks)):
                above = b.sub(_rounded(b, b.fmul(x, inverse)), row_lowest)
                above = b.select(b.icmp_unsigned("<", above, _words(255)), above, _words(255))
                address = b.add(here, constant(n * LANES))
                b.store(b.trunc(above, _BYTES), pointer(b, address, _BYTES), align=LANES)
            return values

        _in_steps(b, count, [], quantise)

    return write_with(write, [source, count, target, scale, lowest], _NEEDED)


@intrinsic
def quantise_channels(typingctx, source, stride, rows, count, target, target_stride, scales, sums):
    """Quantise 16 rows of a weight, and transpose them to rows of 16 quads.

    Args:
        typingctx: Numba's; not passed by callers.
        source: address of the first row, float32.
        stride: bytes from one row to the next.
        rows: how many of the rows exist, from 0; zeros take the place of the others.
        count: numbers in a row.
        target: where the quads go: row p has the numbers 4p to 4p + 3 of each source row. Zeros fill up a multiple of
            STEP.
        target_stride: bytes from one row of quads to the next.
        scales: where the scales of the source rows go, (16,) float32. A row with a NaN or an infinity has such a scale,
            and its quantised numbers are all 0, so that its products are NaN.
        sums: where the sums of the quantised rows go, (16,) int32.
    """

    def write(b, source, stride, rows, count, target, target_stride, scales, sums):
        exists = [b.icmp_signed("<", constant(row), rows) for row in range(LANES)]

        def parts_of_rows(number: Any, masks: Sequence[Any]) -> list[list[Any]]:
            return [
                _parts(
                    b, offset(b, source, row, stride), number, [b.select(exists[row], mask, NO_LANES) for mask in masks]
                )
                for row in range(LANES)
            ]

        def widen(number: Any, masks: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
            new = []
            for parts, largest in zip(parts_of_rows(number, masks), values, strict=True):
                for x in parts:
                    largest = _greatest_bits(b, largest, b.and_(b.bitcast(x, WORDS), _words(_ALL_BUT_SIGN)))
                new.append(largest)
            return new

        inverses = []
        for row, largest in enumerate(_in_steps(b, count, [_words(0)] * LANES, widen)):
            bits = _combined(b, _greatest_bits, [largest])
            scale = b.fdiv(b.bitcast(bits, FLOATS), _floats(127.0))
            inverses.append(_inverse(b, scale))
            _store_first(b, scale, b.add(scales, constant(4 * row)))

        def quantise(number: Any, masks: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
            vectors = []
            for parts, inverse in zip(parts_of_rows(number, masks), inverses, strict=True):
                quarters = [b.trunc(_rounded(b, b.fmul(x, inverse)), _BYTES) for x in parts]
                halves = [shuffle(b, quarters[n], quarters[n + 1], range(2 * LANES)) for n in (0, 2)]
                vectors.append(b.bitcast(shuffle(b, halves[0], halves[1], range(4 * LANES)), WORDS))
            (total,) = values
            here = b.add(target, b.mul(b.sdiv(number, constant(4)), target_stride))
            for row, quads in enumerate(transpose(b, vectors)):
                b.store(quads, pointer(b, offset(b, here, row, target_stride), WORDS), align=VECTOR_BYTES)
                total = _multiplied(b, total, _words(0x01010101), quads)
            return [total]

        (total,) = _in_steps(b, count, [_words(0)], quantise)
        b.store(total, pointer(b, sums, WORDS), align=4)

    return write_with(write, [source, stride, rows, count, target, target_stride, scales, sums], _NEEDED)


def _multiplied(b: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """Return the sums of 16 lanes, each with the four products of two quads added."""
    return call(b, "llvm.x86.avx512.vpdpbusd.512", WORDS, total, unsigned, signed)


@intrinsic
def tile_product(typingctx, a, scales_a, lowest, panel, steps, scales_b, sums, bias, c, stride, rows, columns):
    """Compute C = A B + bias for one tile of C, from quantised A and B.

    Args:
        typingctx: Numba's; not passed by callers.
        a: address of the packed tile of A: (steps, TILE_ROWS, STEP).
        scales_a: the scales of the rows of A, (TILE_ROWS,) float32.
        lowest: their lowest numbers, (TILE_ROWS,) int32.
        panel: address of the packed panel of B: (quads, TILE_COLUMNS).
        steps: how many steps of k to multiply.
        scales_b: the scales of the columns of B, (TILE_COLUMNS,) float32.
        sums: the sums of the columns of B, (TILE_COLUMNS,) int32.
        bias: address of the bias of the first column, float32.
        c: address of the tile in C, float32.
        stride: bytes from one row of C to the next.
        rows: rows of the tile that exist. Others may have any bytes, and are not written.
        columns: columns of the tile that exist, from 1 to TILE_COLUMNS.
    """

    def write(b, a, scales_a, lowest, panel, steps, scales_b, sums, bias, c, stride, rows, columns):
        tile = [(row, vector) for row in range(TILE_ROWS) for vector in range(TILE_VECTORS)]

        def vector_at(base: Any, vector: int) -> Any:
            return b.add(base, constant(VECTOR_BYTES * vector))

        targets = [vector_at(offset(b, c, row, stride), vector) for row, vector in tile]
        for target in targets:  # the loop below leaves time to fetch the memory that will be written to
            for_writing = [ir.Constant(I32, number) for number in (1, 3, 1)]
            call(b, "llvm.prefetch.p0", ir.VoidType(), pointer(b, target, FLOATS), *for_writing)

        def multiply(number: Any, values: Sequence[Any]) -> Sequence[Any]:
            totals = list(values)
            a_here = b.add(a, b.mul(number, constant(TILE_STEP)))
            panel_here = b.add(panel, b.mul(number, constant(STEP // 4 * PANEL_ROW)))
            for quad in range(STEP // 4):
                in_panel = b.add(panel_here, constant(quad * PANEL_ROW))
                columns_of_b = [
                    b.load(pointer(b, vector_at(in_panel, vector), WORDS), align=VECTOR_BYTES)
                    for vector in range(TILE_VECTORS)
                ]
                for row in range(TILE_ROWS):
                    address = b.add(a_here, constant(row * STEP + quad * 4))
                    row_of_a = broadcast(b, b.load(pointer(b, address, I32), align=4))
                    for vector in range(TILE_VECTORS):
                        n = row * TILE_VECTORS + vector
                        totals[n] = _multiplied(b, totals[n], row_of_a, columns_of_b[vector])
            return totals

        totals = loop(b, constant(0), steps, 1, [_words(0)] * len(tile), multiply)
        masks = [first_lanes(b, b.sub(columns, constant(LANES * vector))) for vector in range(TILE_VECTORS)]
        for n, (row, vector) in enumerate(tile):

            def numbers_of(base: Any, kind: Any, row: int = row) -> Any:
                return broadcast(b, b.load(pointer(b, offset(b, base, row, constant(4)), kind), align=4))

            column_sums = b.load(pointer(b, vector_at(sums, vector), WORDS), align=4)
            column_scales = b.load(pointer(b, vector_at(scales_b, vector), FLOATS), align=4)
            whole = b.add(totals[n], b.mul(numbers_of(lowest, I32), column_sums))
            product = b.fmul(b.fmul(b.sitofp(whole, FLOATS), numbers_of(scales_a, _F32)), column_scales)
            y = b.fadd(product, load(b, vector_at(bias, vector), masks[vector]))
            exists = b.icmp_signed("<", constant(row), rows)
            store(b, y, targets[n], b.select(exists, masks[vector], NO_LANES))

    arguments = [a, scales_a, lowest, panel, steps, scales_b, sums, bias, c, stride, rows, columns]
    return write_with(write, arguments, _NEEDED)
