"""The command behind `scripts/verify_gpu.py`: check and measure a GPU in ten minutes, and write a report of one page.

Every part is a process of its own with a limit of time. A part that fails, crashes or hangs does not stop the others.
What a part prints is written to a file at once, and the report is written anew before and after every part. So
whoever kills this command, or the machine, loses nothing that was done.

Only Python's library and what the tests need is required, so that this runs on a bare machine too.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from backends import get_backend
from minibert.commands.parser import Parser, add_option
from minibert.commands.process import FAILURE, SUCCESS, run_command
from minibert.errors import TrainingError
from minibert.files import write_text
from minibert.options import DEVICE

ROOT = Path(__file__).resolve().parents[2]
FINDING = "=> "  # the lines of a part's output that the page shows begin with this
NOT_RUN = 77  # the exit status of a part that cannot run here; its last line says why
NEEDED_MODULES = ("array_api_compat", "pytest", "array_api_strict")
"""Modules that the parts need and a bare machine may not have."""

TESTS = (
    "tests/ops/test_ops.py",
    "tests/ops/test_twins.py",
    "tests/model/test_model.py",
    "tests/model/test_gradients.py",
    "tests/model/test_optimizer.py",
    "tests/model/test_gradient_accumulator.py",
    "tests/model/test_infinities.py",
    "tests/model/test_critical_fixes.py",
    "tests/model/test_recorded_reference.py",
)
"""The tests whose result depends on the device."""

_ELSEWHERE = "not type_check and not demonstration"  # tests that compute nothing on the device
_MEASUREMENTS = "minibert.commands.gpu_measurements"
_TAIL = 4000  # characters at the end of a part's output that the report keeps
_USUAL_MINUTES = 10.0


@dataclass(frozen=True)
class Part:
    """One command of the verification.

    Attributes:
        name: what the command shows.
        command: the program and its arguments.
        limit: the most seconds that it may take in a verification of ten minutes.
        environment: variables that only this command gets.
    """

    name: str
    command: list[str]
    limit: float
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PartResult:
    """The result of one command.

    Attributes:
        part: the command.
        outcome: "pass", "FAIL", "FAIL (out of time)", "not run" or "running".
        seconds: how long it ran.
        output: what it wrote to standard output and standard error.
    """

    part: Part
    outcome: str
    seconds: float
    output: str

    @property
    def failed(self) -> bool:
        """True unless the part passed or cannot run here."""
        return self.outcome not in ("pass", "not run")

    def findings(self) -> list[str]:
        """Return what the page shows: the marked lines, or the last line where none is marked."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        marked = [line.removeprefix(FINDING) for line in lines if line.startswith(FINDING)]
        return marked if marked and not self.failed else [*marked, *lines[-1:]]


def list_parts(device: str, tests: Sequence[str] = (), quick: bool = False) -> list[Part]:
    """Return the commands of the verification, in order: the shortest and most important ones first.

    Args:
        device: "cuda" or "cuda:N"; "cpu" to try out the verification without a GPU.
        tests: arguments for pytest; empty for the tests that depend on the device.
        quick: True for tiny sizes and few steps, whose figures mean nothing.
    """
    python, on_device = sys.executable, ["--device", device]
    measure = [python, "-m", _MEASUREMENTS]
    sizes = ["--quick"] if quick else []
    steps = [python, str(ROOT / "scripts" / "benchmark_gpu.py"), *on_device, *sizes]
    a_step = [*measure, "step", *on_device]
    suite = [*(tests or TESTS), *([] if tests else ["-k", _ELSEWHERE])]
    sanitizer = shutil.which("compute-sanitizer")
    checked = {
        tool: [sanitizer, "--tool", tool, "--error-exitcode", "1", *a_step]
        if sanitizer
        else [python, "-c", f"print('compute-sanitizer is not installed'); raise SystemExit({NOT_RUN})"]
        for tool in ("memcheck", "racecheck")
    }
    return [
        Part("facts", [*measure, "facts", *on_device], 30),
        Part("doctor", [python, str(ROOT / "scripts" / "doctor.py"), *on_device, *sizes], 90),
        Part("20 steps have the CPU's losses", [*measure, "losses", *on_device, *sizes], 60),
        Part("step times in float32", [*steps, "--party", "minibert"], 90, {"CUPY_TF32": "0"}),
        Part("step times in TF32", [*steps, "--party", "minibert"], 60, {"CUPY_TF32": "1"}),
        Part("step times of PyTorch in bfloat16", [*steps, "--party", "torch"], 60),
        Part("kernels, by CUDA events", [*measure, "kernels", *on_device, *sizes], 45),
        Part("tests", [python, "-m", "pytest", "-q", *on_device, *suite], 240),
        Part("step times of PyTorch, compiled", [*steps, "--party", "torch-compiled"], 150),
        Part("memcheck on a step", checked["memcheck"], 60),
        Part("racecheck on a step", checked["racecheck"], 60),
    ]


def check_modules() -> None:
    """Check that the modules that the parts need are installed.

    Raises:
        TrainingError: a module is missing; the message says how to get it.
    """
    if missing := [name for name in NEEDED_MODULES if importlib.util.find_spec(name) is None]:
        raise TrainingError(
            f"the tests need {' and '.join(missing)}: run pip install -e '.[cuda12,test,plot]' in Mini-BERT's folder "
            "('.[cuda13,test,plot]' if the driver serves CUDA 13), or name a folder that holds them with --site"
        )


def run_part(part: Part, log: Path, limit: float, site: Path | None = None) -> PartResult:
    """Run a command. Print its output and write it to a file, line by line.

    Args:
        part: the command.
        log: the file for its output.
        limit: seconds after which it is ended, with all processes that it started.
        site: a folder with modules that are not installed, or None.
    """
    print(f"\n=== {part.name}: {' '.join(part.command[1:])}", flush=True)
    paths = [str(ROOT), *([str(site)] if site else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **part.environment, "PYTHONPATH": os.pathsep.join(paths)}
    start, lines, ended = time.monotonic(), [], threading.Event()
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            part.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            cwd=ROOT,
            start_new_session=True,  # so that all its processes can be ended together
        ) as process,
    ):

        def end() -> None:
            ended.set()
            _end_group(process)

        timer = threading.Timer(limit, end)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                file.write(line)
                file.flush()
                lines.append(line)
            process.wait()
        finally:
            timer.cancel()
            _end_group(process)  # after Ctrl-C, or what a part left running
    seconds = time.monotonic() - start
    outcome = {0: "pass", NOT_RUN: "not run"}.get(process.returncode, "FAIL")
    if ended.is_set():
        outcome = "FAIL (out of time)"
        lines.append(f"ended after {seconds:.0f} s, its limit\n")
    return PartResult(part, outcome, seconds, "".join(lines))


def _end_group(process: subprocess.Popen[str]) -> None:
    """End a part and the processes that it started, which share its process group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # all have ended


def format_page(description: str, results: Sequence[PartResult]) -> str:
    """Return the page in Markdown: what passed, and what was found.

    Args:
        description: the device in words.
        results: the results so far.
    """
    rows = []
    for result in results:
        found = "<br>".join(finding.replace("|", "\\|") for finding in result.findings())
        rows.append(f"| {result.part.name} | {result.outcome} | {result.seconds:.0f} s | {found} |")
    when = datetime.now().astimezone().isoformat(timespec="minutes")
    table = "\n".join(["| part | result | time | found |", "| --- | --- | --- | --- |", *rows])
    return f"# Mini-BERT on {description}\n\n{when}\n\n{table}\n"


def format_report(description: str, results: Sequence[PartResult]) -> str:
    """Return the page, and below it the end of each command's output."""
    details = "\n".join(
        f"## {result.part.name}\n\n`{' '.join(result.part.command[1:])}`\n\n"
        f"```\n{result.output[-_TAIL:].strip()}\n```\n"
        for result in results
    )
    return f"{format_page(description, results)}\n{details}"


def verify(device: str, parts: Sequence[Part], output: Path, minutes: float, site: Path | None = None) -> bool:
    """Run all parts, writing the report before and after each.

    Args:
        device: for the report.
        parts: the commands.
        output: a folder that exists, for the report and the output of every part.
        minutes: how long all parts may take together; the limit of each grows and shrinks with it.
        site: a folder with modules that are not installed, or None.

    Returns:
        True if no part failed.
    """
    description, start = _in_words(device), time.monotonic()
    report, results = output / "report.md", list[PartResult]()
    for number, part in enumerate(parts, start=1):
        left = 60 * minutes - (time.monotonic() - start)
        limit = min(left, part.limit * minutes / _USUAL_MINUTES)
        log = output / f"{number:02}-{re.sub(r'[^a-z0-9]+', '-', part.name.lower())}.txt"
        if left <= 0:
            results.append(PartResult(part, "not run", 0.0, f"the {minutes:g} minutes were over"))
            continue
        running = PartResult(part, "running", 0.0, f"its output is in {log.name}")
        write_text(report, format_report(description, [*results, running]))
        results.append(run_part(part, log, limit, site))
        write_text(report, format_report(description, results))
    write_text(report, format_report(description, results))
    print(f"\n{format_page(description, results)}\nThe report is {report}")
    return not any(result.failed for result in results)


def _in_words(device: str) -> str:
    """Return the device in words, without taking any of its memory for this process, which only waits.

    Raises:
        BackendError: CuPy, the driver, or the GPU is missing.
    """
    if device.startswith("cuda"):
        from backends.cuda.backend import gpu_in_words

        return gpu_in_words(device)
    return get_backend(device).description()


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="verify_gpu.py",
        description="Check and measure a GPU: doctor, losses, step times beside PyTorch's, kernels, tests, sanitizers. "
        "Writes a report of one page, which holds what was done even if the command is killed.",
    )
    add_option(parser, DEVICE._replace(default="cuda"))
    parser.add_argument(
        "--minutes", type=float, default=_USUAL_MINUTES, metavar="M", help="how long it may take (default: 10)"
    )
    parser.add_argument("--quick", action="store_true", help="try all parts at tiny sizes; the figures mean nothing")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for the report and all output (default: in runs/)",
    )
    parser.add_argument(
        "--site", type=Path, metavar="DIR", help="folder with modules that are not installed, such as array_api_compat"
    )
    parser.add_argument("tests", nargs="*", help="arguments for pytest (default: the tests that depend on the device)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 if no part failed, 1 if one did, 2 if something is missing."""
    return run_command(lambda: _verify(arguments))


def _verify(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    if not options.minutes > 0:
        raise TrainingError(f"--minutes must be above 0, not {options.minutes}")
    if options.device.startswith("torch"):
        raise TrainingError(
            f"--device {options.device}: it checks CuPy's path; give cuda, cuda:N or cpu (PyTorch's arrays are "
            "checked by pytest --device torch)"
        )
    site = options.site.resolve() if options.site else None
    if site is not None:
        if not site.is_dir():
            raise TrainingError(f"--site: there is no folder {site}")
        sys.path.append(str(site))
    check_modules()
    _in_words(options.device)  # without a GPU, this raises at once
    output = (options.output or Path("runs") / f"verify-gpu-{datetime.now():%Y-%m-%d-%H-%M-%S}").resolve()
    output.mkdir(parents=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the part that runs, as Ctrl-C does
    parts = list_parts(options.device, options.tests, options.quick)
    return SUCCESS if verify(options.device, parts, output, options.minutes, site) else FAILURE
