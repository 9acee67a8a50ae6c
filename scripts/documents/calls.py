"""Count what a training step asks of an array library: the methods of `Backend`, and the functions of the standard.

The step runs on array_api_strict with the definitions only, so that nothing but the standard and `Backend` is used.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, wraps
from typing import Any
from unittest import mock

import array_api_strict
import numpy as np
from benchmarks.report import table

from backends import Backend
from minibert import AdamW, MiniBERT, MiniBERTConfig
from minibert.data.batch_source import Batch
from minibert.training.trainer import Trainer
from tests.support.backends_under_test import StrictBackend

LACKING = {
    "erf": "the error function, which the exact GELU needs",
    "scatter_add": "adding rows at indices of which some are equal",
    "upload": "moving several host arrays in one transfer",
    "asarray": "moving a host array without a dtype that the device lacks",
    "empty": "memory that an earlier array used",
    "to_numpy": "moving an array to the host",
    "synchronize": "waiting for the device",
    "memory": "memory figures",
}
"""The methods of `Backend`, and what the standard has no function for."""


class _Counts:
    """Counts of calls, of the outermost ones only: what a method of a backend calls is its own affair."""

    def __init__(self) -> None:
        self.methods, self.functions = Counter[str](), Counter[str]()
        self._inside = False

    def counted(self, counter: Counter[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, so that it counts its calls."""

        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                return function(*arguments, **named)
            counter[name] += 1
            self._inside = True
            try:
                return function(*arguments, **named)
            finally:
                self._inside = False

        return call


@contextmanager
def _counting(backend: Backend) -> Iterator[_Counts]:
    """Count the calls of a backend's methods and of array_api_strict's functions."""
    counts = _Counts()
    with ExitStack() as patches:
        for name in LACKING:
            counted = counts.counted(counts.methods, name, getattr(backend, name))
            patches.enter_context(mock.patch.object(backend, name, counted))
        for name, function in inspect.getmembers(array_api_strict, inspect.isfunction):
            if not name.startswith("_"):
                counted = counts.counted(counts.functions, name, function)
                patches.enter_context(mock.patch.object(array_api_strict, name, counted))
        yield counts


@cache
def _of_a_step() -> _Counts:
    """Take a step of BERT-Tiny (two layers) with dropout, padding and both losses; return its counts."""
    random = np.random.default_rng(0)
    ids = random.integers(0, 100, (4, 16)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, 10:] = 0
    predicted = np.flatnonzero(mask.reshape(-1) * (random.random(ids.size) < 0.2))
    batch = Batch(
        input_ids=ids,
        attention_mask=mask,
        token_type_ids=np.zeros_like(ids),
        prediction_positions=predicted,
        labels=ids.reshape(-1)[predicted],
        next_sentence_labels=np.array([0, 1, 1, 0], dtype=np.int32),
    )
    backend = StrictBackend("device1")
    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=100), backend=backend, dtype="float32")
    trainer = Trainer(model, AdamW(model))
    with _counting(backend) as counts:
        trainer.step(batch, 1e-3)
    return counts


def lacking() -> str:
    """Return the methods of `Backend` with their calls in a training step."""
    methods = _of_a_step().methods
    rows = [(f"`{name}`", what, str(methods[name])) for name, what in LACKING.items()]
    return table(("method", "what the standard lacks", "calls in a step"), rows)


def standard() -> str:
    """Return the functions of the standard with their calls in a training step."""
    functions = _of_a_step().functions
    listed = ", ".join(f"`{name}` {count}" for name, count in functions.most_common())
    return f"{functions.total()} calls of {len(functions)} functions: {listed}."
