"""Write to standard output although its reader may end early, as `head` does in `embed.py ... | head`.

Writing to a pipe whose reader has ended raises BrokenPipeError. A command that only prints results ends quietly then
(`write_to_standard_output`). A command that has more to do than print goes on (`PipeSafeOutput`).
"""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any, TextIO, cast

PIPE_CLOSED = 141  # the exit status that a shell reports if a closed pipe ended a program


def as_json(value: object, file: TextIO) -> str:
    """Return a value as one line of JSON for a file.

    Characters beyond ASCII stay as they are if the file's encoding is a form of Unicode; otherwise they are escaped.
    """
    # a stream without an encoding, such as io.StringIO, holds every character
    unicode = file.encoding is None or codecs.lookup(file.encoding).name.startswith("utf")
    return json.dumps(value, ensure_ascii=not unicode)


def write_to_standard_output(write: Callable[[TextIO], object]) -> bool:
    """Write to standard output until everything is written or the reader ends.

    Args:
        write: called once, with standard output.

    Returns:
        True if everything was written.
    """
    try:
        write(sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output(sys.stdout)
        return False
    return True


class PipeSafeOutput:
    """Standard output that can be written to even after its reader has ended; the text is then discarded.

    Attributes:
        closed_by_reader: True if the reader has ended.
    """

    def __init__(self) -> None:
        self._stream = sys.stdout
        self.closed_by_reader = False

    @property
    def stream(self) -> IO[str]:
        """This object, typed as a stream."""
        return cast(IO[str], self)

    def write(self, text: str) -> int:
        """Write a text, or discard it if the reader has ended; return its length."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._discard()
            return len(text)

    def flush(self) -> None:
        """Pass on what was written, or discard it if the reader has ended."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _discard(self) -> None:
        self.closed_by_reader = True
        discard_output(self._stream)


def discard_output(stream: IO[str]) -> None:
    """Redirect a stream to the null device, together with the text that is still in its buffer.

    Python flushes that buffer when it exits, and would report the closed pipe once more.
    """
    null_device = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_device, stream.fileno())
    os.close(null_device)
