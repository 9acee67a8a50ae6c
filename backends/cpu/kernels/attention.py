"""Attention block by block: for every sequence and head, scores, softmax, dropout and values in the cache.

Queries, keys and values are read where they lie, in rows of the packed projection (N, 3H), by address and
stride: nothing is split into attention heads or merged. No (T, T) array outlives its block: the forward pass keeps a
maximum and a sum for every row and head (Milakov & Gimelshein 2018, arXiv:1805.02867), and the backward pass
computes the weights again from them (Dao et al. 2022, arXiv:2205.14135, algorithm 4), so that memory grows
linearly with T.

Rows of sequence b are those from starts[b] to starts[b + 1], so sequences may have any lengths. What the
definition fills up as empty slots does not exist here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import get_num_threads, get_thread_id, prange

from backends import checks
from backends.base import Array, Backend, score_bound
from backends.cpu.kernels.bits import counter_word, kept
from backends.cpu.kernels.blas import matrix, product, scalars
from backends.cpu.kernels.dropout import DropoutPlan, plan
from backends.cpu.kernels.elementary import exponential, type_of
from backends.cpu.kernels.jit import elementwise, parallel, summing
from backends.cpu.kernels.softmax import clip, row_maximum

_BLOCK = 1 << 16  # scores in one block of query rows: 256 KiB of float32, in a core's second-level cache


@elementwise
def _mask_row(scores, mask, bound):
    """Scores, held within bounds, plus the mask, held within bounds."""
    if mask.shape[0]:
        for j in range(scores.shape[0]):
            scores[j] = clip(clip(scores[j], bound) + mask[j], bound)
    else:
        for j in range(scores.shape[0]):
            scores[j] = clip(scores[j], bound)


@summing
def _exponential_row(scores, maximum):
    total = type_of(scores, 0.0)
    for j in range(scores.shape[0]):
        e = exponential(scores[j] - maximum)
        scores[j] = e
        total += e
    return total


@elementwise
def _weigh_row(exponentials, inverse, row_word, words, threshold, keep_scale):
    """Exponentials -> weights after dropout."""
    scale = inverse * keep_scale
    if words.shape[0]:
        for j in range(exponentials.shape[0]):
            exponentials[j] *= scale if kept(row_word, words[j], threshold) else type_of(scale, 0.0)
    else:
        for j in range(exponentials.shape[0]):
            exponentials[j] *= scale


@summing
def _weights_again(scores, dweights, maximum, inverse, row_word, words, threshold, keep_scale):
    """Scores -> weights, with a minus where dropout drops; dweights -> after dropout's mask.

    Returns the sum of dweights * weights, which the softmax takes from the row's gradient.
    """
    dot = type_of(scores, 0.0)
    if words.shape[0]:
        for j in range(scores.shape[0]):
            weight = exponential(scores[j] - maximum) * inverse
            keep = kept(row_word, words[j], threshold)
            d = dweights[j] * keep_scale if keep else type_of(scores, 0.0)
            dot += d * weight
            scores[j] = weight if keep else -weight
            dweights[j] = d
    else:
        for j in range(scores.shape[0]):
            weight = exponential(scores[j] - maximum) * inverse
            dot += dweights[j] * weight
            scores[j] = weight
    return dot


@elementwise
def _score_gradient(weights, dweights, dot, keep_scale):
    """dweights -> dscores; weights -> weights after dropout."""
    for j in range(weights.shape[0]):
        weight = weights[j]
        dweights[j] = abs(weight) * (dweights[j] - dot)
        weights[j] = weight * keep_scale if weight > type_of(keep_scale, 0.0) else type_of(keep_scale, 0.0)


@elementwise
def _key_words(slots, key, dropped):
    words = np.empty(slots.shape[0] if dropped else 0, dtype=np.uint32)
    for j in range(words.shape[0]):
        words[j] = counter_word(np.uint32(slots[j]), key)
    return words


@parallel
def _forward(scaled, q, ldq, k, ldk, v, ldv, sequences, mask, dropout, numbers, context, saved, scratch):
    threshold, row_key, column_key, keep_scale = dropout
    query_starts, key_starts, key_slots, bound = sequences
    attention_heads, width = saved.shape[1], context.shape[1] // saved.shape[1]
    size, hidden = scratch.itemsize, context.shape[1]
    words = _key_words(key_slots, column_key, numbers.shape[0] > 0)
    for task in prange((query_starts.shape[0] - 1) * attention_heads):
        sequence, head = task // attention_heads, task % attention_heads
        first_key, keys = key_starts[sequence], key_starts[sequence + 1] - key_starts[sequence]
        block = max(1, scratch.shape[2] // max(1, keys))
        scores = scratch[get_thread_id(), 0]
        column = head * width * size
        for first in range(query_starts[sequence], query_starts[sequence + 1], block):
            rows = min(block, query_starts[sequence + 1] - first)
            product(
                scaled, False, True, rows, keys, width,
                q + first * ldq * size + column, ldq, k + first_key * ldk * size + column, ldk,
                False, scores.ctypes.data, keys,
            )  # fmt: skip
            for i in range(rows):
                row = scores[i * keys : (i + 1) * keys]
                _mask_row(row, mask[first_key : first_key + keys], bound)
                maximum = row_maximum(row)
                total = _exponential_row(row, maximum)
                inverse = type_of(total, 0.0) if maximum == -bound else type_of(total, 1.0) / total
                saved[0, head, first + i], saved[1, head, first + i] = maximum, inverse
                row_word = np.uint32(0)
                if words.shape[0]:
                    number = np.uint32(np.uint32(numbers[first + i] * np.uint32(attention_heads)) + np.uint32(head))
                    row_word = counter_word(number, row_key)
                key_words = words[first_key : first_key + keys]
                _weigh_row(row, inverse, row_word, key_words, threshold, keep_scale)
            _plain_product(
                scaled, False, False, rows, width, keys,
                scores.ctypes.data, keys, v + first_key * ldv * size + column, ldv,
                False, context.ctypes.data + first * hidden * size + column, hidden,
            )  # fmt: skip


@elementwise
def _plain_product(scaled, transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc):
    """`product` with factor 1 instead of the scores' 1 / sqrt(D), which stands behind it in `scaled`."""
    product(scaled[3:], transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc)


@parallel
def _backward(scaled, dc, ldc, q, ldq, k, ldk, v, ldv, sequences, mask, dropout, numbers, saved, outputs, scratch):
    threshold, row_key, column_key, keep_scale = dropout
    query_starts, key_starts, key_slots, bound = sequences
    dq, lddq, dk, lddk, dv, lddv, width = outputs
    attention_heads, size = saved.shape[1], scratch.itemsize
    words = _key_words(key_slots, column_key, numbers.shape[0] > 0)
    for task in prange((query_starts.shape[0] - 1) * attention_heads):
        sequence, head = task // attention_heads, task % attention_heads
        first_key, keys = key_starts[sequence], key_starts[sequence + 1] - key_starts[sequence]
        block = max(1, scratch.shape[2] // max(1, keys))
        scores, dscores = scratch[get_thread_id(), 0], scratch[get_thread_id(), 1]
        column = head * width * size
        begin, end = query_starts[sequence], query_starts[sequence + 1]
        key_at, value_at = k + first_key * ldk * size + column, v + first_key * ldv * size + column
        dkey_at, dvalue_at = dk + first_key * lddk * size + column, dv + first_key * lddv * size + column
        if begin == end:  # nobody asks: no gradient (a product over nothing is zero)
            _plain_product(scaled, False, False, keys, width, 0, key_at, ldk, key_at, ldk, False, dkey_at, lddk)
            _plain_product(scaled, False, False, keys, width, 0, key_at, ldk, key_at, ldk, False, dvalue_at, lddv)
        for first in range(begin, end, block):
            rows = min(block, end - first)
            query_at, dcontext_at = q + first * ldq * size + column, dc + first * ldc * size + column
            weights_at, dscores_at = scores.ctypes.data, dscores.ctypes.data
            product(scaled, False, True, rows, keys, width, query_at, ldq, key_at, ldk, False, weights_at, keys)
            _plain_product(
                scaled, False, True, rows, keys, width, dcontext_at, ldc, value_at, ldv, False, dscores_at, keys
            )
            for i in range(rows):
                row, drow = scores[i * keys : (i + 1) * keys], dscores[i * keys : (i + 1) * keys]
                _mask_row(row, mask[first_key : first_key + keys], bound)
                row_word = np.uint32(0)
                if words.shape[0]:
                    number = np.uint32(np.uint32(numbers[first + i] * np.uint32(attention_heads)) + np.uint32(head))
                    row_word = counter_word(number, row_key)
                key_words = words[first_key : first_key + keys]
                maximum, inverse = saved[0, head, first + i], saved[1, head, first + i]
                dot = _weights_again(row, drow, maximum, inverse, row_word, key_words, threshold, keep_scale)
                _score_gradient(row, drow, dot, keep_scale)
            more = first > begin
            # context = dropped @ v; scores = q @ k.T / sqrt(D)
            _plain_product(
                scaled, True, False, keys, width, rows, weights_at, keys, dcontext_at, ldc, more, dvalue_at, lddv
            )
            product(
                scaled, False, False, rows, width, keys, dscores_at, keys, key_at, ldk,
                False, dq + first * lddq * size + column, lddq,
            )  # fmt: skip
            product(scaled, True, False, keys, width, rows, dscores_at, keys, query_at, ldq, more, dkey_at, lddk)


def _starts(rows: Any) -> Array:
    """(B + 1,): where the rows of every sequence begin, and where the last ones end."""
    boundaries = np.arange(rows.sequences + 1) * rows.slots
    return boundaries if rows.slot_of_row is None else np.searchsorted(rows.slot_of_row, boundaries)


def _sequences(keys: Array, layout: Any) -> tuple[tuple[Array, Array, Array, Any], Array, int]:
    """Where the rows of every sequence are; the mask of every key; the most keys that a sequence has."""
    rows, dtype = layout.keys, keys.dtype
    if rows.slot_of_row is not None and layout.mask is None:
        raise ValueError("rows were left out of the keys, but no mask says that nobody attends to their slots")
    slots = np.arange(keys.shape[0]) if rows.slot_of_row is None else rows.slot_of_row
    mask = np.empty(0, dtype=dtype) if layout.mask is None else layout.mask.reshape(-1)[slots]
    key_starts = _starts(rows)
    bound = dtype.type(score_bound(np, dtype))
    longest = int(np.diff(key_starts).max())
    return (_starts(layout.queries), key_starts, slots % rows.slots, bound), mask, longest


def _check_places(operation: str, layout: Any) -> None:
    """Check the values of slot_of_row, by which the kernels find the rows of each sequence.

    Raises:
        ValueError: places outside the layout, or out of order.
    """
    for name, rows in (("queries", layout.queries), ("keys", layout.keys)):
        places, slots = rows.slot_of_row, rows.sequences * rows.slots
        if places is None or not places.size:
            continue
        if places[0] < 0 or places[-1] >= slots or (places[1:] <= places[:-1]).any():
            raise ValueError(f"{operation}: slot_of_row of the {name} must increase, and lie between 0 and {slots - 1}")


def _scratch(backend: Backend, dtype: Any, layout: Any, keys: int, arrays: int) -> Array:
    """(threads, arrays, block): where each thread keeps the scores of its block."""
    block = max(keys, min(_BLOCK, keys * layout.queries.slots))
    return backend.empty((get_num_threads(), arrays, block), dtype)


def _scaled(dtype: Any, width: int) -> Array:
    """`scalars` twice: for scores, scaled by 1 / sqrt(D), and for all other products."""
    return np.concatenate((scalars(dtype, 1.0 / math.sqrt(width)), scalars(dtype)))


def attention_forward(
    backend: Backend,
    queries: Array,
    keys: Array,
    values: Array,
    layout: Any,
    dropout: DropoutPlan | None,
) -> tuple[Array, Array]:
    """The contexts, and every row's maximum and inverse sum of exponentials, (2, A, Nq)."""
    checks.check_attention("attention_forward", queries, keys, values, layout)
    _check_places("attention_forward", layout)
    dtype, (number, hidden) = queries.dtype, queries.shape
    numbers, factors = plan("attention_forward", dropout, number, dtype)
    queries, q, ldq = matrix(queries)
    keys, k, ldk = matrix(keys)
    values, v, ldv = matrix(values)
    sequences, mask, longest = _sequences(keys, layout)
    context, saved = backend.empty((number, hidden), dtype), backend.empty((2, layout.attention_heads, number), dtype)
    scratch = _scratch(backend, dtype, layout, longest, 1)
    scaled = _scaled(dtype, hidden // layout.attention_heads)
    _forward(scaled, q, ldq, k, ldk, v, ldv, sequences, mask, factors, numbers, context, saved, scratch)
    return context, saved


def attention_backward(
    backend: Backend,
    dcontext: Array,
    queries: Array,
    keys: Array,
    values: Array,
    saved: Array,
    layout: Any,
    dropout: DropoutPlan | None,
    dqueries: Array,
    dkeys: Array,
    dvalues: Array,
) -> None:
    """Writes dqueries, dkeys and dvalues, which may be strided views."""
    checks.check_attention("attention_backward", queries, keys, values, layout)
    checks.check_attention_gradients("attention_backward", queries, keys, dcontext, dqueries, dkeys, dvalues)
    dtype, width = queries.dtype, queries.shape[1] // layout.attention_heads
    checks.check_arrays("attention_backward", dtype, ("saved", saved, (2, layout.attention_heads, queries.shape[0])))
    _check_places("attention_backward", layout)
    if not all(gradient.flags.writeable for gradient in (dqueries, dkeys, dvalues)):  # BLAS would write to them anyway
        raise ValueError("attention_backward: dqueries, dkeys and dvalues must be arrays that can be written to")
    numbers, factors = plan("attention_backward", dropout, queries.shape[0], dtype)
    dcontext, dc, ldc = matrix(dcontext)
    queries, q, ldq = matrix(queries)
    keys, k, ldk = matrix(keys)
    values, v, ldv = matrix(values)
    sequences, mask, longest = _sequences(keys, layout)
    scratch = _scratch(backend, dtype, layout, longest, 2)
    written = [matrix(gradient) for gradient in (dqueries, dkeys, dvalues)]
    outputs = (*written[0][1:], *written[1][1:], *written[2][1:], width)
    scaled = _scaled(dtype, width)
    _backward(scaled, dc, ldc, q, ldq, k, ldk, v, ldv, sequences, mask, factors, numbers, saved, outputs, scratch)
    for gradient, (array, *_) in zip((dqueries, dkeys, dvalues), written, strict=True):
        if array is not gradient:  # its columns did not lie side by side: a copy was written
            gradient[...] = array
