"""Every CUDA kernel computes its definition on the emulated device: odd sizes, all dtypes, masks, thread orders."""

from __future__ import annotations

import numpy as np
import pytest

from backends import Backend
from backends.cuda.launch import STORAGE_BITS, source
from minibert.ops import Dropout, dropout_mask
from minibert.random_bits import Stream, derive_key
from tests.cuda_emulated.kernel_cases import assert_twins_agree, attention_case, row_cases
from tests.support.emulated_cuda.compiler import ORDERS, kernel_names
from tests.support.emulated_cuda.device import ACTIVITY

SIZES = [(1, 1), (1, 33), (2, 31), (5, 64), (37, 100), (70, 8), (300, 9), (3, 257), (9, 1030)]
ATTENTIONS = [(1, 1, 1, 1), (2, 5, 2, 3), (3, 33, 1, 40), (2, 37, 3, 33), (1, 70, 2, 64)]
VARIANTS = ("plain", "masked", "dropped", "unpadded", "pruned")

each_order = pytest.mark.parametrize("thread_order", ORDERS, ids=["ascending", "descending", "mixed"], indirect=True)
each_dtype = pytest.mark.parametrize("dtype", STORAGE_BITS)


@each_order
@each_dtype
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_kernel_over_rows_computes_its_definition(size, dtype: str, thread_order: int, cuda: Backend):
    for case in row_cases(*size, seed=size[0] + thread_order):
        assert_twins_agree(case, dtype, cuda)


@each_order
@each_dtype
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", ATTENTIONS, ids=str)
def test_attention_computes_its_definition(size, variant: str, dtype: str, thread_order: int, cuda: Backend):
    assert_twins_agree(attention_case(*size, variant, seed=size[1] + thread_order), dtype, cuda)


@each_dtype
def test_the_cases_launch_every_kernel_there_is(dtype: str, cuda: Backend):
    for case in [*row_cases(5, 33, seed=0), attention_case(2, 5, 2, 3, "dropped", seed=0)]:
        assert_twins_agree(case, dtype, cuda)
    assert set(kernel_names(source())) <= set(ACTIVITY.launches)


@each_dtype
@pytest.mark.parametrize("seed", range(3))
def test_the_bits_of_dropout_are_those_of_random_bits(seed: int, dtype: str, cuda: Backend):
    """The mask that the kernel draws is, bit for bit, the mask that minibert/random_bits.py draws on the host."""
    from backends import get_backend
    from minibert.kernels import Kernels

    host, rows, columns = get_backend("cpu"), 41, 77
    numbers = np.random.default_rng(seed).integers(0, 2**32, rows, dtype=np.uint32)
    key = derive_key(2**63 + seed, Stream.DROPOUT, seed, 3, 1)
    for probability in (0.1, 0.5, 0.999):
        expected = dropout_mask(host, Dropout(probability, key, numbers), columns, np.dtype("float32")) != 0
        ones = cuda.asarray(np.ones((rows, columns), dtype=dtype))
        dropped = Kernels(cuda).dropout_forward(ones, Dropout(probability, key, cuda.asarray(numbers)))
        np.testing.assert_array_equal(cuda.to_numpy(dropped) != 0, expected)


def test_the_emulation_rounds_float16_as_numpy_does(cuda: Backend):
    """Every finite float16 that is not negative survives storage, and float32 is rounded to the nearest even."""
    from minibert.kernels import Kernels

    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every) & (every >= 0)].reshape(1, -1)
    no_bias = cuda.asarray(np.zeros(every.shape[1], dtype=np.float16))
    same = cuda.to_numpy(Kernels(cuda).bias_relu_forward(cuda.asarray(every), no_bias))
    np.testing.assert_array_equal(same, every)
    shift = np.random.default_rng(0).uniform(-1, 1, every.shape[1]).astype(np.float16)
    moved = cuda.to_numpy(Kernels(cuda).bias_relu_forward(cuda.asarray(every), cuda.asarray(shift)))
    expected = np.maximum(every.astype(np.float32) + shift.astype(np.float32), 0).astype(np.float16)
    np.testing.assert_array_equal(moved, expected)
