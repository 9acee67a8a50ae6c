"""The precision of matrix products: rounding of operands to bfloat16 and quantisation to 8 bits.

A bfloat16 number has the sign and the 8 exponent bits of float32, but only 8 bits of significand instead of 24. The
standard has no bfloat16 arrays, so a rounded number is kept in the array's own dtype.

Quantisation replaces the numbers of a row by whole numbers, all multiplied by one scale. Here an input has 256 of them
("8 bits"), a weight 255. They too are kept in the array's own dtype.
"""

from __future__ import annotations

from array_api_compat import array_namespace, device

from backends import Array, Backend
from backends.base import LONGEST_INT8_ROW, NO_INT8_GRADIENTS

_LARGE, _SCALE = 2.0**96, 2.0**-64  # numbers from _LARGE up are scaled down, so that the splitting cannot overflow
_OVERFLOW = 2.0**128  # numbers that round to this are beyond bfloat16's range

_INPUT_STEPS = 255  # from the lowest number of an input's row to the highest
_LARGEST_WEIGHT = 127
_EXACT = 512  # so many products of quantised numbers have an exact sum in float32: 512 * 255 * 127 < 2**24


def round_to_bfloat16(x: Array) -> Array:
    """Round to the nearest bfloat16, and to the even one of two that are equally near.

    Computed by Veltkamp's splitting (Dekker, "A floating-point technique for extending the available precision", 1971):
    with c = (2**s + 1) * x, each operation rounded to p bits, c - (c - x) is x rounded to p - s bits. For float32,
    p = 24 and s = 16. For float64, p = 53 and s = 45.

    Infinities and NaN stay. Numbers beyond bfloat16's range, (1 + 127/128) * 2**127, become infinities if they are
    nearer to 2**128, as in IEEE 754. Float32 has the same exponents as bfloat16, so all results but subnormal ones have
    the bits that a conversion of the bits gives. A subnormal number is rounded to 8 bits of its own, which bfloat16
    would not have. Processors commonly take subnormal bfloat16 numbers as zero.

    Args:
        x: any shape, float32 or float64; not changed.

    Returns:
        The rounded numbers, in the shape and dtype of `x`.
    """
    xp = array_namespace(x)
    zero, one = xp.zeros_like(x), xp.ones_like(x)
    finite, large = xp.isfinite(x), xp.abs(x) >= _LARGE
    scale = xp.where(large, one * _SCALE, one)
    scaled = xp.where(finite, x, zero) * scale
    c = scaled * (2.0**-7 / xp.finfo(x.dtype).eps + 1.0)
    rounded = c - (c - scaled)
    overflows = large & (xp.abs(rounded) >= _OVERFLOW * _SCALE)
    rounded = xp.where(overflows, zero, rounded) / scale
    infinity = xp.full_like(x, float("inf"))
    rounded = xp.where(overflows, xp.where(x > 0, infinity, -infinity), rounded)
    return xp.where(finite, rounded, x)


def round_operands(backend: Backend, a: Array, b: Array) -> tuple[Array, Array]:
    """Return the operands of a matrix product in the precision of the backend.

    In "float32" and "int8" they stay as they are: linear layers in "int8" use `int8_product`, attention has no int8.
    """
    if backend.precision == "bfloat16":
        return round_to_bfloat16(a), round_to_bfloat16(b)
    return a, b


def check_gradients(backend: Backend) -> None:
    """Check that linear layers have gradients in the precision of the backend.

    Raises:
        ValueError: the precision is "int8".
    """
    if backend.precision == "int8":
        raise ValueError(NO_INT8_GRADIENTS)


def quantise_inputs(x: Array) -> tuple[Array, Array]:
    """Quantise each row to whole numbers in a range of 255 that holds 0: x is about numbers * scales.

    The range goes from the lowest to the highest number of the row, 0 included, and not from -max |x| to max |x|. That
    costs nothing, and it matters. A few hidden units of a trained BERT are larger than all others and have the same
    sign in every row, and GELU's outputs are hardly ever below 0; half of a symmetric range would be empty. The lowest
    cosine between embeddings in int8 and in float32 (all-MiniLM-L6-v2, 400 texts of the standard library's
    documentation) is 0.996 with this range and 0.990 with the symmetric one. In a symmetric range the inputs of
    queries, keys and values cost the most (0.9936 when only they are quantised, 0.9983 in this range).

    0 stays exactly 0. A row becomes 0 if its scale is below the normal numbers of float32. A row with a NaN or an
    infinity has the scale NaN, so that all results that depend on it are NaN.

    Args:
        x: (N, in), float32 or float64; not changed.

    Returns:
        numbers (N, in): whole numbers, kept in the dtype of `x`. In each row they lie between a lowest number, from
            -255 to 0, and the lowest number + 255.
        scales (N, 1).
    """
    xp = array_namespace(x)
    finite = xp.all(xp.isfinite(x), axis=1, keepdims=True)
    x = xp.where(finite, x, xp.zeros_like(x))
    with_zero = xp.concat((x, xp.zeros_like(finite, dtype=x.dtype)), axis=1)
    low, high = xp.min(with_zero, axis=1, keepdims=True), xp.max(with_zero, axis=1, keepdims=True)
    scales = high / _INPUT_STEPS - low / _INPUT_STEPS
    inverses = _inverses(scales)
    highest = xp.round(low * inverses) + _INPUT_STEPS
    numbers = xp.round(x * inverses)  # rounding both ends may make the range 256 wide
    numbers = xp.where(numbers > highest, xp.broadcast_to(highest, numbers.shape), numbers)
    return numbers, xp.where(finite, scales, xp.full_like(scales, float("nan")))


def quantise_weight(weight: Array) -> tuple[Array, Array]:
    """Quantise each row to whole numbers from -127 to 127: weight is about numbers * scales.

    The numbers of an output's weights lie around 0, so the range is symmetric, from -max |weight| to max |weight|. Tiny
    numbers, NaN and infinities are treated as in `quantise_inputs`.

    Args:
        weight: (out, in), float32 or float64; not changed.

    Returns:
        numbers (out, in): whole numbers, kept in the dtype of `weight`.
        scales (out, 1).
    """
    xp = array_namespace(weight)
    finite = xp.all(xp.isfinite(weight), axis=1, keepdims=True)
    weight = xp.where(finite, weight, xp.zeros_like(weight))
    with_zero = xp.concat((weight, xp.zeros_like(finite, dtype=weight.dtype)), axis=1)
    scales = xp.max(xp.abs(with_zero), axis=1, keepdims=True) / _LARGEST_WEIGHT
    return xp.round(weight * _inverses(scales)), xp.where(finite, scales, xp.full_like(scales, float("nan")))


def _inverses(scales: Array) -> Array:
    """Return 1 / scales, but 0 for scales below the normal numbers of float32."""
    xp = array_namespace(scales)
    normal = scales >= xp.finfo(xp.float32).smallest_normal
    return xp.where(normal, 1 / xp.where(normal, scales, xp.ones_like(scales)), xp.zeros_like(scales))


def int8_product(x: Array, weight: Array) -> Array:
    """Return x @ weight.T (N, out) with x (N, in) and weight (out, in) quantised.

    The sums of products are exact: products in the dtype of `x` for so few columns that nothing is rounded, added as
    int32. So a twin can have the same bits. Each sum is rounded to the dtype, then multiplied by the scale of its row
    of x, then by the scale of its row of the weight.

    Raises:
        ValueError: there are so many columns that a sum might not fit 32 bits.
    """
    xp = array_namespace(x)
    columns = x.shape[1]
    if columns > LONGEST_INT8_ROW:
        raise ValueError(f"int8 products sum over at most {LONGEST_INT8_ROW:,} numbers, not {columns:,}")
    (x, x_scales), (weight, weight_scales) = quantise_inputs(x), quantise_weight(weight)
    sums = xp.zeros((x.shape[0], weight.shape[0]), dtype=xp.int32, device=device(x))
    for first in range(0, columns, _EXACT):
        block = slice(first, min(first + _EXACT, columns))
        sums += xp.astype(x[:, block] @ weight[:, block].T, xp.int32)
    return xp.astype(sums, x.dtype) * x_scales * weight_scales.T
