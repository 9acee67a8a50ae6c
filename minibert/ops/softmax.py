"""The numerically stable softmax and its gradient.

The names are those of docs/gradients.md, section "Softmax".
"""

from __future__ import annotations

from array_api_compat import array_namespace

from backends import Array
from backends.base import score_bound


def stable_softmax(x: Array, axis: int = -1) -> Array:
    """Return y = exp(x) / sum(exp(x)) along an axis, finite for every x but NaN.

    Formula: docs/gradients.md#softmax

    This is the only softmax in Mini-BERT. The maximum is subtracted first, so that no exponential overflows. Scores of
    minus infinity (or below the negative `score_bound`) get a weight of exactly zero. If all scores are that low, as in
    a fully masked row, all weights are zero. Scores of infinity (or above the bound) share the weight. NaN stays NaN,
    so that it is noticed.

    Args:
        x: any shape, floating-point; not changed.
        axis: the axis along which the result sums to one.

    Returns:
        y, of the shape and dtype of `x`.

    Raises:
        TypeError: `x` holds integers.
    """
    xp = array_namespace(x)
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(f"stable_softmax needs floating-point scores, not {x.dtype}: convert them with astype")
    bound = score_bound(xp, x.dtype)
    x = xp.clip(x, -bound, bound)
    maximum = xp.max(x, axis=axis, keepdims=True)  # (..., 1), as the two sums below
    exponentials = xp.exp(x - maximum)
    exponential_sum = xp.sum(exponentials, axis=axis, keepdims=True)
    inverse_sum = xp.where(maximum == -bound, xp.zeros_like(exponential_sum), 1.0 / exponential_sum)
    return exponentials * inverse_sum


def softmax_backward(dy: Array, y: Array) -> Array:
    """Return dx for y = stable_softmax(x) along the last axis; zero where all weights are zero.

    Formula: docs/gradients.md#softmax
    """
    xp = array_namespace(dy)
    # y = exp(x - maximum) * inverse_sum
    dy_y_sum = xp.sum(dy * y, axis=-1, keepdims=True)  # (..., 1)
    return y * (dy - dy_y_sum)
