"""What a person sees while a run goes on: a live bar in a terminal, plain lines everywhere else."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from minibert.training.budget import Budget
from minibert.training.evaluation import Evaluation

_SECONDS_BETWEEN_LINES = 5.0  # a log file of a long run stays readable


class Display(ABC):
    """Told about everything that happens; decides what to show."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def message(self, text: str) -> None:
        """Shows a line, also in the middle of the training."""
        self.console.print(Text(text), soft_wrap=True)

    @abstractmethod
    def preparing(self, stage: str, tokens: int) -> None:
        """Something comes before the training: what, and how many tokens are done, if it deals with tokens."""

    @abstractmethod
    def begin(self, budget: Budget, step: int, elapsed: float) -> None:
        """The training begins, or goes on, at a step."""

    @abstractmethod
    def advance(self, step: int, elapsed: float) -> None:
        """A step was taken. The device may not be done with it yet."""

    @abstractmethod
    def report(self, step: int, loss: float, tokens_per_second: float) -> None:
        """The figures of the last steps are known."""

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """An evaluation was made."""
        self.message(
            f"step {step}: evaluation loss {evaluation.loss:.3f}, {evaluation.below_unigram:+.3f} nats under the "
            f"unigram baseline, accuracy {evaluation.accuracy:.1%}"
        )

    @abstractmethod
    def end(self) -> None:
        """The training ended, in whatever way."""


def make_display(console: Console) -> Display:
    """The kind of display that fits where the output goes."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


class PlainDisplay(Display):
    """Lines, for log files and pipes; the first report and the last one before each pause of a few seconds."""

    _budget: Budget | None = None
    _elapsed = 0.0
    _next_line = 0.0
    _stage = ""

    def preparing(self, stage: str, tokens: int) -> None:
        """Names each stage once."""
        if stage != self._stage:
            self._stage = stage
            self.message(f"{stage} ...")

    def begin(self, budget: Budget, step: int, elapsed: float) -> None:
        """Remembers the budget, to tell the time left."""
        self._budget, self._elapsed = budget, elapsed

    def advance(self, step: int, elapsed: float) -> None:
        """Remembers the clock."""
        self._elapsed = elapsed

    def report(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Prints a line, unless the last one is only seconds old."""
        now = time.monotonic()
        if now < self._next_line:
            return
        self._next_line = now + _SECONDS_BETWEEN_LINES
        left = None if self._budget is None else self._budget.remaining(step, self._elapsed)
        self.message(f"step {step}: loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s, {duration(left)} left")

    def end(self) -> None:
        """Nothing to put away."""


class LiveDisplay(Display):
    """A progress bar that is redrawn, with messages above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress: Progress | None = None
        self._task: Any = None
        self._budget: Budget | None = None

    def _start(self, description: str, total: float | None, *columns: TextColumn) -> None:
        self.end()
        shown = (TextColumn("{task.description}"), BarColumn(), *columns)
        self._progress = Progress(*shown, console=self.console, transient=True, refresh_per_second=4)
        self._task = self._progress.add_task(description, total=total, step=0, loss="", speed="", left="")
        self._progress.start()

    def preparing(self, stage: str, tokens: int) -> None:
        """Counts tokens beside a bar without an end."""
        if self._progress is None:
            self._start(stage, None, TextColumn("{task.fields[left]}"))
        assert self._progress is not None
        self._progress.update(self._task, description=stage, left=f"{tokens:,} tokens" if tokens else "")

    def begin(self, budget: Budget, step: int, elapsed: float) -> None:
        """Shows the bar of the training."""
        self._budget = budget
        self._start(
            "training",
            1.0,
            TaskProgressColumn(),
            TextColumn("step {task.fields[step]}"),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[left]}"),
        )
        self.advance(step, elapsed)

    def advance(self, step: int, elapsed: float) -> None:
        """Moves the bar."""
        if self._progress is None or self._budget is None:
            return
        left = f"{duration(self._budget.remaining(step, elapsed))} left"
        done = self._budget.done(step, elapsed)
        self._progress.update(self._task, completed=done, step=step, left=left)

    def report(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Shows loss and speed beside it."""
        if self._progress is not None:
            self._progress.update(self._task, loss=f"loss {loss:.3f}", speed=f"{tokens_per_second:,.0f} tokens/s")

    def end(self) -> None:
        """Removes the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def duration(seconds: float | None) -> str:
    """Seconds for people: "45 s", "3 min 20 s", "2 h 05 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "an unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
