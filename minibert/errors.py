"""The errors that Mini-BERT raises for input that it cannot use.

Every message is written for the person who started the command: it says what was wrong, where, and what to do.
Mistakes in Mini-BERT itself raise other exceptions and keep their traceback.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager


def brief(value: object, characters: int = 80, *, quoted: bool = True) -> str:
    """Return a value as a message shows it; a long one is shortened in its middle.

    Values come from files, which may be large and made by strangers. So every message that repeats one uses this.

    Args:
        value: anything.
        characters: the length of the result, about.
        quoted: False shows a text as it is, without quotation marks and escapes.
    """
    if quoted or not isinstance(value, str):
        shortener = reprlib.Repr()
        shortener.maxstring = shortener.maxother = shortener.maxlong = characters
        try:
            value = shortener.repr(value)
        except ValueError:  # Python refuses to write very large integers
            value = f"<a number of the type {type(value).__name__}>"
    if len(value) <= characters:
        return value
    half = (characters - 3) // 2
    return f"{value[:half]}...{value[len(value) - half :]}"


class DataError(ValueError):
    """A text, a vocabulary or a file of tokens cannot be used; the message names the file and the line or byte."""


class CacheWarning(UserWarning):
    """A file in the cache folder was damaged, and is made again."""


class PretrainedError(ValueError):
    """A folder holds no BERT checkpoint, a damaged one, or a model that Mini-BERT cannot compute exactly."""


class NoClassifierError(PretrainedError):
    """A classifier was asked for, and the folder has none."""


class TrainingError(ValueError):
    """A training cannot begin or continue, or a trained model cannot be used; the message says why."""


class NonFiniteError(TrainingError):
    """The loss or a gradient became infinite or NaN.

    Attributes:
        step: the first step at which this happened.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class SavingError(TrainingError):
    """A training ended because its checkpoint or its model could not be written; the message says how to go on."""


class InferenceError(ValueError):
    """A model folder or a text cannot be used for sentence embeddings; the message says why."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn ValueErrors raised inside the block into TrainingErrors.

    Use it only around checks of values that the user gave. Anywhere else a ValueError is a mistake in Mini-BERT's code,
    and the command line must not hide its traceback.
    """
    try:
        yield
    except TrainingError:
        raise
    except ValueError as error:
        raise TrainingError(str(error)) from error
