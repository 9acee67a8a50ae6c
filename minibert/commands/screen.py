"""Show a run to a person: a live bar in a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from minibert.training.budget import Budget
from minibert.training.display import Display, duration
from minibert.training.evaluation import Evaluation

_SECONDS_BETWEEN_LINES = 5.0  # so that the output of a long run stays readable


class Screen(Display):
    """A display on a console. It shows messages and evaluations as lines.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console) -> None:
        self.console = console

    def message(self, text: str) -> None:
        """Print a line, also in the middle of the training."""
        self.console.print(Text(text), soft_wrap=True)

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Print the figures."""
        self.message(
            f"step {step}: evaluation loss {evaluation.loss:.3f}, {evaluation.compared_with_unigram()}, "
            f"accuracy {evaluation.accuracy:.1%}"
        )


def make_screen(console: Console) -> Screen:
    """Return the kind of screen that suits the console: live in a terminal, plain in a file or a pipe."""
    return LiveScreen(console) if console.is_terminal else PlainScreen(console)


class PlainScreen(Screen):
    """Shows a run as lines, for files and pipes. It prints a report only if the last one is some seconds old."""

    _budget: Budget | None = None
    _elapsed = 0.0
    _next_line = 0.0
    _stage = ""
    _evaluated_step = -1

    def preparing(self, stage: str, tokens: int) -> None:
        """Print each stage, and during a long one now and then how much is done."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage = stage
            self.message(f"{stage} ...")
            self._next_line = now + _SECONDS_BETWEEN_LINES
        elif tokens and now >= self._next_line:
            self.message(f"{stage}: {tokens:,} tokens done")
            self._next_line = now + _SECONDS_BETWEEN_LINES

    def begin(self, budget: Budget, step: int, elapsed: float) -> None:
        """Remember the budget, to compute the time left."""
        self._budget, self._elapsed = budget, elapsed
        self._next_line = 0.0  # the first report is printed at once

    def advance(self, step: int, elapsed: float) -> None:
        """Remember the time, to compute the time left."""
        self._elapsed = elapsed

    def report(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Print a line, unless the last one was printed only seconds ago."""
        now = time.monotonic()
        if now < self._next_line:
            return
        self._next_line = now + _SECONDS_BETWEEN_LINES
        left = None if self._budget is None else self._budget.seconds_left(step, self._elapsed)
        self.message(f"step {step}: loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s, {duration(left)} left")

    def evaluating(self, step: int, done: float) -> None:
        """Print a line, unless the last one was printed only seconds ago."""
        now = time.monotonic()
        if done == 1.0 or now < self._next_line:
            return
        if self._evaluated_step == step:  # the first line of an evaluation only after some seconds
            self.message(f"step {step}: evaluating, {done:.0%} done")
        self._evaluated_step, self._next_line = step, now + _SECONDS_BETWEEN_LINES

    def end(self) -> None:
        """Do nothing: lines stay."""


class LiveScreen(Screen):
    """Shows a run as a progress bar that is redrawn, with messages above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._progress: Progress | None = None
        self._task: Any = None
        self._budget: Budget | None = None

    def _start(self, description: str, total: float | None, *columns: TextColumn) -> None:
        """Replace the bar by a new one; its end is unknown if the total is None."""
        self.end()
        shown = (TextColumn("{task.description}"), BarColumn(), *columns)
        self._progress = Progress(*shown, console=self.console, transient=True, refresh_per_second=4)
        self._task = self._progress.add_task(description, total=total, step=0, loss="", speed="", left="")
        self._progress.start()

    def preparing(self, stage: str, tokens: int) -> None:
        """Show the number of tokens beside a bar without an end."""
        if self._progress is None:
            self._start(stage, None, TextColumn("{task.fields[left]}"))
        assert self._progress is not None
        self._progress.update(self._task, description=stage, left=f"{tokens:,} tokens" if tokens else "")

    def begin(self, budget: Budget, step: int, elapsed: float) -> None:
        """Show the bar of the training."""
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
        """Move the bar."""
        if self._progress is None or self._budget is None:
            return
        left = f"{duration(self._budget.seconds_left(step, elapsed))} left"
        done = self._budget.share_done(step, elapsed)
        self._progress.update(self._task, completed=done, step=step, left=left)

    def report(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show loss and speed beside the bar."""
        if self._progress is not None:
            self._progress.update(self._task, loss=f"loss {loss:.3f}", speed=f"{tokens_per_second:,.0f} tokens/s")

    def evaluating(self, step: int, done: float) -> None:
        """Show the share that is done beside the bar."""
        if self._progress is not None:
            self._progress.update(self._task, speed=f"evaluating {done:.0%}")

    def end(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
