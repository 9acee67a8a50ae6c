"""Compute cross-entropy and its gradient; each row of logits is read from memory once.

The names are those of docs/gradients.md, section "Cross-entropy".
"""

from __future__ import annotations

import numpy as np
from numba import prange

from backends import checks
from backends.base import Array, Backend, score_bound
from backends.cpu.kernels.elementary import exponential, type_of
from backends.cpu.kernels.jit import elementwise, parallel, summing
from backends.cpu.kernels.softmax import clip, row_maximum


@summing
def _exponential_sum(x, maximum):
    exponential_sum = type_of(x, 0.0)
    for j in range(x.shape[0]):
        exponential_sum += exponential(x[j] - maximum)
    return exponential_sum


@summing
def _exponentials(x, bound, maximum, y):
    """Write the exponentials of the clipped x to y; return exponential_sum."""
    exponential_sum = type_of(x, 0.0)
    for j in range(x.shape[0]):
        e = exponential(clip(x[j], bound) - maximum)
        y[j] = e
        exponential_sum += e
    return exponential_sum


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
            exponential_sum = _exponential_sum(logits[i], maximum)
            label_logit = logits[i, labels[i]]
            losses[i] = np.log(exponential_sum) - (label_logit - maximum)


@parallel
def _backward(logits, labels, bound, scale, losses, dlogits):
    for i in prange(logits.shape[0]):
        losses[i] = 0
        if labels[i] >= 0:
            maximum = row_maximum(logits[i])
            clipped_maximum = clip(maximum, bound)
            exponential_sum = _exponentials(logits[i], bound, clipped_maximum, dlogits[i])
            label_logit = logits[i, labels[i]]
            losses[i] = np.log(exponential_sum) - (label_logit - maximum)  # not clipped: an infinite logit shows
            # losses = -log softmax(logits)[labels]: dlogits = (softmax(logits) - one_hot) * scale
            scaled_inverse_sum = type_of(logits, 0.0) if clipped_maximum == -bound else scale / exponential_sum
            _scale(dlogits[i], scaled_inverse_sum)
            dlogits[i, labels[i]] -= scale
        else:
            dlogits[i, :] = 0


def _check_labels(operation: str, logits: Array, labels: Array) -> None:
    """Check labels and logits, since compiled code indexes without a check.

    Raises:
        IndexError: a label has no logit.
        ValueError: there is not one label for every row, or the logits are not (M, V).
        TypeError: the labels are not integers, or the logits are neither float32 nor float64.
    """
    rows, columns = checks.check_matrix(operation, "logits", logits)
    checks.check_integers(operation, "labels", labels, (rows,))
    if rows and int(labels.max()) >= columns:
        raise IndexError(f"{operation}: the label {int(labels.max())} has no logit; there are {columns} in each row")


def cross_entropy_forward(backend: Backend, logits: Array, labels: Array) -> Array:
    """Return the losses (M,), -log softmax(logits)[label]; zero where the label is negative.

    Raises as `_check_labels` does.
    """
    _check_labels("cross_entropy_forward", logits, labels)
    losses = backend.empty((logits.shape[0],), logits.dtype)
    _forward(np.ascontiguousarray(logits), labels, losses)
    return losses


def cross_entropy_backward(backend: Backend, logits: Array, labels: Array, scale: float) -> tuple[Array, Array]:
    """Return the losses (M,), and dlogits (M, V), the gradient of scale * sum(losses).

    Raises as `_check_labels` does.
    """
    _check_labels("cross_entropy_backward", logits, labels)
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
