"""Measure how good a classifier is, after every epoch: loss, accuracy, macro-F1 and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Scores:
    """The scores of a classifier on n labelled texts.

    Attributes:
        labels: names of the C classes.
        confusion: (C, C) int64, numbers of texts; row: the true class, column: the predicted one.
        loss: mean cross-entropy in nats.
    """

    labels: tuple[str, ...]
    confusion: npt.NDArray[np.int64]
    loss: float

    @classmethod
    def of(
        cls, labels: Sequence[str], probabilities: npt.NDArray[np.floating[Any]], classes: npt.NDArray[np.int64]
    ) -> Scores:
        """Compute the scores of predictions.

        Args:
            labels: names of the C classes.
            probabilities: (n, C), what the classifier predicts.
            classes: (n,), the numbers of the true classes.
        """
        confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
        np.add.at(confusion, (classes, probabilities.argmax(axis=1)), 1)
        of_truth = probabilities[np.arange(classes.size), classes].astype(np.float64)  # (n,)
        return cls(tuple(labels), confusion, float(-np.log(np.maximum(of_truth, 1e-30)).mean()))

    @property
    def accuracy(self) -> float:
        """The share of texts whose class was predicted."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def f1(self) -> npt.NDArray[np.float64]:
        """(C,) F1 of each class, the harmonic mean of precision and recall.

        F1 is 0 for a class that is neither present nor predicted.
        """
        found = 2 * np.diagonal(self.confusion)
        total = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        return np.asarray(found / np.maximum(total, 1), dtype=np.float64)

    @property
    def macro_f1(self) -> float:
        """The mean F1 of the classes: a rare class counts as much as a frequent one."""
        return float(self.f1.mean())

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as values that JSON can hold."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "f1": dict(zip(self.labels, self.f1.tolist(), strict=True)),
            "confusion": self.confusion.tolist(),
        }


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch.

    Attributes:
        number: the number of the epoch, from 1.
        training_loss: the mean loss of all training texts, in nats.
        evaluation: the scores on the evaluation texts after the epoch.
    """

    number: int
    training_loss: float
    evaluation: Scores
