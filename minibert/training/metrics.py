"""`metrics.jsonl`: what happened in a run, one JSON object per line, readable while it goes on.

The field "kind" tells the lines apart: "run" (the first line: what was started where), "train" (means since
the line before), "evaluation", "resumed", "stopped", "result".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends lines; each is on its way to the disk before the next step begins.

    Args:
        path: created if it is not there; a last line cut short by a crash is removed.
    """

    def __init__(self, path: Path) -> None:
        if path.exists():
            content = path.read_bytes()
            if content and not content.endswith(b"\n"):
                path.write_bytes(content[: content.rfind(b"\n") + 1])
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

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
    first attempt is left out here (and stays in the file).

    Raises:
        OSError: the file cannot be read.
    """
    history: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut short by a crash
            continue
        if entry["kind"] == "resumed":
            history = [earlier for earlier in history if earlier.get("step", 0) <= entry["step"]]
        history.append(entry)
    return history


def read_run_description(folder: Path) -> dict[str, Any]:
    """The first line of a run's metrics, or nothing if the folder holds no run of ours."""
    try:
        with open(folder / METRICS_FILE, encoding="utf-8") as file:
            entry = json.loads(file.readline())
    except (OSError, ValueError):
        return {}
    return entry if isinstance(entry, dict) and entry.get("kind") == "run" else {}
