"""Write and read `metrics.jsonl`, the log of a run: one JSON object per line, readable while the run goes on.

The field "kind" says what a line is about:

    run         the first line: the settings, the model and the device of a new run
    train       mean loss and other figures of the steps since the line before
    evaluation  the figures of an evaluation
    resumed     the run goes on from a checkpoint; like "run", with the step of the checkpoint
    skipped     a step was left out: its number and why
    warning     the loss shows that the model learns nothing; the usual causes
    stopped     the run failed: at which step and why
    result      the last evaluation, time and memory of a finished run

A run that ended before its first checkpoint may be started again in the same folder. Then the file has another
"run" line, and the history of the run begins there.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import IO, Any

from minibert.errors import TrainingError
from minibert.files import lock_file

METRICS_FILE = "metrics.jsonl"

_RUN_LINE = '{"kind": "run"'  # how a line of the kind "run" begins

_NUMBERS = {
    "train": ("step", "loss"),
    "evaluation": ("step", "loss", "unigram_loss"),
    "resumed": ("step",),
}
"""The numbers that a line of a kind must have to count. The commands read these."""

_LOCK_ATTEMPTS, _SECONDS_BETWEEN_ATTEMPTS = 5, 0.02


class RunLog:
    """The log of a run, open for writing and locked against other processes.

    Windows and some network disks have no locks. There, nothing keeps two processes from writing to one log.

    Each line has left this process before `write` returns, so a crash of the process loses no line. The exception is a
    full disk: then the lines stay in memory, and every later `write` and `close` try again to write them all.

    Attributes:
        failure: why lines are waiting in memory; None if all lines are in the file.

    Args:
        path: the file; created if it does not exist. A last line that a crash cut short is removed.

    Raises:
        TrainingError: another process has the log open.
    """

    def __init__(self, path: Path) -> None:
        self.failure: str | None = None
        self._waiting = b""  # what is not in the file yet; may begin in the middle of a line
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the run
        try:
            _lock_patiently(self._file)
        except BlockingIOError:
            self._file.close()
            raise in_use_error(path.parent) from None
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)

    def write(self, kind: str, **fields: Any) -> None:
        """Add a line.

        Args:
            kind: see the top of this file.
            fields: everything else that the line says, ready for JSON.

        Raises:
            ValueError: a number is NaN or infinite; JSON has neither.
        """
        self._waiting += (json.dumps({"kind": kind, **fields}, allow_nan=False) + "\n").encode()
        self._write_waiting()

    def _write_waiting(self) -> None:
        """Write as much as the disk takes."""
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            self.failure = error.strerror or str(error)
        else:
            self.failure = None

    def close(self) -> None:
        """Try once more to write all lines, close the file, and release its lock."""
        self._write_waiting()
        self._file.close()


def in_use_error(folder: Path) -> TrainingError:
    """Return the error for an output folder in which another process is training."""
    return TrainingError(f"another process is training in {folder}: wait for its end, or give another --output")


def is_in_use(path: Path) -> bool | None:
    """Find out if a log is open in a `RunLog`, of this process or another.

    Args:
        path: the log; it need not exist.

    Returns:
        True or False; None if this system or disk has no locks and cannot tell.
    """
    try:
        with open(path, "rb") as file:
            return False if lock_file(file, shared=True) else None
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:  # not readable, for example
        return None


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a log as one history, without lines that later lines replace.

    If a run is cut off some steps after its checkpoint of step k, the resumed run takes the steps after k again. The
    file then has two lines for each of these steps; only the later line is returned. Lines before the last start are
    left out, too.

    Args:
        path: the log; a damaged line, and one cut short by a crash, are left out.

    Returns:
        One dict per line, oldest first. Each has a "kind", and the numbers that `_NUMBERS` promises for its kind.

    Raises:
        OSError: the file cannot be read.
    """
    history: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines():
        if (entry := _parse(line)) is None:
            continue
        if entry["kind"] == "run":
            history = []
        if entry["kind"] == "resumed":
            history = [earlier for earlier in history if earlier.get("step", 0) <= entry["step"]]
        history.append(entry)
    return history


def damaged_lines(path: Path) -> list[int]:
    """Return the numbers, from 1, of the lines that `read_history` leaves out; one cut short at the end is not named.

    Raises:
        OSError: the file cannot be read.
    """
    *lines, _ = path.read_bytes().split(b"\n")
    return [number for number, line in enumerate(lines, start=1) if _parse(line) is None]


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the fields of a line; None if it is damaged or cut short."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, or not UTF-8
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
        return None
    numbers = (entry.get(name) for name in _NUMBERS.get(entry["kind"], ()))
    return entry if all(isinstance(number, (int, float)) for number in numbers) else None


def read_run_history(folder: Path) -> list[dict[str, Any]] | None:
    """Read the history of the run in a folder.

    Returns:
        As `read_history`; empty if the run was killed before its first line. None if there is no log, or if it is not
        the log of a pretraining run.
    """
    path = folder / METRICS_FILE
    try:
        with open(path, "rb") as file:
            first = file.readline()
        first.decode()
        return read_history(path) if first == b"" or first.startswith(_RUN_LINE.encode()) else None
    except (OSError, UnicodeDecodeError):
        return None


def read_run_description(folder: Path) -> dict[str, Any]:
    """Read the "run" line of the run that was started last in a folder; {} if there is none or it is cut short."""
    try:
        with open(folder / METRICS_FILE, "rb") as file:
            *_, line = (line for line in file if line.startswith(_RUN_LINE.encode()))
    except (OSError, ValueError):  # no such file, or no such line
        return {}
    return _parse(line) or {}


def _lock_patiently(file: IO[bytes]) -> None:
    """Lock a file as `lock_file` does, but try again for a moment.

    `is_in_use` of another process holds a shared lock for some microseconds. It must not look like a run.
    """
    for _ in range(_LOCK_ATTEMPTS - 1):
        try:
            lock_file(file)
        except BlockingIOError:
            time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
        else:
            return
    lock_file(file)
