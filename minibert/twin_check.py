"""Compare every twin with its definition, on the operands of real training steps, on any device.

`scripts/doctor.py` runs this on a user's machine; the tests run it on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from array_api_compat import is_array_api_obj

from backends import Array, Backend, get_backend
from minibert.config import ACTIVATIONS, MiniBERTConfig
from minibert.gradient_accumulator import GradientAccumulator
from minibert.gradients import IGNORED, MiniBERTGradients
from minibert.kernels import Kernels
from minibert.model import MiniBERT
from minibert.optimizer import AdamW
from minibert.random_bits import Stream, derive_key, random_bits

P = ParamSpec("P")
R = TypeVar("R")

TOLERANCE = 1e-4
"""Largest difference in float32, relative to the largest number of an array: products sum some hundred terms."""

ONE_ROUNDING = 2.0**-8
"""The same for attention in bfloat16. It rounds its own weights and gradients. A float32 error in one of these can move
it to the neighbouring bfloat16 number."""

_SMALLEST_ACTIVATION = 1e-3
"""Least scale of a difference between activations: a row mean can be tiny while its error keeps the addends' size."""

_SMALLEST_GRADIENT = 1e-9
"""Least scale of a difference between gradients; attention's largest is about 3e-6 in the steps below."""

_CONFIG = {"vocab_size": 97, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2}
_SEQUENCES, _LENGTH, _PADDED_FROM = 3, 21, 15
_COMPUTE_ACTIVATIONS = ("_forward", "attention_weights")  # endings of the names of such operations
_OVERWRITE_DY = tuple(
    f"bias_{name}_backward" for name in ACTIVATIONS
)  # twins may leave anything in their first argument
_HOST = get_backend("cpu").xp


class ComparingKernels(Kernels):
    """Kernels that compute every operation twice, with the twin and with the definition, and keep the difference.

    Attributes:
        errors: operation -> the largest difference so far, relative to the largest number of the array (or to a
            smallest scale, where that is larger); infinite if shapes differ, or if NaN or infinities lie at different
            places.
    """

    def __init__(self, backend: Backend) -> None:
        self.errors: dict[str, float] = {}
        # What attention_forward saves may differ: id -> (the twin's, the definition's)
        self._saved: dict[int, tuple[Array, Array]] = {}
        super().__init__(backend, "auto")

    def bind(self, definition: Callable[Concatenate[Backend, P], R]) -> Callable[P, R]:
        """Return a function that calls the twin and the definition, and keeps their difference."""
        twin = super().bind(definition)

        def compute_both(*arguments: P.args, **named: P.kwargs) -> R:
            return self._compare(definition.__name__, partial(definition, self._backend), twin, arguments, named)

        return compute_both

    def _compare(
        self,
        name: str,
        definition: Callable[..., R],
        twin: Callable[..., R],
        arguments: tuple[Any, ...],
        named: Mapping[str, Any],
    ) -> R:
        """Call both with arrays of their own; compare the results and the arrays that were written to."""
        copies = [self._copy(argument) for argument in arguments]
        named_copies = {key: self._copy(argument) for key, argument in named.items()}
        expected: Any = definition(*copies, **named_copies)
        actual: Any = twin(*arguments, **named)
        if name == "attention_forward":
            self._saved[id(actual[1])] = (actual[1], expected[1])
        first = 1 if name in _OVERWRITE_DY else 0
        pairs = [*zip(copies[first:], arguments[first:], strict=True), (expected, actual)]
        pairs += [(named_copies[key], named[key]) for key in named]
        scale = _SMALLEST_ACTIVATION if name.endswith(_COMPUTE_ACTIVATIONS) else _SMALLEST_GRADIENT
        self.errors[name] = max(self.errors.get(name, 0.0), *(self._difference(*pair, scale) for pair in pairs))
        return actual  # type: ignore[no-any-return]

    def _copy(self, argument: Any) -> Any:
        """Copy an argument for the definition, so that each side writes to arrays of its own."""
        if id(argument) in self._saved:
            return self._saved[id(argument)][1]
        if isinstance(argument, tuple):
            return tuple(self._copy(part) for part in argument)
        if is_array_api_obj(argument):
            return self._backend.xp.asarray(argument, copy=True)
        return argument

    def _difference(self, expected: Any, actual: Any, smallest: float) -> float:
        if id(actual) in self._saved:
            return 0.0
        if isinstance(actual, tuple):
            return max((self._difference(*pair, smallest) for pair in zip(expected, actual, strict=True)), default=0.0)
        if not is_array_api_obj(actual):
            return 0.0
        wanted, found = (_HOST.astype(self._backend.to_numpy(array), _HOST.float64) for array in (expected, actual))
        return _relative_error(wanted, found, smallest)


def _relative_error(wanted: Array, found: Array, smallest: float) -> float:
    """Return the largest difference of two host arrays, relative to the largest finite number of `wanted`."""
    xp = _HOST
    if wanted.shape != found.shape:
        return float("inf")
    finite = xp.isfinite(wanted)
    same_exceptions = (wanted == found) | (xp.isnan(wanted) & xp.isnan(found))  # infinities of one sign are equal
    if not bool(xp.all((finite & xp.isfinite(found)) | same_exceptions)):
        return float("inf")
    zeros = xp.zeros_like(wanted)
    size = xp.where(finite, xp.abs(wanted), zeros)
    difference = xp.abs(xp.where(finite, wanted, zeros) - xp.where(finite, found, zeros))
    return _largest(difference) / max(smallest, _largest(size))


def _largest(x: Array) -> float:
    return float(_HOST.max(x)) if x.size else 0.0


def compare_twins(backend: Backend) -> Mapping[str, float]:
    """Take training steps with each activation, with padding, pruning and dropout; compare every twin.

    Returns:
        For every twin of the backend, the largest difference from its definition; NaN if it was never called.
    """
    errors: dict[str, float] = {}
    for activation in ACTIVATIONS:
        for name, error in _errors_of_a_step(backend, activation).items():
            errors[name] = max(errors.get(name, 0.0), error)
    return {name: errors.get(name, float("nan")) for name in sorted(backend.twins)}


def _draw(key: int, rows: int, columns: int) -> Array:
    """Return random integers (rows, columns) on the host."""
    numbers = _HOST.arange(rows, dtype=_HOST.uint32)
    return _HOST.astype(random_bits(numbers, derive_key(key, Stream.EVALUATION), columns), _HOST.int64)


def _errors_of_a_step(backend: Backend, activation: str) -> Mapping[str, float]:
    """Take a training step with padding rows and one without, then call the operations that training never calls."""
    config = MiniBERTConfig.preset("tiny", **{**_CONFIG, "hidden_act": activation})
    model = MiniBERT(config, backend=backend, precision=backend.precision, seed=1)
    model.kernels = kernels = ComparingKernels(backend)
    ids = _draw(0, _SEQUENCES, _LENGTH) % config.vocab_size
    mask = _HOST.ones_like(ids)
    mask[1, _PADDED_FROM:] = 0
    predicted = (_draw(1, _SEQUENCES, _LENGTH) % 10 < 3) & (mask == 1)
    (positions,) = _HOST.nonzero(_HOST.reshape(predicted, (-1,)))
    labels = _HOST.reshape(ids, (-1,))[positions]
    gradients = MiniBERTGradients(model)
    for unpad in (False, True):
        _, cache = model.forward(
            ids, mask, prediction_positions=positions, dropout_step=3, unpad=unpad, next_sentence=True
        )
        gradients.backward(cache, labels, [0, 1, 1])
    GradientAccumulator(model).add(gradients.gradients, weight=3)
    AdamW(model).step(gradients.gradients, 1e-3)

    first_layer, head = cache.layers[0], cache.head
    assert head is not None
    kernels.attention_weights(first_layer.attention.queries, first_layer.attention.keys, first_layer.attention.layout)
    some_ignored = _HOST.where(positions % 3 == 0, _HOST.full_like(labels, IGNORED), labels)
    kernels.cross_entropy_forward(head.logits, backend.asarray(some_ignored, dtype=backend.xp.int32))
    return kernels.errors
