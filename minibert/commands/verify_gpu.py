"""The command behind `scripts/verify_gpu.py`: run everything that needs a real GPU, and write a report."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from backends import get_backend
from minibert.commands.parser import Parser, add_option
from minibert.commands.process import FAILURE, SUCCESS, run_command
from minibert.errors import TrainingError
from minibert.files import write_text
from minibert.options import DEVICE
from minibert.training.log import METRICS_FILE, read_history

LOSS_TOLERANCE = 1e-4
"""The largest relative difference between the losses of the first steps on both devices. Rounding differs, and the
difference grows during training."""

COMPARED_STEPS = 20  # the first steps of both trainings
NEEDED_MODULES = ("pytest", "array_api_strict")
"""Modules that the tests need and a plain installation does not have."""

_TAIL = 4000  # characters at the end of a command's output that the report keeps


@dataclass(frozen=True)
class Part:
    """One command of the verification.

    Attributes:
        name: what the command shows.
        command: the program and its arguments.
    """

    name: str
    command: list[str]


@dataclass(frozen=True)
class PartResult:
    """The result of one command.

    Attributes:
        part: the command.
        passed: True if its exit status was 0.
        seconds: how long it ran.
        output: what it wrote to standard output and standard error.
    """

    part: Part
    passed: bool
    seconds: float
    output: str


def list_parts(device: str, output: Path, steps: int, tests: Sequence[str], quick: bool = False) -> list[Part]:
    """Return the commands of the verification, in order.

    Args:
        device: "cuda", "cuda:N", or "cpu" to try out the verification without a GPU.
        output: the folder for the two trainings.
        steps: the number of steps of each training.
        tests: arguments for pytest; empty for the whole suite.
        quick: True to measure speed only briefly, on the smallest model.
    """
    python = sys.executable
    training = ["scripts/train.py", "--steps", str(steps), "--dropout", "0.1", "--report-every", "1"]
    made = [
        Part("doctor", [python, "scripts/doctor.py", "--device", device, *(["--quick"] if quick else [])]),
        Part("tests", [python, "-m", "pytest", "-q", "--device", device, *tests]),
        Part("training on the device", [python, *training, "--device", device, "--output", str(output / "device")]),
        Part("training on the CPU", [python, *training, "--device", "cpu", "--output", str(output / "cpu")]),
    ]
    sizes = ["--batch-size", "2", "--seq-length", "16", "--steps", "2"] if quick else []
    benchmark = [python, "scripts/benchmark_gpu.py", "--device", device, *sizes, "--preset"]
    return made + [
        Part(f"benchmark of {preset}, with PyTorch if it is installed", [*benchmark, preset])
        for preset in (("tiny",) if quick else ("mini", "base"))
    ]


def check_modules() -> None:
    """Check that the modules that the tests need are installed.

    Raises:
        TrainingError: a module is missing; the message says how to install it.
    """
    if missing := [name for name in NEEDED_MODULES if importlib.util.find_spec(name) is None]:
        raise TrainingError(
            f"the tests need {' and '.join(missing)}: run pip install -e '.[cuda12,test,plot]' in Mini-BERT's folder "
            "('.[cuda13,test,plot]' if the driver serves CUDA 13)"
        )


def run_part(part: Part) -> PartResult:
    """Run a command; print its output at once, and keep it."""
    print(f"\n=== {part.name}: {' '.join(part.command[1:])}", flush=True)
    start = time.monotonic()
    lines = []
    with subprocess.Popen(part.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return PartResult(part, process.returncode == 0, time.monotonic() - start, "".join(lines))


def check_losses(output: Path) -> tuple[bool, str]:
    """Compare the first losses of both trainings.

    Args:
        output: the folder with both trainings.

    Returns:
        (True if the losses agree within `LOSS_TOLERANCE`, the finding in words).
    """
    losses = []
    for name in ("device", "cpu"):
        path = output / name / METRICS_FILE
        if not path.exists():
            return False, f"there is no {path}"
        entries = [entry for entry in read_history(path) if entry["kind"] == "train"]
        losses.append(np.array([entry["loss"] for entry in entries[:COMPARED_STEPS]]))
    if losses[0].shape != losses[1].shape or not losses[0].size:
        return False, "the two trainings did not report the same steps"
    error = float(np.abs(losses[0] / losses[1] - 1.0).max())
    return error <= LOSS_TOLERANCE, f"the relative difference of {losses[0].size} losses is at most {error:.1e}"


def format_report(description: str, results: Sequence[PartResult], losses: tuple[bool, str]) -> str:
    """Return the report in Markdown: a table of what passed, and the end of each command's output.

    Args:
        description: the device in words.
        results: the results of all parts.
        losses: the finding of `check_losses`.
    """
    rows = [(result.part.name, result.passed, f"{result.seconds:.0f} s") for result in results]
    rows.append((f"the same losses on both devices (tolerance {LOSS_TOLERANCE})", *losses))
    lines = "\n".join(f"| {name} | {'pass' if passed else 'FAIL'} | {detail} |" for name, passed, detail in rows)
    details = "\n".join(
        f"## {result.part.name}\n\n`{' '.join(result.part.command[1:])}`\n\n"
        f"```\n{result.output[-_TAIL:].strip()}\n```\n"
        for result in results
    )
    when = datetime.now().astimezone().isoformat(timespec="minutes")
    table = f"| part | result | detail |\n| --- | --- | --- |\n{lines}"
    return f"# Mini-BERT on {description}\n\n{when}\n\n{table}\n\n{details}"


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="verify_gpu.py",
        description="Run the doctor, all tests, a training on GPU and CPU, and benchmarks, and write a report.",
    )
    add_option(parser, DEVICE._replace(default="cuda"))
    parser.add_argument(
        "--steps", type=int, default=500, metavar="N", help="number of training steps on each device (default: 500)"
    )
    parser.add_argument("--quick", action="store_true", help="try all parts, but measure speed only briefly")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for the report and both trainings (default: in runs/)"
    )
    parser.add_argument("tests", nargs="*", help="arguments for pytest (default: the whole suite)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 if all passed, 1 if not, 2 if a GPU or a module is missing."""
    return run_command(lambda: _verify(arguments))


def _verify(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    check_modules()
    description = get_backend(options.device).description()  # without a GPU, this raises at once
    output = options.output or Path("runs") / f"verify-gpu-{datetime.now():%Y-%m-%d-%H-%M-%S}"
    output.mkdir(parents=True)
    parts = list_parts(options.device, output, options.steps, options.tests, options.quick)
    results = [run_part(part) for part in parts]
    losses_agree, finding = check_losses(output)
    write_text(output / "report.md", format_report(description, results, (losses_agree, finding)))
    passed = losses_agree and all(result.passed for result in results)
    print(f"\n{finding}\n{'all passed' if passed else 'FAILED'}; the report is {output / 'report.md'}")
    return SUCCESS if passed else FAILURE
