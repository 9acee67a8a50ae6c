"""Time a training step while other programs keep every core busy: many threads compared with one.

A program on each core runs an endless loop. Threads that spin while they wait then take time from each other and from
the thread they wait for, and a step can take many times as long as with one thread. Threads that sleep do not.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from benchmarks.comparison import Result, machine, run_module
from benchmarks.work import Work

_LOOP = "import os\nwhile os.getppid() == {parent}: sum(range(100_000))"
"""An endless loop that also ends when the benchmark was killed."""


@contextlib.contextmanager
def busy_cores(number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run `number` endless loops beside the `with` block, each in a process of its own, and end them after it."""
    loops: list[subprocess.Popen[bytes]] = []
    try:
        loop = _LOOP.format(parent=os.getpid())
        for _ in range(number):
            loops += [subprocess.Popen([sys.executable, "-c", loop])]
        yield loops
    finally:
        for process in loops:
            process.kill()
        for process in loops:
            process.wait()


def compare_crowded(works: Sequence[Work], rounds: int, say: Callable[[str], None] = print) -> list[Result]:
    """Compare the threads of each piece of work with one thread, in turns, while every core is busy.

    Args:
        works: what to do, each with at least two threads.
        rounds: how many processes each piece of work gets. A process takes turns between one thread and all.
        say: is called with a line about every process.

    Returns:
        For each piece of work its name, its number of threads, the seconds of a step with one thread and with all
        (medians over the processes of their medians), the ratio within each process, all to one, and the name of
        Numba's threading layer.

    Raises:
        WorkerError: a worker failed.
    """
    results = []
    with busy_cores(machine()["cores"]):
        for work in works:
            measured = []
            for number in range(rounds):
                figures = run_module(work, sys.executable, "benchmarks.worker_crowded")
                measured.append(figures)
                say(
                    f"  {work.name}, round {number + 1}: 1 thread {figures['one']:.3f} s, "
                    f"{work.threads} threads {figures['many']:.3f} s"
                )
            results.append(
                {
                    "name": work.name,
                    "threads": work.threads,
                    "layer": measured[-1]["layer"],
                    "seconds_of_one": statistics.median(figures["one"] for figures in measured),
                    "seconds": statistics.median(figures["many"] for figures in measured),
                    "ratios": [figures["many"] / figures["one"] for figures in measured],
                }
            )
    return results
