"""Compute attention, without its projections, on CUDA: cuBLAS for the products, kernels of attention.cu for the rest.

CuPy's batched products read contiguous operands only, and copy all other operands, even T x T arrays. So the kernels
that split attention heads write every operand in the orientation that its product needs, and none of the five products
copies an operand. "Turned" arrays have the last two axes swapped.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backends import checks
from backends.base import Array, score_bound
from backends.cuda.launch import FLOATS, INT32, NULL, contiguous, dropout_arguments, int32

_TILE, _TILE_ROWS = 32, 8  # a block moves 32 x 32 elements, 8 rows at a time
_TILE_BYTES = _TILE * (_TILE + 1) * 8


def _strided(x: Array) -> tuple[Array, np.int64]:
    """Return an array (N, H), copied if its rows are not contiguous, and the distance between rows in elements."""
    if x.shape[1] > 1 and x.strides[1] != x.itemsize:
        x = x.copy()
    return x, np.int64(x.strides[0] // x.itemsize)


def _strided_output(operation: str, name: str, x: Array) -> tuple[Array, np.int64]:
    """Return an array to write to, and the distance between rows in elements.

    Raises:
        ValueError: the rows are not contiguous, so only a copy could be written.
    """
    rows, stride = _strided(x)
    if rows is not x:
        raise ValueError(f"{operation}: the rows of {name} must be contiguous, because the kernel writes into them")
    return x, stride


def _row_of_slot(operation: str, name: str, rows: Any) -> Array:
    """Return the places of rows as the kernels read them, or `NULL` where slot i holds row i.

    Raises:
        TypeError: the places are not int32.
    """
    if rows.row_of_slot is None:
        return NULL
    shape = (rows.sequences * rows.slots,)
    checks.check_integers(operation, f"row_of_slot of the {name}", rows.row_of_slot, shape, INT32)
    return contiguous(rows.row_of_slot)


class _Launches:
    """The sizes of one attention, and the launches that use them: B, A, D, slots and rows of queries and keys.

    Args:
        backend: the CuPy backend.
        operation: the operation's name, for error messages.
        queries: (Nq, H). The caller has checked all arrays.
        keys: (N, H).
        layout: an `AttentionLayout` of `minibert.ops`.
        dropout: a `Dropout` of `minibert.ops`, or None.
    """

    def __init__(self, backend: Any, operation: str, queries: Array, keys: Array, layout: Any, dropout: Any) -> None:
        self._kernels, self.dtype = backend.kernels, queries.dtype
        self.batch, self.attention_heads = layout.queries.sequences, layout.attention_heads
        self.width = queries.shape[1] // layout.attention_heads  # D
        self.query_slots, self.key_slots = layout.queries.slots, layout.keys.slots
        self.query_places = (_row_of_slot(operation, "queries", layout.queries), int32(queries.shape[0]))
        self.query_rows = (*self.query_places, int32(self.query_slots))
        self.key_rows = (_row_of_slot(operation, "keys", layout.keys), int32(keys.shape[0]), int32(self.key_slots))
        self.head_sizes = int32(layout.attention_heads), int32(self.width)
        self._dropout = dropout_arguments(operation, dropout, queries.shape[0])

    def straight(self, slots: int) -> tuple[int, ...]:
        """Return the shape (B, A, slots, D)."""
        return self.batch, self.attention_heads, slots, self.width

    def turned(self, slots: int) -> tuple[int, ...]:
        """Return the shape (B, A, D, slots)."""
        return self.batch, self.attention_heads, self.width, slots

    def move(self, name: str, slots: int, tensors: int, arguments: tuple[Any, ...]) -> None:
        """Launch a kernel that splits or merges attention heads, for the given numbers of slots and tensors."""
        tiles = -(-slots // _TILE) * -(-self.width // _TILE)
        grid = self.batch * self.attention_heads, tiles, tensors
        self._kernels.launch(name, self.dtype, grid, (_TILE, _TILE_ROWS), arguments, _TILE_BYTES)

    def softmax(self, name: str, array: Array, other: Any, number: float, dropped_weights: Array | None) -> None:
        """Launch a softmax kernel.

        Args:
            name: the kernel's name.
            array: (B, A, Q, T), changed in place.
            other: the mask (forward) or the weights (backward).
            number: the bound of the scores (forward) or score_scale (backward).
            dropped_weights: (B, A, Q, T), overwritten by weights * weights_dropout_mask; None without dropout.
        """
        batch, attention_heads, slots, columns = array.shape
        inputs = array, other, np.float64(number), *self._dropout, *self.query_places
        sizes = int32(batch), int32(attention_heads), int32(slots), int32(columns)
        arguments = *inputs, *sizes, NULL if dropped_weights is None else dropped_weights
        self._kernels.by_row(name, array.dtype, batch * attention_heads * slots, arguments)


def _weights(
    backend: Any, launches: _Launches, queries: Array, keys: Array, values: Array | None, layout: Any, dropout: Any
) -> tuple[Array, Array | None, Array | None]:
    """Return weights (B, A, Q, T), the same after dropout or None, and the split values (B, A, T, D) or None."""
    dtype, empty = queries.dtype, backend.cupy.empty
    query_slots, key_slots = launches.query_slots, launches.key_slots
    q = empty(launches.straight(query_slots), dtype)
    k_turned = empty(launches.turned(key_slots), dtype)
    v = None if values is None else empty(launches.straight(key_slots), dtype)
    query_arguments = *_strided(queries), *launches.query_rows
    value_arguments = (NULL, np.int64(0)) if values is None else _strided(values)
    key_arguments = *_strided(keys), *value_arguments, *launches.key_rows
    score_scale = np.float64(1.0 / math.sqrt(launches.width))
    outputs = q, k_turned, NULL if v is None else v
    arguments = *query_arguments, *key_arguments, *launches.head_sizes, score_scale, *outputs
    launches.move("split_heads_forward", max(query_slots, key_slots), 2 if v is None else 3, arguments)
    scores = backend.cupy.matmul(q, k_turned)  # (B, A, Q, T)
    mask = NULL if layout.mask is None else contiguous(layout.mask)
    dropped_weights = None if dropout is None else empty(scores.shape, dtype)
    launches.softmax("attention_softmax_forward", scores, mask, score_bound(np, dtype), dropped_weights)
    return scores, dropped_weights, v


def attention_weights(backend: Any, queries: Array, keys: Array, layout: Any) -> Array:
    """Return the weights (B, A, Q, T), in three launches: split, scores, softmax."""
    checks.check_attention("attention_weights", queries, keys, None, layout, FLOATS)
    launches = _Launches(backend, "attention_weights", queries, keys, layout, None)
    weights, _, _ = _weights(backend, launches, queries, keys, None, layout, None)
    return weights


def attention_forward(
    backend: Any, queries: Array, keys: Array, values: Array, layout: Any, dropout: Any
) -> tuple[Array, Array]:
    """Return contexts and weights, in five launches: split, scores, softmax, contexts, merge."""
    checks.check_attention("attention_forward", queries, keys, values, layout, FLOATS)
    launches = _Launches(backend, "attention_forward", queries, keys, layout, dropout)
    weights, dropped_weights, v = _weights(backend, launches, queries, keys, values, layout, dropout)
    c = backend.cupy.matmul(weights if dropped_weights is None else dropped_weights, v)  # (B, A, Q, D)
    context = backend.cupy.empty(queries.shape, queries.dtype)
    sizes = int32(launches.attention_heads), int32(launches.query_slots), int32(launches.width)
    arguments = c, *launches.query_places, *sizes, context
    launches.move("merge_heads_forward", launches.query_slots, 1, arguments)
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
    """Write the three gradients in six launches.

    The launches are: split, the gradient of the weights, softmax, the gradients of values and keys, the gradient of the
    queries, merge. The gradients of values and keys are both products of (D, Q) by (Q, T), and so they are one batched
    product.
    """
    operation, dtype = "attention_backward", queries.dtype
    checks.check_attention(operation, queries, keys, values, layout, FLOATS)
    checks.check_attention_gradients(operation, queries, keys, dcontext, dqueries, dkeys, dvalues)
    launches = _Launches(backend, operation, queries, keys, layout, dropout)
    query_slots, key_slots = launches.query_slots, launches.key_slots
    shape_of_weights = launches.batch, launches.attention_heads, query_slots, key_slots
    checks.check_arrays(operation, dtype, ("saved", saved, shape_of_weights))
    gradient_arguments = (
        *_strided_output(operation, "dqueries", dqueries),
        *_strided_output(operation, "dkeys", dkeys),
        *_strided_output(operation, "dvalues", dvalues),
    )
    empty, matmul = backend.cupy.empty, backend.cupy.matmul
    dc = empty(launches.straight(query_slots), dtype)
    turned = empty((2, *launches.turned(query_slots)), dtype)
    dc_turned, q_turned = turned[0], turned[1]
    k, v_turned = empty(launches.straight(key_slots), dtype), empty(launches.turned(key_slots), dtype)
    query_arguments = *_strided(dcontext), *_strided(queries), *launches.query_rows
    key_arguments = *_strided(keys), *_strided(values), *launches.key_rows
    operands = dc, dc_turned, q_turned, k, v_turned
    slots = max(query_slots, key_slots)
    arguments = *query_arguments, *key_arguments, *launches.head_sizes, *operands
    launches.move("split_heads_backward", slots, 4, arguments)
    # c = dropped_weights @ v
    both = empty((2, *shape_of_weights), dtype)
    dropped_weights, dqk = both[0], both[1]
    matmul(dc, v_turned, out=dqk)  # (B, A, Q, T); ddropped_weights until the kernel below overwrites it
    # dropped_weights = weights * weights_dropout_mask, weights = softmax(qk * score_scale + mask)
    score_scale = 1.0 / math.sqrt(launches.width)
    launches.softmax("attention_softmax_backward", dqk, contiguous(saved), score_scale, dropped_weights)
    # c = dropped_weights @ v, qk = q @ k.T
    dkv_turned = matmul(turned, both)  # (2, B, A, D, T)
    dv_turned, dk_turned = dkv_turned[0], dkv_turned[1]
    dq = matmul(dqk, k)  # (B, A, Q, D)
    sizes = *launches.query_rows, *launches.key_rows, *launches.head_sizes
    launches.move("merge_heads_backward", slots, 3, (dq, dk_turned, dv_turned, *sizes, *gradient_arguments))
