"""Quantised rows are whole numbers near to the numbers they replace, and products in int8 are exact sums of them."""

from __future__ import annotations

import numpy as np
import pytest

from backends import Backend
from backends.base import LONGEST_INT8_ROW
from minibert.kernels import Kernels
from minibert.ops import quantise_inputs, quantise_weight
from minibert.ops.precision import int8_product
from tests.support import backends_under_test
from tests.support.checking import assert_close

QUANTISERS = [quantise_inputs, quantise_weight]
LARGEST, SMALLEST_NORMAL = float(np.finfo(np.float32).max), 2.0**-126

each_quantiser = pytest.mark.parametrize("quantise", QUANTISERS, ids=lambda function: function.__name__)


def quantised(backend: Backend, quantise, x: np.ndarray, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers and the scales as float64, on the host."""
    numbers, scales = quantise(backend.asarray(x.astype(dtype), dtype=backend.dtype(dtype)))
    assert numbers.dtype == scales.dtype == backend.dtype(dtype)
    assert (numbers.shape, scales.shape) == (x.shape, (x.shape[0], 1))
    return tuple(np.asarray(backend.to_numpy(array)).astype(np.float64) for array in (numbers, scales))  # type: ignore[return-value]


def rows_of_every_kind() -> np.ndarray:
    """Return rows (60, 40): around 0, on one side of it, with one large number, of all sizes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 40))
    x[10:20] = np.abs(x[10:20])
    x[20:30] = -np.abs(x[20:30])
    x[30:40, 7] = 50.0
    x[40:50] += 100.0
    return (x * 10.0 ** np.linspace(-30, 30, 60)[rng.permutation(60), None]).astype(np.float32)


def test_inputs_become_whole_numbers_within_a_range_of_255_that_holds_0(backend: Backend):
    x = rows_of_every_kind()
    for dtype in backends_under_test.float_dtypes(backend):
        numbers, scales = quantised(backend, quantise_inputs, x, dtype)
        np.testing.assert_array_equal(numbers, np.round(numbers))
        low, high = np.minimum(numbers.min(axis=1), 0), np.maximum(numbers.max(axis=1), 0)
        assert (high - low <= 255).all()
        assert (high - low >= 254).all(), "a row does not use its range"
        error = np.abs(numbers * scales - x) / scales
        assert error.max() < 0.5 + 1e-4  # where both ends round up, the upper one is cut: not in these rows


def test_weights_become_whole_numbers_from_minus_127_to_127(backend: Backend):
    x = rows_of_every_kind()
    for dtype in backends_under_test.float_dtypes(backend):
        numbers, scales = quantised(backend, quantise_weight, x, dtype)
        np.testing.assert_array_equal(numbers, np.round(numbers))
        np.testing.assert_array_equal(np.abs(numbers).max(axis=1), 127)
        assert (np.abs(numbers * scales - x) / scales).max() < 0.5 + 1e-4


def test_a_range_that_would_have_257_numbers_is_cut_at_its_upper_end(backend: Backend):
    """Both ends are halfway between two whole numbers, and round to the even one: -128 and 128."""
    numbers, scales = quantised(backend, quantise_inputs, np.array([[-127.5, 0.0, 64.0, 127.5]]))
    np.testing.assert_array_equal(numbers, [[-128, 0, 64, 127]])
    assert scales == 1.0


@each_quantiser
def test_zeros_stay_zero(quantise, backend: Backend):
    x = rows_of_every_kind()
    x[:, ::3] = 0.0
    x[4] = 0.0
    numbers, scales = quantised(backend, quantise, x)
    assert (numbers[:, ::3] == 0.0).all()
    assert (numbers[4] == 0.0).all()
    assert scales[4] == 0.0


@each_quantiser
def test_the_largest_and_the_smallest_numbers(quantise, backend: Backend):
    """The difference of the largest numbers would be an infinity; the inverse of a subnormal scale, too."""
    x = np.array([[-LARGEST, LARGEST], [0.0, 100 * SMALLEST_NORMAL], [300 * SMALLEST_NORMAL, 0.0]], dtype=np.float32)
    numbers, scales = quantised(backend, quantise, x)
    assert np.isfinite(scales).all()
    assert np.isfinite(numbers).all()
    np.testing.assert_allclose(numbers[0] * scales[0], x[0], rtol=5e-3)
    np.testing.assert_array_equal(numbers[1], 0.0)
    np.testing.assert_allclose(numbers[2] * scales[2], x[2], rtol=1e-6)


@each_quantiser
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_number_that_is_not_finite_has_the_scale_nan(quantise, wrong: float, backend: Backend):
    x = rows_of_every_kind()
    x[2, 5] = x[50, 39] = wrong
    numbers, scales = quantised(backend, quantise, x)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(scales)), [2, 50])
    assert np.isfinite(numbers).all()


@each_quantiser
def test_the_input_is_not_changed_and_may_be_empty(quantise, backend: Backend):
    host = rows_of_every_kind()
    x = backend.asarray(host.copy(), dtype=backend.dtype("float32"))
    quantise(x)
    np.testing.assert_array_equal(backend.to_numpy(x), host)
    for shape in ((0, 3), (3, 0), (0, 0)):
        _, scales = quantised(backend, quantise, np.empty(shape, dtype=np.float32))
        assert (scales == 0.0).all()


# --- the product ----------------------------------------------------------------------------------------------


def expected_product(backend: Backend, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the product by sums of Python's size, rounded to float32 after every operation, as the definition says."""
    numbers, scales = quantised(backend, quantise_inputs, x)
    weights, weight_scales = quantised(backend, quantise_weight, weight)
    sums = numbers.astype(np.int64) @ weights.astype(np.int64).T
    return (sums.astype(np.float32) * scales.astype(np.float32)) * weight_scales.astype(np.float32).T


@pytest.mark.parametrize("columns", [1, 511, 512, 513, 3000])
def test_the_sums_are_exact(columns: int, backend: Backend):
    """In float32 alone, sums of 3000 products would be rounded: all are positive and large here."""
    rng = np.random.default_rng(columns)
    x, weight = (rng.uniform(0.9, 1.0, (rows, columns)).astype(np.float32) for rows in (5, 7))
    found = int8_product(*(backend.asarray(a, dtype=backend.dtype("float32")) for a in (x, weight)))
    np.testing.assert_array_equal(np.asarray(backend.to_numpy(found)), expected_product(backend, x, weight))


def test_the_longest_sums_fit_32_bits_and_longer_ones_are_refused(backend: Backend):
    x = backend.xp.ones((1, LONGEST_INT8_ROW), dtype=backend.dtype("float32"), device=backend.device)
    found = backend.to_numpy(int8_product(x, x))
    np.testing.assert_allclose(np.asarray(found), LONGEST_INT8_ROW, rtol=1e-6)
    x = backend.xp.ones((1, LONGEST_INT8_ROW + 1), dtype=backend.dtype("float32"), device=backend.device)
    with pytest.raises(ValueError, match="int8 products sum over at most 66,311 numbers, not 66,312"):
        int8_product(x, x)


@pytest.mark.parametrize("choice", ["reference", "auto"])
def test_a_linear_layer_multiplies_quantised_operands_and_adds_its_bias_unrounded(choice: str, backend: Backend):
    rng = np.random.default_rng(1)
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((37, 70), (21, 70), 21))
    for dtype in backends_under_test.float_dtypes(backend):
        in_int8 = backend.with_precision("int8", dtype)
        arrays = [in_int8.asarray(a.astype(dtype), dtype=in_int8.dtype(dtype)) for a in (x, weight, bias)]
        found = Kernels(in_int8, choice).linear_forward(*arrays)
        # A float32 scale may round a number on a tie to the other side: one step of one operand.
        expected = expected_product(backend, x, weight).astype(np.float64) + bias
        if dtype == "float32":
            assert_close(in_int8, found, expected, dtype)
        else:
            assert np.abs(in_int8.to_numpy(found) - expected).max() < 2e-2
        assert np.abs(in_int8.to_numpy(found) - (x @ weight.T + bias)).max() > 1e-3, "nothing was quantised"


@pytest.mark.parametrize("choice", ["reference", "auto"])
def test_nan_and_infinities_fill_their_row_or_their_column(choice: str, backend: Backend):
    rng = np.random.default_rng(2)
    x, weight = (rng.standard_normal((rows, 50)).astype(np.float32) for rows in (20, 40))
    x[3, 4], x[5, 49], weight[7, 8], weight[39, 0] = np.nan, -np.inf, np.inf, np.nan
    in_int8 = backend.with_precision("int8", "float32")
    arrays = [in_int8.asarray(a, dtype=in_int8.dtype("float32")) for a in (x, weight)]
    found = np.isnan(np.asarray(in_int8.to_numpy(Kernels(in_int8, choice).linear_forward(*arrays))))
    expected = np.zeros((20, 40), dtype=bool)
    expected[[3, 5]] = expected[:, [7, 39]] = True
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("choice", ["reference", "auto"])
def test_gradients_are_refused(choice: str, backend: Backend):
    in_int8 = backend.with_precision("int8", "float32")
    kernels = Kernels(in_int8, choice)
    dy, x, weight = (
        in_int8.xp.ones(s, dtype=in_int8.dtype("float32"), device=in_int8.device) for s in ((2, 3), (2, 4), (3, 4))
    )
    with pytest.raises(ValueError, match="int8 is a precision for inference"):
        kernels.linear_backward_input(dy, weight)
    with pytest.raises(ValueError, match="int8 is a precision for inference"):
        kernels.linear_backward_weight(dy, x, in_int8.xp.zeros_like(weight), None)
