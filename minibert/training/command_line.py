"""What all command lines share: one-line errors, exit statuses, Ctrl-C, readers that go away."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any, NoReturn, cast

from backends import BackendError
from backends.threads import set_threads
from minibert.data.errors import DataError
from minibert.training.errors import NonFiniteError, TrainingError

SUCCESS, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with status 2."""
        self.exit(BAD_INPUT, f"error: {message} (--help lists all options)\n")


class _SetThreads(argparse.Action):
    """Sets the number of threads while the command line is read, before anything computes."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object, option: str | None = None
    ) -> None:
        try:
            set_threads(int(str(values)))
        except (ValueError, BackendError) as error:
            parser.error(f"{option}: {error}")


def add_threads(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the option `--threads`."""
    parser.add_argument(
        "--threads",
        action=_SetThreads,
        metavar="N",
        dest=argparse.SUPPRESS,
        help="how many cores to compute with on a CPU (default: all); the same number gives the same bits",
    )


def run_command(command: Callable[[], int]) -> int:
    """Runs a command; turns what the user can mend into one line on standard error.

    Args:
        command: returns the exit status.

    Returns:
        The exit status: 2 for input that cannot be used, 1 for a training that failed, 130 if interrupted.
    """

    def show_warning(message: Warning | str, *_: object, **__: object) -> None:
        tell(f"warning: {message}")

    _let_everything_be_printed()
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            return command()
        except NonFiniteError as error:
            return _fail(error, FAILURE)
        except (TrainingError, DataError, BackendError) as error:
            return _fail(error, BAD_INPUT)
        except MemoryError as error:  # CuPy's is one, too
            advice = "use shorter sequences or smaller batches; in training, a larger --accumulate does it as well"
            return _fail(f"out of memory ({error}): {advice}", FAILURE)
        except OSError as error:  # a full disk, a folder that may not be written to
            where = f"{error.filename}: " if error.filename else ""
            return _fail(f"{where}{error.strerror or error}", BAD_INPUT)
        except KeyboardInterrupt:
            return _fail("interrupted", INTERRUPTED)


def _let_everything_be_printed() -> None:
    """Characters that a terminal's encoding lacks come out as escapes: hours of work must not die of a print."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _fail(error: object, status: int) -> int:
    tell("error: " + " ".join(str(error).split()))
    return status


def tell(line: str) -> None:
    """Prints a line on standard error, if anybody still reads it: Ctrl-C ends the `tee` of `2>&1 | tee log`, too."""
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        write_to_nowhere(sys.stderr)


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


@contextmanager
def polite_interrupts(
    promise: str = "finishing this step and saving a checkpoint",
) -> Iterator[Callable[[], bool]]:
    """Lets Ctrl-C (or a SIGTERM, as from a container that is stopped) end the work at a good moment.

    The value tells whether one has come. Before it is asked for the first time, and for the second Ctrl-C, the
    program ends at once.

    Args:
        promise: what is done about the first one; the person who sent it reads this.
    """
    asked = requested = False
    before = {}

    def interrupted() -> bool:
        nonlocal asked
        asked = True
        return requested

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested or not asked:
            raise KeyboardInterrupt
        requested = True
        tell(f"\n{promise} (again to stop at once)")

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, request)
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
