"""Describe the training step that is timed, so that every party does the same work.

A party is an implementation of the step: Mini-BERT or a peer in PyTorch. A worker (`benchmarks.worker_minibert` or
`benchmarks.worker_torch`) is a process that reads a `Work` as JSON from its command line, does it, and prints what
it measured as JSON on its last line.
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
        layers, hidden, vocabulary: L, H and V; an attention head has size 64, and I = 4 H.
        batch, length: B sequences of T tokens.
        dropout: probability, for hidden states and attention weights.
        threads: how many threads compute.
        steps: how many steps are timed.
        warmup: how many steps run before them.
        party: which implementation; the module of each worker lists its parties.
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
        """The size as text, e.g. L4 H256 V8192 B32 T128."""
        name = f"L{self.layers} H{self.hidden} V{self.vocabulary} B{self.batch} T{self.length}"
        return name if self.dropout else f"{name}, no dropout"

    @property
    def tokens(self) -> int:
        """The number of tokens in one step."""
        return self.batch * self.length

    @property
    def predicted_per_sequence(self) -> int:
        """The number of predicted tokens in every sequence."""
        return max(1, round(0.15 * self.length))

    def batch_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return "ids" (B, T), flat "positions" (M,) and the "labels" there (M,); the same for every party."""
        rng = np.random.default_rng(7)
        ids = rng.integers(5, self.vocabulary, (self.batch, self.length))
        chosen = np.stack(
            [np.sort(rng.permutation(self.length)[: self.predicted_per_sequence]) for _ in range(self.batch)]
        )
        positions = (chosen + self.length * np.arange(self.batch)[:, None]).reshape(-1)
        return {"ids": ids, "positions": positions, "labels": rng.integers(5, self.vocabulary, positions.size)}

    def linear_layers(self, *, pruned: bool) -> list[tuple[int, int, int]]:
        """Return (rows, outputs, inputs) of every linear layer; a step has three matrix products of that size for each.

        Args:
            pruned: True if the last layer computes queries, output and feed-forward at predicted positions only.
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
        """Return the floating-point operations in all matrix products of a step, including those of attention."""
        m = self.batch * self.predicted_per_sequence
        rows = (self.layers - pruned) * self.tokens + pruned * m
        # Forward: scores and context. Backward: four products of that size, and the scores again. Seven in all.
        attention = 7 * 2 * rows * self.length * self.hidden
        return attention + sum(3 * 2.0 * r * o * i for r, o, i in self.linear_layers(pruned=pruned))

    def to_json(self) -> str:
        """Return the work as JSON, for the command line of a worker."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Work:
        """Read the work from JSON that `to_json` wrote."""
        return cls(**json.loads(text))


def timed(step: Callable[[], object], warmup: int, steps: int) -> dict[str, Any]:
    """Run a step many times and measure it.

    Processor time, summed over threads, does not count the time of other programs. With one thread it compares
    parties even on a busy machine. With more threads, it also counts threads that spin while they wait.

    Args:
        step: runs one step.
        warmup: how many steps to run first.
        steps: how many steps to measure after that.

    Returns:
        In seconds: "first" (the first step of all), "median", "fastest" and "seconds" (of the measured steps), and
        "processor" (median of the processor time).
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
    """Return the largest resident memory of this process so far, in bytes."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
