"""Layer norm, alone and as the end of a sub-layer (bias + dropout + residual + layer norm), with gradients.

Every kernel reads each row from memory once: the second and third pass over a row find it in the cache. The names are
those of docs/gradients.md, sections "Layer norm" and "The end of a sub-layer".
"""

from __future__ import annotations

import numpy as np
from numba import prange

from backends import checks
from backends.base import Array, Backend
from backends.cpu.kernels.bits import counter_word, counter_words, kept
from backends.cpu.kernels.dropout import DropoutPlan, plan
from backends.cpu.kernels.elementary import type_of
from backends.cpu.kernels.jit import BLOCK_ROWS, elementwise, parallel, summing
from backends.cpu.kernels.sums import add_blocks, column_sums

Statistics = tuple[Array, Array]


@summing
def _statistics(x, eps):
    """Return x_mean and inverse_deviation of a row."""
    width = x.shape[0]
    x_sum = type_of(x, 0.0)
    for j in range(width):
        x_sum += x[j]
    x_mean = x_sum / type_of(x, width)
    squares = type_of(x, 0.0)
    for j in range(width):
        centred = x[j] - x_mean
        squares += centred * centred
    return x_mean, type_of(x, 1.0) / np.sqrt(squares / type_of(x, width) + eps)


@elementwise
def _normalise_row(x, x_mean, inverse_deviation, weight, bias, y):
    for j in range(x.shape[0]):
        n = (x[j] - x_mean) * inverse_deviation
        y[j] = n * weight[j] + bias[j]


@elementwise
def _total_row(x, bias, residual, total):
    for j in range(x.shape[0]):
        total[j] = residual[j] + (x[j] + bias[j])


@elementwise
def _dropped_total_row(x, bias, residual, row_word, column_words, threshold, keep_scale, total):
    for j in range(x.shape[0]):
        keep = kept(row_word, column_words[j], threshold)
        dropout_mask = keep_scale if keep else type_of(keep_scale, 0.0)
        total[j] = residual[j] + (x[j] + bias[j]) * dropout_mask


@elementwise
def _drop_gradient_row(dtotal, row_word, column_words, threshold, keep_scale, dx, dbias):
    """Write dx of a row, and add it to dbias."""
    for j in range(dtotal.shape[0]):
        # total = residual + (x + bias) * dropout_mask
        keep = kept(row_word, column_words[j], threshold)
        dropout_mask = keep_scale if keep else type_of(keep_scale, 0.0)
        dx_j = dtotal[j] * dropout_mask
        dx[j] = dx_j
        dbias[j] += dx_j


@summing
def _dn_means(dy, x, x_mean, inverse_deviation, weight, dweight, dbias):
    """Add a row's part to dweight and dbias; return dn_mean and dn_n_mean of the row."""
    width = x.shape[0]
    dn_sum, dn_n_sum = type_of(x, 0.0), type_of(x, 0.0)
    for j in range(width):
        n = (x[j] - x_mean) * inverse_deviation
        # y = n * weight + bias
        dweight[j] += dy[j] * n
        dbias[j] += dy[j]
        dn = dy[j] * weight[j]
        dn_sum += dn
        dn_n_sum += dn * n
    return dn_sum / type_of(x, width), dn_n_sum / type_of(x, width)


@elementwise
def _dx_row(dy, x, x_mean, inverse_deviation, weight, dn_mean, dn_n_mean, dx):
    for j in range(x.shape[0]):
        # n = (x - x_mean) * inverse_deviation, where x_mean and inverse_deviation depend on x, too
        n = (x[j] - x_mean) * inverse_deviation
        dn = dy[j] * weight[j]
        dx[j] = (dn - dn_mean - n * dn_n_mean) * inverse_deviation


@parallel
def _norm_forward(x, weight, bias, eps, y, x_mean, inverse_deviation):
    for i in prange(x.shape[0]):
        x_mean_i, inverse_deviation_i = _statistics(x[i], eps)
        x_mean[i, 0], inverse_deviation[i, 0] = x_mean_i, inverse_deviation_i
        _normalise_row(x[i], x_mean_i, inverse_deviation_i, weight, bias, y[i])


@parallel
def _norm_backward(dy, x, x_mean, inverse_deviation, weight, dx, partial):
    rows = x.shape[0]
    for block in prange(partial.shape[1]):
        partial[:, block, :] = 0
        dweight, dbias = partial[0, block], partial[1, block]
        for i in range(block * BLOCK_ROWS, min(rows, (block + 1) * BLOCK_ROWS)):
            x_mean_i, inverse_deviation_i = x_mean[i, 0], inverse_deviation[i, 0]
            dn_mean, dn_n_mean = _dn_means(dy[i], x[i], x_mean_i, inverse_deviation_i, weight, dweight, dbias)
            _dx_row(dy[i], x[i], x_mean_i, inverse_deviation_i, weight, dn_mean, dn_n_mean, dx[i])


@parallel
def _sublayer_forward(
    x, bias, residual, weight, norm_bias, eps, dropout, row_numbers, y, total, x_mean, inverse_deviation
):
    threshold, row_key, column_key, keep_scale = dropout
    column_words = counter_words(x.shape[1] if row_numbers.shape[0] else 0, column_key)
    for i in prange(x.shape[0]):
        if row_numbers.shape[0]:
            row_word = counter_word(row_numbers[i], row_key)
            _dropped_total_row(x[i], bias, residual[i], row_word, column_words, threshold, keep_scale, total[i])
        else:
            _total_row(x[i], bias, residual[i], total[i])
        x_mean_i, inverse_deviation_i = _statistics(total[i], eps)
        x_mean[i, 0], inverse_deviation[i, 0] = x_mean_i, inverse_deviation_i
        _normalise_row(total[i], x_mean_i, inverse_deviation_i, weight, norm_bias, y[i])


@parallel
def _sublayer_backward(dy, total, x_mean, inverse_deviation, weight, dropout, row_numbers, dx, dtotal, partial):
    threshold, row_key, column_key, keep_scale = dropout
    rows = total.shape[0]
    column_words = counter_words(total.shape[1], column_key)
    for block in prange(partial.shape[1]):
        partial[:, block, :] = 0
        dweight, dnorm_bias, dbias = partial[0, block], partial[1, block], partial[2, block]
        for i in range(block * BLOCK_ROWS, min(rows, (block + 1) * BLOCK_ROWS)):
            x_mean_i, inverse_deviation_i = x_mean[i, 0], inverse_deviation[i, 0]
            dn_mean, dn_n_mean = _dn_means(dy[i], total[i], x_mean_i, inverse_deviation_i, weight, dweight, dnorm_bias)
            _dx_row(dy[i], total[i], x_mean_i, inverse_deviation_i, weight, dn_mean, dn_n_mean, dtotal[i])
            row_word = counter_word(row_numbers[i], row_key)
            _drop_gradient_row(dtotal[i], row_word, column_words, threshold, keep_scale, dx[i], dbias)


def _partial(backend: Backend, x: Array, sums: int) -> Array:
    """Return memory for `sums` sums over the rows of x (N, H), one for each block of rows: (sums, blocks, H)."""
    return backend.empty((sums, -(-x.shape[0] // BLOCK_ROWS), x.shape[1]), x.dtype)


def _outputs(backend: Backend, x: Array) -> tuple[Array, Statistics]:
    """Return memory for y, which is like x (N, H), and for the statistics x_mean and inverse_deviation, (N, 1) each."""
    statistics = backend.empty((x.shape[0], 1), x.dtype), backend.empty((x.shape[0], 1), x.dtype)
    return backend.empty(x.shape, x.dtype), statistics


def _check_backward(
    operation: str, name: str, x: Array, dy: Array, statistics: Statistics, *vectors: tuple[str, Array]
) -> None:
    """Check that all arrays fit x, the input of the layer norm, which the operation calls `name`.

    Raises the errors of `checks`.
    """
    rows, columns = checks.check_matrix(operation, name, x)
    x_mean, inverse_deviation = statistics
    checks.check_arrays(
        operation,
        x.dtype,
        ("dy", dy, (rows, columns)),
        ("x_mean", x_mean, (rows, 1)),
        ("inverse_deviation", inverse_deviation, (rows, 1)),
        *((of, vector, (columns,)) for of, vector in vectors),
    )


def layer_norm_forward(
    backend: Backend, x: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, tuple[Array, Array]]:
    """Normalise every row of x (N, H); return y and the statistics x_mean and inverse_deviation.

    Raises the errors of `checks`.
    """
    _, columns = checks.check_matrix("layer_norm_forward", "x", x)
    checks.check_arrays("layer_norm_forward", x.dtype, ("weight", weight, (columns,)), ("bias", bias, (columns,)))
    y, statistics = _outputs(backend, x)
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
    """Write dweight and dbias (H,); return dx (N, H). Raises the errors of `checks`."""
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
    """Return y = layer_norm(total), total = residual + dropout(x + bias), and the statistics.

    Raises the errors of `checks`.
    """
    operation = "dropout_add_layer_norm_forward"
    rows, columns = checks.check_matrix(operation, "x", x)
    parameters = ("bias", bias), ("weight", weight), ("norm_bias", norm_bias)
    checks.check_arrays(
        operation,
        x.dtype,
        ("residual", residual, (rows, columns)),
        *((name, vector, (columns,)) for name, vector in parameters),
    )
    row_numbers, factors = plan(operation, dropout, rows, x.dtype)
    y, statistics = _outputs(backend, x)
    total = backend.empty(x.shape, x.dtype)
    _sublayer_forward(
        np.ascontiguousarray(x),
        bias,
        np.ascontiguousarray(residual),
        weight,
        norm_bias,
        x.dtype.type(eps),
        factors,
        row_numbers,
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
    """Write dbias, dweight and dnorm_bias (H,); return dx and dresidual (N, H). Raises the errors of `checks`."""
    operation = "dropout_add_layer_norm_backward"
    sums = ("dbias", dbias), ("dweight", dweight), ("dnorm_bias", dnorm_bias)
    _check_backward(operation, "total", total, dy, statistics, ("weight", weight), *sums)
    dy, dtotal = np.ascontiguousarray(dy), backend.empty(total.shape, total.dtype)
    if dropout is None:  # total = residual + x + bias: one gradient for all three
        partial = _partial(backend, total, 2)
        _norm_backward(dy, total, *statistics, weight, dtotal, partial)
        dx = backend.empty(total.shape, total.dtype)
        dx[...] = dtotal  # a copy, since the caller may add to dx or dresidual in place
        column_sums(backend, dtotal, dbias)
    else:
        row_numbers, factors = plan(operation, dropout, total.shape[0], total.dtype)
        dx, partial = backend.empty(total.shape, total.dtype), _partial(backend, total, 3)
        _sublayer_backward(dy, total, *statistics, weight, factors, row_numbers, dx, dtotal, partial)
        add_blocks(partial[2], dbias)
    add_blocks(partial[0], dweight)
    add_blocks(partial[1], dnorm_bias)
    dresidual = dtotal  # total = residual + dropout(x + bias)
    return dx, dresidual
