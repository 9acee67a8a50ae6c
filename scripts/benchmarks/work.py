"""What is timed: one training step of BERT, described so that every party does the same.

A worker (`benchmarks.worker_minibert`, `benchmarks.worker_torch`) is a process that takes a `Work` as JSON,
does it, and prints what it measured as JSON on its last line.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Work:
    """Training steps on random tokens without padding, of which 15% are predicted.

    Attributes:
        layers, hidden, vocabulary: L, H, V; a head is 64 wide and I = 4 H.
        batch, length: B sequences of T tokens.
        dropout: of hidden states and attention weights.
        threads: that compute.
        steps: timed, after `warmup` others.
        party: which implementation, one of those the worker knows.
    """

    layers: int = 4
    hidden: int = 256
    vocabulary: int = 8192
    batch: int = 32
    length: int = 128
    dropout: float = 0.1
    threads: int = 2
    steps: int = 5
    warmup: int = 2
    party: str = "minibert"

    @property
    def name(self) -> str:
        """For people, e.g. L4 H256 V8192 B32 T128."""
        name = f"L{self.layers} H{self.hidden} V{self.vocabulary} B{self.batch} T{self.length}"
        return name if self.dropout else f"{name}, no dropout"

    @property
    def tokens(self) -> int:
        """In one step."""
        return self.batch * self.length

    @property
    def predicted_per_sequence(self) -> int:
        """How many tokens of every sequence are predicted."""
        return max(1, round(0.15 * self.length))

    def batch_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Ids (B, T), flat positions (M,) and the labels there (M,); the same for every party."""
        rng = np.random.default_rng(7)
        ids = rng.integers(5, self.vocabulary, (self.batch, self.length))
        chosen = np.stack(
            [np.sort(rng.permutation(self.length)[: self.predicted_per_sequence]) for _ in range(self.batch)]
        )
        positions = (chosen + self.length * np.arange(self.batch)[:, None]).reshape(-1)
        return {"ids": ids, "positions": positions, "labels": rng.integers(5, self.vocabulary, positions.size)}

    def linear_layers(self, *, pruned: bool) -> list[tuple[int, int, int]]:
        """(rows, outputs, inputs) of every linear layer; a step multiplies three such matrices for each.

        Args:
            pruned: whether the last layer's queries, output and feed-forward are computed at predicted
                positions only.
        """
        h, n, m = self.hidden, self.tokens, self.batch * self.predicted_per_sequence
        layers = []
        for layer in range(self.layers):
            few = pruned and layer == self.layers - 1
            rows = m if few else n
            layers += [(n, 2 * h, h), (m, h, h)] if few else [(n, 3 * h, h)]
            layers += [(rows, h, h), (rows, 4 * h, h), (rows, h, 4 * h)]
        return [*layers, (m, h, h), (m, self.vocabulary, h)]

    def product_flops(self, *, pruned: bool) -> float:
        """Floating-point operations in the matrix products of a step, those of attention included."""
        m = self.batch * self.predicted_per_sequence
        rows = (self.layers - pruned) * self.tokens + pruned * m
        # scores and values; the backward pass has four such products and computes the scores again
        attention = 7 * 2 * rows * self.length * self.hidden
        return attention + sum(3 * 2.0 * r * o * i for r, o, i in self.linear_layers(pruned=pruned))

    def to_json(self) -> str:
        """For a worker's command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Work:
        """What `to_json` wrote."""
        return cls(**json.loads(text))


def timed(step: Callable[[], object], warmup: int, steps: int) -> dict[str, Any]:
    """Run a step; the seconds of the first, and the median of the later ones, on the clock and of the processor.

    Seconds of the processor, summed over threads, do not count the time that other programs took. With one
    thread they compare parties even on a busy machine; with more, threads that spin while they wait count too.
    """
    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    for _ in range(warmup - 1):
        step()
    seconds, processor = [], []
    for _ in range(steps):
        start, processor_start = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - processor_start)
    return {
        "first": first,
        "median": statistics.median(seconds),
        "fastest": min(seconds),
        "seconds": seconds,
        "processor": statistics.median(processor),
    }


def peak_bytes() -> int:
    """The largest resident size of this process so far."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
