"""Evaluate a model on held-out text: loss, perplexity and accuracy, compared with the unigram baseline.

The masks of an evaluation depend on the text alone (`preparation.frozen_batches`). So every evaluation, of any run
with any seed, predicts the same tokens from the same context, and losses can be compared to the last digit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backends import Array
from minibert.data.batch_source import Batch
from minibert.data.masking import unigram_cross_entropy
from minibert.errors import TrainingError
from minibert.model import MiniBERT


@dataclass(frozen=True)
class Evaluation:
    """The figures of one evaluation. Losses are means in nats.

    Attributes:
        loss: cross-entropy of the masked tokens.
        perplexity: exp(loss).
        accuracy: the share of masked tokens for which the model's first candidate is right.
        unigram_loss: cross-entropy of the same tokens for a model that knows only how frequent each token is.
        predictions: the number of masked tokens, M.
        next_sentence_loss: cross-entropy of next-sentence prediction; None if it was not evaluated.
        next_sentence_accuracy: the share of pairs that were classified correctly; None if not evaluated.
    """

    loss: float
    perplexity: float
    accuracy: float
    unigram_loss: float
    predictions: int
    next_sentence_loss: float | None = None
    next_sentence_accuracy: float | None = None

    @property
    def below_unigram(self) -> float:
        """Nats by which the loss is below the unigram baseline; negative if it is above.

        A model gets below the baseline only by what it learnt from the context.
        """
        return self.unigram_loss - self.loss

    def compared_with_unigram(self) -> str:
        """Format `below_unigram` for people: "0.412 nats below the unigram baseline", or above."""
        side = "above" if self.below_unigram < 0.0 else "below"
        return f"{abs(self.below_unigram):.3f} nats {side} the unigram baseline"

    def to_dict(self) -> dict[str, Any]:
        """Return all figures and `below_unigram`, ready for JSON, without those that are None."""
        figures = {**dataclasses.asdict(self), "below_unigram": self.below_unigram}
        return {name: value for name, value in figures.items() if value is not None}


class _Sums:
    """Running sums of one task. They stay on the device until `means`: no host synchronisation in between."""

    def __init__(self) -> None:
        self.losses: list[Array] = []
        self.correct: list[Array] = []
        self.count = 0

    def add(self, model: MiniBERT, logits: Array, host_labels: npt.NDArray[np.int32]) -> None:
        """Add M predictions: logits (M, classes), labels (M,)."""
        if not host_labels.size:
            return
        xp = model.backend.xp
        labels = model.backend.asarray(host_labels, dtype=xp.int32)
        self.losses.append(xp.sum(model.kernels.cross_entropy_forward(logits, labels)))
        right = xp.astype(xp.argmax(logits, axis=1), xp.int32) == labels
        self.correct.append(xp.sum(xp.astype(right, xp.int32)))
        self.count += host_labels.size

    def means(self, model: MiniBERT) -> tuple[float, float]:
        """Return (loss, accuracy), fetched in two transfers and summed in float64."""
        xp, fetch = model.backend.xp, model.backend.to_numpy
        loss = fetch(xp.stack(self.losses)).astype(np.float64).sum() / self.count
        return float(loss), int(fetch(xp.stack(self.correct)).sum()) / self.count


def evaluate(
    model: MiniBERT,
    batches: Iterable[Batch],
    unigram_counts: npt.NDArray[np.int64],
    progress: Callable[[int], None] = lambda sequences: None,
) -> Evaluation:
    """Evaluate a model, without dropout. Logits are computed at the masked positions only.

    Args:
        model: the model; it is not changed.
        batches: from `preparation.frozen_batches`.
        unigram_counts: (V,) how often each token occurs in the training text.
        progress: called after every batch, with the number of sequences done.

    Raises:
        TrainingError: the batches have no masked token.
    """
    masked, sentences = _Sums(), _Sums()
    labels: list[npt.NDArray[np.int32]] = []
    sequences = 0
    for batch in batches:
        logits, cache = model.forward(
            batch.input_ids,
            batch.attention_mask,
            batch.token_type_ids,
            prediction_positions=batch.prediction_positions,
            next_sentence=batch.next_sentence_labels is not None,
            unpad=True,
            for_backward=False,
        )  # (M, V)
        masked.add(model, logits, batch.labels)
        labels.append(batch.labels)
        if batch.next_sentence_labels is not None:
            sentences.add(model, cache.next_sentence_logits, batch.next_sentence_labels)
        del logits, cache  # otherwise their memory is in use while the next batch is computed
        sequences += batch.number_of_sequences
        progress(sequences)
    if not masked.count:
        raise TrainingError("the evaluation text is too short: there is no token to predict; give more text")
    loss, accuracy = masked.means(model)
    next_sentence = sentences.means(model) if sentences.count else (None, None)
    return Evaluation(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),  # beyond that a float64 overflows
        accuracy=accuracy,
        unigram_loss=unigram_cross_entropy(unigram_counts, np.concatenate(labels)),
        predictions=masked.count,
        next_sentence_loss=next_sentence[0],
        next_sentence_accuracy=next_sentence[1],
    )
