"""`assert_close`, which most tests use, can fail: if all numbers are small, and for a small one among large ones."""

from __future__ import annotations

import numpy as np
import pytest

from backends import get_backend
from tests.support.checking import assert_close, tolerance

CPU = get_backend("cpu")


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_tolerance_is_relative_to_the_largest_value(dtype: str, size: float):
    expected = size * np.array([1.0, -0.5, 0.0])
    for index in range(3):
        off = np.zeros(3)
        off[index] = size * tolerance(dtype)
        assert_close(CPU, (expected + 0.5 * off).astype(dtype), expected, dtype)
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_close(CPU, (expected + 3 * off).astype(dtype), expected, dtype)


def test_zeros_must_be_zeros():
    assert_close(CPU, np.zeros(2), np.zeros(2), "float64")
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(CPU, np.array([0.0, 1e-300]), np.zeros(2), "float64")


def test_infinity_and_nan_equal_only_themselves_and_do_not_loosen_the_tolerance():
    expected = np.array([np.inf, np.nan, 1.0])
    assert_close(CPU, expected, expected, "float64")
    for index, wrong in ((0, 1e300), (1, 0.0), (2, 1.0 + 1e-9)):
        actual = expected.copy()
        actual[index] = wrong
        with pytest.raises(AssertionError):
            assert_close(CPU, actual, expected, "float64")
