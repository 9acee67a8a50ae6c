"""Cross-entropy and its gradient: a row of logits is read from memory once, and stays in the cache."""

from __future__ import annotations

import numpy as np
from numba import prange

from backends import checks
from backends.base import Array, Backend, score_bound
from backends.cpu.kernels.elementary import exponential, type_of
from backends.cpu.kernels.jit import elementwise, parallel, summing
from backends.cpu.kernels.softmax import clip, row_maximum


@summing
def _total(x, maximum):
    total = type_of(x, 0.0)
    for j in range(x.shape[0]):
        total += exponential(x[j] - maximum)
    return total


@summing
def _exponentials(x, bound, maximum, y):
    total = type_of(x, 0.0)
    for j in range(x.shape[0]):
        e = exponential(clip(x[j], bound) - maximum)
        y[j] = e
        total += e
    return total


@elementwise
def _scale(y, factor):
    for j in range(y.shape[0]):
        y[j] *= factor


@parallel
def _forward(logits, labels, losses):
    for i in prange(logits.shape[0]):
        losses[i] = 0
        if labels[i] >= 0:
            maximum = row_maximum(logits[i])
            total = _total(logits[i], maximum)
            losses[i] = np.log(total) - (logits[i, labels[i]] - maximum)


@parallel
def _backward(logits, labels, bound, scale, losses, dlogits):
    for i in prange(logits.shape[0]):
        losses[i] = 0
        if labels[i] >= 0:
            largest = row_maximum(logits[i])
            maximum = clip(largest, bound)
            total = _exponentials(logits[i], bound, maximum, dlogits[i])
            losses[i] = np.log(total) - (logits[i, labels[i]] - largest)  # not clipped: an infinite logit shows
            _scale(dlogits[i], type_of(logits, 0.0) if maximum == -bound else scale / total)
            dlogits[i, labels[i]] -= scale
        else:
            dlogits[i, :] = 0


def _check(operation: str, logits: Array, labels: Array) -> None:
    """Check logits (M, V) and labels (M,), since compiled code indexes without a check.

    Raises:
        IndexError: a label for which there is no logit.
        ValueError: not one label for every row, or logits of another shape than (M, V).
        TypeError: labels that are no integers, or logits that are no float32 or float64.
    """
    rows, columns = checks.check_matrix(operation, "logits", logits)
    checks.check_integers(operation, "labels", labels, (rows,))
    if rows and int(labels.max()) >= columns:
        raise IndexError(f"{operation}: the label {int(labels.max())} has no logit; there are {columns} in each row")


def cross_entropy_forward(backend: Backend, logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[label]; zero where the label is negative."""
    _check("cross_entropy_forward", logits, labels)
    losses = backend.empty((logits.shape[0],), logits.dtype)
    _forward(np.ascontiguousarray(logits), labels, losses)
    return losses


def cross_entropy_backward(backend: Backend, logits: Array, labels: Array, scale: float) -> tuple[Array, Array]:
    """The losses, and dlogits of scale * sum(losses)."""
    _check("cross_entropy_backward", logits, labels)
    losses, dlogits = backend.empty((logits.shape[0],), logits.dtype), backend.empty(logits.shape, logits.dtype)
    _backward(
        np.ascontiguousarray(logits),
        labels,
        logits.dtype.type(score_bound(np, logits.dtype)),
        logits.dtype.type(scale),
        losses,
        dlogits,
    )
    return losses, dlogits
