"""Adding (4096, 256) gradients to the rows of an (8192, 256) table: ours, nested loops, and `np.add.at`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def nested_loops(table: Any, ids: Any, rows: Any) -> None:
    """One addition per token, over sequences and positions."""
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            table[ids[b, t]] += rows[b, t]


def compare_scatter(rounds: int) -> dict[str, Any]:
    """Median milliseconds of each way, and its ratios to ours, in turn within every round."""
    from backends import get_backend
    from minibert.kernels import Kernels

    kernels, rng = Kernels(get_backend("cpu")), np.random.default_rng(0)
    ids = rng.integers(0, 8192, (32, 128), dtype=np.int32)
    rows = rng.standard_normal((32, 128, 256), dtype=np.float32)
    flat_ids, flat_rows = ids.reshape(-1), rows.reshape(-1, 256)
    ways: dict[str, Callable[[Any], None]] = {
        "scatter_add": lambda table: kernels.embedding_backward(flat_rows, (flat_ids,), (table,)),
        "nested loops": lambda table: nested_loops(table, ids, rows),
        "np.add.at": lambda table: np.add.at(table, flat_ids, flat_rows),
    }
    tables = {name: np.zeros((8192, 256), dtype=np.float32) for name in ways}
    for name, way in ways.items():  # compiled and warm, and all three the same
        way(tables[name])
        np.testing.assert_allclose(tables[name], tables["scatter_add"], rtol=1e-5, atol=1e-5)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way(tables[name])
            seconds[name].append(time.perf_counter() - start)
    ours = seconds["scatter_add"]
    return {
        name: {
            "seconds": statistics.median(times),
            "ratios": sorted(theirs / mine for theirs, mine in zip(times, ours, strict=True)),
        }
        for name, times in seconds.items()
    }
