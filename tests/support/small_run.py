"""Train small runs on a text that is so regular that a small BERT learns it in seconds."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from minibert import MiniBERT
from minibert.commands.screen import PlainScreen
from minibert.training.log import METRICS_FILE, read_history
from minibert.training.preparation import Data, prepare_data
from minibert.training.session import resume, start
from minibert.training.settings import Settings

_WORLD = (  # the animal decides everything else, so a hidden word can be told from its context
    ("fox", "red", "berries", "forest"),
    ("cow", "brown", "grass", "meadow"),
    ("seal", "grey", "fishes", "ocean"),
    ("camel", "yellow", "thorns", "desert"),
    ("goose", "white", "grains", "garden"),
)

SMALL: dict[str, Any] = {
    "preset": "tiny",
    "seq_length": 16,
    "batch_size": 8,
    "steps": 6,
    "vocab_size": 120,
    "report_every": 2,
    "evaluate_every": 100,
    "checkpoint_every": 100,
}


def write_text(path: Path, documents: int = 150, seed: int = 0) -> Path:
    """Write a corpus of short documents of four sentences each; return its path."""
    rng = np.random.default_rng(seed)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(documents):
            for number in rng.integers(0, len(_WORLD), 4):
                animal, colour, food, place = _WORLD[number]
                file.write(f"the {colour} {animal} eats {food} in the {place}.\n")
            file.write("\n")
    return path


def small_settings(corpus: Path, **changes: Any) -> Settings:
    """Return the settings of a run of six steps on a corpus, with some of them changed."""
    return Settings(**{**SMALL, "corpus": (str(corpus),), **changes})


def display() -> PlainScreen:
    """Return a display whose text can be read with `.console.file.getvalue()`."""
    return PlainScreen(Console(file=io.StringIO(), width=150))


class StopAfter:
    """Interrupts a run, as Ctrl-C would, after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def _interrupted_after(steps: int | None) -> Callable[[], bool]:
    return (lambda: False) if steps is None else StopAfter(steps)


def run(corpus: Path, output: Path, *, stop_after: int | None = None, **changes: Any) -> list[dict[str, Any]]:
    """Train on a corpus, without a command; return the history of the run."""
    with start(small_settings(corpus, **changes), output, display()) as begun:
        begun.train(_interrupted_after(stop_after))
    return read_history(output / METRICS_FILE)


def go_on(output: Path, *, stop_after: int | None = None, **given: Any) -> list[dict[str, Any]]:
    """Resume the run in a folder, without a command; return the history of the run."""
    with resume(given, output, display()) as resumed:
        resumed.train(_interrupted_after(stop_after))
    return read_history(output / METRICS_FILE)


def of_kind(history: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Return the lines of one kind."""
    return [entry for entry in history if entry["kind"] == kind]


def losses(history: list[dict[str, Any]]) -> list[float]:
    """Return the training losses, as recorded."""
    return [entry["loss"] for entry in of_kind(history, "train")]


def prepared(corpus: Path, cache: Path, **changes: Any) -> tuple[Settings, Data, MiniBERT]:
    """Return the parts of a small run: its settings, its data and a new model."""
    settings = small_settings(corpus, **changes)
    data = prepare_data(settings, cache)
    config = settings.model_config(data.tokenizer.vocab_size)
    return settings, data, MiniBERT(config, dtype=settings.dtype, seed=settings.seed)
