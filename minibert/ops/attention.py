"""Multi-head attention, without the projections before and after it, and its gradient.

The names are those of docs/gradients.md, section "Attention". Two kinds of mask meet here: `layout.mask` is added to
the scores, and `weights_dropout_mask` multiplies the weights.

As in linear layers, the operands of all matrix products are rounded to the backend's precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from backends import Array, Backend
from backends.base import score_bound
from minibert.ops.dropout import Dropout, dropout_mask
from minibert.ops.precision import round_operands
from minibert.ops.softmax import softmax_backward, stable_softmax
from minibert.rows import Rows, from_slots, to_slots


@dataclass(frozen=True)
class AttentionLayout:
    """The layout of an attention: which queries may attend to which keys.

    Attributes:
        queries: which sequence and slot each row of the queries belongs to; B sequences of Q slots.
        keys: which sequence and slot each row of the keys and values belongs to; B sequences of T slots, slot =
            position.
        mask: (B, 1, 1, T), added to the scores: 0 for a token, twice the negative `score_bound` for padding. None if
            there is no padding.
        attention_heads: A.
    """

    queries: Rows
    keys: Rows
    mask: Array | None
    attention_heads: int


def _split_heads(backend: Backend, x: Array, rows: Rows, attention_heads: int) -> Array:
    """Turn rows (N, H) into (B, A, slots, D)."""
    xp = backend.xp
    x = to_slots(xp, x, rows)  # (B, slots, H)
    x = xp.reshape(x, (*x.shape[:2], attention_heads, x.shape[2] // attention_heads))  # (B, slots, A, D)
    return xp.permute_dims(x, (0, 2, 1, 3))  # (B, A, slots, D)


def _merge_heads(backend: Backend, x: Array, rows: Rows) -> Array:
    """Turn (B, A, slots, D) into rows (N, H): the inverse of `_split_heads`."""
    xp = backend.xp
    batch, attention_heads, slots, width = x.shape
    x = xp.permute_dims(x, (0, 2, 1, 3))  # (B, slots, A, D)
    x = xp.reshape(x, (batch, slots, attention_heads * width))  # (B, slots, H)
    return from_slots(xp, x, rows)  # (N, H)


def attention_weights(backend: Backend, queries: Array, keys: Array, layout: AttentionLayout) -> Array:
    """Return softmax(q @ k.T / sqrt(D) + mask) (Vaswani et al. 2017, equation 1), before dropout.

    Formula: docs/gradients.md#attention

    The mask is added to the scores before the softmax. A query whose keys are all masked attends to nothing: its
    weights are zero.

    Args:
        backend: where the arrays live.
        queries: (Nq, H) rows.
        keys: (N, H) rows.
        layout: see `AttentionLayout`.

    Returns:
        weights (B, A, Q, T).
    """
    xp = backend.xp
    q = _split_heads(backend, queries, layout.queries, layout.attention_heads)  # (B, A, Q, D)
    k = _split_heads(backend, keys, layout.keys, layout.attention_heads)  # (B, A, T, D)
    q, k = round_operands(backend, q, k)
    score_scale = 1.0 / math.sqrt(q.shape[-1])
    scores = (q * score_scale) @ backend.xp.matrix_transpose(k)  # (B, A, Q, T)
    if layout.mask is not None:
        bound = score_bound(xp, scores.dtype)  # an infinite score must not outweigh the mask
        scores = xp.clip(scores, -bound, bound) + layout.mask
    return stable_softmax(scores)


def _weights_dropout_mask(backend: Backend, weights: Array, layout: AttentionLayout, dropout: Dropout) -> Array:
    """Return the dropout mask (B, A, Q, T) of the weights.

    A row of random bits belongs to one query and attention head; its number is (number of the query) * A + attention
    head. A column belongs to one key.
    """
    xp = backend.xp
    _, attention_heads, _, keys = weights.shape
    query_numbers = to_slots(xp, dropout.row_numbers[:, None], layout.queries)[:, None, :, 0]  # (B, 1, Q)
    counter = query_numbers.dtype
    head_numbers = xp.arange(attention_heads, dtype=counter, device=backend.device)[None, :, None]  # (1, A, 1)
    row_numbers = xp.reshape(query_numbers * attention_heads + head_numbers, (-1,))  # (B A Q,)
    mask = dropout_mask(backend, replace(dropout, row_numbers=row_numbers), keys, weights.dtype)  # (B A Q, T)
    return xp.reshape(mask, weights.shape)  # (B, A, Q, T)


def attention_forward(
    backend: Backend,
    queries: Array,
    keys: Array,
    values: Array,
    layout: AttentionLayout,
    dropout: Dropout | None,
) -> tuple[Array, Array]:
    """Compute multi-head attention without its projections (Vaswani et al. 2017, section 3.2).

    Formula: docs/gradients.md#attention

    Args:
        backend: where the arrays live.
        queries: (Nq, H) rows; may be a strided view.
        keys: (N, H) rows; may be a strided view.
        values: (N, H) rows; may be a strided view.
        layout: see `AttentionLayout`.
        dropout: the dropout of the attention weights, with the numbers of the query rows; or None.

    Returns:
        context (Nq, H), and what the backward pass needs: here the weights (B, A, Q, T); a twin may keep less.
    """
    weights = attention_weights(backend, queries, keys, layout)  # (B, A, Q, T)
    dropped_weights = weights
    if dropout is not None:
        dropped_weights = weights * _weights_dropout_mask(backend, weights, layout, dropout)
    v = _split_heads(backend, values, layout.keys, layout.attention_heads)  # (B, A, T, D)
    dropped_weights, v = round_operands(backend, dropped_weights, v)
    c = dropped_weights @ v  # (B, A, Q, D)
    return _merge_heads(backend, c, layout.queries), weights


def attention_backward(
    backend: Backend,
    dcontext: Array,
    queries: Array,
    keys: Array,
    values: Array,
    saved: Array,
    layout: AttentionLayout,
    dropout: Dropout | None,
    dqueries: Array,
    dkeys: Array,
    dvalues: Array,
) -> None:
    """Write dqueries (Nq, H), dkeys (N, H) and dvalues (N, H), which may be strided views.

    Formula: docs/gradients.md#attention

    Args:
        backend: where the arrays live.
        dcontext: (Nq, H).
        queries: (Nq, H) rows, as in the forward pass.
        keys: (N, H) rows, as in the forward pass.
        values: (N, H) rows, as in the forward pass.
        saved: the second result of `attention_forward`.
        layout: as in the forward pass.
        dropout: as in the forward pass.
        dqueries: (Nq, H), overwritten.
        dkeys: (N, H), overwritten.
        dvalues: (N, H), overwritten.
    """
    weights = saved  # (B, A, Q, T)
    q = _split_heads(backend, queries, layout.queries, layout.attention_heads)  # (B, A, Q, D)
    k = _split_heads(backend, keys, layout.keys, layout.attention_heads)  # (B, A, T, D)
    v = _split_heads(backend, values, layout.keys, layout.attention_heads)  # (B, A, T, D)
    dc = _split_heads(backend, dcontext, layout.queries, layout.attention_heads)  # (B, A, Q, D)
    score_scale = 1.0 / math.sqrt(q.shape[-1])
    weights_dropout_mask = None
    if dropout is not None:
        weights_dropout_mask = _weights_dropout_mask(backend, weights, layout, dropout)  # (B, A, Q, T)
    dropped_weights = weights if weights_dropout_mask is None else weights * weights_dropout_mask
    # c = dropped_weights @ v
    dropped_weights, dc = round_operands(backend, dropped_weights, dc)
    dv = backend.xp.matrix_transpose(dropped_weights) @ dc  # (B, A, T, D)
    dc, v = round_operands(backend, dc, v)
    ddropped_weights = dc @ backend.xp.matrix_transpose(v)  # (B, A, Q, T)
    # dropped_weights = weights * weights_dropout_mask
    dweights = ddropped_weights if weights_dropout_mask is None else ddropped_weights * weights_dropout_mask
    # weights = softmax(scores): softmax_backward computes dweights_weights_sum
    dscores = softmax_backward(dweights, weights)
    # scores = qk * score_scale + layout.mask; the clipping needs no gradient
    dqk = dscores * score_scale
    # qk = q @ k.T
    dqk, k = round_operands(backend, dqk, k)
    dq = dqk @ k  # (B, A, Q, D)
    dqk, q = round_operands(backend, dqk, q)
    dk = backend.xp.matrix_transpose(dqk) @ q  # (B, A, T, D)
    dqueries[...] = _merge_heads(backend, dq, layout.queries)
    dkeys[...] = _merge_heads(backend, dk, layout.keys)
    dvalues[...] = _merge_heads(backend, dv, layout.keys)
