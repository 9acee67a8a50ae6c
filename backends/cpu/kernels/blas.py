"""Matrix products inside kernels: SciPy's BLAS, called by each of Numba's threads with a single thread.

In the precisions "bfloat16" and "int8", `multiply` uses `bfloat16.py` and `int8.py` of this folder instead of BLAS.

So kernels and matrix products share one set of threads, and no thread spins while another works. The wheels of NumPy
and SciPy contain one BLAS each. NumPy's keeps its threads, for callers of `np.matmul`; SciPy's is held at one thread.
Where both use the same library (as in conda), that library is held at one thread.

Kernels call the products through Numba's own binding to SciPy, `numba_xxgemm`, with addresses and leading dimensions,
so that strided views need no copy. The binding is an external symbol, which the on-disk cache can keep.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import get_num_threads, prange, types
from numba.extending import overload
from numba.np.linalg import ensure_blas

from backends.base import NO_INT8_GRADIENTS, Array, Backend
from backends.cpu.kernels import bfloat16, int8
from backends.cpu.kernels.jit import called, elementwise, parallel
from backends.cpu.threads import hold_kernel_blas

_ADDRESS = types.intp
_xxgemm = types.ExternalFunction(
    "numba_xxgemm",
    types.intc(  # kind, transpositions; sizes; alpha; two matrices, leading dimensions; beta; result, leading dimension
        *[types.int8] * 3, *[types.intp] * 3, _ADDRESS, *[_ADDRESS, types.intp] * 2, _ADDRESS, _ADDRESS, types.intp
    ),
)

_NO, _YES = np.int8(ord("n")), np.int8(ord("t"))
_SINGLE, _DOUBLE = np.int8(ord("s")), np.int8(ord("d"))


def kind_of(like):
    """Return the letter of BLAS for the dtype of an array; for compiled code."""
    return _SINGLE if like.dtype == np.float32 else _DOUBLE


@overload(kind_of, inline="always")
def _kind_of(like):
    kind = _SINGLE if like.dtype == types.float32 else _DOUBLE
    return lambda like: kind


@called
def product(scalars, transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc):
    """Compute C = s A B, or C += s A B. The matrices are row-major, given by address and leading dimension.

    Args:
        scalars: (3,) of the matrices' dtype: s, 0 and 1.
        transpose_a: True if A (m, k) is stored as (k, m).
        transpose_b: True if B (k, n) is stored as (n, k).
        m: rows of C.
        n: columns of C.
        k: columns of A and rows of B, over which the products are summed.
        a: address of A.
        lda: elements from one stored row of A to the next.
        b: address of B.
        ldb: elements from one stored row of B to the next.
        accumulate: True to add to C, False to overwrite C.
        c: address of C.
        ldc: elements from one row of C to the next.
    """
    # BLAS is column-major: it sees every array transposed, and computes C' = B' A'.
    size = scalars.itemsize
    _xxgemm(
        kind_of(scalars),
        _YES if transpose_b else _NO,
        _YES if transpose_a else _NO,
        n,
        m,
        k,
        scalars.ctypes.data,
        b,
        ldb,
        a,
        lda,
        scalars.ctypes.data + (2 * size if accumulate else size),
        c,
        ldc,
    )


_STEP = 32
_SMALL = 1_000_000
"""OpenBLAS computes products of up to so many multiplications with other kernels, which add up in another order."""


@called
def _chunk(length, multiplications, parts):
    """Return into how many chunks to divide a side of C among the threads, and the length of all chunks but the last.

    An element of C should have the same bits for any number of threads. BLAS adds up its products in an order that
    depends on the place where the chunk ends, and on whether the chunk is small. So chunks begin at multiples of _STEP,
    and none is small unless the whole product is.

    Args:
        length: of the side.
        multiplications: for each element of the side.
        parts: the number of threads.
    """
    smallest = _SMALL // max(1, multiplications) + 1
    chunk = max(_STEP, (length // parts + _STEP // 2) // _STEP * _STEP, (smallest + _STEP - 1) // _STEP * _STEP)
    chunks = min(parts, (length + chunk - 1) // chunk)
    while chunks > 1 and length - (chunks - 1) * chunk < smallest:
        chunks -= 1
    return max(1, chunks), chunk


@parallel
def _divided_product(scalars, transpose_a, transpose_b, k, a, lda, b, ldb, accumulate, bias, c, parts):
    """Compute `product` with the longer side of C (m, n) divided among the threads; C starts from `bias`, if any."""
    m, n = c.shape
    size = scalars.itemsize
    by_rows = m >= n
    length = m if by_rows else n
    chunks, chunk = _chunk(length, min(m, n) * k, parts)
    biased = bias.shape[0] > 0
    for part in prange(chunks):
        start = part * chunk
        end = start + chunk if part < chunks - 1 else length
        if end > start:
            first_row, last_row = (start, end) if by_rows else (0, m)
            first, last = (0, n) if by_rows else (start, end)
            if biased:
                for i in range(first_row, last_row):
                    _copy_row(bias[first:last], c[i, first:last])
            product(
                scalars,
                transpose_a,
                transpose_b,
                last_row - first_row,
                last - first,
                k,
                a + first_row * size * (1 if transpose_a else lda),
                lda,
                b + first * size * (ldb if transpose_b else 1),
                ldb,
                accumulate or biased,
                c.ctypes.data + (first_row * n + first) * size,
                n,
            )


@elementwise
def _copy_row(row, target):
    for j in range(row.shape[0]):
        target[j] = row[j]


def matrix(x: Array) -> tuple[Array, int, int]:
    """Return an array (rows, columns) as BLAS takes it: the array, its address and its leading dimension.

    A view whose columns do not lie side by side is copied. The caller must keep the array while it uses the address.
    """
    size = x.itemsize
    if x.shape[0] < 2 or x.strides[1] != size or x.strides[0] % size or x.strides[0] < size * x.shape[1]:
        x = np.ascontiguousarray(x)
    return x, x.ctypes.data, max(1, x.shape[1] if x.shape[0] < 2 else x.strides[0] // size)


def check_same_dtype(*arrays: Array) -> None:
    """Check that arrays share a dtype that BLAS has: BLAS sees addresses only.

    Raises:
        TypeError: arrays of different dtypes, or of a dtype other than float32 and float64.
    """
    dtypes = {array.dtype for array in arrays}
    if len(dtypes) > 1 or not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
        names = ", ".join(sorted(map(str, dtypes)))
        raise TypeError(f"the arrays of an operation must all be float32 or all float64, not {names}")


def multiply(
    backend: Backend,
    a: Array,
    b: Array,
    c: Array,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    accumulate: bool = False,
    bias: Array | None = None,
) -> None:
    """Compute C = A B, C = bias + A B or C += A B on all threads, in the precision of the backend.

    Args:
        backend: the CPU backend; its precision is "float32", or "bfloat16" or "int8" for float32 arrays.
        a: (m, k), or (k, m) with `transpose_a`.
        b: (k, n), or (n, k) with `transpose_b`.
        c: (m, n), contiguous.
        transpose_a: multiply by the transpose of `a`.
        transpose_b: multiply by the transpose of `b`.
        accumulate: True to add to C, False to overwrite C.
        bias: (n,), to which the products are added in every row of C; not with `accumulate`.

    Raises:
        ValueError: shapes that do not fit, a result that is not contiguous, or another product than C = A B.T + bias
            in "int8".
        TypeError: arrays of different dtypes, or of a dtype other than float32 and float64.
    """
    m, k = a.shape[::-1] if transpose_a else a.shape
    inner, n = b.shape[::-1] if transpose_b else b.shape
    if inner != k or c.shape != (m, n) or (bias is not None and bias.shape != (n,)):
        bias_shape = "" if bias is None else f", bias {bias.shape}"
        raise ValueError(f"matrices that do not fit: ({m}, {k}) times ({inner}, {n}) into {c.shape}{bias_shape}")
    check_same_dtype(a, b, c, *(() if bias is None else (bias,)))
    if not c.flags.c_contiguous:
        raise ValueError("the result of a matrix product must be contiguous: BLAS would write beside it")
    a, address_a, lda = matrix(a)
    b, address_b, ldb = matrix(b)
    start = np.ascontiguousarray(c.reshape(-1)[:0] if bias is None else bias)
    if backend.precision == "bfloat16":
        bfloat16.multiply(
            backend, transpose_a, transpose_b, m, n, k, address_a, lda, address_b, ldb, accumulate, start, c
        )
        return
    if backend.precision == "int8":
        if transpose_a or not transpose_b or accumulate:
            raise ValueError(NO_INT8_GRADIENTS)
        int8.multiply(backend, m, n, k, address_a, lda, address_b, ldb, start, c)
        return
    _divided_product(
        scalars(c.dtype),
        transpose_a,
        transpose_b,
        k,
        address_a,
        lda,
        address_b,
        ldb,
        accumulate,
        start,
        c,
        get_num_threads(),
    )


@functools.cache
def _scalars(dtype: np.dtype[Any], scale: float) -> Array:
    ensure_blas()
    hold_kernel_blas()
    numbers = np.array([scale, 0.0, 1.0], dtype=dtype)
    # At its first call Numba looks the routine up, which takes Python's lock: this must not happen in a kernel's thread
    one = np.ones((1, 1), dtype=dtype)
    address = one.ctypes.data
    product(numbers, False, False, 1, 1, 1, address, 1, address, 1, False, np.empty_like(one).ctypes.data, 1)
    return numbers


def scalars(dtype: Any, scale: float = 1.0) -> Array:
    """Return the first argument of `product`: `scale`, 0 and 1."""
    return _scalars(np.dtype(dtype), scale)
