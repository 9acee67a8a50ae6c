"""GradientAccumulator: adds up the gradients of micro-batches, in buffers that are allocated once.

`python -m minibert.gradient_accumulator` shows it at work.
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


class GradientAccumulator:
    """Adds up gradients, in place.

    The gradients of micro-batches are means over their predictions. Weighted by their numbers of predictions, they
    average to the gradient of the whole batch, even if the micro-batches differ in size::

        accumulator = GradientAccumulator(model)
        for part in parts:
            ...
            accumulator.add(gradients.gradients, weight=part.number_of_predictions)
        accumulator.average()

    This holds for a loss that is one mean. The next-sentence loss is a second mean with a count of its own, so no
    single weight is right for both. Then pass the totals of the whole step to `MiniBERTGradients.backward` and add
    with weight 1, as the trainer always does.

    Args:
        model: the gradients of this model's parameters are added up.

    Attributes:
        gradients: mapping from parameter name to accumulated gradient; `gradients.flat` holds all of them.
        total_weight: the sum of the weights since the last reset; 1 after `average`.
    """

    def __init__(self, model: MiniBERT) -> None:
        self.gradients = NamedArrays.zeros_like(model.parameters)
        self._kernels = model.kernels
        self.total_weight = 0.0

    def add(self, gradients: Mapping[str, Array], weight: float = 1.0) -> None:
        """Add weight * gradients, in place and without allocating memory.

        Args:
            gradients: name -> array, for the same parameters; e.g. `MiniBERTGradients.gradients`.
            weight: at least 0; e.g. the number of predictions of the micro-batch.

        Raises:
            ValueError: the weight is negative, infinite or NaN, or the gradients belong to another model.
        """
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"weight must be a number of predictions, at least 0, not {weight!r}")
        if isinstance(gradients, NamedArrays) and gradients.layout == self.gradients.layout:
            self._kernels.add_scaled(self.gradients.flat, gradients.flat, weight)
        else:
            self._check_names_and_shapes(gradients)
            for name, accumulated in self.gradients.items():
                xp = array_namespace(accumulated)
                total, values = xp.reshape(accumulated, (-1,), copy=False), xp.reshape(gradients[name], (-1,))
                self._kernels.add_scaled(total, values, weight)
        self.total_weight += weight

    def _check_names_and_shapes(self, gradients: Mapping[str, Array]) -> None:
        if different := sorted(set(gradients) ^ set(self.gradients)):
            raise ValueError(f"the gradients are of another model: only one of the two has {', '.join(different[:5])}")
        for name, accumulated in self.gradients.items():
            if gradients[name].shape != accumulated.shape:
                raise ValueError(
                    f"the gradients are of another model: {name} has the shape {gradients[name].shape}, "
                    f"this model's {accumulated.shape}"
                )

    def average(self) -> None:
        """Divide by the total weight, in place; without any weight the gradients stay zero."""
        if self.total_weight > 0.0:
            flat = self.gradients.flat
            flat *= 1.0 / self.total_weight
            self.total_weight = 1.0

    def reset(self) -> None:
        """Set the gradients and the total weight to zero, in place, for the next step."""
        self.gradients.flat[...] = 0.0
        self.total_weight = 0.0


def _demonstration() -> None:
    """Show that unequal micro-batches average to the gradient of the batch, without allocating memory."""
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
