"""Return the table of the reference curves, from docs/pretraining.json alone."""

from __future__ import annotations

import json

from benchmarks.report import table

from documents.files import ROOT


def runs() -> str:
    """Return the final losses: the range over the seeds of the default, and one line for each variant."""
    record = json.loads((ROOT / "docs" / "pretraining.json").read_text(encoding="utf-8"))
    default = [run["losses"] for run in record["runs"] if run["name"] == "default"]
    halfway = len(default[0]) // 2

    def span(place: int) -> str:
        values = sorted(losses[place] for losses in default)
        return f"{values[0]:.2f} to {values[-1]:.2f}"

    steps = record["steps"]
    rows = [(f"default, {len(default)} seeds", "", span(halfway - 1), span(-1))]
    rows += [
        (run["name"], f"`{run['options']}`", f"{run['losses'][halfway - 1]:.2f}", f"{run['losses'][-1]:.2f}")
        for run in record["runs"]
        if run["name"] != "default"
    ]
    (baseline,) = {run["baseline"] for run in record["runs"]}  # all runs are evaluated on the same tokens
    rows.append(("unigram baseline", "", f"{baseline:.2f}", f"{baseline:.2f}"))
    header = ("run", "options", f"loss after {steps // 2:,} steps (nats)", f"after {steps:,}")
    return f"{table(header, rows)}\n\nRecorded with Python {record['python']}, whose documentation is the corpus."
