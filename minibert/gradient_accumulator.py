"""GradientAccumulator: a large batch in small parts, in buffers that are allocated once.

Run `python -m minibert.gradient_accumulator` to see it at work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from array_api_compat import array_namespace

from backends import Array
from minibert.parameters import NamedArrays

if TYPE_CHECKING:
    from minibert.model import MiniBERT

_BLOCK = 1 << 18  # elements scaled at a time: 1 MiB of float32 stays in a core's cache


class GradientAccumulator:
    """Adds up gradients, in place.

    Mean gradients of parts of a batch, weighted by how many predictions each was the mean of, average to the
    gradient of the whole batch, even when the parts differ in size:

        accumulator = GradientAccumulator(model)
        for part in parts:
            ...
            accumulator.add(gradients.gradients, weight=part.number_of_predictions)
        accumulator.average()

    That holds for a loss that is one mean. With the next-sentence loss on top there are two counts, and no one
    weight is right: divide by the totals of the whole step instead (`MiniBERTGradients.backward`), and simply
    add up. So does the trainer, always.

    Args:
        model: whose parameters the gradients belong to.

    Attributes:
        gradients: mapping from parameter name to accumulated gradient; `gradients.flat` is all of them.
        total_weight: the sum of the weights since the last reset; 1 after `average`.
    """

    def __init__(self, model: MiniBERT) -> None:
        self.gradients = NamedArrays.zeros_like(model.parameters)
        flat = self.gradients.flat
        self._scratch = model.backend.xp.empty_like(flat[: min(_BLOCK, flat.shape[0])])
        self.total_weight = 0.0

    def add(self, gradients: Mapping[str, Array], weight: float = 1.0) -> None:
        """Add weight * gradients, in place and without allocating anything.

        Args:
            gradients: of the same parameters, e.g. `MiniBERTGradients.gradients`.
            weight: not negative, e.g. the number of predictions that the gradients are the mean of.

        Raises:
            ValueError: a negative, infinite or NaN weight, or gradients of another model.
        """
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"weight must be a number of predictions, at least 0, not {weight!r}")
        if isinstance(gradients, NamedArrays) and gradients.layout == self.gradients.layout:
            self._add_scaled(self.gradients.flat, gradients.flat, weight)
        else:
            self._check_names_and_shapes(gradients)
            for name, accumulated in self.gradients.items():
                xp = array_namespace(accumulated)
                self._add_scaled(xp.reshape(accumulated, (-1,), copy=False), xp.reshape(gradients[name], (-1,)), weight)
        self.total_weight += weight

    def _add_scaled(self, total: Array, values: Array, weight: float) -> None:
        """Total += weight * values, block by block, since the standard has no `out=` for the product."""
        size = total.shape[0]
        for start in range(0, size, _BLOCK):
            stop = min(start + _BLOCK, size)
            block, source = total[start:stop], values[start:stop]
            if weight == 1.0:
                block += source
                continue
            scaled = self._scratch[: stop - start]
            scaled[...] = source
            scaled *= weight
            block += scaled

    def _check_names_and_shapes(self, gradients: Mapping[str, Array]) -> None:
        if different := sorted(set(gradients) ^ set(self.gradients)):
            raise ValueError(f"the gradients are of another model: {', '.join(different[:5])} is in only one of them")
        for name, accumulated in self.gradients.items():
            if gradients[name].shape != accumulated.shape:
                raise ValueError(
                    f"the gradients are of another model: {name} has the shape {gradients[name].shape}, "
                    f"this model's {accumulated.shape}"
                )

    def average(self) -> None:
        """Divide by the total weight, in place; zero gradients stay zero when nothing was predicted."""
        if self.total_weight > 0.0:
            flat = self.gradients.flat
            flat *= 1.0 / self.total_weight
            self.total_weight = 1.0

    def reset(self) -> None:
        """Back to zero, in place, for the next step."""
        self.gradients.flat[...] = 0.0
        self.total_weight = 0.0


def _demonstration() -> None:
    """Show that unequal parts of a batch average to its gradient, and that nothing is allocated."""
    import tracemalloc

    from minibert.config import MiniBERTConfig
    from minibert.gradients import IGNORED, MiniBERTGradients
    from minibert.model import MiniBERT

    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=1000), dtype="float64")
    differentiate, accumulator = MiniBERTGradients(model), GradientAccumulator(model)
    ids = [[(7 * sequence + 3 * position) % 1000 for position in range(16)] for sequence in range(4)]
    predicted_per_sequence = (5, 1, 3, 2)
    labels = [
        [token if position < count else IGNORED for position, token in enumerate(sequence)]
        for sequence, count in zip(ids, predicted_per_sequence, strict=True)
    ]

    loss = float(differentiate.backward(model.forward(ids)[1], labels))
    whole = model.backend.xp.asarray(differentiate.gradients.flat, copy=True)
    print(f"one batch of 4 sequences with {sum(predicted_per_sequence)} predictions: loss {loss:.6f}")
    for sequence, (row, row_labels) in enumerate(zip(ids, labels, strict=True)):
        weight = predicted_per_sequence[sequence]
        loss = float(differentiate.backward(model.forward([row])[1], [row_labels]))
        accumulator.add(differentiate.gradients, weight=weight)
        print(f"  part {sequence}: {weight} predictions, loss {loss:.6f}, total weight {accumulator.total_weight:g}")
    accumulator.average()
    xp = model.backend.xp
    difference = float(xp.max(xp.abs(accumulator.gradients.flat - whole)) / xp.max(xp.abs(whole)))
    print(f"averaged gradient against the batch's: largest difference {difference:.1e} of the largest entry")

    tracemalloc.start()
    accumulator.add(differentiate.gradients, weight=3)
    accumulator.average()
    accumulator.reset()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = whole.shape[0] * 8
    print(f"memory allocated by add, average and reset: {peak} bytes, where the gradients are {size:,} bytes")


if __name__ == "__main__":
    _demonstration()
