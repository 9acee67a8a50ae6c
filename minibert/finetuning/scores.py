"""How good a classifier is: accuracy, macro-F1 and the confusion matrix, as text and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_CORNER = "true \\ predicted"
_LARGEST_NAME = 24  # characters of a label in the table


@dataclass(frozen=True)
class Scores:
    """Of a classifier on labelled texts.

    Attributes:
        labels: names of the C classes.
        confusion: (C, C) int64; row: the true class, column: the predicted one.
        loss: mean cross-entropy in nats.
    """

    labels: tuple[str, ...]
    confusion: npt.NDArray[np.int64]
    loss: float

    @classmethod
    def of(
        cls, labels: Sequence[str], probabilities: npt.NDArray[np.floating[Any]], classes: npt.NDArray[np.int64]
    ) -> Scores:
        """From predictions.

        Args:
            labels: names of the C classes.
            probabilities: (n, C).
            classes: (n,), the true ones.
        """
        confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
        np.add.at(confusion, (classes, probabilities.argmax(axis=1)), 1)
        of_truth = probabilities[np.arange(classes.size), classes].astype(np.float64)
        return cls(tuple(labels), confusion, float(-np.log(np.maximum(of_truth, 1e-30)).mean()))

    @property
    def accuracy(self) -> float:
        """The share of texts whose class was found."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def f1(self) -> npt.NDArray[np.float64]:
        """(C,) for each class the harmonic mean of precision and recall; 0 for one neither present nor predicted."""
        found = 2 * np.diagonal(self.confusion)
        total = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        return np.asarray(found / np.maximum(total, 1), dtype=np.float64)

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1, in which a rare class counts as much as a frequent one."""
        return float(self.f1.mean())

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "f1": dict(zip(self.labels, self.f1.tolist(), strict=True)),
            "confusion": self.confusion.tolist(),
        }

    def table(self) -> str:
        """The confusion matrix in text, a row for every true class, with its F1."""
        names = [_shortened(label) for label in self.labels]
        width = max(map(len, [*names, _CORNER]))
        columns = [max(len(name), len(str(self.confusion.max()))) for name in names]
        heads = "  ".join(f"{name:>{w}}" for name, w in zip(names, columns, strict=True))
        lines = [f"{_CORNER:<{width}}  {heads}     F1"]
        for name, row, f1 in zip(names, self.confusion.tolist(), self.f1, strict=True):
            cells = "  ".join(f"{count:>{w}}" for count, w in zip(row, columns, strict=True))
            lines.append(f"{name:<{width}}  {cells}  {f1:5.3f}")
        return "\n".join(lines)

    def draw(self, path: Path) -> bool:
        """Draws the confusion matrix, shaded by the share of each true class.

        Returns:
            False if Matplotlib, which is optional, is not installed; nothing is drawn then.
        """
        try:
            from matplotlib.figure import Figure  # without pyplot: no window, no global state
        except ImportError:
            return False
        size = len(self.labels)
        figure = Figure(figsize=(2.4 + 0.5 * size, 2.0 + 0.5 * size), layout="constrained")
        axes = figure.subplots()
        shares = self.confusion / np.maximum(self.confusion.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
        for row, column in np.ndindex(size, size):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(self.confusion[row, column]), ha="center", va="center", color=colour)
        names = [_shortened(label) for label in self.labels]
        axes.set_xticks(range(size), names, rotation=45, ha="right")
        axes.set_yticks(range(size), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(f"accuracy {self.accuracy:.1%}, macro-F1 {self.macro_f1:.3f}")
        figure.savefig(path, dpi=150)
        return True


def _shortened(label: str) -> str:
    return label if len(label) <= _LARGEST_NAME else label[: _LARGEST_NAME - 3] + "..."
