"""What can go wrong with a run, told to the person who started it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class TrainingError(ValueError):
    """A run cannot begin or go on as asked; the message says why and what to do."""


class NonFiniteError(TrainingError):
    """The loss or the gradients became infinite or NaN.

    Attributes:
        step: the first step at which they did.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


@contextmanager
def explained() -> Iterator[None]:
    """Hands the ValueErrors of the model's own checks on as TrainingErrors.

    Only where the values come from the user: anywhere else a ValueError is a mistake of ours, and its
    traceback must not be swallowed by the command line.
    """
    try:
        yield
    except TrainingError:
        raise
    except ValueError as error:
        raise TrainingError(str(error)) from error
