"""How a command ends: exit statuses, one-line errors, Ctrl-C."""

from __future__ import annotations

import io
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from backends import BackendError
from minibert.commands.pipes import write_to_nowhere
from minibert.errors import DataError, NonFiniteError, TrainingError

SUCCESS, FAILURE, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


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
