"""The end of every sub-layer, bias + dropout + residual + layer norm, in one operation."""

from __future__ import annotations

from backends import Array, Backend
from minibert.ops.dropout import Dropout, dropout_backward, dropout_forward
from minibert.ops.layer_norm import layer_norm_backward, layer_norm_forward


def dropout_add_layer_norm_forward(
    backend: Backend,
    x: Array,
    bias: Array,
    residual: Array,
    weight: Array,
    norm_bias: Array,
    eps: float,
    dropout: Dropout | None,
) -> tuple[Array, Array, tuple[Array, Array]]:
    """The end of every sub-layer: y = layer_norm(residual + dropout(x + bias)).

    Args:
        backend: where the arrays live.
        x: (N, H), a linear layer's output before its bias.
        bias: (H,), that bias.
        residual: (N, H), the input of the sub-layer.
        weight: (H,), the layer norm's gain.
        norm_bias: (H,), the layer norm's bias.
        eps: added to the variance.
        dropout: or None.

    Returns:
        y (N, H); for the backward pass the sum (N, H) that the norm was taken of, and its statistics.
    """
    total = residual + dropout_forward(backend, x + bias, dropout)
    y, statistics = layer_norm_forward(backend, total, weight, norm_bias, eps)
    return y, total, statistics


def dropout_add_layer_norm_backward(
    backend: Backend,
    dy: Array,
    total: Array,
    statistics: tuple[Array, Array],
    weight: Array,
    dropout: Dropout | None,
    dbias: Array,
    dweight: Array,
    dnorm_bias: Array,
) -> tuple[Array, Array]:
    """Writes dbias, dweight and dnorm_bias, each (H,); returns dx and dresidual, each (N, H).

    Without dropout the two are one array: use dx before adding to dresidual in place.
    """
    # y = layer_norm(total)
    dtotal = layer_norm_backward(backend, dy, total, weight, statistics, dweight, dnorm_bias)
    # total = residual + dropout(x + bias)
    dx = dropout_backward(backend, dtotal, dropout)
    dbias[...] = backend.xp.sum(dx, axis=0)
    return dx, dtotal
