"""The activations of the feed-forward layer, each with the bias before it, and their gradients.

The backward functions return y beside dx. Like x, y is the largest array of a layer. It is cheap to compute again from
the parts that the gradient needs anyway, so the forward pass need not keep it. The names are those of
docs/gradients.md, section "Activations".
"""

from __future__ import annotations

import math

from backends import Array, Backend


def bias_gelu_forward(backend: Backend, x: Array, bias: Array) -> Array:
    """Return y = gelu(x + bias) with the exact GELU, gelu(u) = u * Phi(u) (Hendrycks & Gimpel 2016, section 2).

    Formula: docs/gradients.md#activations

    Args:
        backend: where the arrays live.
        x: (N, I).
        bias: (I,).

    Returns:
        y (N, I).
    """
    u = x + bias
    cumulative = 0.5 + 0.5 * backend.erf(u * math.sqrt(0.5))
    return u * cumulative


def bias_gelu_backward(backend: Backend, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Write dbias (I,) and return dx (N, I) and y (N, I). Twins may overwrite dy.

    Formula: docs/gradients.md#activations
    """
    xp = backend.xp
    u = x + bias
    cumulative = 0.5 + 0.5 * backend.erf(u * math.sqrt(0.5))
    density = xp.exp(-0.5 * u * u) * (1.0 / math.sqrt(2.0 * math.pi))
    # y = u * cumulative
    derivative = cumulative + u * density
    # u = x + bias
    dx = dy * derivative
    dbias[...] = xp.sum(dx, axis=0)  # (I,)
    return dx, u * cumulative


TANH_SCALE, TANH_CUBIC = math.sqrt(2.0 / math.pi), 0.044715


def bias_gelu_new_forward(backend: Backend, x: Array, bias: Array) -> Array:
    """Return y = gelu(x + bias) with the tanh approximation of GELU (Hendrycks & Gimpel 2016, section 2).

    Formula: docs/gradients.md#activations

    Args:
        backend: where the arrays live.
        x: (N, I).
        bias: (I,).

    Returns:
        y (N, I).
    """
    u = x + bias
    t = backend.xp.tanh(TANH_SCALE * (u + TANH_CUBIC * u * u * u))
    return 0.5 * u * (1.0 + t)


def bias_gelu_new_backward(backend: Backend, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Write dbias (I,) and return dx (N, I) and y (N, I). Twins may overwrite dy.

    Formula: docs/gradients.md#activations
    """
    xp = backend.xp
    u = x + bias
    # z = TANH_SCALE * (u + TANH_CUBIC * u * u * u); t = tanh(z)
    t = xp.tanh(TANH_SCALE * (u + TANH_CUBIC * u * u * u))
    z_derivative = TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * u * u)
    # y = 0.5 * u * (1 + t)
    derivative = 0.5 * (1.0 + t) + 0.5 * u * (1.0 - t * t) * z_derivative
    # u = x + bias
    dx = dy * derivative
    dbias[...] = xp.sum(dx, axis=0)  # (I,)
    return dx, 0.5 * u * (1.0 + t)


def bias_relu_forward(backend: Backend, x: Array, bias: Array) -> Array:
    """Return y = max(x + bias, 0) (Nair & Hinton 2010). NaN stays NaN, so that it is noticed.

    Formula: docs/gradients.md#activations

    Args:
        backend: where the arrays live.
        x: (N, I).
        bias: (I,).

    Returns:
        y (N, I).
    """
    u = x + bias
    return backend.xp.where(u <= 0, backend.xp.zeros_like(u), u)


def bias_relu_backward(backend: Backend, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Write dbias (I,) and return dx (N, I) and y (N, I). Twins may overwrite dy.

    Formula: docs/gradients.md#activations
    """
    xp = backend.xp
    u = x + bias
    # y = max(u, 0), whose derivative is 0 where u <= 0, and 1 elsewhere; u = x + bias
    dx = xp.where(u <= 0, xp.zeros_like(dy), dy)
    dbias[...] = xp.sum(dx, axis=0)  # (I,)
    return dx, xp.where(u <= 0, xp.zeros_like(u), u)
