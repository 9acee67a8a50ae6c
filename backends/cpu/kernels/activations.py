"""Compute bias + activation and its gradient, each in one pass over the array.

All three activations share the kernels. A kernel chooses between them once per row, so that the inner loops have no
branch. The names are those of docs/gradients.md, section "Activations".
"""

from __future__ import annotations

import numpy as np
from numba import prange

from backends import checks
from backends.base import Array, Backend
from backends.cpu.kernels.elementary import (
    gelu,
    gelu_and_derivative,
    gelu_new,
    gelu_new_and_derivative,
    relu,
    relu_and_derivative,
)
from backends.cpu.kernels.jit import BLOCK_ROWS, elementwise, parallel
from backends.cpu.kernels.sums import add_blocks, add_row

_GELU, _GELU_NEW, _RELU = range(3)


@elementwise
def _forward_row(kind, x, bias, y):
    if kind == _GELU:
        for j in range(x.shape[0]):
            y[j] = gelu(x[j] + bias[j])
    elif kind == _GELU_NEW:
        for j in range(x.shape[0]):
            y[j] = gelu_new(x[j] + bias[j])
    else:
        for j in range(x.shape[0]):
            y[j] = relu(x[j] + bias[j])


@elementwise
def _backward_row(kind, dy, x, bias, y):
    """Write y, and dx in the place of dy: dx = dy * derivative."""
    if kind == _GELU:
        for j in range(x.shape[0]):
            y[j], derivative = gelu_and_derivative(x[j] + bias[j])
            dy[j] *= derivative
    elif kind == _GELU_NEW:
        for j in range(x.shape[0]):
            y[j], derivative = gelu_new_and_derivative(x[j] + bias[j])
            dy[j] *= derivative
    else:
        for j in range(x.shape[0]):
            y[j], derivative = relu_and_derivative(x[j] + bias[j])
            dy[j] *= derivative


@parallel
def _forward(kind, x, bias, y):
    for i in prange(x.shape[0]):
        _forward_row(kind, x[i], bias, y[i])


@parallel
def _backward(kind, dy, x, bias, y, partial_dbias):
    rows = x.shape[0]
    for block in prange(partial_dbias.shape[0]):
        partial_dbias[block, :] = 0
        for i in range(block * BLOCK_ROWS, min(rows, (block + 1) * BLOCK_ROWS)):
            _backward_row(kind, dy[i], x[i], bias, y[i])
            add_row(dy[i], partial_dbias[block])


def _bias_activation_forward(operation: str, kind: int, backend: Backend, x: Array, bias: Array) -> Array:
    """Return y = activation(x + bias): (N, I), (I,) -> (N, I). Raises the errors of `checks`."""
    _, columns = checks.check_matrix(operation, "x", x)
    checks.check_arrays(operation, x.dtype, ("bias", bias, (columns,)))
    y = backend.empty(x.shape, x.dtype)
    _forward(kind, np.ascontiguousarray(x), bias, y)
    return y


def _bias_activation_backward(
    operation: str, kind: int, backend: Backend, dy: Array, x: Array, bias: Array, dbias: Array
) -> tuple[Array, Array]:
    """Write dbias (I,); return dx and y (N, I). Raises the errors of `checks`.

    dx takes the memory of dy, which is in the processor's cache already.
    """
    rows, columns = checks.check_matrix(operation, "x", x)
    vectors = ("bias", bias, (columns,)), ("dbias", dbias, (columns,))
    checks.check_arrays(operation, x.dtype, ("dy", dy, (rows, columns)), *vectors)
    dy, y = np.ascontiguousarray(dy), backend.empty(x.shape, x.dtype)
    partial_dbias = backend.empty((-(-x.shape[0] // BLOCK_ROWS), x.shape[1]), x.dtype)
    _backward(kind, dy, np.ascontiguousarray(x), bias, y, partial_dbias)
    add_blocks(partial_dbias, dbias)
    return dy, y


def bias_gelu_forward(backend: Backend, x: Array, bias: Array) -> Array:
    """Return y = gelu(x + bias), exact."""
    return _bias_activation_forward("bias_gelu_forward", _GELU, backend, x, bias)


def bias_gelu_backward(backend: Backend, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Write dbias; return dx, in the memory of dy, and y."""
    return _bias_activation_backward("bias_gelu_backward", _GELU, backend, dy, x, bias, dbias)


def bias_gelu_new_forward(backend: Backend, x: Array, bias: Array) -> Array:
    """Return y = gelu(x + bias), approximated with tanh."""
    return _bias_activation_forward("bias_gelu_new_forward", _GELU_NEW, backend, x, bias)


def bias_gelu_new_backward(backend: Backend, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Write dbias; return dx, in the memory of dy, and y."""
    return _bias_activation_backward("bias_gelu_new_backward", _GELU_NEW, backend, dy, x, bias, dbias)


def bias_relu_forward(backend: Backend, x: Array, bias: Array) -> Array:
    """Return y = max(x + bias, 0)."""
    return _bias_activation_forward("bias_relu_forward", _RELU, backend, x, bias)


def bias_relu_backward(backend: Backend, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Write dbias; return dx, in the memory of dy, and y."""
    return _bias_activation_backward("bias_relu_backward", _RELU, backend, dy, x, bias, dbias)
