"""What goes into a command and comes out of it: lines of text, alike from files and pipes, and a pipe that closes."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO, cast

from minibert.errors import InferenceError

PIPE_CLOSED = 141  # the exit status that a shell shows for a program that a closed pipe has ended


def read_lines(source: str) -> Iterator[str]:
    """The lines of a file, or of standard input for "-", without their ends.

    A line ends with a line feed, or with a carriage return and a line feed. A carriage return alone is part of the
    text, and a byte order mark at the beginning is not.

    Raises:
        InferenceError: a line is not UTF-8; names it.
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
            raise InferenceError(f"{name}, line {number}: this is not UTF-8 ({error.reason})") from error
        yield text


def as_json(value: object, file: TextIO) -> str:
    """One line of JSON for a file: with characters as they are if the file's encoding has all of them, else escaped."""
    # what has no encoding, as a string in memory, holds every character
    unicode = file.encoding is None or codecs.lookup(file.encoding).name.startswith("utf")
    return json.dumps(value, ensure_ascii=not unicode)


def write_to_standard_output(write: Callable[[TextIO], object]) -> bool:
    """Writes; a reader that has gone away, as `head` does, ends it quietly.

    Args:
        write: called with standard output.

    Returns:
        Whether everything was written.
    """
    try:
        write(sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        write_to_nowhere(sys.stdout)
        return False
    return True


class LastingOutput:
    """Standard output that outlives its reader, as of `| head`: what is written then is thrown away.

    Attributes:
        closed_by_reader: whether that has happened.
    """

    def __init__(self) -> None:
        self._stream = sys.stdout
        self.closed_by_reader = False

    @property
    def stream(self) -> IO[str]:
        """Itself, as what it stands for."""
        return cast(IO[str], self)

    def write(self, text: str) -> int:
        """As of any stream."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """As of any stream."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._give_up()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self) -> None:
        self.closed_by_reader = True
        write_to_nowhere(self._stream)


def write_to_nowhere(stream: IO[str]) -> None:
    """What is written from now on, and what its buffer still holds: Python would stumble over that when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
