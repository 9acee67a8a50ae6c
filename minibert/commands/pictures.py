"""Draw the loss curve of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

PLOT_FILE = "loss_curve.png"


def draw_loss_curve(history: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw training loss, evaluation loss and the unigram baseline against the step.

    Args:
        history: from `minibert.training.log.read_history`.
        path: the PNG file to write.

    Returns:
        True; False if Matplotlib, which is optional, is not installed. Then nothing is drawn.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: no window, no global state
    except ImportError:
        return False
    train = [(entry["step"], entry["loss"]) for entry in history if entry["kind"] == "train"]
    evaluations = [(entry["step"], entry["loss"]) for entry in history if entry["kind"] == "evaluation"]
    baselines = [entry["unigram_loss"] for entry in history if entry["kind"] == "evaluation"]
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    if train:
        axes.plot(*zip(*train, strict=True), color="tab:blue", linewidth=1.0, alpha=0.6, label="training")
    if evaluations:
        axes.plot(*zip(*evaluations, strict=True), "o-", color="tab:orange", markersize=4, label="evaluation")
    if baselines:
        axes.axhline(baselines[-1], color="tab:gray", linestyle="--", linewidth=1.0, label="unigram baseline")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss in nats")
    axes.grid(alpha=0.3)
    if train or evaluations:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return True
