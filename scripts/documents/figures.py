"""Return tables of figures: measured ones from docs/benchmark.json alone, and the estimate for GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.comparison import OURS, OURS_BFLOAT16
from benchmarks.report import (
    losses_table,
    lowest_first,
    memory_table,
    operations_table,
    pretraining_notes,
    pretraining_table,
    products_table,
    ratios_to,
    scaling_table,
    scatter_table,
    steps_table,
    table,
)
from benchmarks.report_embeddings import start_table, throughput_table

from documents.files import ROOT

RECORD: dict[str, Any] = json.loads((ROOT / "docs" / "benchmark.json").read_text(encoding="utf-8"))

SLOWER, FASTER = ("step, Zen 4", "step, Zen 4, another run"), ("step",)
"""The recorded runs of the two machines."""

SMALL, BASE = "L4 H256 V8192 B32 T128", "L12 H768 V30522 B8 T128"
"""The two sizes that the README shows."""

_PARTIES = {
    OURS: "Mini-BERT in float32",
    OURS_BFLOAT16: "Mini-BERT in bfloat16",
    "torch": "PyTorch, tuned by hand",
    "torch-pruned": "the same, with the last layer pruned as in Mini-BERT",
    "torch-bfloat16": "PyTorch, tuned by hand, in bfloat16",
    "transformers": "`transformers`, as most people run it",
}


def _steps(*runs: str) -> list[dict[str, Any]]:
    return [result for run in runs for result in RECORD[run]["steps"]]


def _results(runs: tuple[str, ...], size: str) -> list[dict[str, Any]]:
    return [result for result in _steps(*runs) if result["name"] == size]


def speed(reference: str = OURS) -> str:
    """Return how many times as long as Mini-BERT's step the step of each party takes: two sizes, two machines.

    A cell has the lowest ratio over all rounds of all runs, then the median and the highest.

    Args:
        reference: Mini-BERT in float32 or in bfloat16.
    """
    columns = [(size, runs) for size in (SMALL, BASE) for runs in (SLOWER, FASTER)]
    header = ["step time / Mini-BERT's" + (" in bfloat16" if reference == OURS_BFLOAT16 else "")]
    for size, runs in columns:
        name = "small BERT" if size == SMALL else "BERT-base"
        header.append(f"{name}, {'slower' if runs is SLOWER else 'faster'} machine")
    rows = []
    for party, name in _PARTIES.items():
        cells = []
        for size, runs in columns:
            found = [result for result in _results(runs, size) if {party, reference} <= set(result["parties"])]
            ratios = [ratio for result in found for ratio in ratios_to(reference, party, result)]
            cells.append(lowest_first(ratios, "{:.2f}") if ratios else "not measured")
        if party != reference and set(cells) != {"not measured"}:
            rows.append((name, *cells))
    return table(header, rows)


def own_figures() -> str:
    """Return a list of what stands behind `speed`: the time of Mini-BERT's own step, and the ratios of memory."""

    def both(figure: Callable[[dict[str, Any]], str]) -> str:
        cells = [figure(_results(runs, size)[0]["parties"]) for size in (SMALL, BASE) for runs in (SLOWER, FASTER)]
        return "small BERT {} (slower machine) and {} (faster machine), BERT-base {} and {}.".format(*cells)

    times = both(lambda parties: f"{1e3 * parties[OURS]['seconds']:,.0f} ms")
    memory = both(lambda parties: f"{parties['torch']['peak_bytes'] / parties[OURS]['peak_bytes']:.1f}")
    return f"- Mini-BERT's own step: {times}\n- Peak memory of PyTorch, tuned by hand, divided by Mini-BERT's: {memory}"


def machines() -> str:
    """Return the two machines: processor, cores, speed of matrix products, load before each run."""
    rows = []
    for name, runs in (("slower", SLOWER), ("faster", FASTER)):
        found = [RECORD[run]["machine"] for run in runs]
        best = max(result["sgemm_gflops"]["best"] for result in RECORD[runs[0]]["steps"])
        loads = ", ".join(f"{machine['load_before']:.1f}" for machine in found)
        rows.append((name, found[0]["processor"], found[0]["cores"], f"{best:.0f}", loads))
    return table(
        ("machine", "processor", "cores", "fastest float32 matrix product, GFLOP/s", "load average before each run"),
        rows,
    )


def software() -> str:
    """Return the libraries that computed the training steps of the record, one line for each combination."""
    found = dict.fromkeys(
        figures["description"]
        for run in (*FASTER, *SLOWER)
        for result in RECORD[run]["steps"]
        for figures in result["parties"].values()
    )
    return "\n".join(f"- {description}" for description in found)


def steps(*runs: str) -> str:
    """Return the table of training steps of some recorded runs."""
    return steps_table(_steps(*runs))


def products(run: str) -> str:
    """Return the share that matrix products have in Mini-BERT's steps of a recorded run."""
    return products_table(_steps(run))


def losses(run: str) -> str:
    """Return how far the losses in bfloat16 were from those in float32 in a recorded run."""
    return losses_table(_steps(run))


def operations(run: str, size: str = SMALL, party: str = OURS) -> str:
    """Return the time of every operation in Mini-BERT's step of one size, in float32 or in bfloat16."""
    (result,) = _results((run,), size)
    return operations_table(result, party)


def memory(run: str) -> str:
    """Return the peak memory of every party in a recorded run."""
    return memory_table(_steps(run))


def scatter() -> str:
    """Return the times of the ways to add rows into a table."""
    return scatter_table(RECORD["scatter"]["scatter"])


def scaling() -> str:
    """Return how time and memory grow with one size at a time."""
    return scaling_table(RECORD["scaling"]["scaling"])


def throughput(run: str = "throughput") -> str:
    """Return the speed of sentence embeddings of many texts in a recorded run, with the cosine of each party."""
    return throughput_table(RECORD[run]["throughput"])


def start(run: str = "start") -> str:
    """Return the time of one sentence from a cold start in a recorded run, and what each party takes on the disk."""
    return start_table(RECORD[run]["start"])


def pretraining() -> str:
    """Return the times from a text to a trained model, the losses, and which times each ratio compares."""
    result = RECORD["pretraining"]["pretraining"]
    return f"{pretraining_table(result)}\n\n{pretraining_notes(result)}"


def gpu_estimate() -> str:
    """Return what scripts/estimate_gpu_step.py prints; nothing in it was measured."""
    script = ROOT / "scripts" / "estimate_gpu_step.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.rstrip()
