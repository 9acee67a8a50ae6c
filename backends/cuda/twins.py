"""Fast twins for the CuPy backend: operation name -> a function that launches the kernels of kernels.cu.

The definition of every operation is in `minibert/ops/`, and a twin has its name and parameters. No twin waits for the
device. Arrays are float16, float32 or float64, all of one dtype; each twin checks them (see `backends/checks.py`)
before a kernel gets their addresses. Attention is in `backends/cuda/attention.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from backends import checks
from backends.base import Array, adamw_factors, score_bound
from backends.cuda.attention import attention_backward, attention_forward, attention_weights
from backends.cuda.launch import (
    COLUMN_TILE,
    FLOATS,
    INT32,
    NULL,
    WARP,
    column_block,
    contiguous,
    dropout_arguments,
    int32,
    shared_bytes,
)

_TABLES = 3  # the most tables that the embedding kernel adds up


# --- linear layers ------------------------------------------------------------------------------------------------


def linear_forward(backend: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Multiply with cuBLAS, which reads the transposed weight in place, then add the bias in place."""
    checks.check_linear_forward(x, weight, bias, FLOATS)
    y = backend.cupy.matmul(x, weight.T)
    if bias is not None:
        y += bias
    return y


def linear_backward(
    backend: Any,
    dy: Array,
    x: Array,
    weight: Array,
    dweight: Array,
    dbias: Array | None = None,
    add_to: Array | None = None,
) -> Array:
    """Write dweight and dbias, and return dx: call the two functions below."""
    linear_backward_weight(backend, dy, x, dweight, dbias)
    return linear_backward_input(backend, dy, weight, add_to)


def linear_backward_weight(backend: Any, dy: Array, x: Array, dweight: Array, dbias: Array | None = None) -> None:
    """Write the product directly into dweight, and sum the rows of dy in one launch."""
    checks.check_linear_backward_weight(dy, x, dweight, dbias, FLOATS)
    backend.cupy.dot(dy.T, x, out=dweight)
    if dbias is not None:
        checks.check_contiguous("linear_backward_weight", ("dbias", dbias))
        rows, columns = dy.shape
        arguments = contiguous(dy), int32(rows), int32(columns), dbias
        backend.kernels.by_column("column_sums", dy.dtype, rows, columns, arguments)


def linear_backward_input(backend: Any, dy: Array, weight: Array, add_to: Array | None = None) -> Array:
    """Multiply; with `add_to`, cuBLAS adds the product to it in the same launch."""
    checks.check_linear_backward_input(dy, weight, add_to, FLOATS)
    if add_to is None:
        return backend.cupy.matmul(dy, weight)
    if dy.dtype == np.dtype("float16") or 0 in (*dy.shape, *weight.shape):  # CuPy's gemm takes neither
        add_to += backend.cupy.matmul(dy, weight)
        return add_to
    from cupy import cublas

    return cublas.gemm("N", "N", contiguous(dy), contiguous(weight), out=add_to, beta=1.0)


# --- activations --------------------------------------------------------------------------------------------------


def _bias_activation_forward(name: str, backend: Any, x: Array, bias: Array) -> Array:
    """Launch the elementwise kernel `name`; return y."""
    rows, columns = checks.check_matrix(name, "x", x, FLOATS)
    checks.check_arrays(name, x.dtype, ("bias", bias, (columns,)))
    y = backend.cupy.empty(x.shape, x.dtype)
    arguments = contiguous(x), contiguous(bias), int32(rows), int32(columns), y
    backend.kernels.elementwise(name, x.dtype, rows, columns, arguments)
    return y


def _bias_activation_backward(
    name: str, backend: Any, dy: Array, x: Array, bias: Array, dbias: Array
) -> tuple[Array, Array]:
    """Launch the by-column kernel `name`, which writes dbias; return dx and y."""
    rows, columns = checks.check_matrix(name, "x", x, FLOATS)
    vectors = ("bias", bias, (columns,)), ("dbias", dbias, (columns,))
    checks.check_arrays(name, x.dtype, ("dy", dy, (rows, columns)), *vectors)
    checks.check_contiguous(name, ("dbias", dbias))
    dx, y = backend.cupy.empty(x.shape, x.dtype), backend.cupy.empty(x.shape, x.dtype)
    arguments = contiguous(dy), contiguous(x), contiguous(bias), int32(rows), int32(columns), dx, y, dbias
    backend.kernels.by_column(name, x.dtype, rows, columns, arguments)
    return dx, y


def bias_gelu_forward(backend: Any, x: Array, bias: Array) -> Array:
    """Return y = gelu(x + bias), exact; one launch."""
    return _bias_activation_forward("bias_gelu_forward", backend, x, bias)


def bias_gelu_backward(backend: Any, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Write dbias; return dx and y; one launch."""
    return _bias_activation_backward("bias_gelu_backward", backend, dy, x, bias, dbias)


def bias_gelu_new_forward(backend: Any, x: Array, bias: Array) -> Array:
    """Return y = gelu(x + bias), approximated with tanh; one launch."""
    return _bias_activation_forward("bias_gelu_new_forward", backend, x, bias)


def bias_gelu_new_backward(backend: Any, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Write dbias; return dx and y; one launch."""
    return _bias_activation_backward("bias_gelu_new_backward", backend, dy, x, bias, dbias)


def bias_relu_forward(backend: Any, x: Array, bias: Array) -> Array:
    """Return y = max(x + bias, 0); one launch."""
    return _bias_activation_forward("bias_relu_forward", backend, x, bias)


def bias_relu_backward(backend: Any, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
    """Write dbias; return dx and y; one launch."""
    return _bias_activation_backward("bias_relu_backward", backend, dy, x, bias, dbias)


# --- dropout ------------------------------------------------------------------------------------------------------


def dropout_forward(backend: Any, x: Array, dropout: Any) -> Array:
    """Draw the mask and apply it in one launch; the mask is never stored."""
    if dropout is None:
        return x
    rows, columns = checks.check_matrix("dropout", "x", x, FLOATS)
    mask = dropout_arguments("dropout", dropout, rows)
    y = backend.cupy.empty(x.shape, x.dtype)
    arguments = contiguous(x), *mask, int32(rows), int32(columns), y
    backend.kernels.elementwise("dropout", x.dtype, rows, columns, arguments)
    return y


def dropout_backward(backend: Any, dy: Array, dropout: Any) -> Array:
    """Draw the same mask again, and apply it to dy."""
    return dropout_forward(backend, dy, dropout)


# --- layer norm ---------------------------------------------------------------------------------------------------


def _dtype_of_statistics(dtype: Any) -> Any:
    """Return the dtype in which the kernels compute: float32 for float16 arrays, otherwise the arrays' own."""
    return np.dtype("float32") if dtype == np.dtype("float16") else dtype


def _empty_statistics(backend: Any, x: Array) -> tuple[Array, Array]:
    """Return uninitialised arrays for x_mean and inverse_deviation of every row of x, each (N, 1)."""
    shape, dtype = (x.shape[0], 1), _dtype_of_statistics(x.dtype)
    return backend.cupy.empty(shape, dtype), backend.cupy.empty(shape, dtype)


def _check_layer_norm_backward(
    operation: str,
    name: str,
    x: Array,
    dy: Array,
    statistics: tuple[Array, Array],
    weight: Array,
    *outputs: tuple[str, Array],
) -> tuple[int, int]:
    """Check all arrays of a backward function against x, the normalised array; return the rows and columns of x.

    Args:
        operation: the operation's name, for the error message.
        name: the name of x, for the error message.
        x: (N, H).
        dy: must be (N, H).
        statistics: must be (N, 1) each.
        weight: must be (H,).
        outputs: name and array of each sum over the rows, which must be (H,) and contiguous.

    Raises:
        ValueError, TypeError: an array does not match; see `backends/checks.py`.
    """
    rows, columns = checks.check_matrix(operation, name, x, FLOATS)
    x_mean, inverse_deviation = statistics
    checks.check_arrays(operation, x.dtype, ("dy", dy, (rows, columns)))
    checks.check_arrays(
        operation,
        _dtype_of_statistics(x.dtype),
        ("x_mean", x_mean, (rows, 1)),
        ("inverse_deviation", inverse_deviation, (rows, 1)),
    )
    checks.check_arrays(operation, x.dtype, ("weight", weight, (columns,)))
    checks.check_arrays(operation, x.dtype, *((output, array, (columns,)) for output, array in outputs))
    checks.check_contiguous(operation, *outputs)
    return rows, columns


def layer_norm_forward(
    backend: Any, x: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, tuple[Array, Array]]:
    """Normalise in one launch."""
    rows, columns = checks.check_matrix("layer_norm_forward", "x", x, FLOATS)
    checks.check_arrays("layer_norm_forward", x.dtype, ("weight", weight, (columns,)), ("bias", bias, (columns,)))
    y, statistics = backend.cupy.empty(x.shape, x.dtype), _empty_statistics(backend, x)
    inputs = contiguous(x), contiguous(weight), contiguous(bias), np.float64(eps)
    arguments = *inputs, int32(rows), int32(columns), y, *statistics
    backend.kernels.by_row("layer_norm_forward", x.dtype, rows, arguments)
    return y, statistics


def dropout_add_layer_norm_forward(
    backend: Any,
    x: Array,
    bias: Array,
    residual: Array,
    weight: Array,
    norm_bias: Array,
    eps: float,
    dropout: Any,
) -> tuple[Array, Array, tuple[Array, Array]]:
    """Compute bias, dropout, residual and layer norm in one launch."""
    operation, dtype = "dropout_add_layer_norm_forward", x.dtype
    rows, columns = checks.check_matrix(operation, "x", x, FLOATS)
    checks.check_arrays(
        operation,
        dtype,
        ("residual", residual, (rows, columns)),
        ("bias", bias, (columns,)),
        ("weight", weight, (columns,)),
        ("norm_bias", norm_bias, (columns,)),
    )
    mask = dropout_arguments(operation, dropout, rows)
    y, total = backend.cupy.empty(x.shape, dtype), backend.cupy.empty(x.shape, dtype)
    statistics = _empty_statistics(backend, x)
    arrays = contiguous(x), contiguous(bias), contiguous(residual), contiguous(weight), contiguous(norm_bias)
    arguments = *arrays, np.float64(eps), *mask, int32(rows), int32(columns), y, total, *statistics
    backend.kernels.by_row(operation, dtype, rows, arguments)
    return y, total, statistics


def layer_norm_backward(
    backend: Any,
    dy: Array,
    x: Array,
    weight: Array,
    statistics: tuple[Array, Array],
    dweight: Array,
    dbias: Array,
) -> Array:
    """Compute all gradients in one launch: some blocks take the rows, the others the columns."""
    operation, dtype = "layer_norm_backward", x.dtype
    rows, columns = _check_layer_norm_backward(
        operation, "x", x, dy, statistics, weight, ("dweight", dweight), ("dbias", dbias)
    )
    dx = backend.cupy.empty(x.shape, dtype)
    block = column_block(rows, least=WARP // COLUMN_TILE)  # whole warps
    row_blocks = -(-rows // (block[0] * block[1] // WARP))
    column_blocks = -(-columns // block[0])
    x_mean, inverse_deviation = statistics
    inputs = contiguous(dy), contiguous(x), contiguous(weight), contiguous(x_mean), contiguous(inverse_deviation)
    arguments = *inputs, int32(rows), int32(columns), int32(row_blocks), dx, dweight, dbias
    backend.kernels.launch(operation, dtype, (row_blocks + column_blocks,), block, arguments, shared_bytes(block))
    return dx


def dropout_add_layer_norm_backward(
    backend: Any,
    dy: Array,
    total: Array,
    statistics: tuple[Array, Array],
    weight: Array,
    dropout: Any,
    dbias: Array,
    dweight: Array,
    dnorm_bias: Array,
) -> tuple[Array, Array]:
    """Launch one kernel for the gradients of the rows, dtotal and dx, and one for the column sums."""
    operation, dtype = "dropout_add_layer_norm_backward", total.dtype
    outputs = ("dbias", dbias), ("dweight", dweight), ("dnorm_bias", dnorm_bias)
    rows, columns = _check_layer_norm_backward(operation, "total", total, dy, statistics, weight, *outputs)
    mask = dropout_arguments(operation, dropout, rows)
    dtotal = backend.cupy.empty(total.shape, dtype)
    dx = dtotal if dropout is None else backend.cupy.empty(total.shape, dtype)
    dy, total, weight = contiguous(dy), contiguous(total), contiguous(weight)
    x_mean, inverse_deviation = contiguous(statistics[0]), contiguous(statistics[1])
    sizes = int32(rows), int32(columns)
    written_dx = NULL if dropout is None else dx
    of_rows = dy, total, weight, x_mean, inverse_deviation, *mask, *sizes, dtotal, written_dx
    backend.kernels.by_row("dropout_add_layer_norm_backward_rows", dtype, rows, of_rows)
    of_columns = dy, total, x_mean, inverse_deviation, dx, *sizes, dweight, dnorm_bias, dbias
    backend.kernels.by_column("dropout_add_layer_norm_backward_columns", dtype, rows, columns, of_columns)
    return dx, dtotal


# --- embeddings, loss, optimizer ----------------------------------------------------------------------------------


def embedding_forward(backend: Any, tables: tuple[Array, ...], ids: tuple[Array, ...]) -> Array:
    """Add up the rows of all tables in one launch.

    The values of the ids are not checked here, because reading them would make the host wait for the device. The host
    checks them before the transfer.

    Raises:
        ValueError: there are more than BERT's three tables, or shapes do not match.
        TypeError: dtypes do not match.
    """
    if not 1 <= len(tables) <= _TABLES:
        raise ValueError(f"the CUDA kernel adds up 1 to {_TABLES} tables, not {len(tables)}")
    _, columns = checks.check_matrix("embedding_forward", "tables[0]", tables[0], FLOATS)
    dtype, rows = tables[0].dtype, ids[0].size
    for number, (table, rows_of_table) in enumerate(zip(tables, ids, strict=True)):
        shape = *table.shape[:1], columns
        checks.check_arrays("embedding_forward", dtype, (f"tables[{number}]", table, shape))
        checks.check_integers("embedding_forward", f"ids[{number}]", rows_of_table, (rows,), INT32)
    y = backend.cupy.empty((rows, columns), dtype)
    absent = (NULL,) * (_TABLES - len(tables))
    arguments = *map(contiguous, tables), *absent, *map(contiguous, ids), *absent, int32(rows), int32(columns), y
    backend.kernels.elementwise("embedding_forward", dtype, rows, columns, arguments)
    return y


def cross_entropy_forward(backend: Any, logits: Array, labels: Array) -> Array:
    """Launch a block per row. The logits are not clipped, so that an infinite logit shows as NaN."""
    rows, columns = checks.check_matrix("cross_entropy_forward", "logits", logits, FLOATS)
    checks.check_integers("cross_entropy_forward", "labels", labels, (rows,), INT32)
    losses = backend.cupy.empty((rows,), logits.dtype)
    arguments = contiguous(logits), contiguous(labels), int32(columns), np.float64(math.inf), losses
    backend.kernels.by_block("cross_entropy_forward", logits.dtype, rows, columns, arguments)
    return losses


def cross_entropy_backward(backend: Any, logits: Array, labels: Array, scale: float) -> tuple[Array, Array]:
    """Launch a block per row, for its loss and for scale * (softmax - one-hot label)."""
    rows, columns = checks.check_matrix("cross_entropy_backward", "logits", logits, FLOATS)
    checks.check_integers("cross_entropy_backward", "labels", labels, (rows,), INT32)
    losses = backend.cupy.empty((rows,), logits.dtype)
    dlogits = backend.cupy.empty(logits.shape, logits.dtype)
    bound = np.float64(score_bound(np, logits.dtype))
    inputs = contiguous(logits), contiguous(labels), int32(columns), bound, np.float64(scale)
    backend.kernels.by_block("cross_entropy_backward", logits.dtype, rows, columns, (*inputs, losses, dlogits))
    return losses, dlogits


def squared_norm(backend: Any, x: Array) -> Array:
    """Multiply x by itself with cuBLAS, which leaves the result on the device.

    `cupy.dot` and the definition's `vecdot` would first write all squares to an array of the size of x.
    """
    checks.check_vector("squared_norm", "x", x)
    from cupy import cublas

    x = contiguous(x)  # cuBLAS is told that it has no gaps
    return cublas.dot(x, x)


def add_scaled(backend: Any, total: Array, values: Array, weight: float) -> None:
    """Add in one launch that reads and writes every number once, without a temporary."""
    operation, dtype = "add_scaled", total.dtype
    size = checks.check_vector(operation, "total", total, FLOATS)
    checks.check_arrays(operation, dtype, ("values", values, (size,)))
    checks.check_contiguous(operation, ("total", total))
    arguments = total, contiguous(values), np.float64(weight), np.int64(size)
    backend.kernels.flat(operation, dtype, size, arguments)


def adamw_update(
    backend: Any,
    parameters: Array,
    gradients: Array,
    first_moment: Array,
    second_moment: Array,
    gradient_scale: Array,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    step: int,
) -> None:
    """Take a step in one launch that reads and writes every number once."""
    operation, dtype = "adamw_update", parameters.dtype
    size = checks.check_vector(operation, "parameters", parameters, FLOATS)
    checks.check_arrays(
        operation,
        dtype,
        ("gradients", gradients, (size,)),
        ("first_moment", first_moment, (size,)),
        ("second_moment", second_moment, (size,)),
        ("gradient_scale", gradient_scale, ()),
    )
    outputs = ("parameters", parameters), ("first_moment", first_moment), ("second_moment", second_moment)
    checks.check_contiguous(operation, *outputs)
    arrays = parameters, contiguous(gradients), first_moment, second_moment, gradient_scale
    derived = adamw_factors(learning_rate, beta1, beta2, weight_decay, step)
    factors = map(np.float64, (beta1, beta2, epsilon, *derived))
    backend.kernels.flat(operation, dtype, size, (*arrays, *factors, np.int64(size)))


TWINS: Mapping[str, Callable[..., Any]] = {
    "adamw_update": adamw_update,
    "add_scaled": add_scaled,
    "attention_backward": attention_backward,
    "attention_forward": attention_forward,
    "attention_weights": attention_weights,
    "bias_gelu_backward": bias_gelu_backward,
    "bias_gelu_forward": bias_gelu_forward,
    "bias_gelu_new_backward": bias_gelu_new_backward,
    "bias_gelu_new_forward": bias_gelu_new_forward,
    "bias_relu_backward": bias_relu_backward,
    "bias_relu_forward": bias_relu_forward,
    "cross_entropy_backward": cross_entropy_backward,
    "cross_entropy_forward": cross_entropy_forward,
    "dropout_add_layer_norm_backward": dropout_add_layer_norm_backward,
    "dropout_add_layer_norm_forward": dropout_add_layer_norm_forward,
    "dropout_backward": dropout_backward,
    "dropout_forward": dropout_forward,
    "embedding_forward": embedding_forward,
    "layer_norm_backward": layer_norm_backward,
    "layer_norm_forward": layer_norm_forward,
    "linear_backward": linear_backward,
    "linear_backward_input": linear_backward_input,
    "linear_backward_weight": linear_backward_weight,
    "linear_forward": linear_forward,
    "squared_norm": squared_norm,
}
