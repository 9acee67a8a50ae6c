"""The one error of the data package: something is wrong with the text, the vocabulary or their sizes."""

from __future__ import annotations


class DataError(ValueError):
    """The data cannot be used as they are.

    The message is for the person who started the run: it says what was wrong, where (file, line or byte
    offset) and what to do about it.
    """
