"""Write vector instructions into compiled code: what `bfloat16_instructions` and `int8_instructions` have in common.

Numba has no types for bfloat16 numbers or for vectors, so instructions for them are written by *intrinsics*, functions
that write LLVM's code themselves (with llvmlite). The arguments of an intrinsic are integers here: addresses, counts,
and strides in bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.registry import cpu_target

from backends.base import Array

LANES = 16
"""Numbers of 32 bits in a vector of 512 bits."""

VECTOR_BYTES = 4 * LANES

TILE_ROWS = 14
TILE_VECTORS = 2  # vectors in a row of a tile; 14 x 2 sums fill 28 of the processor's 32 vector registers
TILE_COLUMNS = LANES * TILE_VECTORS

I32, I64 = ir.IntType(32), ir.IntType(64)
FLOATS = ir.VectorType(ir.FloatType(), LANES)
WORDS = ir.VectorType(I32, LANES)
NO_LANES = ir.Constant(ir.VectorType(ir.IntType(1), LANES), None)


@functools.cache
def has_features(*names: str) -> bool:
    """Return True if the processor that Numba compiles for has all these features, in LLVM's words (e.g. avx512bf16).

    This asks Numba's code generator, not the machine. The two differ where NUMBA_CPU_NAME or NUMBA_CPU_FEATURES is set,
    and an instruction that the code generator does not know would make LLVM end the process.
    """
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return {f"+{name}" for name in names} <= set(features.split(","))


def aligned(memory: Array) -> int:
    """Return the first address in an array at which a vector may be stored."""
    address: int = memory.ctypes.data
    return address + -address % VECTOR_BYTES


def write_with(
    write: Callable[..., None], arguments: Sequence[Any], needed: Sequence[str]
) -> tuple[Any, Callable[..., Any]]:
    """Return what an intrinsic must return: its signature, and the function that writes its instructions.

    Args:
        write: (builder, *arguments) -> None; writes the instructions.
        arguments: Numba's types of the arguments. All are converted to int64.
        needed: the features that the processor must have; see `has_features`.

    Raises:
        TypingError: the processor lacks one of the features.
    """
    if not has_features(*needed):
        raise TypingError(
            f"the processor that Numba compiles for lacks {' or '.join(needed)}; use the precision float32"
        )

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        write(builder, *values)
        return context.get_dummy_value()

    return types.void(*[types.int64] * len(arguments)), generate


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Call a function of LLVM by its name; `result` is the type of what it returns."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def constant(number: int) -> Any:
    """Return a constant of 64 bits, the type of addresses and counts."""
    return ir.Constant(I64, number)


def pointer(builder: Any, address: Any, kind: Any) -> Any:
    """Return an address as a pointer to a type."""
    return builder.inttoptr(address, kind.as_pointer())


def offset(builder: Any, address: Any, number: int, stride: Any) -> Any:
    """Return address + number * stride."""
    return builder.add(address, builder.mul(constant(number), stride))


def shuffle(builder: Any, x: Any, y: Any, order: Sequence[int]) -> Any:
    """Return the elements of two vectors, numbered through, in an order."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(order)), list(order)))


def broadcast(builder: Any, x: Any) -> Any:
    """Return a vector with the same number in all lanes."""
    undefined = ir.Constant(ir.VectorType(x.type, LANES), ir.Undefined)
    return shuffle(builder, builder.insert_element(undefined, x, ir.Constant(I32, 0)), undefined, [0] * LANES)


def loop(
    builder: Any,
    start: Any,
    end: Any,
    step: int,
    initial: Sequence[Any],
    body: Callable[[Any, Sequence[Any]], Sequence[Any]],
) -> list[Any]:
    """Write a loop over the numbers start, start + step, start + 2 * step, ... below `end`.

    Args:
        builder: writes the instructions; afterwards it stands behind the loop.
        start: the first number.
        end: all numbers are below this. If `start` is not, there is no pass.
        step: the difference of two numbers.
        initial: the values that the loop changes, before the first pass.
        body: (number, values) -> values after the pass; writes the instructions of one pass.

    Returns:
        The values after the last pass.
    """
    before, test = builder.basic_block, builder.append_basic_block("test")
    inside, after = builder.append_basic_block("pass"), builder.append_basic_block("after")
    builder.branch(test)
    builder.position_at_end(test)
    number, values = builder.phi(I64), [builder.phi(value.type) for value in initial]
    builder.cbranch(builder.icmp_signed("<", number, end), inside, after)
    builder.position_at_end(inside)
    following = [builder.add(number, constant(step)), *body(number, values)]
    last = builder.basic_block
    builder.branch(test)
    for variable, first, new in zip([number, *values], [start, *initial], following, strict=True):
        variable.add_incoming(first, before)
        variable.add_incoming(new, last)
    builder.position_at_end(after)
    return values


def transpose(builder: Any, vectors: Sequence[Any]) -> list[Any]:
    """Return the transpose of a matrix of 16 x 16 numbers of 32 bits, given as its rows."""
    vectors = list(vectors)
    # A transposition exchanges each bit of the row number with the same bit of the lane number.
    for bit in (1, 2, 4, 8):
        upper = [LANES + (lane ^ bit) if lane & bit else lane for lane in range(LANES)]
        lower = [LANES + lane if lane & bit else lane ^ bit for lane in range(LANES)]
        for row in range(LANES):
            if not row & bit:
                x, y = vectors[row], vectors[row | bit]
                vectors[row], vectors[row | bit] = shuffle(builder, x, y, upper), shuffle(builder, x, y, lower)
    return vectors


def reduce(builder: Any, combine: Callable[[Any, Any], Any], x: Any) -> Any:
    """Return a vector whose lanes all hold the combination of all lanes of `x`."""
    for bit in (1, 2, 4, 8):
        x = combine(x, shuffle(builder, x, x, [lane ^ bit for lane in range(LANES)]))
    return x


def first_lanes(builder: Any, count: Any) -> Any:
    """Return the mask of the first `count` lanes: none for a count below 1, all for one above 15."""
    numbers = ir.Constant(WORDS, list(range(LANES)))
    return builder.icmp_signed("<", numbers, broadcast(builder, builder.trunc(count, I32)))


def load(builder: Any, address: Any, mask: Any) -> Any:
    """Return a vector of float32 from memory, with zeros in the lanes outside the mask, which are not read."""
    align, zeros = ir.Constant(I32, 4), ir.Constant(FLOATS, None)
    return call(builder, "llvm.masked.load.v16f32.p0", FLOATS, pointer(builder, address, FLOATS), align, mask, zeros)


def store(builder: Any, x: Any, address: Any, mask: Any) -> None:
    """Write the lanes of a vector of float32 that are in the mask."""
    align = ir.Constant(I32, 4)
    call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), x, pointer(builder, address, FLOATS), align, mask)
