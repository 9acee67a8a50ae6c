"""cuBLAS as CuPy offers it, emulated: `cupy.cublas.gemm` and `dot`, the math mode of a device's handle, and TF32."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from tests.support.emulated_cuda.array import ndarray, operand, uninitialised
from tests.support.emulated_cuda.device import ACTIVITY, Device

CUBLAS_DEFAULT_MATH, _CUBLAS_TF32_TENSOR_OP_MATH = 0, 3
_TF32_DROPS = 13  # of the 23 bits of fraction

_math_modes: dict[int, int] = {}


class CUBLASError(RuntimeError):
    """`cupy.cuda.cublas.CUBLASError`."""


def setMathMode(handle: int, mode: int) -> None:  # noqa: N802 - CuPy's name
    """Set how products of this handle may compute."""
    _math_modes[handle] = mode


def getMathMode(handle: int) -> int:  # noqa: N802
    """Return the mode that was set."""
    return _math_modes.get(handle, CUBLAS_DEFAULT_MATH)


def handle_says_tf32() -> bool:
    """True if all float32 products of the device compute in TF32."""
    return getMathMode(Device(0).cublas_handle) == _CUBLAS_TF32_TENSOR_OP_MATH


def plain_products_are_tf32() -> bool:
    """True if products of two matrices compute in TF32: CUPY_TF32 switches it on for these alone."""
    return int(os.getenv("CUPY_TF32", "0")) > 0 or handle_says_tf32()


def rounded_to_tf32(x: np.ndarray) -> np.ndarray:
    """Return float32 numbers rounded to 10 bits of fraction, to the nearest even."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    odd = (bits >> _TF32_DROPS) & 1
    rounded = (bits + odd + np.uint32((1 << (_TF32_DROPS - 1)) - 1)) & np.uint32(0xFFFFFFFF << _TF32_DROPS & 0xFFFFFFFF)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)


def product(a: np.ndarray, b: np.ndarray, tf32: bool) -> np.ndarray:
    """Multiply as the device does: float16 is added up in float32 and rounded once, float32 may use TF32."""
    if a.dtype == np.float16:
        return np.matmul(a.astype(np.float32), b.astype(np.float32)).astype(np.float16)
    if a.dtype == np.float32 and tf32:
        return np.matmul(rounded_to_tf32(a), rounded_to_tf32(b))
    return np.matmul(a, b)


def dot(x: ndarray, y: ndarray, out: Any = None) -> ndarray:
    """`cupy.cublas.dot`: the sum of x * y on the device, in the two kernels that cuBLAS launches.

    As CuPy does, it tells cuBLAS that vectors have no gaps, whatever their strides are.
    """
    if x.dtype.char not in "fd":
        raise TypeError("invalid dtype (EMULATED)")
    if x.ndim != 1 or x.shape != y.shape or x.dtype != y.dtype:
        raise ValueError("x and y must be vectors of one size and dtype (EMULATED)")
    ACTIVITY.launch("cublas.dot", 2)
    result = uninitialised((), x.dtype) if out is None else out
    result._host[...] = np.dot(*(np.lib.stride_tricks.as_strided(v._host, v.shape, (v.itemsize,)) for v in (x, y)))
    return result


def gemm(
    transa: str, transb: str, a: ndarray, b: ndarray, out: Any = None, alpha: float = 1.0, beta: float = 0.0
) -> ndarray:
    """`cupy.cublas.gemm`: alpha * op(a) @ op(b) + beta * out, with its assertions.

    An operand that is contiguous in neither order is copied. A result that is not is copied twice, there and back.
    """
    assert a.ndim == b.ndim == 2
    assert a.dtype == b.dtype
    if a.dtype.char not in "fd":
        raise TypeError("invalid dtype (EMULATED)")
    turned = {"N": False, "T": True}
    left, right = (x._host.T if turned[t] else x._host for x, t in ((a, transa), (b, transb)))
    assert left.shape[1] == right.shape[0]
    shape = left.shape[0], right.shape[1]
    if 0 in (*left.shape, *right.shape):
        raise CUBLASError("CUBLAS_STATUS_INVALID_VALUE: a leading dimension of 0 (EMULATED)")
    if out is None:
        out, beta = uninitialised(shape[::-1], a.dtype).T, 0.0
    else:
        assert out.ndim == 2
        assert out.shape == shape
        assert out.dtype == a.dtype
    ACTIVITY.launch("gemm")
    for x in (a, b):
        if not (x.flags.c_contiguous or x.flags.f_contiguous):
            ACTIVITY.launch("gemm: copy of an operand")
    if not (out.flags.c_contiguous or out.flags.f_contiguous):
        ACTIVITY.launch("gemm: copy of the result", 2)
    added = 0 if beta == 0.0 else out._host.dtype.type(operand(beta)) * out._host
    out._host[...] = out._host.dtype.type(operand(alpha)) * product(left, right, handle_says_tf32()) + added
    return out
