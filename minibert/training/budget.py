"""How long to train: a number of steps, or minutes; and how much of that is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Exactly one of the two is not None.

    Attributes:
        steps: optimizer steps.
        seconds: of wall-clock time, all sessions of a resumed run together.
    """

    steps: int | None
    seconds: float | None

    def exhausted(self, steps_done: int, elapsed: float) -> bool:
        """Whether the training is over.

        Args:
            steps_done: so far.
            elapsed: seconds so far.
        """
        if self.steps is not None:
            return steps_done >= self.steps
        assert self.seconds is not None
        return elapsed >= self.seconds

    def progress(self, steps_done: int, elapsed: float) -> float:
        """The share of the training that is done, from 0 to 1, as of the middle of the step to come.

        In the middle, because a step at the very beginning or end would have the learning rate 0 and waste
        its work. By `steps` it is a function of the step alone, so that runs can be repeated bit for bit.
        """
        if self.steps is not None:
            return (steps_done + 0.5) / self.steps
        assert self.seconds is not None
        half_a_step = 0.5 * elapsed / steps_done if steps_done else 0.0
        return min(1.0, (elapsed + half_a_step) / self.seconds)

    def done(self, steps_done: int, elapsed: float) -> float:
        """The share of the training that is done, from 0 to 1, for a progress bar."""
        if self.steps is not None:
            return min(1.0, steps_done / self.steps)
        assert self.seconds is not None
        return min(1.0, elapsed / self.seconds)

    def remaining(self, steps_done: int, elapsed: float) -> float | None:
        """Seconds until the end, or None where that cannot be told yet."""
        if self.seconds is not None:
            return max(0.0, self.seconds - elapsed)
        assert self.steps is not None
        return (self.steps - steps_done) * elapsed / steps_done if steps_done else None
