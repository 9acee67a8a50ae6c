"""Looking up embeddings, and the scatter-add that is its gradient."""

from __future__ import annotations

from backends import Array, Backend


def embedding_forward(backend: Backend, tables: tuple[Array, ...], ids: tuple[Array, ...]) -> Array:
    """The sum of one row of each table: token, position and segment embeddings (Devlin et al. 2018, figure 2).

    Args:
        backend: where the arrays live.
        tables: each (V_k, H).
        ids: each (N,) int32, the row of table k for every token.

    Returns:
        (N, H).
    """
    first, *rest = (backend.xp.take(table, rows, axis=0) for table, rows in zip(tables, ids, strict=True))
    return sum(rest, start=first)


def embedding_backward(backend: Backend, dy: Array, ids: tuple[Array, ...], dtables: tuple[Array, ...]) -> None:
    """Adds dy (N, H) to the rows of each dtable (V_k, H) that were looked up, in one scatter-add per table."""
    # y = tables[0][ids[0]] + tables[1][ids[1]] + ...
    for rows, dtable in zip(ids, dtables, strict=True):
        backend.scatter_add(dtable, rows, dy)
