"""Parties take turns, each time in a fresh process, so that all meet the same weather on a shared machine.

What is compared is ratios within a round: the peer's time over Mini-BERT's of the same round. Their median and
their spread (lowest and highest) are reported; seconds are for orientation.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.work import Work

ROOT = Path(__file__).parents[2]
OURS = "minibert"
_HIDDEN_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
"""Not passed on to any party: each shall choose the kernels for this processor by itself."""

_TINY = Work(layers=1, hidden=64, vocabulary=64, batch=1, length=8)
"""Its peak memory is what the party's libraries take: the floor under every other figure."""

Result = dict[str, Any]


class WorkerError(RuntimeError):
    """A worker failed; the message has its last words."""


def neutral_environment() -> dict[str, str]:
    """This process's environment without what would tune one party's libraries."""
    return {name: value for name, value in os.environ.items() if name not in _HIDDEN_VARIABLES}


def run_worker(work: Work, peer_python: str) -> Result:
    """Do a piece of work in a fresh process.

    Args:
        work: what, and by which party.
        peer_python: the interpreter that has PyTorch and transformers, for the peers.

    Raises:
        WorkerError: the process failed.
    """
    ours = work.party.startswith(OURS)
    module = "benchmarks.worker_minibert" if ours else "benchmarks.worker_torch"
    environment = neutral_environment()
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable if ours else peer_python, "-m", module, work.to_json()],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "scripts",
        env=environment,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise WorkerError(f"{work.party} failed on {work.name}: {last[0]}")
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


@functools.cache  # it does not depend on the size
def _floor_bytes(party: str, dropout: float, threads: int, peer_python: str) -> int:
    """Peak memory of a party that has next to nothing to do."""
    work = dataclasses.replace(_TINY, party=party, dropout=dropout, threads=threads)
    return int(run_worker(work, peer_python)["peak_bytes"])


def compare(
    work: Work, peers: Sequence[str], rounds: int, peer_python: str, say: Callable[[str], None] = print
) -> Result:
    """Mini-BERT and its peers on one piece of work.

    Returns:
        The size, and per party the median of the rounds' medians, peak memory, its floor, and the ratios to Mini-BERT.

    Raises:
        WorkerError: a worker failed.
    """
    seconds: dict[str, list[float]] = {party: [] for party in (OURS, *peers)}
    processor: dict[str, list[float]] = {party: [] for party in (OURS, *peers)}
    last: dict[str, Result] = {}
    for number in range(rounds):
        order = (OURS, *peers) if number % 2 == 0 else (*reversed(peers), OURS)
        for party in order:
            last[party] = run_worker(dataclasses.replace(work, party=party), peer_python)
            seconds[party].append(last[party]["median"])
            processor[party].append(last[party]["processor"])
            say(f"  {work.name}, round {number + 1}: {party} {seconds[party][-1]:.3f} s")
    parties = {
        party: {
            "seconds": statistics.median(seconds[party]),
            "tokens_per_second": work.tokens / statistics.median(seconds[party]),
            "peak_bytes": last[party]["peak_bytes"],
            "floor_bytes": _floor_bytes(party, work.dropout, work.threads, peer_python),
            "ratios": [theirs / ours for theirs, ours in zip(seconds[party], seconds[OURS], strict=True)],
            "processor_ratios": [a / b for a, b in zip(processor[party], processor[OURS], strict=True)],
            "gflops": last[party]["product_gflop"] / statistics.median(seconds[party]),
            "first_step": last[party]["first"],
            "description": last[party]["description"],
        }
        for party in seconds
    }
    ours = last[OURS]
    return {
        "name": work.name,
        "work": dataclasses.asdict(work),
        "parties": parties,
        "operations": ours["operations"],
        "sgemm_gflops": ours["sgemm_gflops"],
        # of the last round: its step against the speed that matrix products had in the same process
        "product_share": ours["product_gflop"] / ours["sgemm_gflops"]["step"] / ours["median"],
    }


def machine() -> dict[str, Any]:
    """Processor, cores and system."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        about = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        processor = about.get("model name", processor)
        if "cpu family" in about:  # virtual machines often hide the generation from the name
            processor += f" (family {about['cpu family']}, model {about['model']})"
    except OSError:  # not Linux
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"processor": processor, "cores": cores, "system": platform.platform(), "load_before": load}
