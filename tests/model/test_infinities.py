"""Infinite scores and logits give the same results on every backend, in every twin and dtype.

Scores of infinity share the attention weight, and scores of minus infinity get none. An infinite logit makes the loss
infinite or NaN, but the gradient stays finite. tests/cuda_emulated/test_faults.py plants the mistakes that these
tests must find.
"""

from __future__ import annotations

import numpy as np
import pytest

from backends import Backend, get_backend
from minibert.kernels import CHOICES, Kernels
from minibert.ops import AttentionLayout, score_bound
from minibert.rows import Rows
from tests.support import backends_under_test

INF = np.inf
_HUGE = {"float16": 300.0, "float32": 1e30, "float64": 1e200}  # the square overflows in that dtype

# Queries and keys are multiples of (huge, 0) or (0, 1). The rows of the weights are the queries, the columns the keys.
_QUERIES = np.array([[1, 0], [-1, 0], [0, 1], [2, 0]])
_KEYS = np.array([[1, 0], [-1, 0], [0, 0], [1, 0]])
_WEIGHTS = np.array([[0.5, 0, 0, 0.5], [0, 1, 0, 0], [0.25] * 4, [0.5, 0, 0, 0.5]])
_WEIGHTS_MASKED = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0], [1, 0, 0, 0]])
_VALUES = np.array([[8, 0], [0, 16], [4, 4], [-24, 8]])
_TOO_LOW = np.array([[-1, 0]] * 4)  # keys that all have a score of minus infinity for the first query


def _dtypes(backend: Backend) -> list[str]:
    """Return the dtypes to test; float16 exists only in the CUDA kernels."""
    half = ["float16"] if backend.name.startswith("cuda") else []
    return [*backends_under_test.float_dtypes(backend), *half]


def assert_infinite_scores_share_the_weight(backend: Backend, choice: str, dtype: str) -> None:
    """Assert that infinite scores share the weight, with and without a mask, forward and backward."""
    host, kernels = get_backend("cpu"), Kernels(backend, choice)
    rows, tolerance = Rows(1, 4), 8 * float(np.finfo(dtype).eps)
    for masked, keys, weights in (
        (False, _KEYS, _WEIGHTS),
        (True, _KEYS, _WEIGHTS_MASKED),
        (False, _TOO_LOW, np.array([[0] * 4, [0.25] * 4, [0.25] * 4, [0] * 4])),
    ):
        scale = np.array([_HUGE[dtype], 1.0])
        excluded = -2.0 * score_bound(np, np.dtype(dtype))
        mask = np.array([0, 0, 0, excluded])[None, None, None, :].astype(dtype) if masked else None
        q, k, v = ((array * factor).astype(dtype) for array, factor in ((_QUERIES, scale), (keys, scale), (_VALUES, 1)))
        dcontext = np.array([[1, 0], [0, 1], [1, 1], [2, 0]]).astype(dtype)

        def attend(on: Backend, of: Kernels, *host_arrays: np.ndarray, mask=mask) -> list[np.ndarray]:
            q, k, v, dcontext = (on.asarray(array) for array in host_arrays)
            layout = AttentionLayout(rows, rows, None if mask is None else on.asarray(mask), 1)
            gradients = [on.xp.zeros_like(like) for like in (q, k, v)]
            context, saved = of.attention_forward(q, k, v, layout, None)
            of.attention_backward(dcontext, q, k, v, saved, layout, None, *gradients)
            return [on.to_numpy(array) for array in (context, of.attention_weights(q, k, layout), *gradients)]

        with np.errstate(all="ignore"):
            found = attend(backend, kernels, q, k, v, dcontext)
            expected = attend(host, Kernels(host, "reference"), q, k, v, dcontext)
        np.testing.assert_allclose(found[0], weights @ _VALUES, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(found[1][0, 0], weights, rtol=tolerance, atol=tolerance)
        # The terms of dq and dk are as large as the keys and queries. Where they cancel, rounding errors are left.
        for gradient, wanted, term in zip(found[2:], expected[2:], (_HUGE[dtype], _HUGE[dtype], 1.0), strict=True):
            assert np.isfinite(wanted).all()
            np.testing.assert_allclose(gradient, wanted, rtol=tolerance, atol=32 * tolerance * term)


_LOGITS = np.array(
    [
        [INF, 0, 1],
        [INF, 0, 1],
        [-INF, 0, 0],
        [-INF, 0, 0],
        [-INF, -INF, -INF],
        [INF, INF, 0],
        [INF, -INF, 0],
        [INF, -INF, 0],
        [INF, INF, INF],
        [0, INF, -INF],
    ]
)
_LABELS = np.array([0, 1, 1, 0, 2, 0, 1, 0, 2, -100], dtype=np.int32)
_SOFTMAX = np.array(
    [
        [1, 0, 0],
        [1, 0, 0],
        [0, 0.5, 0.5],
        [0, 0.5, 0.5],
        [0, 0, 0],
        [0.5, 0.5, 0],
        [1, 0, 0],
        [1, 0, 0],
        [1 / 3, 1 / 3, 1 / 3],
        [0, 1, 0],
    ]
)


def assert_infinite_logits_show_in_the_loss_only(backend: Backend, choice: str, dtype: str) -> None:
    """Assert that the gradient is finite, as `stable_softmax` gives it, and that the loss shows an infinite logit.

    Two losses are finite: log 2, where only the logit of another class is minus infinity, and 0, where nothing is
    predicted. All others are infinite or NaN.
    """
    kernels, tolerance = Kernels(backend, choice), 8 * float(np.finfo(dtype).eps)
    logits, labels = backend.asarray(_LOGITS.astype(dtype)), backend.asarray(_LABELS)
    with np.errstate(all="ignore"):
        losses, dlogits = kernels.cross_entropy_backward(logits, labels, 0.5)
        again = kernels.cross_entropy_forward(logits, labels)
    expected = np.where((_LABELS >= 0)[:, None], 0.5 * (_SOFTMAX - (_LABELS[:, None] == np.arange(3))), 0.0)
    np.testing.assert_allclose(backend.to_numpy(dlogits), expected, rtol=tolerance, atol=tolerance)
    for found in (losses, again):
        found = backend.to_numpy(found)
        assert np.isfinite(found).tolist() == [number in (2, 9) for number in range(10)]
        np.testing.assert_allclose(found[[2, 9]], [np.log(2), 0], rtol=tolerance, atol=tolerance)
        assert found[3] == INF  # the label has a probability of zero


@pytest.mark.parametrize("choice", CHOICES)
def test_infinite_scores_share_the_weight(choice: str, backend: Backend):
    for dtype in _dtypes(backend):
        assert_infinite_scores_share_the_weight(backend, choice, dtype)


@pytest.mark.parametrize("choice", CHOICES)
def test_infinite_logits_show_in_the_loss_only(choice: str, backend: Backend):
    for dtype in _dtypes(backend):
        assert_infinite_logits_show_in_the_loss_only(backend, choice, dtype)
