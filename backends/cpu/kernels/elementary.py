"""Compute elementary functions without branches, so that a loop over them becomes vector instructions.

In float32 the functions are polynomials, fitted by Lawson's iteration, which makes the largest relative error as small
as possible. In float64, which is for checks and not for speed, they are those of the C library.
`tests/backends/cpu/kernels/test_kernels.py` measures their errors in units in the last place (ulp).
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from backends.cpu.kernels.jit import elementwise

_OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "nsz"}, "forceinline": True}
_F = np.float32

_LOG2_E = _F(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = (
    _F(0.693359375),
    _F(-2.12194440e-4),
)  # their sum is ln 2; the first has 9 bits, so n * high is exact
_EXP_LOWEST, _EXP_HIGHEST = _F(-87.3), _F(88.7)  # beyond them the result is subnormal or overflows
_E0, _E1, _E2, _E3 = _F(1.0), _F(1.0), _F(0.49999991059303284), _F(0.16666419804096222)
_E4, _E5, _E6 = _F(0.04166822507977486), _F(0.008374815806746483), _F(0.0013836845755577087)

_CDF_SCALE = _F(0.3)
_P0, _P1, _P2 = _F(7.168855518102646e-06), _F(0.1194876879453659), _F(0.12192033976316452)
_P3, _P4, _P5 = _F(0.09468353539705276), _F(0.1425354927778244), _F(-0.07650642096996307)
_P6, _P7, _P8 = _F(0.22866003215312958), _F(-0.16916608810424805), _F(0.0383782833814621)

TANH_SCALE, TANH_CUBIC = math.sqrt(2.0 / math.pi), 0.044715
_DENSITY_SCALE = 1.0 / math.sqrt(2.0 * math.pi)


@elementwise
def exponential32(x):
    """Return exp(x) of a float32: exp(x) = 2**n * exp(r) with |r| <= ln 2 / 2 and a polynomial of degree 6.

    The error is at most 2 ulp. Below -87.3 the result is zero, above 88.7 infinity; NaN stays NaN.
    """
    bounded = x if x > _EXP_LOWEST else _EXP_LOWEST  # replaces NaN too, so that the conversion to int is defined
    bounded = bounded if bounded < _EXP_HIGHEST else _EXP_HIGHEST
    n = np.floor(bounded * _LOG2_E + _F(0.5))
    r = (bounded - n * _LN2_HIGH) - n * _LN2_LOW
    y = _E0 + r * (_E1 + r * (_E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))))
    # build 2**n from its bits, in two factors, since 2**128 alone is no float32
    half = np.int32(n) >> 1
    rest = np.int32(n) - half
    y = y * np.int32((np.int32(half) + np.int32(127)) << 23).view(np.float32)
    y = y * np.int32((np.int32(rest) + np.int32(127)) << 23).view(np.float32)
    y = y if x >= _EXP_LOWEST else _F(0.0)
    y = y if x <= _EXP_HIGHEST else _F(np.inf)
    return x if x != x else y


@elementwise
def normal_parts32(u):
    """Return cumulative = Phi(u) and gaussian = exp(-u**2 / 2) of a float32.

    Phi(-|u|) = exp(-u**2 / 2) * P(t) with t = 1 / (1 + 0.3 |u|) and a polynomial P of degree 8, a scaled complementary
    error function. So the tail keeps its relative precision (except for the rounding of u**2).
    """
    size = abs(u)
    gaussian = exponential32(_F(-0.5) * u * u)
    t = _F(1.0) / (_F(1.0) + _CDF_SCALE * size)
    p = _P0 + t * (_P1 + t * (_P2 + t * (_P3 + t * (_P4 + t * (_P5 + t * (_P6 + t * (_P7 + t * _P8)))))))
    tail = gaussian * p
    return (_F(1.0) - tail if u > _F(0.0) else tail), gaussian


def exponential(x):
    """Return exp(x) in the dtype of x; for compiled code."""
    return math.exp(x)


def normal_parts(u):
    """Return cumulative = Phi(u), of the normal distribution, and gaussian = exp(-u**2 / 2); for compiled code."""
    return 0.5 * math.erfc(-u * math.sqrt(0.5)), math.exp(-0.5 * u * u)


@overload(exponential, jit_options=_OPTIONS)
def _exponential(x):
    if x == types.float32:
        return lambda x: exponential32(x)
    return lambda x: math.exp(x)


@overload(normal_parts, jit_options=_OPTIONS)
def _normal_parts(u):
    if u == types.float32:
        return lambda u: normal_parts32(u)
    return lambda u: (0.5 * math.erfc(-u * math.sqrt(0.5)), math.exp(-0.5 * u * u))


@elementwise
def gelu(u):
    """Return y = u * cumulative, cumulative = Phi(u)."""
    cumulative, _ = normal_parts(u)
    return u * cumulative


@elementwise
def gelu_and_derivative(u):
    """Return y = u * cumulative, and derivative = cumulative + u * density."""
    cumulative, gaussian = normal_parts(u)
    density = gaussian * type_of(u, _DENSITY_SCALE)
    return u * cumulative, cumulative + u * density


@elementwise
def gelu_new(u):
    """Return y = u * sigmoid(2 z), which is u * (1 + tanh(z)) / 2 and exact in the tail: GELU's tanh approximation."""
    cubic = type_of(u, TANH_SCALE * TANH_CUBIC) * u * u * u
    return u / (type_of(u, 1.0) + exponential(type_of(u, -2.0) * (type_of(u, TANH_SCALE) * u + cubic)))


@elementwise
def gelu_new_and_derivative(u):
    """Return y = u * s and its derivative, with s = sigmoid(2 z) = (1 + t) / 2 and t = tanh(z).

    derivative = 0.5 * (1 + t) + 0.5 * u * (1 - t * t) * z_derivative = s + 2 * u * s * (1 - s) * z_derivative.
    """
    square = u * u
    z = type_of(u, TANH_SCALE) * u + type_of(u, TANH_SCALE * TANH_CUBIC) * square * u
    z_derivative = type_of(u, TANH_SCALE) + type_of(u, 3.0 * TANH_SCALE * TANH_CUBIC) * square
    s = type_of(u, 1.0) / (type_of(u, 1.0) + exponential(type_of(u, -2.0) * z))
    derivative = s + type_of(u, 2.0) * u * (s * (type_of(u, 1.0) - s)) * z_derivative
    return u * s, derivative


@elementwise
def relu(u):
    """Return y = max(u, 0); NaN stays NaN."""
    return type_of(u, 0.0) if u <= type_of(u, 0.0) else u


@elementwise
def relu_and_derivative(u):
    """Return y = max(u, 0) and its derivative, 1 where u > 0 (and where u is NaN, as in the definition)."""
    off = u <= type_of(u, 0.0)
    return (type_of(u, 0.0) if off else u), (type_of(u, 0.0) if off else type_of(u, 1.0))


def type_of(like, value):
    """Return `value` in the dtype of `like`, so that a float64 constant does not widen a float32 loop."""
    return like.dtype.type(value)


@overload(type_of, jit_options=_OPTIONS, inline="always")
def _type_of(like, value):
    scalar = like.dtype if isinstance(like, types.Array) else like
    return lambda like, value: scalar(value)
