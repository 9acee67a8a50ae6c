"""Attention between its projections on CUDA: cuBLAS for the products, the kernels of attention.cu between them.

Batched products of CuPy read contiguous operands only and copy all others, T x T arrays among them. So the kernels
that split heads write every operand in the orientation its product needs: of the five products, none copies.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backends.base import Array, score_bound
from backends.cuda.launch import NULL, checked, dropout_arguments, int32

_TILE, _TILE_ROWS = 32, 8  # a block moves 32 x 32 elements, 8 rows at a time
_TILE_BYTES = _TILE * (_TILE + 1) * 8


def _row_of_slot(rows: Any) -> Array:
    return NULL if rows.row_of_slot is None else rows.row_of_slot


def _strided(dtype: Any, x: Array) -> tuple[Array, np.int64]:
    """An (N, H) array whose rows are contiguous, and the elements from row to row.

    Raises:
        TypeError: another dtype.
    """
    if x.dtype != dtype:
        raise TypeError(f"queries, keys and values must share a dtype; got {x.dtype} beside {dtype}")
    if x.shape[1] > 1 and x.strides[1] != x.itemsize:
        x = x.copy()
    return x, np.int64(x.strides[0] // x.itemsize)


class _Sizes:
    """The numbers that all launches of one attention need: B, A, D, and the slots and rows of queries and keys."""

    def __init__(self, queries: Array, keys: Array, layout: Any) -> None:
        self.batch, self.attention_heads = layout.queries.sequences, layout.attention_heads
        self.width = queries.shape[1] // layout.attention_heads
        self.query_slots, self.key_slots = layout.queries.slots, layout.keys.slots
        self.query_places = (_row_of_slot(layout.queries), int32(queries.shape[0]))
        self.query_rows = (*self.query_places, int32(self.query_slots))
        self.key_rows = (_row_of_slot(layout.keys), int32(keys.shape[0]), int32(self.key_slots))
        self.head_sizes = int32(layout.attention_heads), int32(self.width)

    def straight(self, slots: int) -> tuple[int, ...]:
        """(B, A, slots, D)."""
        return self.batch, self.attention_heads, slots, self.width

    def turned(self, slots: int) -> tuple[int, ...]:
        """(B, A, D, slots)."""
        return self.batch, self.attention_heads, self.width, slots

    def tile_grid(self, slots: int, tensors: int) -> tuple[int, int, int]:
        """Blocks to move heads of so many slots."""
        tiles = -(-slots // _TILE) * -(-self.width // _TILE)
        return self.batch * self.attention_heads, tiles, tensors


def _move(backend: Any, name: str, dtype: Any, grid: tuple[int, ...], *arguments: Any) -> None:
    backend.kernels.launch(name, dtype, grid, (_TILE, _TILE_ROWS), arguments, _TILE_BYTES)


def _softmax(
    backend: Any, name: str, sizes: _Sizes, array: Array, other: Any, number: float, dropout: Any, dropped: Any
) -> None:
    """Launch a softmax kernel on an array (B, A, Q, T), in place, and on the one for the dropped-out weights."""
    batch, attention_heads, slots, columns = array.shape
    backend.kernels.by_row(
        name,
        array.dtype,
        batch * attention_heads * slots,
        *(array, other, np.float64(number), *dropout_arguments(dropout), *sizes.query_places),
        *(int32(batch), int32(attention_heads), int32(slots), int32(columns), NULL if dropped is None else dropped),
    )


def _weights(
    backend: Any, sizes: _Sizes, queries: Array, keys: Array, values: Array | None, layout: Any, dropout: Any
) -> tuple[Array, Array | None, Array | None]:
    """The weights (B, A, Q, T), the dropped-out ones or None, and the values (B, A, T, D) or None."""
    dtype, empty = queries.dtype, backend.cupy.empty
    queries, query_stride = _strided(dtype, queries)
    keys, key_stride = _strided(dtype, keys)
    rows_of_values: tuple[Any, Any] = (NULL, np.int64(0)) if values is None else _strided(dtype, values)
    q = empty(sizes.straight(sizes.query_slots), dtype)
    k_turned = empty(sizes.turned(sizes.key_slots), dtype)
    v = None if values is None else empty(sizes.straight(sizes.key_slots), dtype)
    _move(
        backend,
        "split_heads_forward",
        dtype,
        sizes.tile_grid(max(sizes.query_slots, sizes.key_slots), 2 if v is None else 3),
        *(queries, query_stride, *sizes.query_rows),
        *(keys, key_stride, *rows_of_values, *sizes.key_rows),
        *(*sizes.head_sizes, np.float64(1.0 / math.sqrt(sizes.width)), q, k_turned, NULL if v is None else v),
    )
    scores = backend.cupy.matmul(q, k_turned)  # (B, A, Q, T)
    mask = NULL if layout.mask is None else checked(dtype, layout.mask)[0]
    bound = score_bound(np, dtype)
    dropped = None if dropout is None else empty(scores.shape, dtype)
    _softmax(backend, "attention_softmax_forward", sizes, scores, mask, bound, dropout, dropped)
    return scores, dropped, v


def attention_weights(backend: Any, queries: Array, keys: Array, layout: Any) -> Array:
    """Three launches."""
    return _weights(backend, _Sizes(queries, keys, layout), queries, keys, None, layout, None)[0]


def attention_forward(
    backend: Any, queries: Array, keys: Array, values: Array, layout: Any, dropout: Any
) -> tuple[Array, Array]:
    """Five launches: split, scores, softmax, contexts, merge."""
    sizes = _Sizes(queries, keys, layout)
    weights, dropped, v = _weights(backend, sizes, queries, keys, values, layout, dropout)
    context_of_heads = backend.cupy.matmul(weights if dropped is None else dropped, v)  # (B, A, Q, D)
    context = backend.cupy.empty(queries.shape, queries.dtype)
    _move(
        backend,
        "merge_heads_forward",
        queries.dtype,
        sizes.tile_grid(sizes.query_slots, 1),
        *(
            context_of_heads,
            *sizes.query_places,
            int32(sizes.attention_heads),
            int32(sizes.query_slots),
            int32(sizes.width),
        ),
        context,
    )
    return context, weights


def attention_backward(
    backend: Any,
    dcontext: Array,
    queries: Array,
    keys: Array,
    values: Array,
    saved: Array,
    layout: Any,
    dropout: Any,
    dqueries: Array,
    dkeys: Array,
    dvalues: Array,
) -> None:
    """Six launches: split, the gradient of the weights, softmax, those of values and keys, of queries, merge.

    Both gradients that the slots of the keys get are products of (D, Q) by (Q, T), and so they are one.
    """
    sizes, dtype = _Sizes(queries, keys, layout), queries.dtype
    empty, matmul = backend.cupy.empty, backend.cupy.matmul
    dc = empty(sizes.straight(sizes.query_slots), dtype)
    turned = empty((2, *sizes.turned(sizes.query_slots)), dtype)
    dc_turned, q_turned = turned[0], turned[1]
    k, v_turned = empty(sizes.straight(sizes.key_slots), dtype), empty(sizes.turned(sizes.key_slots), dtype)
    dcontext, dcontext_stride = _strided(dtype, dcontext)
    queries, query_stride = _strided(dtype, queries)
    keys, key_stride = _strided(dtype, keys)
    values, value_stride = _strided(dtype, values)
    grid_slots = max(sizes.query_slots, sizes.key_slots)
    _move(
        backend,
        "split_heads_backward",
        dtype,
        sizes.tile_grid(grid_slots, 4),
        *(dcontext, dcontext_stride, queries, query_stride, *sizes.query_rows),
        *(keys, key_stride, values, value_stride, *sizes.key_rows),
        *(*sizes.head_sizes, dc, dc_turned, q_turned, k, v_turned),
    )
    # context = (weights * mask) @ v
    both = empty((2, *saved.shape), dtype)
    dropped, dscores = both[0], both[1]
    matmul(dc, v_turned, out=dscores)  # (B, A, Q, T), the gradient of the dropped-out weights
    # weights = softmax(q @ k.T / sqrt(D) + mask)
    scale = 1.0 / math.sqrt(sizes.width)
    _softmax(backend, "attention_softmax_backward", sizes, dscores, saved, scale, dropout, dropped)
    dkv_turned = matmul(turned, both)  # (2, B, A, D, T)
    dq = matmul(dscores, k)  # (B, A, Q, D)
    outputs = []
    for output in (dqueries, dkeys, dvalues):
        rows, stride = _strided(dtype, output)
        if rows is not output:
            raise ValueError("the gradients of queries, keys and values need arrays whose rows are contiguous")
        outputs += [rows, stride]
    _move(
        backend,
        "merge_heads_backward",
        dtype,
        sizes.tile_grid(grid_slots, 3),
        *(dq, dkv_turned[1], dkv_turned[0], *sizes.query_rows, *sizes.key_rows, *sizes.head_sizes, *outputs),
    )
