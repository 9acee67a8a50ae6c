"""The numerically stable softmax and its gradient."""

from __future__ import annotations

from array_api_compat import array_namespace

from backends import Array
from backends.base import score_bound


def stable_softmax(x: Array, axis: int = -1) -> Array:
    """exp(x) / sum(exp(x)) along an axis, finite for every x but NaN. The only softmax in Mini-BERT.

    The largest score is subtracted first, so that no exponential overflows. Scores of minus infinity (or
    below the negative `score_bound`) get a weight of exactly zero, and where all are, as in a fully masked
    row, all weights are zero. Scores of infinity (or above the bound) share the weight. NaN stays NaN, so
    that it is noticed.

    Args:
        x: any shape, floating; not changed.
        axis: the axis that sums to one.

    Returns:
        The shape and dtype of `x`.

    Raises:
        TypeError: integers.
    """
    xp = array_namespace(x)
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(f"stable_softmax needs floating-point scores, not {x.dtype}")
    bound = score_bound(xp, x.dtype)
    x = xp.clip(x, -bound, bound)
    maximum = xp.max(x, axis=axis, keepdims=True)
    y = xp.exp(x - maximum)
    total = xp.sum(y, axis=axis, keepdims=True)
    return y * xp.where(maximum == -bound, xp.zeros_like(total), 1.0 / total)


def softmax_backward(dy: Array, y: Array) -> Array:
    """The gradient of y = stable_softmax(x) along the last axis; zero where all weights are zero."""
    xp = array_namespace(dy)
    return y * (dy - xp.sum(dy * y, axis=-1, keepdims=True))
