"""Compare arrays with expected numbers, and gradients with central differences.

`assert_close` compares namespace, dtype, device and shape before it compares values. `gradient_error` compares a
gradient with central differences along one random direction, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from backends import Array, Backend

EPSILONS = 100  # the allowed rounding error, in units of the dtype's epsilon
GRADIENT_TOLERANCE = 1e-6  # for `gradient_error`
_STEP = 1e-5  # of the central difference; its errors of truncation (1e-10) and rounding (1e-11) are far smaller


def tolerance(dtype: str) -> float:
    """Return the tolerance of a dtype, relative to the largest expected value, however small that value is."""
    return EPSILONS * float(np.finfo(dtype).eps)


def assert_close(backend: Backend, actual: Array, expected: Any, dtype: str, scale: float | None = None) -> None:
    """Assert that an array has the expected values, and lives on the backend with the right dtype and shape.

    Args:
        backend: the backend that `actual` must live on.
        actual: the computed array.
        expected: the expected values, on the host.
        dtype: the dtype that `actual` must have; it also decides the tolerance.
        scale: the tolerance is relative to this; None for the largest expected value.
    """
    expected = np.asarray(expected, dtype=np.float64)
    assert array_namespace(actual) is array_namespace(backend.xp.empty(0, device=backend.device))
    assert actual.dtype == backend.dtype(dtype), f"dtype {actual.dtype} instead of {dtype}"
    assert device(actual) == device(backend.asarray(np.zeros(1, dtype=dtype))), f"on {device(actual)}"
    assert actual.shape == expected.shape, f"shape {actual.shape} instead of {expected.shape}"
    actual = np.asarray(backend.to_numpy(actual), dtype=np.float64)
    if scale is None:
        scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    np.testing.assert_allclose(actual, expected, rtol=tolerance(dtype), atol=tolerance(dtype) * scale)


def assert_gradients_close(
    backend: Backend, actual: Mapping[str, Array], expected: Mapping[str, Any], dtype: str
) -> None:
    """Assert that the gradients of all parameters are as expected, each relative to its own largest entry.

    The bias of the keys is an exception. It adds the same number to all scores of a query, and the softmax does not
    change then. So its true gradient is zero, and the computed one is the rounding error of terms as large as those of
    the other gradients. It is compared relative to the largest entry of all gradients.
    """
    assert set(actual) == set(expected)
    largest = max(float(np.abs(np.asarray(gradient)).max(initial=0.0)) for gradient in expected.values())
    for name, gradient in actual.items():
        scale = largest if name.endswith("attention.key.bias") else None
        try:
            assert_close(backend, gradient, expected[name], dtype, scale)
        except AssertionError as error:
            raise AssertionError(f"the gradient of {name}: {error}") from error


def gradient_error(
    loss: Callable[[dict[str, np.ndarray]], float],
    inputs: dict[str, np.ndarray],
    gradients: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> float:
    """Compare gradients with central differences along one random direction in the space of all inputs.

    Args:
        loss: a scalar function of the inputs.
        inputs: the point at which to differentiate, float64.
        gradients: the gradients to check, one for every input.
        rng: draws the direction.

    Returns:
        |numeric - analytic|, divided by the larger of the two, or by 1e-3 if both are smaller.
    """
    direction = {name: rng.standard_normal(value.shape) for name, value in inputs.items()}
    length = np.sqrt(sum(float((d * d).sum()) for d in direction.values()))
    direction = {name: d / length for name, d in direction.items()}

    def at(offset: float) -> float:
        return loss({name: value + offset * direction[name] for name, value in inputs.items()})

    numeric = (at(_STEP) - at(-_STEP)) / (2 * _STEP)
    analytic = sum(float((gradients[name] * d).sum()) for name, d in direction.items())
    return abs(numeric - analytic) / max(abs(numeric), abs(analytic), 1e-3)
