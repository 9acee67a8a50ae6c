"""How numbers are compared, and how gradients are checked.

`assert_close` looks at namespace, dtype, shape and device before it looks at a value. `gradient_error`
compares a gradient with central differences along a random direction, in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from backends import Array, Backend

EPSILONS = 100  # what rounding may cost, in units of the dtype's epsilon
GRADIENT_TOLERANCE = 1e-6  # relative, along a random direction in float64
_STEP = 1e-5  # of the central difference: truncation (1e-10) and rounding (1e-11) are both far below the tolerance


def tolerance(dtype: str) -> float:
    """The one table of tolerances: relative to the largest expected value, however small that is."""
    return EPSILONS * float(np.finfo(dtype).eps)


def assert_close(backend: Backend, actual: Array, expected: Any, dtype: str, scale: float | None = None) -> None:
    """The actual array lives on the backend, has the dtype and shape, and the expected (host) values.

    Args:
        backend: of the actual array.
        actual: what was computed.
        expected: what it should be, on the host.
        dtype: of the actual array, and of the tolerance.
        scale: what the tolerance is relative to; None for the largest expected value.
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
    """The gradients of all parameters, each relative to its own largest entry.

    But for the bias of the keys: it adds the same to all scores of a query, which the softmax takes off again. Its
    gradient is zero, and what is computed is the rounding of terms as large as those of the other gradients.
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
    """How far the gradients are from central differences along one random direction of all inputs together.

    Args:
        loss: a scalar function of the inputs.
        inputs: where to differentiate, float64.
        gradients: to check, one per input.
        rng: draws the direction.

    Returns:
        |numeric - analytic| relative to the larger of the two, or absolute where both are tiny.
    """
    direction = {name: rng.standard_normal(value.shape) for name, value in inputs.items()}
    length = np.sqrt(sum(float((d * d).sum()) for d in direction.values()))
    direction = {name: d / length for name, d in direction.items()}

    def at(offset: float) -> float:
        return loss({name: value + offset * direction[name] for name, value in inputs.items()})

    numeric = (at(_STEP) - at(-_STEP)) / (2 * _STEP)
    analytic = sum(float((gradients[name] * d).sum()) for name, d in direction.items())
    return abs(numeric - analytic) / max(abs(numeric), abs(analytic), 1e-3)
