"""Compares every twin with its definition, on the operands of real training steps, on the device at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from backends import Backend
from minibert.config import MiniBERTConfig
from minibert.gradients import MiniBERTGradients
from minibert.kernels import Kernels
from minibert.model import MiniBERT
from minibert.ops import DEFINITIONS
from minibert.optimizer import AdamW

TOLERANCE = 1e-4  # of float32, relative to the largest number of an array: products of some hundred terms
_SMALLEST = 1e-3  # of activations: the means of rows come out smaller than what they are of, their rounding does not
_SMALLEST_GRADIENT = 1e-9  # and of what gradients change; those of attention are at most 3e-6 in the step below
_CONFIG = {"vocab_size": 97, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2}
_OF_ACTIVATIONS = ("gelu", "gelu_new", "relu")
_OF_ORDER_ONE = ("_forward", "attention_weights")  # endings of the operations that compute activations
_GIVE_UP_DY = {f"bias_{name}_backward" for name in _OF_ACTIVATIONS}  # what is left in its place is the twin's affair


class ComparingKernels(Kernels):
    """Computes every operation twice, and remembers how far the twin is from its definition.

    Attributes:
        errors: operation -> the largest difference so far, relative to the largest number of the array, or to a
            smallest number where that is smaller; infinite if shapes differ, or NaN and infinities lie elsewhere.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend, "auto")
        self._backend = backend
        self._saved: dict[int, tuple[Any, Any]] = {}  # what the definition's backward needs where a twin keeps less
        self.errors: dict[str, float] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        twin = super().__getattr__(name)
        return lambda *arguments, **named: self._both(name, twin, arguments, named)

    def _both(self, name: str, twin: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        copies = tuple(self._copied(argument) for argument in arguments)
        named_copies = {key: self._copied(argument) for key, argument in named.items()}
        expected = DEFINITIONS[name](self._backend, *copies, **named_copies)
        actual = twin(*arguments, **named)
        given_up = 1 if name in _GIVE_UP_DY else 0
        pairs = [
            *zip(copies[given_up:], arguments[given_up:], strict=True),
            *((named_copies[key], named[key]) for key in named),
        ]
        if name == "attention_forward":
            self._saved[id(actual[1])] = (actual[1], expected[1])
            pairs.append((expected[0], actual[0]))
        else:
            pairs.append((expected, actual))
        known = {id(actual_saved) for actual_saved, _ in self._saved.values()}
        smallest = _SMALLEST if name.endswith(_OF_ORDER_ONE) else _SMALLEST_GRADIENT
        errors = [self._difference(*pair, smallest) for pair in pairs if id(pair[1]) not in known]
        self.errors[name] = max(self.errors.get(name, 0.0), *errors)
        return actual

    def _copied(self, argument: Any) -> Any:
        """A copy of an argument, so that both sides write to arrays of their own."""
        if id(argument) in self._saved:
            return self._saved[id(argument)][1]
        if isinstance(argument, tuple):
            return tuple(self._copied(part) for part in argument)
        if _is_array(argument):
            return self._backend.xp.asarray(argument, copy=True)
        return argument

    def _difference(self, expected: Any, actual: Any, smallest: float) -> float:
        if isinstance(actual, tuple):
            return max((self._difference(*pair, smallest) for pair in zip(expected, actual, strict=True)), default=0.0)
        if not _is_array(actual):
            return 0.0
        wanted, found = (self._backend.to_numpy(array).astype(np.float64) for array in (expected, actual))
        return _relative_error(wanted, found, smallest)


def _relative_error(wanted: np.ndarray[Any, Any], found: np.ndarray[Any, Any], smallest: float) -> float:
    """The largest difference of finite numbers, relative to the largest of those that are wanted."""
    if wanted.shape != found.shape:
        return float("inf")
    if not all(np.array_equal(kind(wanted), kind(found)) for kind in (np.isnan, np.isposinf, np.isneginf)):
        return float("inf")
    finite = np.isfinite(wanted)
    scale = max(smallest, float(np.abs(wanted[finite]).max(initial=0.0)))
    return float(np.abs(wanted[finite] - found[finite]).max(initial=0.0)) / scale


def _is_array(value: Any) -> bool:
    return (hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__array_namespace__")) or (
        type(value).__name__ == "ndarray"
    )


def compare_twins(backend: Backend) -> Mapping[str, float]:
    """Take a training step with each activation, with padding, pruning and dropout.

    Returns:
        Twin -> the largest difference from its definition. All twins of the backend are there.
    """
    errors: dict[str, float] = {}
    for activation in _OF_ACTIVATIONS:
        for name, error in _errors_of_a_step(backend, activation):
            errors[name] = max(errors.get(name, 0.0), error)
    return {name: errors.get(name, float("nan")) for name in sorted(backend.twins)}


def _errors_of_a_step(backend: Backend, activation: str) -> Iterator[tuple[str, float]]:
    rng = np.random.default_rng(0)
    config = MiniBERTConfig.preset("tiny", **{**_CONFIG, "hidden_act": activation})
    model = MiniBERT(config, backend=backend, seed=1)
    model.kernels = kernels = ComparingKernels(backend)
    ids = rng.integers(0, config.vocab_size, (3, 21))
    mask = np.ones_like(ids)
    mask[1, 15:] = 0
    positions = np.flatnonzero((rng.random(ids.shape) < 0.3) & (mask == 1))
    differentiate = MiniBERTGradients(model)
    for unpad in (False, True):
        _, cache = model.forward(
            ids, mask, prediction_positions=positions, dropout_step=3, unpad=unpad, next_sentence=True
        )
        differentiate.backward(cache, rng.integers(0, config.vocab_size, len(positions)), [0, 1, 1])
    AdamW(model).step(differentiate.gradients, 1e-3)
    first, head = cache.layers[0], cache.head
    kernels.attention_weights(first.queries, first.keys, first.layout)
    assert head is not None
    labels = backend.asarray(
        np.where(np.arange(len(positions)) % 3, positions % config.vocab_size, -100), dtype=backend.xp.int32
    )
    kernels.cross_entropy_forward(head.logits, labels)
    yield from kernels.errors.items()
