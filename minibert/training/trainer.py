"""Take optimizer steps without host synchronisation: forward, backward, accumulate, update."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backends import Array
from minibert.data.batch_source import Batch
from minibert.errors import NonFiniteError
from minibert.gradient_accumulator import GradientAccumulator
from minibert.gradients import MiniBERTGradients
from minibert.model import MiniBERT
from minibert.optimizer import AdamW, clipping_scale
from minibert.parameters import NamedArrays

MOST_SKIPPED = 10
"""So many steps may be skipped in a row. At the next one the training ends."""


@dataclass(frozen=True)
class SkippedStep:
    """A step that was left out.

    Attributes:
        step: its number, from 1.
        reason: what was not finite.
    """

    step: int
    reason: str


@dataclass(frozen=True)
class StepFigures:
    """Figures of n consecutive steps, on the host.

    Attributes:
        losses: (n,) float64, the training losses in nats.
        gradient_norms: (n,) float64, the global norms of the gradients before clipping.
        tokens: tokens processed in all n steps, without padding.
    """

    losses: npt.NDArray[np.float64]
    gradient_norms: npt.NDArray[np.float64]
    tokens: int


class Trainer:
    """Trains a model, step by step.

    Losses and gradient norms stay on the device until `collect` fetches them. So a GPU never waits for the host to
    read a number.

    Args:
        model: the model to train; its `seed` decides the dropout masks.
        optimizer: the model's optimizer; `optimizer.steps` is the number of steps taken.
        accumulate: micro-batches in a step. More of them need less memory and change the result by rounding only.
        dropout: False switches dropout off, which saves drawing its masks.
        skip_non_finite: leave out steps whose loss or gradient is NaN or infinite. This waits for the device at every
            step.

    Attributes:
        skipped: the steps that were left out.
    """

    def __init__(
        self,
        model: MiniBERT,
        optimizer: AdamW,
        *,
        accumulate: int = 1,
        dropout: bool = True,
        skip_non_finite: bool = False,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.accumulate = accumulate
        self.dropout = dropout
        self._gradients = MiniBERTGradients(model)
        self._accumulator = GradientAccumulator(model) if accumulate > 1 else None
        self.skip_non_finite = skip_non_finite
        self.skipped: list[SkippedStep] = []
        self._skipped_in_a_row = 0
        self._steps: list[int] = []  # the numbers of the steps whose figures follow
        self._losses: list[Array] = []
        self._norms: list[Array] = []
        self._tokens = 0

    @property
    def pending(self) -> int:
        """The number of steps that have not been collected yet."""
        return len(self._losses)

    def step(self, batch: Batch, learning_rate: float) -> None:
        """Take one optimizer step.

        Args:
            batch: all sequences of the step; divided into micro-batches here.
            learning_rate: the learning rate of this step.

        Raises:
            NonFiniteError: too many steps in a row were skipped.
        """
        # `collect` finds a loss that overflowed and names its step. NumPy's warnings would come from every operation
        # and name no step.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            if self._accumulator is None:
                loss = self._forward_backward(batch, whole=batch)
                gradients = self._gradients.gradients
            else:
                loss = None
                self._accumulator.reset()
                for part in batch.split(self.accumulate):
                    part_loss = self._forward_backward(part, whole=batch)
                    loss = part_loss if loss is None else loss + part_loss
                    self._accumulator.add(self._gradients.gradients, weight=1.0)
                gradients = self._accumulator.gradients
            if self.skip_non_finite and self._skip(loss, gradients):
                return
            norm = self.optimizer.step(gradients, learning_rate)
        self._steps.append(self.optimizer.steps)
        self._losses.append(loss)
        self._norms.append(norm)
        self._tokens += batch.number_of_tokens

    def _skip(self, loss: Array, gradients: NamedArrays) -> bool:
        """Return True if the step is to be left out, and count it then, so that the next step gets the next batch.

        Raises:
            NonFiniteError: too many steps in a row were skipped.
        """
        norm, _ = clipping_scale(self.model, gradients, self.optimizer.max_norm)
        if (reason := _non_finite(float(loss), float(norm))) is None:
            self._skipped_in_a_row = 0
            return False
        self.optimizer.steps += 1
        self._skipped_in_a_row += 1
        self.skipped.append(SkippedStep(self.optimizer.steps, reason))
        if self._skipped_in_a_row > MOST_SKIPPED:
            step = self.optimizer.steps
            raise NonFiniteError(f"{reason} at step {step}, and {MOST_SKIPPED} steps before it were skipped", step)
        return True

    def _forward_backward(self, part: Batch, whole: Batch) -> Array:
        """Return the loss of a micro-batch, on the device, and leave its gradients in `self._gradients`.

        Both are divided by the numbers of predictions and sequences in the whole step, so the losses and gradients
        of the micro-batches add up to those of the step.
        """
        _, cache = self.model.forward(
            part.input_ids,
            part.attention_mask,
            part.token_type_ids,
            prediction_positions=part.prediction_positions,
            next_sentence=part.next_sentence_labels is not None,
            dropout_step=self.optimizer.steps if self.dropout else None,
            first_sequence=part.first_sequence,
            unpad=True,
        )
        return self._gradients.backward(
            cache,
            part.labels,
            part.next_sentence_labels,
            total_predictions=whole.number_of_predictions,
            total_sequences=whole.number_of_sequences,
        )

    def dry_run(self, batch: Batch) -> None:
        """Compute the loss and gradients of the first micro-batch, discard them, and wait for the device.

        Kernels are compiled and buffers are allocated on first use. This can take longer than many steps, so a run
        does it here, before its clock starts.
        """
        self._forward_backward(batch.split(self.accumulate)[0], whole=batch)
        self.model.backend.synchronize()

    def collect(self) -> StepFigures:
        """Fetch the figures of all steps since the last call. This waits until the device has computed them.

        Raises:
            NonFiniteError: a loss or a gradient norm is NaN or infinite. The message names the first such step.
        """
        xp, fetch = self.model.backend.xp, self.model.backend.to_numpy
        losses = fetch(xp.stack(self._losses)).astype(np.float64)
        norms = fetch(xp.stack(self._norms)).astype(np.float64)
        figures, steps = StepFigures(losses, norms, self._tokens), self._steps
        self._steps, self._losses, self._norms, self._tokens = [], [], [], 0
        for step, loss, norm in zip(steps, losses.tolist(), norms.tolist(), strict=True):
            if (reason := _non_finite(loss, norm)) is not None:
                raise NonFiniteError(f"{reason} at step {step}", step)
        return figures

    def check_parameters(self) -> None:
        """Check that all parameters are finite, before they are evaluated or saved.

        Raises:
            NonFiniteError: a parameter is NaN or infinite.
        """
        xp = self.model.backend.xp
        if not bool(xp.all(xp.isfinite(self.model.parameters.flat))):
            step = self.optimizer.steps
            raise NonFiniteError(f"a parameter is NaN or infinite after step {step}", step)


def _non_finite(loss: float, norm: float) -> str | None:
    """Say which of the two is NaN or infinite; None if both are finite."""
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    return None if math.isfinite(norm) else f"the gradient's norm is {norm}"
