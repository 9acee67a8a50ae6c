"""Time Mini-BERT's training step with one thread and with many in turns: the worker of `benchmarks.crowded`."""

from __future__ import annotations

import json
import statistics
import sys
import time

import numba

from backends.cpu.threads import set_threads
from benchmarks.work import Work
from benchmarks.worker_minibert import make_step

_BLOCK = 5
"""How many steps are taken before the number of threads changes, so that other programs disturb both alike."""


def main() -> None:
    """Do the work that the command line describes, and print the figures as JSON.

    "one" and "many" are the median seconds of a step with one thread and with all of them; "layer" is the name of
    Numba's threading layer.
    """
    work = Work.from_json(sys.argv[1])
    seconds: dict[int, list[float]] = {1: [], work.threads: []}
    set_threads(work.threads)
    step, _, _ = make_step(work)
    for _ in range(work.warmup):
        step()
    while len(seconds[work.threads]) < work.steps:
        for threads, times in seconds.items():
            set_threads(threads)
            for _ in range(min(_BLOCK, work.steps - len(times))):
                start = time.perf_counter()
                step()
                times.append(time.perf_counter() - start)
    one, many = (statistics.median(times) for times in seconds.values())
    print(json.dumps({"one": one, "many": many, "layer": numba.threading_layer()}))


if __name__ == "__main__":
    main()
