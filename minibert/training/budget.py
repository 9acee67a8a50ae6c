"""Decide when a training ends: after a number of steps, or after some minutes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The length of a training, in steps or in seconds. Exactly one of the two is not None.

    In all methods, `steps_done` counts the optimizer steps taken and `elapsed` the seconds of training so far, over
    all sessions of a resumed run.

    Attributes:
        steps: optimizer steps.
        seconds: seconds of wall-clock time.
    """

    steps: int | None
    seconds: float | None

    def exhausted(self, steps_done: int, elapsed: float) -> bool:
        """True if the training is over."""
        if self.steps is not None:
            return steps_done >= self.steps
        assert self.seconds is not None
        return elapsed >= self.seconds

    def schedule_position(self, steps_done: int, elapsed: float) -> float:
        """Return where in the learning rate schedule the next step lies, from 0 (beginning) to 1 (end).

        This is the position of the middle of the step. At the very beginning and at the very end the learning rate
        is 0, so a step there would be wasted. With `steps`, the position depends on the step alone, so that a run can
        be repeated bit for bit.
        """
        if self.steps is not None:
            return (steps_done + 0.5) / self.steps
        assert self.seconds is not None
        half_a_step = 0.5 * elapsed / steps_done if steps_done else 0.0
        return min(1.0, (elapsed + half_a_step) / self.seconds)

    def share_done(self, steps_done: int, elapsed: float) -> float:
        """Return how much of the training is done, from 0 to 1, for a progress bar."""
        if self.steps is not None:
            return min(1.0, steps_done / self.steps)
        assert self.seconds is not None
        return min(1.0, elapsed / self.seconds)

    def seconds_left(self, steps_done: int, elapsed: float) -> float | None:
        """Return the seconds until the end, an estimate with `steps`; None before the first step."""
        if self.seconds is not None:
            return max(0.0, self.seconds - elapsed)
        assert self.steps is not None
        return (self.steps - steps_done) * elapsed / steps_done if steps_done else None
