"""The cross-entropy of predictions, and its gradient.

The names are those of docs/gradients.md, section "Cross-entropy".
"""

from __future__ import annotations

from backends import Array, Backend
from minibert.ops.softmax import stable_softmax


def _one_hot(backend: Backend, labels: Array, logits: Array) -> Array:
    """Return (M, V) bool: True at each row's label. A row with a negative label has no True."""
    xp = backend.xp
    classes = xp.arange(logits.shape[1], dtype=labels.dtype, device=backend.device)  # (V,)
    return labels[:, None] == classes[None, :]  # (M, V)


def cross_entropy_forward(backend: Backend, logits: Array, labels: Array) -> Array:
    """Return the losses -log softmax(logits)[label] in nats; zero where the label is negative ("not predicted").

    Formula: docs/gradients.md#cross-entropy

    Args:
        backend: where the arrays live.
        logits: (M, V).
        labels: (M,) int32, below V.

    Returns:
        losses (M,).
    """
    xp = backend.xp
    predicted = labels >= 0
    safe_labels = xp.where(predicted, labels, xp.zeros_like(labels))
    maximum = xp.max(logits, axis=1, keepdims=True)  # (M, 1)
    shifted = logits - maximum
    exponential_sum = xp.sum(xp.exp(shifted), axis=1)  # (M,)
    # label_logit - maximum
    shifted_label_logit = xp.take_along_axis(shifted, xp.astype(safe_labels, xp.int64)[:, None], axis=1)[:, 0]  # (M,)
    losses = xp.log(exponential_sum) - shifted_label_logit
    return xp.where(predicted, losses, xp.zeros_like(losses))


def cross_entropy_backward(backend: Backend, logits: Array, labels: Array, scale: float) -> tuple[Array, Array]:
    """Return the losses (M,), as `cross_entropy_forward` does, and dlogits (M, V), the gradient of scale * sum(losses).

    Formula: docs/gradients.md#cross-entropy

    Losses and dlogits need the same sum of exponentials. So one pass over the logits, the largest array of a step,
    gives both.
    """
    xp = backend.xp
    # losses = -log softmax(logits)[labels]
    one_hot = xp.astype(_one_hot(backend, labels, logits), logits.dtype)  # (M, V)
    dlogits = (stable_softmax(logits) - one_hot) * scale
    dlogits = xp.where((labels >= 0)[:, None], dlogits, xp.zeros_like(dlogits))
    return cross_entropy_forward(backend, logits, labels), dlogits
