"""Multi-head attention between its projections, and its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from backends import Array, Backend
from backends.base import score_bound
from minibert.ops.dropout import Dropout, dropout_mask
from minibert.ops.softmax import softmax_backward, stable_softmax
from minibert.rows import Rows, from_slots, to_slots


@dataclass(frozen=True)
class AttentionLayout:
    """Who may attend to whom.

    Attributes:
        queries: which sequence and slot each row of the queries belongs to, B sequences of Q slots.
        keys: the same for keys and values, B sequences of T slots, where slot = position.
        mask: (B, 1, 1, T), added to the scores: 0, or twice the negative `score_bound` where a key is
            padding; None where no key is.
        attention_heads: A.
    """

    queries: Rows
    keys: Rows
    mask: Array | None
    attention_heads: int


def _split_heads(backend: Backend, x: Array, rows: Rows, attention_heads: int) -> Array:
    """(N, H) rows -> (B, A, slots, D)."""
    xp = backend.xp
    x = to_slots(xp, x, rows)  # (B, slots, H)
    x = xp.reshape(x, (*x.shape[:2], attention_heads, x.shape[2] // attention_heads))  # (B, slots, A, D)
    return xp.permute_dims(x, (0, 2, 1, 3))  # (B, A, slots, D)


def _merge_heads(backend: Backend, x: Array, rows: Rows) -> Array:
    """(B, A, slots, D) -> (N, H) rows."""
    xp = backend.xp
    batch, attention_heads, slots, width = x.shape
    x = xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (batch, slots, attention_heads * width))  # (B, slots, H)
    return from_slots(xp, x, rows)


def _swap(backend: Backend, x: Array) -> Array:
    """Transpose the last two axes."""
    return backend.xp.matrix_transpose(x)


def attention_weights(backend: Backend, queries: Array, keys: Array, layout: AttentionLayout) -> Array:
    """softmax(Q K^T / sqrt(D) + mask) (Vaswani et al. 2017, equation 1), before dropout.

    The mask is added to the scores, before the softmax. A query whose keys are all masked attends to
    nothing: its weights are zero.

    Args:
        backend: where the arrays live.
        queries: (Nq, H) rows.
        keys: (N, H) rows.
        layout: see `AttentionLayout`.

    Returns:
        (B, A, Q, T).
    """
    xp = backend.xp
    q = _split_heads(backend, queries, layout.queries, layout.attention_heads)  # (B, A, Q, D)
    k = _split_heads(backend, keys, layout.keys, layout.attention_heads)  # (B, A, T, D)
    scores = (q * (1.0 / math.sqrt(q.shape[-1]))) @ _swap(backend, k)  # (B, A, Q, T)
    if layout.mask is not None:
        bound = score_bound(xp, scores.dtype)  # an infinite score must not outweigh the mask
        scores = xp.clip(scores, -bound, bound) + layout.mask
    return stable_softmax(scores)


def _attention_dropout_mask(backend: Backend, like: Array, layout: AttentionLayout, dropout: Dropout) -> Array:
    """The dropout mask (B, A, Q, T) of the attention weights: row = query's number and head, column = key."""
    xp = backend.xp
    _, attention_heads, _, keys = like.shape
    numbers = dropout.row_numbers[:, None]  # (Nq, 1)
    query_numbers = to_slots(xp, numbers, layout.queries)[:, None, :, 0]  # (B, 1, Q)
    head_numbers = xp.arange(attention_heads, dtype=xp.uint32, device=backend.device)[None, :, None]
    rows = xp.reshape(query_numbers * attention_heads + head_numbers, (-1,))  # (B A Q,)
    mask = dropout_mask(backend, replace(dropout, row_numbers=rows), keys, like.dtype)
    return xp.reshape(mask, like.shape)


def attention_forward(
    backend: Backend,
    queries: Array,
    keys: Array,
    values: Array,
    layout: AttentionLayout,
    dropout: Dropout | None,
) -> tuple[Array, Array]:
    """Multi-head attention without its projections (Vaswani et al. 2017, section 3.2).

    Args:
        backend: where the arrays live.
        queries: (Nq, H) rows; may be a strided view.
        keys: (N, H) rows; may be a strided view.
        values: (N, H) rows; may be a strided view.
        layout: see `AttentionLayout`.
        dropout: of the attention weights, with the numbers of the query rows; or None.

    Returns:
        The contexts (Nq, H), and what the backward pass needs (here the weights (B, A, Q, T); a twin may
        keep less).
    """
    weights = attention_weights(backend, queries, keys, layout)
    dropped = weights if dropout is None else weights * _attention_dropout_mask(backend, weights, layout, dropout)
    v = _split_heads(backend, values, layout.keys, layout.attention_heads)  # (B, A, T, D)
    return _merge_heads(backend, dropped @ v, layout.queries), weights


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
    """Writes dqueries (Nq, H), dkeys (N, H) and dvalues (N, H), which may be strided views."""
    weights = saved
    q = _split_heads(backend, queries, layout.queries, layout.attention_heads)  # (B, A, Q, D)
    k = _split_heads(backend, keys, layout.keys, layout.attention_heads)  # (B, A, T, D)
    v = _split_heads(backend, values, layout.keys, layout.attention_heads)  # (B, A, T, D)
    dcontext = _split_heads(backend, dcontext, layout.queries, layout.attention_heads)  # (B, A, Q, D)
    # context = (weights * mask) @ v
    mask = None if dropout is None else _attention_dropout_mask(backend, weights, layout, dropout)
    dropped = weights if mask is None else weights * mask
    dvalues[...] = _merge_heads(backend, _swap(backend, dropped) @ dcontext, layout.keys)
    dweights = dcontext @ _swap(backend, v)  # (B, A, Q, T)
    dweights = dweights if mask is None else dweights * mask
    # weights = softmax(q @ k.T / sqrt(D) + mask)
    dscores = softmax_backward(dweights, weights) * (1.0 / math.sqrt(q.shape[-1]))  # (B, A, Q, T)
    dqueries[...] = _merge_heads(backend, dscores @ k, layout.queries)
    dkeys[...] = _merge_heads(backend, _swap(backend, dscores) @ q, layout.keys)
