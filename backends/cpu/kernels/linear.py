"""Linear layers: gradients of weights go straight to their place, and biases into the products."""

from __future__ import annotations

import numpy as np

from backends import checks
from backends.base import Array, Backend
from backends.cpu.kernels.blas import multiply
from backends.cpu.kernels.sums import column_sums


def linear_forward(backend: Backend, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """y = x @ weight.T + bias."""
    checks.check_linear_forward(x, weight, bias)
    y = backend.empty((x.shape[0], weight.shape[0]), x.dtype)
    multiply(x, weight, y, transpose_b=True, bias=bias)
    return y


def linear_backward(
    backend: Backend,
    dy: Array,
    x: Array,
    weight: Array,
    dweight: Array,
    dbias: Array | None = None,
    add_to: Array | None = None,
) -> Array:
    """Writes dweight and dbias; returns dx, or add_to + dx in the memory of add_to."""
    linear_backward_weight(backend, dy, x, dweight, dbias)
    return linear_backward_input(backend, dy, weight, add_to)


def linear_backward_weight(backend: Backend, dy: Array, x: Array, dweight: Array, dbias: Array | None = None) -> None:
    """Writes dweight and dbias."""
    checks.check_linear_backward_weight(dy, x, dweight, dbias)
    multiply(dy, x, dweight, transpose_a=True)
    if dbias is not None:
        column_sums(backend, np.ascontiguousarray(dy), dbias)


def linear_backward_input(backend: Backend, dy: Array, weight: Array, add_to: Array | None = None) -> Array:
    """Returns dx, or add_to + dx in the memory of add_to."""
    checks.check_linear_backward_input(dy, weight, add_to)
    dx = backend.empty((dy.shape[0], weight.shape[1]), dy.dtype) if add_to is None else add_to
    multiply(dy, weight, dx, accumulate=add_to is not None)
    return dx
