"""Return tables of figures: measured ones from docs/benchmark.json alone, and the estimate for GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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

SMALL, BASE = "L4 H256 V8192 B32 T128", "L12 H768 V30522 B8 T128"
"""The two sizes that the README shows."""

_COMPARED = {
    "PyTorch, tuned by hand; both in bfloat16": ("torch-bfloat16", OURS_BFLOAT16),
    "PyTorch, tuned by hand; both in float32": ("torch", OURS),
    "the same with its last layer pruned, as ours is; both in float32": ("torch-pruned", OURS),
    "`transformers`, as most people run it; both in float32": ("transformers", OURS),
    "`transformers` in float32; Mini-BERT in bfloat16, one option": ("transformers", OURS_BFLOAT16),
    "Mini-BERT in float32; Mini-BERT in bfloat16": (OURS, OURS_BFLOAT16),
}
"""The rows of the README's table: what is compared, the other party, and the Mini-BERT that its time is divided by."""


def _steps() -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = RECORD["step"]["steps"]
    return steps


def _result(size: str) -> dict[str, Any]:
    (result,) = (result for result in _steps() if result["name"] == size)
    return result


def speed() -> str:
    """Return how many times as long as Mini-BERT's step the steps of other parties take, at two sizes.

    A cell has the lowest ratio over all rounds, then the median and the highest.
    """

    def cell(party: str, ours: str, size: str) -> str:
        result = _result(size)
        measured = party in result["parties"]
        return lowest_first(ratios_to(ours, party, result), "{:.2f}") if measured else "not measured"

    rows = [(name, *(cell(party, ours, size) for size in (SMALL, BASE))) for name, (party, ours) in _COMPARED.items()]
    return table(("step time / Mini-BERT's", "small BERT", "BERT-base"), rows)


def own_figures() -> str:
    """Return a list of what stands behind `speed`: the time of Mini-BERT's own step, and the ratios of memory."""
    small, base = (_result(size)["parties"] for size in (SMALL, BASE))

    def times(party: str) -> str:
        return f"{1e3 * small[party]['seconds']:,.0f} ms and {1e3 * base[party]['seconds']:,.0f} ms"

    memory = [parties["torch"]["peak_bytes"] / parties[OURS]["peak_bytes"] for parties in (small, base)]
    return (
        f"- Mini-BERT's own step of the small BERT and of BERT-base: {times(OURS_BFLOAT16)} in bfloat16, {times(OURS)} "
        "in float32\n- Peak memory of PyTorch, tuned by hand, divided by Mini-BERT's: "
        f"{memory[0]:.1f} and {memory[1]:.1f}"
    )


def machine() -> str:
    """Return the machine of the record: processor, cores, the speed of its products, and the load before each run."""
    found = {name: record["machine"] for name, record in RECORD.items()}
    first = found["step"]
    best = max(result["sgemm_gflops"]["best"] for result in _steps())
    loads = ", ".join(f"{name} {machine['load_before']:.1f}" for name, machine in found.items())
    return (
        f"- {first['processor']}, {first['cores']} cores; its fastest float32 product in NumPy: {best:.0f} GFLOP/s\n"
        f"- load average before each run: {loads}"
    )


def software() -> str:
    """Return the libraries that computed the training steps of the record, one line for each combination."""
    found = dict.fromkeys(figures["description"] for result in _steps() for figures in result["parties"].values())
    return "\n".join(f"- {description}" for description in found)


def steps() -> str:
    """Return the table of the recorded training steps."""
    return steps_table(_steps())


def products() -> str:
    """Return the share that matrix products have in Mini-BERT's recorded steps in float32."""
    return products_table(_steps())


def losses() -> str:
    """Return how far the losses in bfloat16 were from those in float32."""
    return losses_table(_steps())


def operations(size: str = SMALL, party: str = OURS) -> str:
    """Return the time of every operation in Mini-BERT's step of one size, in float32 or in bfloat16."""
    return operations_table(_result(size), party)


def memory() -> str:
    """Return the peak memory of every party."""
    return memory_table(_steps())


def scatter() -> str:
    """Return the times of the ways to add rows into a table."""
    return scatter_table(RECORD["scatter"]["scatter"])


def scaling() -> str:
    """Return how time and memory grow with one size at a time."""
    return scaling_table(RECORD["scaling"]["scaling"])


def throughput() -> str:
    """Return the speed of sentence embeddings of many texts, with the cosine of each party."""
    return throughput_table(RECORD["throughput"]["throughput"])


def start() -> str:
    """Return the time of one sentence from a cold start, and what each party takes on the disk."""
    return start_table(RECORD["start"]["start"])


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
