"""Every operation computes the same on every backend, and its gradient agrees with central differences."""

from __future__ import annotations

import numpy as np
import pytest

from backends import Backend, get_backend
from minibert import stable_softmax
from minibert.kernels import Kernels
from minibert.ops import DEFINITIONS
from tests.support import backends_under_test
from tests.support.checking import GRADIENT_TOLERANCE, assert_close, gradient_error
from tests.support.op_cases import CASES, Case, output_gradient, run

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def test_every_operation_has_a_case():
    covered = {operation for case in CASES for operation in case.operations}
    without_gradient = {"adamw_update", "add_scaled", "squared_norm"}  # see tests/ops/test_twins.py
    assert covered == set(DEFINITIONS) - without_gradient


@each_case
def test_an_operation_and_its_gradient_are_the_same_on_every_backend(case: Case, backend: Backend):
    host = get_backend("cpu")
    expected, expected_gradients = run(case, Kernels(host, "reference"), host, "float64")
    for dtype in backends_under_test.float_dtypes(backend):
        y, gradients = run(case, Kernels(backend), backend, dtype)
        assert_close(backend, y, expected, dtype)
        assert set(gradients) == set(case.inputs)
        for name, gradient in gradients.items():
            assert_close(backend, gradient, expected_gradients[name], dtype)


def case_gradient_error(case: Case, backend: Backend, seed: int, wrong: dict[str, object] | None = None) -> float:
    """Return the error of a case's gradients along a random direction; `wrong` replaces operations."""
    kernels = Kernels(backend, "reference")
    for name, function in (wrong or {}).items():
        setattr(kernels, name, function)

    def loss(inputs: dict[str, np.ndarray]) -> float:
        y = backend.to_numpy(run(case, kernels, backend, "float64", inputs)[0])
        return float((y * output_gradient(case, y)).sum())

    gradients = {name: backend.to_numpy(g) for name, g in run(case, kernels, backend, "float64")[1].items()}
    return gradient_error(loss, case.inputs, gradients, np.random.default_rng(seed))


@each_case
@pytest.mark.parametrize("seed", range(3))
def test_a_gradient_agrees_with_central_differences(case: Case, seed: int, float64_backend: Backend):
    assert case_gradient_error(case, float64_backend, seed) < GRADIENT_TOLERANCE


@each_case
def test_every_entry_of_a_gradient_agrees_with_central_differences(case: Case):
    """Check all entries one by one, on NumPy: a random direction could miss an entry."""
    backend = get_backend("cpu")
    kernels = Kernels(backend, "reference")
    _, gradients = run(case, kernels, backend, "float64")
    step = 1e-5
    for name, value in case.inputs.items():
        for index in np.ndindex(value.shape):
            losses = []
            for sign in (1, -1):
                moved = {**case.inputs, name: value.copy()}
                moved[name][index] += sign * step
                y = run(case, kernels, backend, "float64", moved)[0]
                losses.append(float((y * output_gradient(case, y)).sum()))
            numeric = (losses[0] - losses[1]) / (2 * step)
            assert gradients[name][index] == pytest.approx(numeric, rel=1e-6, abs=1e-8), (name, index)


# --- negative controls: a wrong gradient must be noticed ------------------------------------------------------


def _without_duplicates(backend: Backend, target: np.ndarray, indices: np.ndarray, rows: np.ndarray) -> None:
    target[indices] += rows  # NumPy's assignment by an index array keeps only the last of several equal indices


def _wrong(operation: str):
    """Return a version of a backward function with one typical mistake."""
    right = DEFINITIONS[operation]
    backend = get_backend("cpu")

    def embedding_backward(dy, ids, dtables):
        for indices, dtable in zip(ids, dtables, strict=True):
            _without_duplicates(backend, dtable, indices, dy)

    def linear_backward(dy, x, weight, dweight, dbias=None):
        right(backend, dy, x, weight, dweight, dbias)
        return -(dy @ weight)

    def layer_norm_backward(dy, x, weight, statistics, dweight, dbias):  # forgets that x_mean depends on x
        right(backend, dy, x, weight, statistics, dweight, dbias)
        _, inverse_deviation = statistics
        return dy * weight * inverse_deviation

    def bias_gelu_backward(dy, x, bias, dbias):  # forgets the density term
        _, y = right(backend, dy, x, bias, dbias)
        return dy * (0.5 + 0.5 * backend.erf((x + bias) * np.sqrt(0.5))), y

    def dropout_backward(dy, dropout):
        return dy

    def dropout_add_layer_norm_backward(*arguments):  # forgets the residual
        dx, dresidual = right(backend, *arguments)
        return dx, 0.0 * dresidual

    def attention_backward(dcontext, q, k, v, saved, layout, dropout, dq, dk, dv):  # forgets the dropout
        right(backend, dcontext, q, k, v, saved, layout, None, dq, dk, dv)

    def cross_entropy_backward(logits, labels, scale):  # forgets to leave out rows without a label
        return right(backend, logits, labels, scale)[0], right(backend, logits, np.maximum(labels, 0), scale)[1]

    return locals()[operation]


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("embedding", "embedding_backward"),
        ("linear", "linear_backward"),
        ("layer_norm", "layer_norm_backward"),
        ("bias_gelu", "bias_gelu_backward"),
        ("dropout", "dropout_backward"),
        ("dropout_add_layer_norm", "dropout_add_layer_norm_backward"),
        ("attention:dropped", "attention_backward"),
        ("cross_entropy", "cross_entropy_backward"),
    ],
)
def test_a_wrong_gradient_is_noticed(name: str, operation: str):
    (case,) = [case for case in CASES if case.name == name]
    backend = get_backend("cpu")
    error = case_gradient_error(case, backend, seed=0, wrong={operation: _wrong(operation)})
    assert error > 1000 * GRADIENT_TOLERANCE


# --- softmax --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1e9, 0.0, -1e9], [1.0, 0.0, 0.0]),
        ([1e9, 1e9], [0.5, 0.5]),
        ([-1e9, -1e9], [0.5, 0.5]),
        ([float("inf"), 0.0], [1.0, 0.0]),
        ([float("inf"), float("inf"), 5.0], [0.5, 0.5, 0.0]),
        ([float("-inf"), 0.0, 0.0], [0.0, 0.5, 0.5]),
        ([float("-inf"), float("-inf")], [0.0, 0.0]),
        ([float("inf"), float("-inf")], [1.0, 0.0]),
        ([3e38, -3e38], [1.0, 0.0]),
    ],
)
def test_softmax_is_finite_for_extreme_scores(scores, expected, backend: Backend):
    for dtype in backends_under_test.float_dtypes(backend):
        x = backend.asarray(np.array([scores]), dtype=backend.dtype(dtype))
        assert_close(backend, stable_softmax(x), [expected], dtype)


def test_softmax_shows_a_nan(backend: Backend):
    x = backend.asarray(np.array([[0.0, float("nan")]]), dtype=backend.dtype("float32"))
    assert np.isnan(backend.to_numpy(stable_softmax(x))).all()


def test_softmax_works_along_any_axis(backend: Backend):
    x = np.random.default_rng(0).standard_normal((3, 4, 5))
    expected = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    y = stable_softmax(backend.asarray(x, dtype=backend.dtype("float32")), axis=1)
    assert_close(backend, y, expected, "float32")


def test_softmax_of_integers_is_refused():
    with pytest.raises(TypeError, match="needs floating-point scores, not int64"):
        stable_softmax(np.array([[1, 2]]))
