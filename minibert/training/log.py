"""`metrics.jsonl`: what happened in a run, one JSON object per line, readable while it goes on.

The field "kind" tells the lines apart: "run" (the first line: what was started where), "train" (means since
the line before), "evaluation", "resumed", "stopped", "result". A run that ended before its first checkpoint and
was started again has another "run" where its new beginning is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, Any

from minibert.errors import TrainingError

if sys.platform != "win32":
    import fcntl

METRICS_FILE = "metrics.jsonl"

_RUN = '{"kind": "run"'  # how the line begins that describes a run


class MetricsLog:
    """Appends lines; each is on its way to the disk before the next step begins.

    Args:
        path: created if it is not there; a last line cut short by a crash is removed.

    Attributes:
        exclusive: whether it is certain that no other process writes there; not all systems and disks can tell.

    Raises:
        TrainingError: another process writes there.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        try:
            self.exclusive = _lock(self._file)
        except BlockingIOError:
            self._file.close()
            raise TrainingError(
                f"another process is training in {path.parent}: wait for its end, or give another --output"
            ) from None
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)

    def write(self, kind: str, **fields: Any) -> None:
        """Adds a line. NaN and infinity are no JSON: they are an error here, and never reach the file."""
        self._file.write(json.dumps({"kind": kind, **fields}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, as one history.

    A run that was resumed from step k did the steps after k twice if it had been cut off later than that; the
    first attempt is left out here (and stays in the file). So is all that precedes the last start.

    Raises:
        OSError: the file cannot be read.
    """
    history: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut short by a crash
            continue
        if entry["kind"] == "run":
            history = []
        if entry["kind"] == "resumed":
            history = [earlier for earlier in history if earlier.get("step", 0) <= entry["step"]]
        history.append(entry)
    return history


def read_run_description(folder: Path) -> dict[str, Any]:
    """The line that says what was started last, or nothing if the folder holds no run of ours."""
    try:
        with open(folder / METRICS_FILE, encoding="utf-8") as file:
            *_, line = (line for line in file if line.startswith(_RUN))
        entry = json.loads(line)
    except (OSError, ValueError):  # no such file, no such line, or one cut short
        return {}
    return entry if isinstance(entry, dict) else {}


def only_begun(folder: Path) -> bool:
    """Whether the metrics in a folder are of a run that, as they tell, neither finished nor was resumed."""
    try:
        content = (folder / METRICS_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    if not content.startswith(_RUN):  # empty: the run was killed before its first line, and wrote nothing else
        return not content and [path.name for path in folder.iterdir()] == [METRICS_FILE]
    return all(entry["kind"] not in ("resumed", "result") for entry in read_metrics(folder / METRICS_FILE))


def _lock(file: IO[str]) -> bool:
    """Locks a file for this process as long as it is open; False where that is not possible.

    Raises:
        BlockingIOError: another process has locked it.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network disks have no locks
        return False
    return True
