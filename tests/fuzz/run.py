"""`make fuzz`: run many cases of every fuzz target, each batch in a process of its own with limits of time and memory.

python -m tests.fuzz.run                      10,000 cases of each target
python -m tests.fuzz.run config --cases 500   500 cases of one target
python -m tests.fuzz.run --seed 7             other cases

A process that is killed by a limit, or crashes, leaves the case that it was running in a file, whose name is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz.targets import TARGETS, run_case

SECONDS, WAITING_SECONDS = 20, 600  # of processor time, and of waiting, which a busy machine prolongs
MEMORY, BATCH = 2 << 30, 1000


def run_batch(name: str, cases: int, number: int, record: Path) -> None:
    """Run a batch in this process. It ends at the first fault, which Hypothesis makes as small as it can.

    Args:
        name: the target.
        cases: how many.
        number: the seed.
        record: is written before each case with the case, and at the end with the counts.
    """
    counts = {True: 0, False: 0}
    target = TARGETS[name]

    @seed(number)
    @settings(
        max_examples=cases, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.cases)
    def check(case: object) -> None:
        record.write_text(f"{sum(counts.values())}\n{case!r}", encoding="utf-8", errors="backslashreplace")
        with _limited_time():
            counts[run_case(target, case)] += 1

    check()
    record.write_text(json.dumps({"succeeded": counts[True], "refused": counts[False]}))


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    """End this process, with a traceback, after a time in this block; also in compiled code, or while it waits."""
    faulthandler.dump_traceback_later(WAITING_SECONDS, exit=True)
    if hasattr(signal, "setitimer"):  # Windows has only the limit above
        faulthandler.register(signal.SIGPROF, chain=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def _limit_memory() -> None:
    """Limit the address space of this process to what it has, and 2 GB more."""
    if sys.platform != "win32":
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _run_target(name: str, cases: int, first_seed: int, records: Path) -> bool:
    """Run all batches of a target in child processes; print the counts; return True if there was no fault."""
    total = {"succeeded": 0, "refused": 0}
    begun, faults = time.monotonic(), 0
    for number in range(-(-cases // BATCH)):
        record = records / f"{name}-{first_seed + number}.txt"
        size = min(BATCH, cases - number * BATCH)
        command = [
            sys.executable,
            "-m",
            "tests.fuzz.run",
            name,
            "--cases",
            str(size),
            "--seed",
            str(first_seed + number),
        ]
        done = subprocess.run([*command, "--record", str(record)], capture_output=True, text=True, errors="replace")
        if done.returncode == 0:
            for kind, count in json.loads(record.read_text()).items():
                total[kind] += count
            record.unlink()
        else:
            faults += 1
            print(
                f"{name}: a fault (exit status {done.returncode}); the last case is in {record}\n{done.stderr[-3000:]}",
                flush=True,
            )
    seconds = time.monotonic() - begun
    ran = total["succeeded"] + total["refused"]
    print(
        f"{name}: {ran:,} cases, {total['succeeded']:,} succeeded, {total['refused']:,} refused, {faults} batches with "
        f"a fault, {seconds:.0f} s",
        flush=True,
    )
    return not faults


def main() -> int:
    """Run the targets; return 1 if there was a fault."""
    parser = argparse.ArgumentParser(description="Feed every reader of files and the Python API with strange input.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"some of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--cases", type=int, default=10_000, metavar="N", help="cases of each target (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides the cases (default: 0)")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)  # given to the child processes
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; choose from {', '.join(TARGETS)}")
    if options.record is not None:
        _limit_memory()
        run_batch(options.targets[0], options.cases, options.seed, options.record)
        return 0
    records = Path(tempfile.mkdtemp(prefix="fuzz-"))
    names = options.targets or list(TARGETS)
    whole = [_run_target(name, options.cases, options.seed, records) for name in names]
    return 0 if all(whole) else 1


if __name__ == "__main__":
    sys.exit(main())
