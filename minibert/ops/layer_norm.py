"""Layer normalisation, alone and as the end of a sub-layer (bias + dropout + residual + layer norm), with gradients.

The names are those of docs/gradients.md, sections "Layer norm" and "The end of a sub-layer".
"""

from __future__ import annotations

from backends import Array, Backend
from minibert.ops.dropout import Dropout, dropout_backward, dropout_forward


def layer_norm_forward(
    backend: Backend, x: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, tuple[Array, Array]]:
    """Normalise every row (Ba et al. 2016, equations 3 and 4): y = (x - x_mean) * inverse_deviation * weight + bias.

    Formula: docs/gradients.md#layer-norm

    Args:
        backend: where the arrays live.
        x: (N, H).
        weight: (H,), the gain.
        bias: (H,).
        eps: added to the variance.

    Returns:
        y (N, H), and the statistics for the backward pass: x_mean and inverse_deviation, each (N, 1).
    """
    xp = backend.xp
    x_mean = xp.mean(x, axis=-1, keepdims=True)  # (N, 1)
    centred = x - x_mean
    inverse_deviation = 1.0 / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + eps)  # (N, 1)
    n = centred * inverse_deviation
    return n * weight + bias, (x_mean, inverse_deviation)


def layer_norm_backward(
    backend: Backend,
    dy: Array,
    x: Array,
    weight: Array,
    statistics: tuple[Array, Array],
    dweight: Array,
    dbias: Array,
) -> Array:
    """Write dweight and dbias, each (H,), and return dx (N, H).

    Formula: docs/gradients.md#layer-norm
    """
    xp = backend.xp
    x_mean, inverse_deviation = statistics  # (N, 1) each
    n = (x - x_mean) * inverse_deviation
    # y = n * weight + bias
    dweight[...] = xp.sum(dy * n, axis=0)  # (H,)
    dbias[...] = xp.sum(dy, axis=0)  # (H,)
    dn = dy * weight
    # n = (x - x_mean) * inverse_deviation, where x_mean and inverse_deviation depend on x, too
    dn_mean = xp.mean(dn, axis=-1, keepdims=True)  # (N, 1)
    dn_n_mean = xp.mean(dn * n, axis=-1, keepdims=True)  # (N, 1)
    return (dn - dn_mean - n * dn_n_mean) * inverse_deviation


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
    """Return the end of a sub-layer, y = layer_norm(residual + dropout(x + bias)) (Vaswani et al. 2017, section 3.1).

    Formula: docs/gradients.md#the-end-of-a-sub-layer

    Args:
        backend: where the arrays live.
        x: (N, H), a linear layer's output before its bias.
        bias: (H,), the linear layer's bias.
        residual: (N, H), the input of the sub-layer.
        weight: (H,), the layer norm's gain.
        norm_bias: (H,), the layer norm's bias.
        eps: added to the variance.
        dropout: the dropout of x + bias, or None.

    Returns:
        y (N, H). For the backward pass: total (N, H), which is the input of the layer norm, and the statistics of the
        layer norm, as `layer_norm_forward` returns them.
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
    """Write dbias, dweight and dnorm_bias, each (H,), and return dx and dresidual, each (N, H).

    Formula: docs/gradients.md#the-end-of-a-sub-layer

    Without dropout dx and dresidual are one array. So use dx before you add to dresidual in place.
    """
    # y = layer_norm(total)
    dtotal = layer_norm_backward(backend, dy, total, weight, statistics, dweight, dnorm_bias)
    # total = residual + dropout(x + bias)
    dresidual = dtotal
    dx = dropout_backward(backend, dtotal, dropout)
    dbias[...] = backend.xp.sum(dx, axis=0)  # (H,)
    return dx, dresidual
