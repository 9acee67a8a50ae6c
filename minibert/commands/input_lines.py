"""Read lines of text for a command, in the same way from a file and from standard input."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from minibert.errors import InferenceError


def read_lines(source: str) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, or of standard input for "-", without their line ends.

    A line ends with a line feed, or with a carriage return and a line feed. A carriage return alone is part of the
    text. A byte order mark at the beginning is left out.

    Raises:
        InferenceError: a line is not UTF-8; the message gives its number.
        OSError: the file cannot be read.
    """
    if source == "-":
        yield from _decoded(sys.stdin.buffer, "standard input")
        return
    with Path(source).open("rb") as file:
        yield from _decoded(file, source)


def _decoded(file: BinaryIO, name: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if number == 1 and not (line := line.removeprefix(codecs.BOM_UTF8)):
            continue
        try:
            text = line.removesuffix(b"\n").removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise InferenceError(
                f"{name}, line {number}: this is not UTF-8 ({error.reason}); save the text as UTF-8"
            ) from error
        yield text
