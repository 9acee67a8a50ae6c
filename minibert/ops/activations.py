"""The activations of the feed-forward layer, with the bias before them, and their gradients.

y is as large as x, the largest array that a layer has, and cheap to compute again from the parts that the gradient
needs anyway. So the backward functions return y beside dx, and the forward pass need not keep it.
"""

from __future__ import annotations

import math

from backends import Array, Backend


def bias_gelu_forward(backend: Backend, x: Array, bias: Array) -> Array:
    """y = gelu(x + bias) with gelu(u) = u * Phi(u), exact (Hendrycks & Gimpel 2016). (N, I), (I,) -> (N, I)."""
    u = x + bias
    return u * (0.5 + 0.5 * backend.erf(u * math.sqrt(0.5)))


def bias_gelu_backward(backend: Backend, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Writes dbias (I,); returns dx (N, I), for which the memory of dy may be taken, and y (N, I)."""
    xp = backend.xp
    u = x + bias
    # y = u * Phi(u); Phi' is the normal density
    cumulative = 0.5 + 0.5 * backend.erf(u * math.sqrt(0.5))
    density = xp.exp(-0.5 * u * u) * (1.0 / math.sqrt(2.0 * math.pi))
    dx = dy * (cumulative + u * density)
    dbias[...] = xp.sum(dx, axis=0)
    return dx, u * cumulative


_TANH_SCALE, _TANH_CUBIC = math.sqrt(2.0 / math.pi), 0.044715


def bias_gelu_new_forward(backend: Backend, x: Array, bias: Array) -> Array:
    """y = gelu(x + bias), GELU's tanh approximation (Hendrycks & Gimpel 2016, section 2)."""
    u = x + bias
    return 0.5 * u * (1.0 + backend.xp.tanh(_TANH_SCALE * (u + _TANH_CUBIC * u * u * u)))


def bias_gelu_new_backward(backend: Backend, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Writes dbias (I,); returns dx (N, I), for which the memory of dy may be taken, and y (N, I)."""
    xp = backend.xp
    u = x + bias
    # y = 0.5 * u * (1 + tanh(inner(u)))
    tanh = xp.tanh(_TANH_SCALE * (u + _TANH_CUBIC * u * u * u))
    dinner = _TANH_SCALE * (1.0 + 3.0 * _TANH_CUBIC * u * u)
    dx = dy * (0.5 * (1.0 + tanh) + 0.5 * u * (1.0 - tanh * tanh) * dinner)
    dbias[...] = xp.sum(dx, axis=0)
    return dx, 0.5 * u * (1.0 + tanh)


def bias_relu_forward(backend: Backend, x: Array, bias: Array) -> Array:
    """y = max(x + bias, 0); NaN stays NaN, so that it is noticed."""
    u = x + bias
    return backend.xp.where(u <= 0, backend.xp.zeros_like(u), u)


def bias_relu_backward(backend: Backend, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Writes dbias (I,); returns dx (N, I), for which the memory of dy may be taken, and y (N, I)."""
    xp = backend.xp
    # y = max(x + bias, 0)
    u = x + bias
    dx = xp.where(u <= 0, xp.zeros_like(dy), dy)
    dbias[...] = xp.sum(dx, axis=0)
    return dx, xp.where(u <= 0, xp.zeros_like(u), u)
