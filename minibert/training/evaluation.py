"""How good a model is: loss, perplexity and accuracy on held-out text, beside the unigram baseline.

The masks are frozen: they depend on the text alone, so every evaluation, of any run with any seed, predicts
the same tokens from the same context, and losses can be compared to the last digit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
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
    """What one evaluation found; losses are means in nats.

    Attributes:
        loss: cross-entropy of the masked tokens.
        perplexity: exp(loss).
        accuracy: the share of masked tokens whose likeliest candidate is right.
        unigram_loss: cross-entropy of the same tokens for one who only knows how frequent tokens are.
        predictions: how many tokens were predicted.
        next_sentence_loss, next_sentence_accuracy: of the other task; None where it is not trained.
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
        """How many nats the loss lies below the unigram baseline: what was learnt from the context."""
        return self.unigram_loss - self.loss

    def to_dict(self) -> dict[str, Any]:
        """All figures, ready for JSON; those that are None are left out."""
        figures = {**dataclasses.asdict(self), "below_unigram": self.below_unigram}
        return {name: value for name, value in figures.items() if value is not None}


class _Sums:
    """Running sums of one task. They stay on the device until the end, so nobody waits in between."""

    def __init__(self) -> None:
        self.losses: list[Array] = []
        self.correct: list[Array] = []
        self.count = 0

    def add(self, model: MiniBERT, logits: Array, host_labels: npt.NDArray[np.int32]) -> None:
        """Adds predictions: logits (M, classes), labels (M,)."""
        if not host_labels.size:
            return
        xp = model.backend.xp
        labels = model.backend.asarray(host_labels, dtype=xp.int32)
        self.losses.append(xp.sum(model.kernels.cross_entropy_forward(logits, labels)))
        right = xp.astype(xp.argmax(logits, axis=1), xp.int32) == labels
        self.correct.append(xp.sum(xp.astype(right, xp.int32)))
        self.count += host_labels.size

    def means(self, model: MiniBERT) -> tuple[float, float]:
        """(loss, accuracy), fetched in two transfers and summed in double precision."""
        xp, fetch = model.backend.xp, model.backend.to_numpy
        loss = fetch(xp.stack(self.losses)).astype(np.float64).sum() / self.count
        return float(loss), int(fetch(xp.stack(self.correct)).sum()) / self.count


def evaluate(model: MiniBERT, batches: Iterable[Batch], unigram_counts: npt.NDArray[np.int64]) -> Evaluation:
    """Evaluates a model; without dropout, and computing logits at the masked positions only.

    Args:
        model: left alone.
        batches: with frozen masks; at least one prediction in all.
        unigram_counts: (V,) how often each token occurs in the training text.

    Raises:
        TrainingError: there is nothing to predict.
    """
    masked, sentences = _Sums(), _Sums()
    labels: list[npt.NDArray[np.int32]] = []
    for batch in batches:
        logits, cache = model.forward(
            batch.input_ids,
            batch.attention_mask,
            batch.token_type_ids,
            prediction_positions=batch.prediction_positions,
            next_sentence=batch.next_sentence_labels is not None,
            unpad=True,
        )  # (M, V)
        masked.add(model, logits, batch.labels)
        labels.append(batch.labels)
        if batch.next_sentence_labels is not None:
            sentences.add(model, cache.next_sentence_logits, batch.next_sentence_labels)
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
