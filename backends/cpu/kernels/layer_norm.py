"""Layer norm, alone and at the end of a sub-layer (bias + dropout + residual + layer norm), with gradients.

Every kernel reads each row once from memory: the second and third pass over a row find it in the cache.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from backends import checks
from backends.base import Array, Backend
from backends.cpu.kernels.bits import column_words, counter_word, kept
from backends.cpu.kernels.dropout import DropoutPlan, plan
from backends.cpu.kernels.elementary import type_of
from backends.cpu.kernels.jit import BLOCK_ROWS, elementwise, parallel, summing
from backends.cpu.kernels.sums import add_blocks, column_sums

Statistics = tuple[Array, Array]


@summing
def _statistics(x, eps):
    """Mean and 1 / standard deviation of a row."""
    width = x.shape[0]
    total = type_of(x, 0.0)
    for j in range(width):
        total += x[j]
    mean = total / type_of(x, width)
    squares = type_of(x, 0.0)
    for j in range(width):
        centred = x[j] - mean
        squares += centred * centred
    return mean, type_of(x, 1.0) / np.sqrt(squares / type_of(x, width) + eps)


@elementwise
def _normalise(x, mean, inverse, weight, bias, y):
    for j in range(x.shape[0]):
        y[j] = (x[j] - mean) * inverse * weight[j] + bias[j]


@elementwise
def _residual_sum(x, bias, residual, total):
    for j in range(x.shape[0]):
        total[j] = residual[j] + (x[j] + bias[j])


@elementwise
def _dropped_sum(x, bias, residual, row_word, words, threshold, keep_scale, total):
    for j in range(x.shape[0]):
        keep = keep_scale if kept(row_word, words[j], threshold) else type_of(keep_scale, 0.0)
        total[j] = residual[j] + (x[j] + bias[j]) * keep


@elementwise
def _drop(dy, row_word, words, threshold, keep_scale, dx, dbias):
    for j in range(dy.shape[0]):
        keep = keep_scale if kept(row_word, words[j], threshold) else type_of(keep_scale, 0.0)
        d = dy[j] * keep
        dx[j] = d
        dbias[j] += d


@summing
def _means(dy, x, mean, inverse, weight, dweight, dbias):
    """Adds to the parameters' gradients; returns the two means that the row's gradient loses."""
    width = x.shape[0]
    plain, along = type_of(x, 0.0), type_of(x, 0.0)
    for j in range(width):
        normalised = (x[j] - mean) * inverse
        d = dy[j]
        dweight[j] += d * normalised
        dbias[j] += d
        d *= weight[j]
        plain += d
        along += d * normalised
    return plain / type_of(x, width), along / type_of(x, width)


@elementwise
def _row_gradient(dy, x, mean, inverse, weight, plain, along, dx):
    for j in range(x.shape[0]):
        normalised = (x[j] - mean) * inverse
        dx[j] = (dy[j] * weight[j] - plain - normalised * along) * inverse


@parallel
def _norm_forward(x, weight, bias, eps, y, means, inverses):
    for i in prange(x.shape[0]):
        mean, inverse = _statistics(x[i], eps)
        means[i, 0], inverses[i, 0] = mean, inverse
        _normalise(x[i], mean, inverse, weight, bias, y[i])


@parallel
def _norm_backward(dy, x, means, inverses, weight, dx, partial):
    rows = x.shape[0]
    for block in prange(partial.shape[1]):
        partial[:, block, :] = 0
        for i in range(block * BLOCK_ROWS, min(rows, (block + 1) * BLOCK_ROWS)):
            mean, inverse = means[i, 0], inverses[i, 0]
            plain, along = _means(dy[i], x[i], mean, inverse, weight, partial[0, block], partial[1, block])
            _row_gradient(dy[i], x[i], mean, inverse, weight, plain, along, dx[i])


@parallel
def _sublayer_forward(x, bias, residual, weight, norm_bias, eps, dropout, numbers, y, total, means, inverses):
    threshold, row_key, column_key, keep_scale = dropout
    words = column_words(x.shape[1] if numbers.shape[0] else 0, column_key)
    for i in prange(x.shape[0]):
        if numbers.shape[0]:
            row_word = counter_word(numbers[i], row_key)
            _dropped_sum(x[i], bias, residual[i], row_word, words, threshold, keep_scale, total[i])
        else:
            _residual_sum(x[i], bias, residual[i], total[i])
        mean, inverse = _statistics(total[i], eps)
        means[i, 0], inverses[i, 0] = mean, inverse
        _normalise(total[i], mean, inverse, weight, norm_bias, y[i])


@parallel
def _sublayer_backward(dy, total, means, inverses, weight, dropout, numbers, dx, dresidual, partial):
    threshold, row_key, column_key, keep_scale = dropout
    rows = total.shape[0]
    words = column_words(total.shape[1], column_key)
    for block in prange(partial.shape[1]):
        partial[:, block, :] = 0
        for i in range(block * BLOCK_ROWS, min(rows, (block + 1) * BLOCK_ROWS)):
            mean, inverse = means[i, 0], inverses[i, 0]
            plain, along = _means(dy[i], total[i], mean, inverse, weight, partial[0, block], partial[1, block])
            _row_gradient(dy[i], total[i], mean, inverse, weight, plain, along, dresidual[i])
            row_word = counter_word(numbers[i], row_key)
            _drop(dresidual[i], row_word, words, threshold, keep_scale, dx[i], partial[2, block])


def _partial(backend: Backend, x: Array, sums: int) -> Array:
    """Room for `sums` sums over the rows of x (N, H), block by block: (sums, blocks, H)."""
    return backend.empty((sums, -(-x.shape[0] // BLOCK_ROWS), x.shape[1]), x.dtype)


def _room(backend: Backend, x: Array) -> tuple[Array, Statistics]:
    """For an output like x (N, H) and its statistics."""
    statistics = backend.empty((x.shape[0], 1), x.dtype), backend.empty((x.shape[0], 1), x.dtype)
    return backend.empty(x.shape, x.dtype), statistics


def _check_backward(
    operation: str, name: str, x: Array, dy: Array, statistics: Statistics, *vectors: tuple[str, Array]
) -> None:
    """Everything fits x, what the norm was taken of. Raises as `checks` does."""
    rows, columns = checks.check_matrix(operation, name, x)
    mean, inverse = statistics
    checks.check_arrays(
        operation,
        x.dtype,
        ("dy", dy, (rows, columns)),
        ("mean", mean, (rows, 1)),
        ("inverse_deviation", inverse, (rows, 1)),
        *((of, vector, (columns,)) for of, vector in vectors),
    )


def layer_norm_forward(
    backend: Backend, x: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, tuple[Array, Array]]:
    """Layer normalisation over the last axis."""
    _, columns = checks.check_matrix("layer_norm_forward", "x", x)
    checks.check_arrays("layer_norm_forward", x.dtype, ("weight", weight, (columns,)), ("bias", bias, (columns,)))
    y, statistics = _room(backend, x)
    _norm_forward(np.ascontiguousarray(x), weight, bias, x.dtype.type(eps), y, *statistics)
    return y, statistics


def layer_norm_backward(
    backend: Backend,
    dy: Array,
    x: Array,
    weight: Array,
    statistics: tuple[Array, Array],
    dweight: Array,
    dbias: Array,
) -> Array:
    """Writes dweight and dbias; returns dx."""
    _check_backward(
        "layer_norm_backward", "x", x, dy, statistics, ("weight", weight), ("dweight", dweight), ("dbias", dbias)
    )
    dx, partial = backend.empty(x.shape, x.dtype), _partial(backend, x, 2)
    _norm_backward(np.ascontiguousarray(dy), np.ascontiguousarray(x), *statistics, weight, dx, partial)
    add_blocks(partial[0], dweight)
    add_blocks(partial[1], dbias)
    return dx


def dropout_add_layer_norm_forward(
    backend: Backend,
    x: Array,
    bias: Array,
    residual: Array,
    weight: Array,
    norm_bias: Array,
    eps: float,
    dropout: DropoutPlan | None,
) -> tuple[Array, Array, tuple[Array, Array]]:
    """The end of every sub-layer: y = layer_norm(residual + dropout(x + bias))."""
    operation = "dropout_add_layer_norm_forward"
    rows, columns = checks.check_matrix(operation, "x", x)
    parameters = ("bias", bias), ("weight", weight), ("norm_bias", norm_bias)
    checks.check_arrays(
        operation,
        x.dtype,
        ("residual", residual, (rows, columns)),
        *((name, vector, (columns,)) for name, vector in parameters),
    )
    numbers, factors = plan(operation, dropout, rows, x.dtype)
    y, statistics = _room(backend, x)
    total = backend.empty(x.shape, x.dtype)
    _sublayer_forward(
        np.ascontiguousarray(x),
        bias,
        np.ascontiguousarray(residual),
        weight,
        norm_bias,
        x.dtype.type(eps),
        factors,
        numbers,
        y,
        total,
        *statistics,
    )
    return y, total, statistics


def dropout_add_layer_norm_backward(
    backend: Backend,
    dy: Array,
    total: Array,
    statistics: tuple[Array, Array],
    weight: Array,
    dropout: DropoutPlan | None,
    dbias: Array,
    dweight: Array,
    dnorm_bias: Array,
) -> tuple[Array, Array]:
    """Writes dbias, dweight and dnorm_bias; returns dx and dresidual."""
    operation = "dropout_add_layer_norm_backward"
    sums = ("dbias", dbias), ("dweight", dweight), ("dnorm_bias", dnorm_bias)
    _check_backward(operation, "total", total, dy, statistics, ("weight", weight), *sums)
    dy, dresidual = np.ascontiguousarray(dy), backend.empty(total.shape, total.dtype)
    if dropout is None:  # total = residual + x + bias: one gradient for all three
        partial = _partial(backend, total, 2)
        _norm_backward(dy, total, *statistics, weight, dresidual, partial)
        dx = backend.empty(total.shape, total.dtype)
        dx[...] = dresidual  # of its own: the caller may add to either
        column_sums(backend, dresidual, dbias)
    else:
        numbers, factors = plan(operation, dropout, total.shape[0], total.dtype)
        dx, partial = backend.empty(total.shape, total.dtype), _partial(backend, total, 3)
        _sublayer_backward(dy, total, *statistics, weight, factors, numbers, dx, dresidual, partial)
        add_blocks(partial[2], dbias)
    add_blocks(partial[0], dweight)
    add_blocks(partial[1], dnorm_bias)
    return dx, dresidual
