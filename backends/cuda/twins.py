"""Fast twins for the CuPy backend: operation name -> a function that launches the kernels of cuda_kernels.cu.

The definition of every operation is in `minibert/ops/`. Nothing here waits for the device. A twin takes arrays of
float16, float32 or float64, all of one dtype. Attention is in `backends/cuda/attention.py`.
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
    NULL,
    WARP,
    checked,
    column_block,
    dropout_arguments,
    int32,
    output,
    shared_bytes,
)

_TABLES = 3  # that the embedding kernel adds up


def _statistics(backend: Any, x: Array) -> tuple[Array, Array]:
    """Mean and 1 / deviation of every row, (N, 1), in the dtype that the kernels compute in."""
    dtype = np.dtype("float32") if x.dtype == np.dtype("float16") else x.dtype
    return backend.cupy.empty((x.shape[0], 1), dtype), backend.cupy.empty((x.shape[0], 1), dtype)


# --- linear layers ------------------------------------------------------------------------------------------------


def linear_forward(backend: Any, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """A cuBLAS product, which reads the transposed weight in place, and the bias added in place."""
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
    """Both functions below."""
    linear_backward_weight(backend, dy, x, dweight, dbias)
    return linear_backward_input(backend, dy, weight, add_to)


def linear_backward_weight(backend: Any, dy: Array, x: Array, dweight: Array, dbias: Array | None = None) -> None:
    """A product straight into dweight, and the sums of dy in one pass."""
    output(dy.dtype, (dy.shape[1], x.shape[1]), dweight)
    backend.cupy.dot(dy.T, x, out=dweight)
    if dbias is not None:
        (dy,) = checked(dy.dtype, dy)
        rows, columns = dy.shape
        output(dy.dtype, (columns,), dbias)
        backend.kernels.by_column("column_sums", dy.dtype, rows, columns, dy, int32(rows), int32(columns), dbias)


def linear_backward_input(backend: Any, dy: Array, weight: Array, add_to: Array | None = None) -> Array:
    """A product, which with `add_to` cuBLAS adds to what is there."""
    if add_to is None:
        return backend.cupy.matmul(dy, weight)
    output(dy.dtype, (dy.shape[0], weight.shape[1]), add_to)
    if dy.dtype == np.dtype("float16") or 0 in (*dy.shape, *weight.shape):  # which CuPy's gemm does not take
        add_to += backend.cupy.matmul(dy, weight)
        return add_to
    from cupy import cublas

    return cublas.gemm("N", "N", *checked(dy.dtype, dy, weight), out=add_to, beta=1.0)


# --- activations --------------------------------------------------------------------------------------------------


def _activation(name: str) -> tuple[Callable[..., Array], Callable[..., tuple[Array, Array]]]:
    def forward(backend: Any, x: Array, bias: Array) -> Array:
        x, bias = checked(x.dtype, x, bias)
        rows, columns = x.shape
        y = backend.cupy.empty(x.shape, x.dtype)
        backend.kernels.elementwise(
            f"bias_{name}_forward", x.dtype, rows, columns, x, bias, int32(rows), int32(columns), y
        )
        return y

    def backward(backend: Any, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
        dy, x, bias = checked(x.dtype, dy, x, bias)
        rows, columns = x.shape
        output(x.dtype, (columns,), dbias)
        dx, y = backend.cupy.empty(x.shape, x.dtype), backend.cupy.empty(x.shape, x.dtype)
        backend.kernels.by_column(
            f"bias_{name}_backward", x.dtype, rows, columns, dy, x, bias, int32(rows), int32(columns), dx, y, dbias
        )
        return dx, y

    return forward, backward


# --- dropout ------------------------------------------------------------------------------------------------------


def dropout_forward(backend: Any, x: Array, dropout: Any) -> Array:
    """Mask and product in one pass; the mask is never stored."""
    if dropout is None:
        return x
    (x,) = checked(x.dtype, x)
    rows, columns = x.shape
    y = backend.cupy.empty(x.shape, x.dtype)
    backend.kernels.elementwise(
        "dropout", x.dtype, rows, columns, x, *dropout_arguments(dropout), int32(rows), int32(columns), y
    )
    return y


def dropout_backward(backend: Any, dy: Array, dropout: Any) -> Array:
    """The same mask again."""
    return dropout_forward(backend, dy, dropout)


# --- layer norm ---------------------------------------------------------------------------------------------------


def layer_norm_forward(
    backend: Any, x: Array, weight: Array, bias: Array, eps: float
) -> tuple[Array, tuple[Array, Array]]:
    """One launch."""
    x, weight, bias = checked(x.dtype, x, weight, bias)
    rows, columns = x.shape
    y = backend.cupy.empty(x.shape, x.dtype)
    statistics = _statistics(backend, x)
    sizes = int32(rows), int32(columns)
    backend.kernels.by_row(
        "layer_norm_forward", x.dtype, rows, x, weight, bias, np.float64(eps), *sizes, y, *statistics
    )
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
    """Bias, dropout, residual and layer norm in one launch."""
    x, bias, residual, weight, norm_bias = checked(x.dtype, x, bias, residual, weight, norm_bias)
    rows, columns = x.shape
    y, total = backend.cupy.empty(x.shape, x.dtype), backend.cupy.empty(x.shape, x.dtype)
    statistics = _statistics(backend, x)
    backend.kernels.by_row(
        "dropout_add_layer_norm_forward",
        x.dtype,
        rows,
        *(x, bias, residual, weight, norm_bias, np.float64(eps), *dropout_arguments(dropout)),
        *(int32(rows), int32(columns), y, total, *statistics),
    )
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
    """One launch: some blocks take the rows, the others the columns."""
    dtype = x.dtype
    dy, x, weight = checked(dtype, dy, x, weight)
    rows, columns = x.shape
    output(dtype, (columns,), dweight, dbias)
    dx = backend.cupy.empty(x.shape, dtype)
    block = column_block(rows, least=WARP // COLUMN_TILE)  # whole warps
    row_blocks = -(-rows // (block[0] * block[1] // WARP))
    backend.kernels.launch(
        "layer_norm_backward",
        dtype,
        (row_blocks + -(-columns // block[0]),),
        block,
        (dy, x, weight, *statistics, int32(rows), int32(columns), int32(row_blocks), dx, dweight, dbias),
        shared_bytes(block),
    )
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
    """One launch for the gradients of the rows, dtotal and dx, one for those of the columns."""
    dtype = total.dtype
    dy, total, weight = checked(dtype, dy, total, weight)
    rows, columns = total.shape
    output(dtype, (columns,), dbias, dweight, dnorm_bias)
    dtotal = backend.cupy.empty(total.shape, dtype)
    dx = dtotal if dropout is None else backend.cupy.empty(total.shape, dtype)
    sizes = int32(rows), int32(columns)
    backend.kernels.by_row(
        "dropout_add_layer_norm_backward_rows",
        dtype,
        rows,
        *(dy, total, weight, *statistics, *dropout_arguments(dropout), *sizes, dtotal),
        NULL if dropout is None else dx,
    )
    backend.kernels.by_column(
        "dropout_add_layer_norm_backward_columns",
        dtype,
        rows,
        columns,
        *(dy, total, *statistics, dx, *sizes, dweight, dnorm_bias, dbias),
    )
    return dx, dtotal


# --- embeddings, loss, optimizer ----------------------------------------------------------------------------------


def embedding_forward(backend: Any, tables: tuple[Array, ...], ids: tuple[Array, ...]) -> Array:
    """All tables in one launch.

    Raises:
        ValueError: more than BERT's three tables.
    """
    if not 1 <= len(tables) <= _TABLES:
        raise ValueError(f"the CUDA kernel adds up 1 to {_TABLES} tables, not {len(tables)}")
    tables = checked(tables[0].dtype, *tables)
    ids = checked(np.dtype("int32"), *ids)
    rows, columns = ids[0].shape[0], tables[0].shape[1]
    y = backend.cupy.empty((rows, columns), tables[0].dtype)
    absent = (NULL,) * (_TABLES - len(tables))
    arguments = *tables, *absent, *ids, *absent, int32(rows), int32(columns), y
    backend.kernels.elementwise("embedding_forward", y.dtype, rows, columns, *arguments)
    return y


def cross_entropy_forward(backend: Any, logits: Array, labels: Array) -> Array:
    """A block per row; not clipped, so that an infinite logit shows as NaN."""
    (logits,), (labels,) = checked(logits.dtype, logits), checked(np.dtype("int32"), labels)
    rows, columns = logits.shape
    losses = backend.cupy.empty((rows,), logits.dtype)
    backend.kernels.by_block(
        "cross_entropy_forward",
        *(logits.dtype, rows, columns, logits, labels, int32(columns), np.float64(math.inf), losses),
    )
    return losses


def cross_entropy_backward(backend: Any, logits: Array, labels: Array, scale: float) -> tuple[Array, Array]:
    """A block per row: its loss, and the softmax, less the label, times the scale."""
    (logits,), (labels,) = checked(logits.dtype, logits), checked(np.dtype("int32"), labels)
    rows, columns = logits.shape
    losses = backend.cupy.empty((rows,), logits.dtype)
    dlogits = backend.cupy.empty(logits.shape, logits.dtype)
    bound = np.float64(score_bound(np, logits.dtype))
    backend.kernels.by_block(
        "cross_entropy_backward",
        *(logits.dtype, rows, columns, logits, labels, int32(columns), bound, np.float64(scale), losses, dlogits),
    )
    return losses, dlogits


def squared_norm(backend: Any, x: Array) -> Array:
    """CuPy's product of vectors: no copy, as the definition's `vecdot` makes one."""
    return backend.cupy.dot(x, x)


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
    """One launch that reads and writes every number once."""
    dtype, size = parameters.dtype, parameters.shape[0]
    output(dtype, (size,), parameters, first_moment, second_moment)
    checks.same_kind("adamw_update", dtype, ("gradients", gradients, (size,)), ("gradient_scale", gradient_scale, ()))
    gradients, gradient_scale = checked(dtype, gradients, gradient_scale)
    factors = beta1, beta2, epsilon, *adamw_factors(learning_rate, beta1, beta2, weight_decay, step)
    arrays = parameters, gradients, first_moment, second_moment, gradient_scale
    backend.kernels.launch(
        "adamw_update", dtype, (-(-size // 256),), (256,), (*arrays, *map(np.float64, factors), np.int64(size))
    )


TWINS: Mapping[str, Callable[..., Any]] = {
    "adamw_update": adamw_update,
    "attention_backward": attention_backward,
    "attention_forward": attention_forward,
    "attention_weights": attention_weights,
    **{
        f"bias_{name}_{direction}": function
        for name in ("gelu", "gelu_new", "relu")
        for direction, function in zip(("forward", "backward"), _activation(name), strict=True)
    },
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
