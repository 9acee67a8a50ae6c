"""Compute attention block by block, for one sequence and attention head at a time, in the processor's cache.

Queries, keys and values are read in place, by address and stride, from the rows of the packed projection (N, 3H). No
attention head is copied out or merged. Scores and weights exist for one block of query rows at a time, never as a whole
(T, T) array. The forward pass keeps `maximum` and `inverse_sum` for every row and attention head (Milakov & Gimelshein
2018, arXiv:1805.02867), and the backward pass computes the weights again from them (Dao et al. 2022, arXiv:2205.14135,
algorithm 4). So memory grows linearly with T.

The rows of sequence b are those from starts[b] to starts[b + 1], so sequences may have any lengths. The empty slots of
the definition do not exist here. The names are those of docs/gradients.md, section "Attention"; q, k, v, c and their
gradients are addresses here, with leading dimensions ldq, ldk, ...
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import get_num_threads, get_thread_id, prange

from backends import checks
from backends.base import Array, Backend, score_bound
from backends.cpu.kernels.bfloat16 import multiply_on_this_thread, workspace
from backends.cpu.kernels.bits import counter_word, kept
from backends.cpu.kernels.blas import matrix, product, scalars
from backends.cpu.kernels.dropout import DropoutPlan, plan
from backends.cpu.kernels.elementary import exponential, type_of
from backends.cpu.kernels.jit import called, elementwise, parallel, summing
from backends.cpu.kernels.softmax import clip, row_maximum

_BLOCK = 1 << 16  # scores in one block of query rows: 256 KiB of float32, which fit a core's second-level cache


# Functions of a block treat all its scores as one row, because a loop ends with up to 63 elements that are computed one
# by one, without vector instructions. At the end of every row of 30 keys, say, this would double the time.


@elementwise
def _scale_block(scores, score_scale, bound):
    """Turn a block of qk into scores without their mask: scale, and clip to the bound."""
    for j in range(scores.shape[0]):
        scores[j] = clip(scores[j] * score_scale, bound)


@elementwise
def _mask_row(scores, mask, bound):
    """Add the mask, if there is one, to the scores of a row, and clip again."""
    for j in range(mask.shape[0]):
        scores[j] = clip(scores[j] + mask[j], bound)


@elementwise
def _subtract(scores, maximum):
    """Subtract the row's maximum from its scores, so that no exponential overflows."""
    for j in range(scores.shape[0]):
        scores[j] -= maximum


@elementwise
def _exponential_block(scores):
    """Turn a block of scores into exponentials."""
    for j in range(scores.shape[0]):
        scores[j] = exponential(scores[j])


@summing
def _sum_row(exponentials):
    """Return exponential_sum of a row."""
    exponential_sum = type_of(exponentials, 0.0)
    for j in range(exponentials.shape[0]):
        exponential_sum += exponentials[j]
    return exponential_sum


@elementwise
def _weigh_row(exponentials, inverse_sum, row_word, column_words, threshold, keep_scale):
    """Turn the exponentials of a row into dropped_weights."""
    scale = inverse_sum * keep_scale
    if column_words.shape[0]:
        for j in range(exponentials.shape[0]):
            exponentials[j] *= scale if kept(row_word, column_words[j], threshold) else type_of(scale, 0.0)
    else:
        for j in range(exponentials.shape[0]):
            exponentials[j] *= scale


@summing
def _weights_again(exponentials, dweights, inverse_sum, row_word, column_words, threshold, keep_scale):
    """Turn the exponentials of a row into weights, and ddropped_weights into dweights; return dweights_weights_sum.

    Weights that dropout drops are made negative, as a mark for `_query_key_gradient`.
    """
    dweights_weights_sum = type_of(exponentials, 0.0)
    if column_words.shape[0]:
        for j in range(exponentials.shape[0]):
            weight = exponentials[j] * inverse_sum
            keep = kept(row_word, column_words[j], threshold)
            # dropped_weights = weights * weights_dropout_mask
            dweight = dweights[j] * keep_scale if keep else type_of(exponentials, 0.0)
            dweights_weights_sum += dweight * weight
            exponentials[j] = weight if keep else -weight
            dweights[j] = dweight
    else:
        for j in range(exponentials.shape[0]):
            weight = exponentials[j] * inverse_sum
            dweights_weights_sum += dweights[j] * weight
            exponentials[j] = weight
    return dweights_weights_sum


@elementwise
def _query_key_gradient(weights, dweights, dweights_weights_sum, keep_scale, score_scale):
    """Turn dweights of a row into dqk, and weights (negative where dropped) into dropped_weights."""
    for j in range(weights.shape[0]):
        weight = weights[j]
        # weights = softmax(scores), scores = qk * score_scale
        dweights[j] = abs(weight) * (dweights[j] - dweights_weights_sum) * score_scale
        weights[j] = weight * keep_scale if weight > type_of(keep_scale, 0.0) else type_of(keep_scale, 0.0)


@elementwise
def _key_words(slots, column_key, dropped):
    """Return the column word of each key, (N,) uint32; an empty array without dropout."""
    column_words = np.empty(slots.shape[0] if dropped else 0, dtype=np.uint32)
    for j in range(column_words.shape[0]):
        column_words[j] = counter_word(np.uint32(slots[j]), column_key)
    return column_words


@called
def _product(scalars, space, transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc):
    """Compute C = A B or C += A B: in bfloat16 if this thread has a workspace, otherwise with BLAS.

    `space` holds the address of this thread's part of the workspace, or 0, and the address of zeros.
    """
    work, zeros = space
    if work and k > 0:
        multiply_on_this_thread(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc, work, zeros)
    else:  # BLAS also computes a product over no rows, which is zero
        product(scalars, transpose_a, transpose_b, m, n, k, a, lda, b, ldb, accumulate, c, ldc)


@parallel
def _forward(scalars, thread_spaces, inputs, sequences, mask, dropout, row_numbers, context, saved, scratch):
    q, ldq, k, ldk, v, ldv = inputs
    threshold, row_key, column_key, keep_scale = dropout
    query_starts, key_starts, key_slots, bound, score_scale = sequences
    address, part, zeros = thread_spaces
    attention_heads, width = saved.shape[1], context.shape[1] // saved.shape[1]
    size, hidden = scratch.itemsize, context.shape[1]
    column_words = _key_words(key_slots, column_key, row_numbers.shape[0] > 0)
    for task in prange((query_starts.shape[0] - 1) * attention_heads):
        sequence, head = task // attention_heads, task % attention_heads
        first_key, keys = key_starts[sequence], key_starts[sequence + 1] - key_starts[sequence]
        block = max(1, scratch.shape[2] // max(1, keys))
        space = (address + get_thread_id() * part, zeros)
        scores = scratch[get_thread_id(), 0]
        column = head * width * size
        for first in range(query_starts[sequence], query_starts[sequence + 1], block):
            rows = min(block, query_starts[sequence + 1] - first)
            # qk = q @ k.T, scores = qk * score_scale: (rows, D), (keys, D) -> (rows, keys)
            _product(
                scalars, space, False, True, rows, keys, width,
                q + first * ldq * size + column, ldq, k + first_key * ldk * size + column, ldk,
                False, scores.ctypes.data, keys,
            )  # fmt: skip
            _scale_block(scores[: rows * keys], score_scale, bound)
            for i in range(rows):
                row = scores[i * keys : (i + 1) * keys]
                _mask_row(row, mask[first_key : first_key + keys], bound)
                maximum = row_maximum(row)
                saved[0, head, first + i] = maximum
                _subtract(row, maximum)
            _exponential_block(scores[: rows * keys])
            for i in range(rows):
                row = scores[i * keys : (i + 1) * keys]
                exponential_sum = _sum_row(row)
                masked = saved[0, head, first + i] == -bound  # a fully masked row attends to nothing
                zero, one = type_of(exponential_sum, 0.0), type_of(exponential_sum, 1.0)
                inverse_sum = zero if masked else one / exponential_sum
                saved[1, head, first + i] = inverse_sum
                row_word = np.uint32(0)
                if column_words.shape[0]:
                    number = np.uint32(np.uint32(row_numbers[first + i] * np.uint32(attention_heads)) + np.uint32(head))
                    row_word = counter_word(number, row_key)
                key_words = column_words[first_key : first_key + keys]
                _weigh_row(row, inverse_sum, row_word, key_words, threshold, keep_scale)
            # `scores` now holds dropped_weights; c = dropped_weights @ v: (rows, keys), (keys, D) -> (rows, D)
            _product(
                scalars, space, False, False, rows, width, keys,
                scores.ctypes.data, keys, v + first_key * ldv * size + column, ldv,
                False, context.ctypes.data + first * hidden * size + column, hidden,
            )  # fmt: skip


@parallel
def _backward(scalars, thread_spaces, inputs, sequences, mask, dropout, row_numbers, saved, outputs, scratch):
    dc, lddc, q, ldq, k, ldk, v, ldv = inputs
    threshold, row_key, column_key, keep_scale = dropout
    query_starts, key_starts, key_slots, bound, score_scale = sequences
    address, part, zeros = thread_spaces
    dq, lddq, dk, lddk, dv, lddv, width = outputs
    attention_heads, size = saved.shape[1], scratch.itemsize
    column_words = _key_words(key_slots, column_key, row_numbers.shape[0] > 0)
    for task in prange((query_starts.shape[0] - 1) * attention_heads):
        sequence, head = task // attention_heads, task % attention_heads
        first_key, keys = key_starts[sequence], key_starts[sequence + 1] - key_starts[sequence]
        block = max(1, scratch.shape[2] // max(1, keys))
        space = (address + get_thread_id() * part, zeros)
        weights, dweights = scratch[get_thread_id(), 0], scratch[get_thread_id(), 1]
        column = head * width * size
        begin, end = query_starts[sequence], query_starts[sequence + 1]
        k_at, v_at = k + first_key * ldk * size + column, v + first_key * ldv * size + column
        dk_at, dv_at = dk + first_key * lddk * size + column, dv + first_key * lddv * size + column
        if begin == end:  # no query attends to these keys: their gradients are zero (a product over no rows is zero)
            _product(scalars, space, False, False, keys, width, 0, k_at, ldk, k_at, ldk, False, dk_at, lddk)
            _product(scalars, space, False, False, keys, width, 0, k_at, ldk, k_at, ldk, False, dv_at, lddv)
        for first in range(begin, end, block):
            rows = min(block, end - first)
            q_at, dc_at = q + first * ldq * size + column, dc + first * lddc * size + column
            # one block holds scores, then weights, then dropped_weights; the other ddropped_weights, dweights, dqk
            weights_at, dweights_at = weights.ctypes.data, dweights.ctypes.data
            # qk = q @ k.T, scores = qk * score_scale: (rows, D), (keys, D) -> (rows, keys)
            _product(scalars, space, False, True, rows, keys, width, q_at, ldq, k_at, ldk, False, weights_at, keys)
            # c = dropped_weights @ v: ddropped_weights = dc @ v.T: (rows, D), (keys, D) -> (rows, keys)
            _product(scalars, space, False, True, rows, keys, width, dc_at, lddc, v_at, ldv, False, dweights_at, keys)
            _scale_block(weights[: rows * keys], score_scale, bound)
            for i in range(rows):
                row = weights[i * keys : (i + 1) * keys]
                _mask_row(row, mask[first_key : first_key + keys], bound)
                _subtract(row, saved[0, head, first + i])
            _exponential_block(weights[: rows * keys])
            for i in range(rows):
                row, drow = weights[i * keys : (i + 1) * keys], dweights[i * keys : (i + 1) * keys]
                row_word = np.uint32(0)
                if column_words.shape[0]:
                    number = np.uint32(np.uint32(row_numbers[first + i] * np.uint32(attention_heads)) + np.uint32(head))
                    row_word = counter_word(number, row_key)
                key_words = column_words[first_key : first_key + keys]
                inverse_sum = saved[1, head, first + i]
                dweights_weights_sum = _weights_again(
                    row, drow, inverse_sum, row_word, key_words, threshold, keep_scale
                )
                _query_key_gradient(row, drow, dweights_weights_sum, keep_scale, score_scale)
            dropped_weights_at, dqk_at = weights_at, dweights_at
            more = first > begin  # the first block of queries writes dk and dv, the others add to them
            # c = dropped_weights @ v: dv = dropped_weights.T @ dc: (rows, keys), (rows, D) -> (keys, D)
            _product(
                scalars, space, True, False, keys, width, rows, dropped_weights_at, keys, dc_at, lddc, more, dv_at, lddv
            )
            # qk = q @ k.T: dq = dqk @ k, dk = dqk.T @ q: (rows, keys), (keys, D) -> (rows, D)
            _product(
                scalars, space, False, False, rows, width, keys, dqk_at, keys, k_at, ldk,
                False, dq + first * lddq * size + column, lddq,
            )  # fmt: skip
            _product(scalars, space, True, False, keys, width, rows, dqk_at, keys, q_at, ldq, more, dk_at, lddk)


def _starts(rows: Any) -> Array:
    """Return the first row of each sequence and, as the last entry, the number of rows: (B + 1,)."""
    boundaries = np.arange(rows.sequences + 1) * rows.slots
    return boundaries if rows.slot_of_row is None else np.searchsorted(rows.slot_of_row, boundaries)


def _sequences(keys: Array, layout: Any) -> tuple[tuple[Array, Array, Array, Any, Any], Array, int]:
    """Return how the kernels find the rows of every sequence and scale its scores, the mask, and the longest keys.

    Returns:
        first query and first key of each sequence, slot of each key, `score_bound` and score_scale = 1 / sqrt(D);
        the mask of every key (N,), or (0,) if it masks no key; the most keys that a sequence has.

    Raises:
        ValueError: the keys lack rows of some slots, and there is no mask.
    """
    rows, dtype = layout.keys, keys.dtype
    if rows.slot_of_row is not None and layout.mask is None:
        raise ValueError("attention: the keys lack the rows of some slots, so the layout needs a mask for these slots")
    slots = np.arange(keys.shape[0]) if rows.slot_of_row is None else rows.slot_of_row
    mask = np.empty(0, dtype=dtype) if layout.mask is None else layout.mask.reshape(-1)[slots]
    mask = mask if mask.any() else mask[:0]  # as in a batch without padding, where only the missing slots are masked
    key_starts = _starts(rows)
    bound = dtype.type(score_bound(np, dtype))
    longest = int(np.diff(key_starts).max())
    score_scale = dtype.type(1.0 / math.sqrt(keys.shape[1] // layout.attention_heads))
    return (_starts(layout.queries), key_starts, slots % rows.slots, bound, score_scale), mask, longest


def _check_places(operation: str, layout: Any) -> None:
    """Check the values of slot_of_row, by which the kernels find the rows of each sequence.

    Raises:
        ValueError: places are outside the layout, or out of order.
    """
    for name, rows in (("queries", layout.queries), ("keys", layout.keys)):
        places, slots = rows.slot_of_row, rows.sequences * rows.slots
        if places is None or not places.size:
            continue
        if places[0] < 0 or places[-1] >= slots or (places[1:] <= places[:-1]).any():
            raise ValueError(f"{operation}: slot_of_row of the {name} must increase, and lie between 0 and {slots - 1}")


def _scratch(backend: Backend, dtype: Any, layout: Any, keys: int, arrays: int) -> Array:
    """Return memory (threads, arrays, block), in which each thread keeps the scores of its block."""
    block = max(keys, min(_BLOCK, keys * layout.queries.slots))
    return backend.empty((get_num_threads(), arrays, block), dtype)


def attention_forward(
    backend: Backend,
    queries: Array,
    keys: Array,
    values: Array,
    layout: Any,
    dropout: DropoutPlan | None,
) -> tuple[Array, Array]:
    """Return context (Nq, H), and `maximum` and `inverse_sum` of every row and attention head, (2, A, Nq).

    Raises:
        ValueError: arrays do not fit the layout.
        TypeError: dtypes do not match.
    """
    checks.check_attention("attention_forward", queries, keys, values, layout)
    _check_places("attention_forward", layout)
    dtype, (number, hidden) = queries.dtype, queries.shape
    row_numbers, factors = plan("attention_forward", dropout, number, dtype)
    queries, q, ldq = matrix(queries)
    keys, k, ldk = matrix(keys)
    values, v, ldv = matrix(values)
    sequences, mask, longest = _sequences(keys, layout)
    context, saved = backend.empty((number, hidden), dtype), backend.empty((2, layout.attention_heads, number), dtype)
    scratch = _scratch(backend, dtype, layout, longest, 1)
    inputs, space = (q, ldq, k, ldk, v, ldv), workspace(backend, dtype)
    _forward(scalars(dtype), space[1:], inputs, sequences, mask, factors, row_numbers, context, saved, scratch)
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
    """Write dqueries (Nq, H), dkeys (N, H) and dvalues (N, H), which may be strided views.

    Raises:
        ValueError: arrays do not fit the layout.
        TypeError: dtypes do not match.
    """
    checks.check_attention("attention_backward", queries, keys, values, layout)
    checks.check_attention_gradients("attention_backward", queries, keys, dcontext, dqueries, dkeys, dvalues)
    _check_places("attention_backward", layout)
    dtype, width = queries.dtype, queries.shape[1] // layout.attention_heads
    checks.check_arrays("attention_backward", dtype, ("saved", saved, (2, layout.attention_heads, queries.shape[0])))
    if not all(gradient.flags.writeable for gradient in (dqueries, dkeys, dvalues)):
        # BLAS would write to a read-only array without an error
        raise ValueError("attention_backward: dqueries, dkeys and dvalues must be writeable arrays")
    row_numbers, factors = plan("attention_backward", dropout, queries.shape[0], dtype)
    dcontext, dc, lddc = matrix(dcontext)
    queries, q, ldq = matrix(queries)
    keys, k, ldk = matrix(keys)
    values, v, ldv = matrix(values)
    sequences, mask, longest = _sequences(keys, layout)
    scratch = _scratch(backend, dtype, layout, longest, 2)
    written = [matrix(gradient) for gradient in (dqueries, dkeys, dvalues)]
    outputs = (*written[0][1:], *written[1][1:], *written[2][1:], width)
    inputs, space = (dc, lddc, q, ldq, k, ldk, v, ldv), workspace(backend, dtype)
    _backward(scalars(dtype), space[1:], inputs, sequences, mask, factors, row_numbers, saved, outputs, scratch)
    for gradient, (array, *_) in zip((dqueries, dkeys, dvalues), written, strict=True):
        if array is not gradient:  # its columns did not lie side by side: a copy was written
            gradient[...] = array
