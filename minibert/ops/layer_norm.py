"""Layer normalisation and its gradient."""

from __future__ import annotations

from backends import Array, Backend


def layer_norm_forward(
    backend: Backend, x: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, tuple[Array, Array]]:
    """Layer normalisation (Ba et al. 2016, equations 3 and 4) over the last axis.

    Args:
        backend: where the arrays live.
        x: (N, H).
        weight: (H,), the gain.
        bias: (H,).
        eps: added to the variance.

    Returns:
        y (N, H), and what the backward pass needs: mean and 1 / standard deviation, each (N, 1).
    """
    xp = backend.xp
    mean = xp.mean(x, axis=-1, keepdims=True)  # (N, 1)
    centred = x - mean
    inverse_deviation = 1.0 / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + eps)  # (N, 1)
    return centred * inverse_deviation * weight + bias, (mean, inverse_deviation)


def layer_norm_backward(
    backend: Backend,
    dy: Array,
    x: Array,
    weight: Array,
    statistics: tuple[Array, Array],
    dweight: Array,
    dbias: Array,
) -> Array:
    """Writes dweight and dbias (H,); returns dx (N, H). Derivation: docs/gradients.md."""
    xp = backend.xp
    mean, inverse_deviation = statistics
    normalised = (x - mean) * inverse_deviation
    # y = normalised * weight + bias
    dweight[...] = xp.sum(dy * normalised, axis=0)
    dbias[...] = xp.sum(dy, axis=0)
    dnormalised = dy * weight
    # normalised = (x - mean(x)) / deviation(x): the gradient loses its mean and its part along `normalised`
    along = xp.mean(dnormalised * normalised, axis=-1, keepdims=True)
    return (dnormalised - xp.mean(dnormalised, axis=-1, keepdims=True) - normalised * along) * inverse_deviation
