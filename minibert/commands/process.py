"""Run a command and end it: exit statuses, errors of one line, Ctrl-C.

This file imports no array library, so `embed`, `fill_mask` and `classify` read their arguments before loading one.
"""

from __future__ import annotations

import io
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from backends import BackendError
from minibert.commands.standard_output import discard_output
from minibert.errors import DataError, InferenceError, NonFiniteError, SavingError, TrainingError, brief

_LONGEST_ERROR = 2000  # characters; what is longer repeats a value that somebody else wrote

SUCCESS, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def run_command(command: Callable[[], int]) -> int:
    """Run a command, and print an error that the user can correct as one line on standard error.

    Warnings are printed as one line, too. Other exceptions are mistakes in Mini-BERT's code and keep their traceback.

    Args:
        command: does the work and returns the exit status.

    Returns:
        The exit status: the command's own, 2 for input that cannot be used, 1 for a training that failed or for too
        little memory, 130 if the command was interrupted.
    """

    def show_warning(message: Warning | str, *_: object, **__: object) -> None:
        tell(f"warning: {message}")

    _escape_unprintable_characters()
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            return command()
        except (NonFiniteError, SavingError) as error:
            return _fail(error, FAILURE)
        except (TrainingError, DataError, InferenceError, BackendError) as error:
            return _fail(error, BAD_INPUT)
        except MemoryError as error:  # CuPy's OutOfMemoryError is a MemoryError, too
            advice = (
                "use shorter sequences or smaller batches; in training, a larger --accumulate needs less memory, too"
            )
            return _fail(f"out of memory ({error}): {advice}", FAILURE)
        except OSError as error:  # such as a full disk, or a folder without permission to write
            where = f"{error.filename}: " if error.filename else ""
            return _fail(f"{where}{error.strerror or error}", BAD_INPUT)
        except KeyboardInterrupt:
            return _fail("interrupted", INTERRUPTED)


def exit_with(command: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit status.

    From then on Ctrl-C and SIGTERM are ignored: everything is done, and Python would print a traceback if they came
    while it cleans up.
    """
    try:
        status = command()
    except KeyboardInterrupt:  # between the end of `run_command` and here
        status = INTERRUPTED
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def _escape_unprintable_characters() -> None:
    """Let print escape characters that the terminal's encoding lacks, so that no print can end a long training."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _fail(error: object, status: int) -> int:
    tell("error: " + brief(" ".join(str(error).split()), _LONGEST_ERROR, quoted=False))
    return status


def tell(line: str) -> None:
    """Print a line on standard error, unless its reader has ended.

    Ctrl-C sends its signal to all programs of a pipeline: in `train.py 2>&1 | tee log` it also ends `tee`.
    """
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        discard_output(sys.stderr)


@contextmanager
def polite_interrupts(
    promise: str = "finishing this step and saving a checkpoint",
) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C end the work at the next good moment instead of at once.

    SIGTERM, which stopping a container sends, counts as Ctrl-C.

    Args:
        promise: what the program does after the first Ctrl-C; it is printed then.

    Yields:
        A function that returns True after the first Ctrl-C. Call it wherever the work can end.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C, or at one that comes before the function was first called.
    """
    asked = requested = False
    previous_handlers = {}

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
        previous_handlers[number] = signal.signal(number, request)
    try:
        yield interrupted
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
