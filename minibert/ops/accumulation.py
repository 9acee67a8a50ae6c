"""Add up the gradients of micro-batches."""

from __future__ import annotations

from backends import Array, Backend

_BLOCK = 1 << 18  # elements: 1 MiB of float32 stays in a core's cache


def add_scaled(backend: Backend, total: Array, values: Array, weight: float) -> None:
    """Add weight * values to total, in place.

    The standard has no `out=` for the product. So it is computed block by block, in memory that the backend may use
    again at the next call.

    Args:
        backend: where the arrays live.
        total: (P,), changed.
        values: (P,), not changed.
        weight: the factor of `values`.

    Formula: docs/gradients.md#losses-sums-divided-once
    """
    if weight == 1.0:
        total += values
        return
    size = total.shape[0]
    scratch = backend.empty((min(_BLOCK, size),), total.dtype)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)  # the standard does not allow a slice beyond the end
        block, scaled = total[start:stop], scratch[: stop - start]
        scaled[...] = values[start:stop]
        scaled *= weight
        block += scaled
