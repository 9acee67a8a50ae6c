"""`cupy.cublas.gemm` adds a product to an array in one launch; the emulated one refuses what the real one refuses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from backends import Backend
from minibert.kernels import Kernels
from tests.support.emulated_cuda import cublas
from tests.support.emulated_cuda.array import ndarray
from tests.support.emulated_cuda.device import ACTIVITY


def zeros(backend: Backend, *shape: int, dtype: str = "float32") -> ndarray:
    return backend.asarray(np.zeros(shape, dtype=dtype))


@pytest.mark.parametrize(
    ("dtype", "rows", "expected"),
    [
        ("float32", 5, {"gemm": 1}),
        ("float64", 5, {"gemm": 1}),
        ("float16", 5, {"matmul": 1, "add": 1}),  # CuPy's gemm has no float16
        ("float32", 0, {"matmul": 1, "add": 1}),  # cuBLAS refuses a leading dimension of 0
    ],
)
def test_a_gradient_is_added_in_one_launch(dtype: str, rows: int, expected: dict[str, int], cuda: Backend):
    rng = np.random.default_rng(rows)
    dy, weight, part = (rng.integers(-3, 4, size).astype(dtype) for size in ((rows, 7), (7, 4), (rows, 4)))
    total = cuda.asarray(part)
    operands = cuda.asarray(dy), cuda.asarray(weight)
    ACTIVITY.reset()
    returned = Kernels(cuda).linear_backward_input(*operands, add_to=total)
    assert returned is total
    assert ACTIVITY.launches == expected
    np.testing.assert_array_equal(cuda.to_numpy(total), part + dy @ weight)


@pytest.mark.parametrize("shape", [(5, 3), (4, 4)])
def test_a_result_of_another_shape_is_refused(shape: tuple[int, int], cuda: Backend):
    with pytest.raises(ValueError, match=r"add_to has the shape .*, but the other arrays ask for \(5, 4\)"):
        Kernels(cuda).linear_backward_input(zeros(cuda, 5, 7), zeros(cuda, 7, 4), zeros(cuda, *shape))


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda z: cublas.gemm("N", "N", z(5, 7), z(4, 7)), AssertionError),
        (lambda z: cublas.gemm("N", "T", z(5, 7), z(7, 4)), AssertionError),
        (lambda z: cublas.gemm("N", "N", z(5, 7), z(7, 4), out=z(4, 5)), AssertionError),
        (lambda z: cublas.gemm("N", "N", z(5, 7), z(7, 4, dtype="float64")), AssertionError),
        (lambda z: cublas.gemm("N", "N", z(2, 5, 7), z(7, 4)), AssertionError),
        (lambda z: cublas.gemm("N", "N", z(5, 7, dtype="float16"), z(7, 4, dtype="float16")), TypeError),
        (lambda z: cublas.gemm("N", "N", z(0, 7), z(7, 4)), cublas.CUBLASError),
    ],
)
def test_the_emulated_gemm_refuses(call: Callable[[Callable[..., ndarray]], ndarray], error: type, cuda: Backend):
    with pytest.raises(error):
        call(lambda *shape, dtype="float32": zeros(cuda, *shape, dtype=dtype))


def test_the_emulated_gemm_transposes_scales_adds_and_counts_copies(cuda: Backend):
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(size) for size in ((7, 5), (4, 7), (5, 4)))
    out = cuda.asarray(c)
    cublas.gemm("T", "T", cuda.asarray(a), cuda.asarray(b), out=out, alpha=2.0, beta=-1.0)
    np.testing.assert_allclose(cuda.to_numpy(out), 2.0 * a.T @ b.T - c)
    wide = cuda.asarray(rng.standard_normal((5, 14)))
    ACTIVITY.reset()
    cublas.gemm("N", "N", wide[:, :7], cuda.asarray(b.T))
    assert ACTIVITY.launches == {"gemm": 1, "gemm: copy of an operand": 1}
