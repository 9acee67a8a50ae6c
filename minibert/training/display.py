"""Declare the interface through which a run reports its progress: `Display`.

The run calls these methods and knows nothing of terminals. `minibert.commands.screen` shows them to a person.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from minibert.training.budget import Budget
from minibert.training.evaluation import Evaluation


class Display(ABC):
    """Receives everything that a run reports, and decides what to show."""

    @abstractmethod
    def message(self, text: str) -> None:
        """Show a line of text. This may happen before, during and after the training."""

    @abstractmethod
    def preparing(self, stage: str, tokens: int) -> None:
        """Report work that precedes the training.

        Args:
            stage: the name of the work, such as "warming up".
            tokens: how many tokens are done; 0 if the work is not counted in tokens.
        """

    @abstractmethod
    def begin(self, budget: Budget, step: int, elapsed: float) -> None:
        """Report that the training begins or continues.

        Args:
            budget: when the training ends.
            step: optimizer steps taken before.
            elapsed: seconds of training before.
        """

    @abstractmethod
    def advance(self, step: int, elapsed: float) -> None:
        """Report that a step was submitted to the device, which may still be computing it.

        Args:
            step: optimizer steps taken, this one included.
            elapsed: seconds of training so far.
        """

    @abstractmethod
    def report(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Report the figures of the steps since the last report.

        Args:
            step: optimizer steps taken.
            loss: the mean training loss of these steps, in nats.
            tokens_per_second: the speed in these steps.
        """

    @abstractmethod
    def evaluating(self, step: int, done: float) -> None:
        """Report the progress of an evaluation.

        Args:
            step: optimizer steps taken.
            done: the share of the evaluation that is done, from 0 to 1.
        """

    @abstractmethod
    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Report an evaluation of the parameters after a step."""

    @abstractmethod
    def end(self) -> None:
        """Report that the preparation or the training ended, normally or by an error. May be called twice."""


def duration(seconds: float | None) -> str:
    """Format seconds for people: "45 s", "3 min 20 s", "2 h 05 min"; "an unknown time" for None or infinity."""
    if seconds is None or not math.isfinite(seconds):
        return "an unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
