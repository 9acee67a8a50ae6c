"""Compare Mini-BERT with its peers, which do the same work in PyTorch.

The parties take turns, each time in a fresh process. So other programs on the machine disturb all parties alike.
The result is the ratio within a round: the time of the peer divided by the time of Mini-BERT in the same round.
The median, the lowest and the highest ratio are reported. The seconds are only for orientation.
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

SCRIPTS = Path(__file__).parents[1]
OURS = "minibert"
OURS_BFLOAT16 = "minibert-bfloat16"
SAME_LOSS = {OURS_BFLOAT16: OURS, "torch-bfloat16": "torch"}
"""Parties that start from the parameters of another party and draw the same dropout, so that only their precision lets
their losses differ."""
HIDDEN_VARIABLES = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
"""Variables that no party inherits: the libraries of each party choose kernels and threads by themselves."""

_TINY = Work(layers=1, hidden=64, vocabulary=64, batch=1, length=8)
"""So little work that the peak memory is that of the party's libraries, the floor of every other figure."""

Result = dict[str, Any]


class WorkerError(RuntimeError):
    """A worker failed; the message has the last line that it wrote."""


def start_worker(
    python: str, module: str, *arguments: str, stderr: int | None = None, threads: int | None = None
) -> subprocess.Popen[str]:
    """Start a worker in a fresh process, in the folder scripts/, with an environment that favours no party.

    Args:
        python: the interpreter.
        module: a module of this package, e.g. "benchmarks.worker_torch".
        arguments: the worker's command line.
        stderr: as in `subprocess.Popen`.
        threads: of the tokenizers library; None for its default, one for each core.

    Returns:
        The process; its standard output is a pipe.
    """
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN_VARIABLES}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SCRIPTS.parent), os.environ.get("PYTHONPATH"))))
    if threads is not None:
        environment["RAYON_NUM_THREADS"] = str(threads)
    return subprocess.Popen(
        [python, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        cwd=SCRIPTS,
        env=environment,
    )


def run_worker(work: Work, peer_python: str) -> Result:
    """Do a piece of work in a fresh process.

    Args:
        work: what to do, and which party does it.
        peer_python: the interpreter that has PyTorch and transformers; the peers run in it.

    Returns:
        What the worker measured.

    Raises:
        WorkerError: the process failed.
    """
    if work.party.startswith(OURS):
        return run_module(work, sys.executable, "benchmarks.worker_minibert")
    return run_module(work, peer_python, "benchmarks.worker_torch")


def run_module(work: Work, python: str, module: str) -> Result:
    """Do a piece of work in a fresh process, by a module of this package, and return what it measured.

    Raises:
        WorkerError: the process failed.
    """
    return run_process([python, module, work.to_json()], f"{work.party} on {work.name}")


def run_process(words: Sequence[str], what: str, threads: int | None = None) -> Result:
    """Run a worker in a fresh process, and return the JSON object on its last line.

    Args:
        words: the interpreter, the module, and the arguments of the module.
        what: names the work in the message of an error.
        threads: as for `start_worker`.

    Raises:
        WorkerError: the process failed.
    """
    worker = start_worker(*words, stderr=subprocess.PIPE, threads=threads)
    output, errors = worker.communicate()
    if worker.returncode:
        last = errors.strip().splitlines()[-1:] or [f"no message, exit status {worker.returncode}"]
        raise WorkerError(f"{what} failed: {last[0]}")
    return json.loads(output.strip().splitlines()[-1])  # type: ignore[no-any-return]


@functools.cache  # the floor does not depend on the size
def _floor_bytes(party: str, dropout: float, threads: int, peer_python: str) -> int:
    """Return the peak memory of a party that has next to nothing to do."""
    work = dataclasses.replace(_TINY, party=party, dropout=dropout, threads=threads)
    return int(run_worker(work, peer_python)["peak_bytes"])


def compare(
    work: Work, others: Sequence[str], rounds: int, peer_python: str, say: Callable[[str], None] = print
) -> Result:
    """Compare Mini-BERT in float32 with other parties on one piece of work.

    Args:
        work: what to do.
        others: parties of `benchmarks.worker_torch`, and Mini-BERT in another precision.
        rounds: how many processes each party gets.
        peer_python: the interpreter that has PyTorch and transformers.
        say: is called with a line about every process.

    Returns:
        The size; for every party the median over the rounds of its median time, its peak memory, the floor of that,
        and its ratios to Mini-BERT in float32; and where the steps of Mini-BERT spend their time.

    Raises:
        WorkerError: a worker failed.
    """
    seconds: dict[str, list[float]] = {party: [] for party in (OURS, *others)}
    processor: dict[str, list[float]] = {party: [] for party in (OURS, *others)}
    last: dict[str, Result] = {}
    for number in range(rounds):
        order = (OURS, *others) if number % 2 == 0 else (*reversed(others), OURS)
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
    for party, figures in parties.items():
        if "operations" in last[party]:
            figures["operations"] = last[party]["operations"]
        if (reference := SAME_LOSS.get(party)) in last:
            figures["loss_difference"] = largest_difference(last[party]["losses"], last[reference]["losses"])
    ours = last[OURS]
    return {
        "name": work.name,
        "work": dataclasses.asdict(work),
        "parties": parties,
        "sgemm_gflops": ours["sgemm_gflops"],
        # in the last round: the time of the products alone, at NumPy's speed in the same process, over the step's time
        "product_share": ours["product_gflop"] / ours["sgemm_gflops"]["step"] / ours["median"],
    }


def largest_difference(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Return the largest absolute difference of two lists of losses, step by step."""
    return max(abs(one - other) for one, other in zip(losses, reference, strict=True))


def machine() -> dict[str, Any]:
    """Describe the processor, the cores that this process may use, the system and its load."""
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
