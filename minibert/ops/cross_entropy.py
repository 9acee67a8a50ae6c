"""The cross-entropy of predicted tokens and its gradient."""

from __future__ import annotations

from backends import Array, Backend
from minibert.ops.softmax import stable_softmax


def _one_hot(backend: Backend, labels: Array, logits: Array) -> Array:
    """(M, V) bool: True at each row's label; a row with a negative label has none."""
    xp = backend.xp
    classes = xp.arange(logits.shape[1], dtype=labels.dtype, device=backend.device)
    return labels[:, None] == classes[None, :]


def cross_entropy_forward(backend: Backend, logits: Array, labels: Array) -> Array:
    """-log softmax(logits)[label] in nats; zero where the label is negative ("not predicted").

    Args:
        backend: where the arrays live.
        logits: (M, V).
        labels: (M,) int32.

    Returns:
        (M,).
    """
    xp = backend.xp
    predicted = labels >= 0
    safe_labels = xp.where(predicted, labels, xp.zeros_like(labels))
    shifted = logits - xp.max(logits, axis=1, keepdims=True)
    log_total = xp.log(xp.sum(xp.exp(shifted), axis=1))  # (M,)
    of_label = xp.take_along_axis(shifted, xp.astype(safe_labels, xp.int64)[:, None], axis=1)[:, 0]  # (M,)
    return xp.where(predicted, log_total - of_label, xp.zeros_like(log_total))


def cross_entropy_backward(backend: Backend, logits: Array, labels: Array, scale: float) -> tuple[Array, Array]:
    """Returns the losses (M,), as `cross_entropy_forward`, and dlogits (M, V) of scale * sum(losses).

    Both need the same sum of exponentials, so one pass over the logits, a step's largest array, gives both.
    """
    xp = backend.xp
    # losses = -log softmax(logits)[labels]
    dlogits = (stable_softmax(logits) - xp.astype(_one_hot(backend, labels, logits), logits.dtype)) * scale
    dlogits = xp.where((labels >= 0)[:, None], dlogits, xp.zeros_like(dlogits))
    return cross_entropy_forward(backend, logits, labels), dlogits
