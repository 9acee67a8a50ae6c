"""Time the ways to add (4096, 256) gradients to the rows of an (8192, 256) table of embeddings.

The ways are Mini-BERT's scatter-add, Python loops over sequences and positions, and `np.add.at`. Python loops over
single numbers are timed apart, because they are too slow to take turns with the others.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from backends import Backend
from minibert.kernels import Kernels

SEQUENCES, LENGTH, HIDDEN, VOCABULARY = 32, 128, 256, 8192


def ids_and_gradients() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return random ids (32, 128), int32, and gradients (32, 128, 256), float32, which all ways add."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, (SEQUENCES, LENGTH), dtype=np.int32)
    return ids, rng.standard_normal((SEQUENCES, LENGTH, HIDDEN), dtype=np.float32)


def loop_over_tokens(table: Any, ids: Any, dy: Any) -> None:
    """Add dy (B, T, H) to the rows ids (B, T) of the table (V, H), in place, one row at a time."""
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            table[ids[b, t]] += dy[b, t]


def loop_over_numbers(table: Any, ids: Any, dy: Any) -> None:
    """Add dy (B, T, H) to the rows ids (B, T) of the table (V, H), in place, one number at a time."""
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            for h in range(dy.shape[2]):
                table[ids[b, t], h] += dy[b, t, h]


def seconds_of_loop_over_numbers() -> float:
    """Estimate the time of `loop_over_numbers`, which is very slow: time two sequences and scale up."""
    ids, dy = ids_and_gradients()
    table = np.zeros((VOCABULARY, HIDDEN), dtype=np.float32)
    start = time.perf_counter()
    loop_over_numbers(table, ids[:2], dy[:2])
    return (time.perf_counter() - start) * SEQUENCES / 2


def compare_scatter(backend: Backend, rounds: int) -> dict[str, Any]:
    """Time every way once a round, in turn, after one round to warm up.

    Args:
        backend: the device of the scatter-add; the other ways run in NumPy, on the host.
        rounds: how often to time every way.

    Returns:
        The name of the way -> its median "seconds", and the "ratios" of its time to the scatter-add's, sorted.

    Raises:
        AssertionError: a way gives another sum than the loops over tokens.
    """
    kernels, (ids, dy) = Kernels(backend), ids_and_gradients()
    flat_ids, flat_dy = ids.reshape(-1), dy.reshape(-1, HIDDEN)
    device_ids, device_dy = backend.asarray(flat_ids), backend.asarray(flat_dy)
    device_table = backend.xp.zeros((VOCABULARY, HIDDEN), dtype=backend.xp.float32, device=backend.device)
    table, table_of_loops = (np.zeros((VOCABULARY, HIDDEN), dtype=np.float32) for _ in range(2))

    def scatter_add() -> None:
        kernels.embedding_backward(device_dy, (device_ids,), (device_table,))
        backend.synchronize()

    ways: dict[str, Callable[[], None]] = {
        "scatter_add": scatter_add,
        "nested loops": lambda: loop_over_tokens(table_of_loops, ids, dy),
        "np.add.at": lambda: np.add.at(table, flat_ids, flat_dy),
    }
    for way in ways.values():
        way()
    for result in (backend.to_numpy(device_table), table):
        np.testing.assert_allclose(result, table_of_loops, rtol=1e-5, atol=1e-5)

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    ours = seconds["scatter_add"]
    return {
        name: {
            "seconds": statistics.median(times),
            "ratios": sorted(theirs / mine for theirs, mine in zip(times, ours, strict=True)),
        }
        for name, times in seconds.items()
    }
