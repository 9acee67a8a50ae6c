"""Look up rows of embedding tables; the gradient of a look-up is a scatter-add.

The names are those of docs/gradients.md, section "The tied decoder and the embeddings".
"""

from __future__ import annotations

from backends import Array, Backend


def embedding_forward(backend: Backend, tables: tuple[Array, ...], ids: tuple[Array, ...]) -> Array:
    """Return y = tables[0][ids[0]] + tables[1][ids[1]] + ..., the sum of one row of each table.

    Formula: docs/gradients.md#the-tied-decoder-and-the-embeddings

    In BERT these are the token, position and segment embeddings (Devlin et al. 2018, figure 2).

    Args:
        backend: where the arrays live.
        tables: each (V_k, H).
        ids: each (N,) int32, the row of table k for every token.

    Returns:
        y (N, H).
    """
    first, *rest = (backend.xp.take(table, indices, axis=0) for table, indices in zip(tables, ids, strict=True))
    return sum(rest, start=first)


def embedding_backward(backend: Backend, dy: Array, ids: tuple[Array, ...], dtables: tuple[Array, ...]) -> None:
    """Add dy (N, H) to the rows of each dtable (V_k, H) that were looked up, with one scatter-add per table.

    Formula: docs/gradients.md#the-tied-decoder-and-the-embeddings
    """
    # y = tables[0][ids[0]] + tables[1][ids[1]] + ...
    for indices, dtable in zip(ids, dtables, strict=True):
        backend.scatter_add(dtable, indices, dy)  # dtable[indices[i]] += dy[i]
