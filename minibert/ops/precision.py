"""The precision of matrix products: rounding of operands to bfloat16, in the functions of the Array API standard.

A bfloat16 number has the sign and the 8 exponent bits of float32, but only 8 bits of significand instead of 24. The
standard has no bfloat16 arrays, so a rounded number is kept in the array's own dtype.
"""

from __future__ import annotations

from array_api_compat import array_namespace

from backends import Array, Backend

_LARGE, _SCALE = 2.0**96, 2.0**-64  # numbers from _LARGE up are scaled down, so that the splitting cannot overflow
_OVERFLOW = 2.0**128  # numbers that round to this are beyond bfloat16's range


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
    """Return the operands of a matrix product in the precision of the backend; in "float32" they stay as they are."""
    if backend.precision == "bfloat16":
        return round_to_bfloat16(a), round_to_bfloat16(b)
    return a, b
