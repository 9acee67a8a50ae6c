"""Show the confusion matrix of a classifier, as a table of text and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minibert.finetuning.scores import Scores

_CORNER = "true \\ predicted"
_LONGEST_NAME = 24  # characters of a label that are shown


def confusion_table(scores: Scores) -> str:
    """Return the confusion matrix as text, with one row for every true class and its F1."""
    names = _shortened(scores.labels)
    width = max(map(len, [*names, _CORNER]))
    columns = [max(len(name), len(str(scores.confusion.max()))) for name in names]
    header = "  ".join(f"{name:>{w}}" for name, w in zip(names, columns, strict=True))
    lines = [f"{_CORNER:<{width}}  {header}     F1"]
    for name, row, f1 in zip(names, scores.confusion.tolist(), scores.f1, strict=True):
        cells = "  ".join(f"{count:>{w}}" for count, w in zip(row, columns, strict=True))
        lines.append(f"{name:<{width}}  {cells}  {f1:5.3f}")
    return "\n".join(lines)


def draw_confusion_matrix(scores: Scores, path: Path) -> bool:
    """Draw the confusion matrix; the shade of a cell is its share of the true class.

    Args:
        scores: the scores of an evaluation.
        path: the picture file to write; its suffix decides the format.

    Returns:
        False if Matplotlib, which is optional, is not installed. Nothing is drawn then.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError:
        return False
    size = len(scores.labels)
    figure = Figure(figsize=(2.4 + 0.5 * size, 2.0 + 0.5 * size), layout="constrained")
    axes = figure.subplots()
    shares = scores.confusion / np.maximum(scores.confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(size, size):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(scores.confusion[row, column]), ha="center", va="center", color=colour)
    names = _shortened(scores.labels)
    axes.set_xticks(range(size), names, rotation=45, ha="right")
    axes.set_yticks(range(size), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"accuracy {scores.accuracy:.1%}, macro-F1 {scores.macro_f1:.3f}")
    figure.savefig(path, dpi=150)
    return True


def _shortened(labels: Sequence[str]) -> list[str]:
    return [label if len(label) <= _LONGEST_NAME else label[: _LONGEST_NAME - 3] + "..." for label in labels]
