"""One optimizer step after the other, without waiting for the device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backends import Array
from minibert.data.batch_source import Batch
from minibert.errors import NonFiniteError
from minibert.gradient_accumulator import GradientAccumulator
from minibert.gradients import MiniBERTGradients
from minibert.model import MiniBERT
from minibert.optimizer import AdamW


@dataclass(frozen=True)
class StepFigures:
    """What became known about some consecutive steps.

    Attributes:
        losses: (n,) float64, the loss of each.
        gradient_norms: (n,) float64, before clipping.
        tokens: processed in all of them, without padding.
    """

    losses: npt.NDArray[np.float64]
    gradient_norms: npt.NDArray[np.float64]
    tokens: int


class Trainer:
    """Trains a model, step by step.

    Losses and gradient norms stay on the device until `collect` fetches them, so a GPU never waits for the
    host to look at a number.

    Args:
        model: to train; its `seed` decides dropout.
        optimizer: of that model; `optimizer.steps` numbers the steps.
        accumulate: micro-batches per step; the result depends on it only by rounding.
        dropout: False switches it off altogether, which saves drawing masks.
    """

    def __init__(self, model: MiniBERT, optimizer: AdamW, *, accumulate: int = 1, dropout: bool = True) -> None:
        self.model = model
        self.optimizer = optimizer
        self.accumulate = accumulate
        self.dropout = dropout
        self._differentiate = MiniBERTGradients(model)
        self._accumulator = GradientAccumulator(model) if accumulate > 1 else None
        self._losses: list[Array] = []
        self._norms: list[Array] = []
        self._tokens = 0

    @property
    def pending(self) -> int:
        """How many steps have not been collected yet."""
        return len(self._losses)

    def step(self, batch: Batch, learning_rate: float) -> None:
        """Takes one optimizer step.

        Args:
            batch: of the whole step; divided here.
            learning_rate: of this step.
        """
        # The loss that overflows is found by `collect`, which names the step; a warning from every
        # operation it passes through would name none.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            self._step(batch, learning_rate)

    def rehearse(self, batch: Batch) -> None:
        """Computes the gradients of a step and forgets them; waits until that is done.

        Kernels are compiled and buffers allocated when they are first used. That can take longer than many
        steps, and is better done before the clock of a run is started.
        """
        self._backward(batch.split(self.accumulate)[0], batch)
        self.model.backend.synchronize()

    def _step(self, batch: Batch, learning_rate: float) -> None:
        loss: Array = None
        if self._accumulator is not None:
            self._accumulator.reset()
        for part in batch.split(self.accumulate):
            part_loss = self._backward(part, batch)
            loss = part_loss if loss is None else loss + part_loss
            if self._accumulator is not None:
                self._accumulator.add(self._differentiate.gradients, weight=1.0)
        gradients = self._differentiate.gradients if self._accumulator is None else self._accumulator.gradients
        norm = self.optimizer.step(gradients, learning_rate)
        self._losses.append(loss)
        self._norms.append(norm)
        self._tokens += batch.number_of_tokens

    def _backward(self, part: Batch, whole: Batch) -> Array:
        """The loss of a micro-batch; leaves its gradients in `self._differentiate`.

        Divided by the totals of the whole step, the parts' losses and gradients simply add up.
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
        return self._differentiate.backward(
            cache,
            part.labels,
            part.next_sentence_labels,
            total_predictions=whole.number_of_predictions,
            total_sequences=whole.number_of_sequences,
        )

    def collect(self) -> StepFigures:
        """Fetches the figures of all steps since the last time; waits until the device is done with them.

        Raises:
            NonFiniteError: a loss or gradient norm is NaN or infinite; names the first such step.
        """
        xp, fetch = self.model.backend.xp, self.model.backend.to_numpy
        first_step = self.optimizer.steps - self.pending + 1
        losses = fetch(xp.stack(self._losses)).astype(np.float64)
        norms = fetch(xp.stack(self._norms)).astype(np.float64)
        figures = StepFigures(losses, norms, self._tokens)
        self._losses, self._norms, self._tokens = [], [], 0
        wrong = np.flatnonzero(~(np.isfinite(losses) & np.isfinite(norms)))
        if wrong.size:
            index = int(wrong[0])
            step = first_step + index
            what = (
                f"the gradient's norm is {norms[index]}"
                if np.isfinite(losses[index])
                else f"the loss is {losses[index]}"
            )
            raise NonFiniteError(f"{what} at step {step}", step)
        return figures

    def check_parameters(self) -> None:
        """Makes sure that the parameters may be saved.

        Raises:
            NonFiniteError: one of them is NaN or infinite.
        """
        xp = self.model.backend.xp
        if not bool(xp.all(xp.isfinite(self.model.parameters.flat))):
            step = self.optimizer.steps
            raise NonFiniteError(f"a parameter is NaN or infinite after step {step}", step)
