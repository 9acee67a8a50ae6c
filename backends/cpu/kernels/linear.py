"""Linear layers: products write the gradients of weights in place, and start from the bias.

The names are those of docs/gradients.md, section "Linear layers".
"""

from __future__ import annotations

import numpy as np

from backends import checks
from backends.base import Array, Backend
from backends.cpu.kernels.blas import multiply
from backends.cpu.kernels.sums import column_sums


def linear_forward(backend: Backend, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return y = x @ weight.T + bias: (N, in), (out, in), (out,) -> (N, out). Raises the errors of `checks`."""
    checks.check_linear_forward(x, weight, bias)
    y = backend.empty((x.shape[0], weight.shape[0]), x.dtype)
    multiply(backend, x, weight, y, transpose_b=True, bias=bias)
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
    """Write dweight and dbias; return dx, or add_to + dx in the memory of add_to. Raises the errors of `checks`."""
    linear_backward_weight(backend, dy, x, dweight, dbias)
    return linear_backward_input(backend, dy, weight, add_to)


def linear_backward_weight(backend: Backend, dy: Array, x: Array, dweight: Array, dbias: Array | None = None) -> None:
    """Write dweight (out, in) and, unless it is None, dbias (out,). Raises the errors of `checks`."""
    checks.check_linear_backward_weight(dy, x, dweight, dbias)
    # y = x @ weight.T + bias
    multiply(backend, dy, x, dweight, transpose_a=True)  # (out, in)
    if dbias is not None:
        column_sums(backend, np.ascontiguousarray(dy), dbias)


def linear_backward_input(backend: Backend, dy: Array, weight: Array, add_to: Array | None = None) -> Array:
    """Return dx (N, in), or add_to + dx in the memory of add_to. Raises the errors of `checks`."""
    checks.check_linear_backward_input(dy, weight, add_to)
    dx = backend.empty((dy.shape[0], weight.shape[1]), dy.dtype) if add_to is None else add_to
    # y = x @ weight.T + bias
    multiply(backend, dy, weight, dx, accumulate=add_to is not None)
    return dx
