"""Everything that only a GPU can show, in one command, with a report; for scripts/verify_gpu.py."""

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
from minibert.commands.parser import Parser
from minibert.commands.process import FAILURE, SUCCESS, run_command
from minibert.errors import TrainingError
from minibert.files import write_text
from minibert.training.log import METRICS_FILE, read_history

LOSS_TOLERANCE = 1e-4
"""Relative, of the losses of the first steps on both devices; rounding differs, and training makes it grow."""

COMPARED_STEPS = 20
_TAIL = 4000  # characters of a command's output that the report keeps


NEEDED_MODULES = ("pytest", "array_api_strict")
"""By the tests. A plain installation does not bring them."""


@dataclass(frozen=True)
class Part:
    """One command of the verification."""

    name: str
    command: list[str]


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    part: Part
    passed: bool
    seconds: float
    output: str


def parts(device: str, output: Path, steps: int, tests: Sequence[str], quick: bool = False) -> list[Part]:
    """The commands, in order.

    Args:
        device: "cuda", "cuda:N", or "cpu" to try the command itself.
        output: where the two runs go.
        steps: of each training.
        tests: what pytest is given; nothing for all.
        quick: speed is only tried, on the smallest model.
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
        Part(f"benchmark of {preset}, with PyTorch where it is", [*benchmark, preset])
        for preset in (("tiny",) if quick else ("mini", "base"))
    ]


def check_modules() -> None:
    """Refuse to begin where the tests could not run.

    Raises:
        TrainingError: a module is missing; the message says how to install it.
    """
    if missing := [name for name in NEEDED_MODULES if importlib.util.find_spec(name) is None]:
        raise TrainingError(
            f"the tests need {' and '.join(missing)}: pip install -e '.[cuda12,test,plot]' in Mini-BERT's folder "
            "(or '.[cuda13,test,plot]', whichever fits the driver)"
        )


def run(part: Part) -> Outcome:
    """Run a command; its output is shown as it comes about, and kept."""
    print(f"\n=== {part.name}: {' '.join(part.command[1:])}", flush=True)
    start = time.monotonic()
    lines = []
    with subprocess.Popen(part.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return Outcome(part, process.returncode == 0, time.monotonic() - start, "".join(lines))


def compare_losses(output: Path) -> tuple[bool, str]:
    """Whether the first losses of both trainings agree, and how closely."""
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
    return error <= LOSS_TOLERANCE, f"{losses[0].size} losses differ by at most {error:.1e} relative"


def report(description: str, outcomes: Sequence[Outcome], losses: tuple[bool, str]) -> str:
    """The report, in Markdown."""
    rows = [(o.part.name, o.passed, f"{o.seconds:.0f} s") for o in outcomes]
    rows.append((f"the same losses on both devices (tolerance {LOSS_TOLERANCE})", *losses))
    table = "\n".join(f"| {name} | {'pass' if passed else 'FAIL'} | {detail} |" for name, passed, detail in rows)
    details = "\n".join(
        f"## {o.part.name}\n\n`{' '.join(o.part.command[1:])}`\n\n```\n{o.output[-_TAIL:].strip()}\n```\n"
        for o in outcomes
    )
    when = datetime.now().astimezone().isoformat(timespec="minutes")
    return f"# Mini-BERT on {description}\n\n{when}\n\n| what | | |\n| --- | --- | --- |\n{table}\n\n{details}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Verifies a GPU; the exit status is 0 if all is well, 2 if there is no GPU, else 1."""

    def command() -> int:
        parser = Parser(prog="verify_gpu.py", description="Doctor, tests, training and benchmark on a GPU; a report.")
        parser.add_argument("--device", default="cuda", metavar="D", help="cuda (default) or cuda:N")
        parser.add_argument("--steps", type=int, default=500, metavar="N", help="of the training on each device")
        parser.add_argument("--quick", action="store_true", help="only try the command: no proper measurements")
        parser.add_argument("--output", type=Path, metavar="DIR", help="where report and runs go")
        parser.add_argument("tests", nargs="*", help="what to give to pytest instead of the whole suite")
        given = parser.parse_args(arguments)
        check_modules()
        description = get_backend(given.device).description()  # no GPU: an error at once
        output = given.output or Path("runs") / f"verify-gpu-{datetime.now():%Y-%m-%d-%H-%M-%S}"
        output.mkdir(parents=True)
        outcomes = [run(part) for part in parts(given.device, output, given.steps, given.tests, given.quick)]
        losses = compare_losses(output)
        write_text(output / "report.md", report(description, outcomes, losses))
        passed = all(outcome.passed for outcome in outcomes) and losses[0]
        print(f"\n{losses[1]}\n{'all passed' if passed else 'FAILED'}; the report is {output / 'report.md'}")
        return SUCCESS if passed else FAILURE

    return run_command(command)
