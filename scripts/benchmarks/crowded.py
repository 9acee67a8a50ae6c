"""Time a training step while other programs keep every core busy: many threads compared with one.

A program on each core runs an endless loop. Threads that spin while they wait then take time from each other and from
the thread they wait for, and a step can take many times as long as with one thread. Threads that sleep do not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from benchmarks.comparison import Result, machine, run_worker
from benchmarks.work import Work


@contextlib.contextmanager
def busy_cores(number: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run `number` endless loops beside the `with` block, each in a process of its own, and end them after it."""
    loops: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(number):
            loops.append(subprocess.Popen([sys.executable, "-c", "while True: pass"]))  # noqa: PERF401 # ended if one fails
        yield loops
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


def compare_crowded(works: Sequence[Work], rounds: int, say: Callable[[str], None] = print) -> list[Result]:
    """Compare the threads of each piece of work with one thread, in turns, while every core is busy.

    Args:
        works: what to do, each with at least two threads.
        rounds: how many processes each number of threads gets.
        say: is called with a line about every round.

    Returns:
        For each piece of work its name, its number of threads, the seconds of a step with one thread and with all
        (medians over the rounds of the median of each process), and the ratios within the rounds, all to one.

    Raises:
        WorkerError: a worker failed.
    """
    results = []
    with busy_cores(machine()["cores"]):
        for work in works:
            one, many = [], []
            for number in range(rounds):
                turns = [(one, 1), (many, work.threads)]
                for seconds, threads in turns if number % 2 == 0 else reversed(turns):
                    alone = dataclasses.replace(work, threads=threads)
                    seconds.append(run_worker(alone, sys.executable)["median"])
                say(
                    f"  {work.name}, round {number + 1}: 1 thread {one[-1]:.3f} s, "
                    f"{work.threads} threads {many[-1]:.3f} s"
                )
            results.append(
                {
                    "name": work.name,
                    "threads": work.threads,
                    "seconds_of_one": statistics.median(one),
                    "seconds": statistics.median(many),
                    "ratios": [ours / alone for ours, alone in zip(many, one, strict=True)],
                }
            )
    return results
