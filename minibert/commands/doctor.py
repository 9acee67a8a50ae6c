"""The checks of scripts/doctor.py: is this machine fit to train on, and does its device compute what it should?"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from backends import Backend, get_backend
from backends.cuda.diagnosis import Finding, answers, diagnose
from minibert.commands.parser import Parser
from minibert.commands.process import FAILURE, SUCCESS, run_command
from minibert.config import MiniBERTConfig
from minibert.data.batch_source import Batch
from minibert.model import MiniBERT
from minibert.ops import Dropout, dropout_mask
from minibert.optimizer import AdamW
from minibert.random_bits import Stream, derive_key
from minibert.training.trainer import StepFigures, Trainer
from minibert.twin_check import TOLERANCE, compare_twins

LOSS_TOLERANCE = (
    1e-5  # relative, of one step in float32 with the same masks; TF32 keeps 10 bits and gets TF32_TOLERANCE instead
)
TF32_TOLERANCE = 1e-2
_REPORT = (
    "run it again with nothing else on the device; if it fails again, please report this table with the output of "
    "nvidia-smi, and train with --kernels reference until then"
)


def examine(device: str, *, size: int = 1) -> Iterator[Finding]:
    """Look at a device from the driver up to a training step.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        size: 1 measures speed properly; 0 only tries it, for tests.
    """
    if device != "cpu":
        findings = list(diagnose(device))
        yield from findings
        if not findings[-1].passed:
            return
    backend = get_backend(device)
    checks: list[tuple[str, Callable[[Backend], str], str]] = [
        ("memory bandwidth", lambda b: bandwidth(b, size), _REPORT),
        ("matrix products", lambda b: products(b, size), _REPORT),
        ("every twin computes its definition", twins, _REPORT),
        ("dropout masks are the CPU's, bit for bit", masks, _REPORT),
        ("a training step has the CPU's loss", step, _REPORT),
        ("two runs are the same", determinism, "MINIBERT_DETERMINISTIC=1 makes CUDA add embeddings in a fixed order"),
    ]
    for name, check, remedy in checks:
        try:
            yield Finding(name, True, check(backend))
        except Exception as error:
            yield Finding(name, False, f"{type(error).__name__}: {error}"[:400], remedy)


def alive(device: str) -> Iterator[Finding]:
    """Look only at whether a device answers, without taking memory or time from what runs on it.

    Args:
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        ValueError: any other name.
    """
    if re.fullmatch(r"cuda(:\d+)?", device):
        yield answers(device)
    else:
        yield Finding("the device answers", True, get_backend(device).description())


class CheckError(AssertionError):
    """A check that did not come out as it should."""


def _seconds(backend: Backend, work: Callable[[], Any], repetitions: int) -> float:
    """Of one repetition, the best of three; the first is thrown away."""
    work()
    best = math.inf
    for _ in range(3):
        backend.synchronize()
        start = time.perf_counter()
        for _ in range(repetitions):
            work()
        backend.synchronize()
        best = min(best, (time.perf_counter() - start) / repetitions)
    return best


def bandwidth(backend: Backend, size: int) -> str:
    """Reading and writing an array that no cache holds."""
    count = 64 << 20 if size else 1 << 16
    x = backend.xp.ones((count,), dtype=backend.xp.float32, device=backend.device)
    y = backend.xp.zeros_like(x)

    def copy() -> None:
        y[...] = x

    return f"{2 * 4 * count / _seconds(backend, copy, 3) / 1e9:,.0f} GB/s"


def products(backend: Backend, size: int) -> str:
    """A square float32 product, checked by its row sums."""
    n = 32 if not size else 2048 if backend.name == "cpu" else 8192
    x = backend.asarray(np.random.default_rng(0).standard_normal((n, n)), dtype=backend.xp.float32)
    seconds = _seconds(backend, lambda: x @ x, 3)
    host = backend.to_numpy(x).astype(np.float64)
    found, expected = backend.to_numpy(x @ x).astype(np.float64).sum(axis=1), host @ host.sum(axis=1)
    if np.abs(found - expected).max() > 1e-2 * np.abs(expected).max():
        raise CheckError("the product of two matrices is wrong")
    return f"{2 * n**3 / seconds / 1e9:,.0f} GFLOP/s in float32 at {n} x {n}"


def twins(backend: Backend) -> str:
    """All of them, on the operands of a training step."""
    errors = compare_twins(backend)
    tolerance = TF32_TOLERANCE if getattr(backend, "tf32", False) else TOLERANCE
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}  # NaN: never called
    if wrong:
        raise CheckError("; ".join(f"{name} is off by {error:.1e}" for name, error in wrong.items()))
    return f"{len(errors)} twins, the largest difference is {max(errors.values(), default=0.0):.1e}"


def masks(backend: Backend) -> str:
    """The mask as the model's own twin draws it."""
    from minibert.kernels import Kernels

    numbers = np.random.default_rng(0).integers(0, 2**32, 300, dtype=np.uint32)
    key = derive_key(2**60 + 1, Stream.DROPOUT, 5, 1, 2)
    host = get_backend("cpu")
    expected = dropout_mask(host, Dropout(0.1, key, numbers), 1000, host.dtype("float32")) != 0
    ones = backend.xp.ones((300, 1000), dtype=backend.xp.float32, device=backend.device)
    drawn = backend.to_numpy(Kernels(backend).dropout_forward(ones, Dropout(0.1, key, backend.asarray(numbers)))) != 0
    if not np.array_equal(drawn, expected):
        raise CheckError(f"{int((drawn != expected).sum())} of {expected.size} elements differ")
    return f"{expected.size:,} elements"


def _batch() -> Batch:
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 1000, (8, 64)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[3, 40:] = 0
    positions = np.flatnonzero((rng.random(ids.shape) < 0.15) & (mask == 1))
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        token_type_ids=None,
        prediction_positions=positions,
        labels=rng.integers(0, 1000, len(positions)).astype(np.int32),
        next_sentence_labels=rng.integers(0, 2, 8).astype(np.int32),
    )


def _steps(backend: Backend, kernels: str, number: int) -> tuple[StepFigures, np.ndarray[Any, Any]]:
    """Figures and parameters after some training steps with dropout."""
    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=1000), backend=backend, seed=1, kernels=kernels)
    trainer = Trainer(model, AdamW(model))
    for _ in range(number):
        trainer.step(_batch(), 1e-3)
    return trainer.collect(), backend.to_numpy(model.parameters.flat)


def step(backend: Backend) -> str:
    """The same seed, so the same parameters, masks and dropout, on both devices."""
    expected, _ = _steps(get_backend("cpu"), "reference", 3)
    found, _ = _steps(backend, "auto", 3)
    error = float(np.abs(found.losses / expected.losses - 1.0).max())
    tolerance = TF32_TOLERANCE if getattr(backend, "tf32", False) else LOSS_TOLERANCE
    if not error <= tolerance:
        raise CheckError(f"losses {found.losses} here, {expected.losses} by the definitions on the CPU")
    return f"3 steps, loss {found.losses[-1]:.6f}, relative difference {error:.1e}"


def determinism(backend: Backend) -> str:
    """Two runs of the same steps, bit for bit."""
    usual = getattr(backend, "deterministic", None)
    if usual is not None:
        backend.deterministic = True  # type: ignore[attr-defined]
    try:
        (_, first), (_, second) = (_steps(backend, "auto", 3) for _ in range(2))
    finally:
        if usual is not None:
            backend.deterministic = usual  # type: ignore[attr-defined]
    if not np.array_equal(first, second):
        raise CheckError(f"{int((first != second).sum())} of {first.size} parameters differ")
    asked = "" if usual is None else ", with MINIBERT_DETERMINISTIC=1"
    return f"{first.size:,} parameters after 3 steps, bit for bit{asked}"


def show(console: Console, device: str, findings: Iterator[Finding]) -> bool:
    """Print the table as it comes about, remedies below; whether all passed."""
    table = Table(title=f"Mini-BERT doctor: {device}", title_justify="left")
    for column in ("", "check", "found"):
        table.add_column(column, overflow="fold")
    failed = []
    for finding in findings:
        table.add_row("pass" if finding.passed else "FAIL", finding.name, finding.detail)
        if not finding.passed:
            failed.append(finding)
    console.print(table)
    for finding in failed:
        console.print(f"FAIL {finding.name}: {finding.remedy}", soft_wrap=True, markup=False)
    console.print("all checks passed" if not failed else f"{len(failed)} check(s) failed")
    return not failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Examines a device; the exit status is 0 if all is well, else 1."""

    def command() -> int:
        parser = Parser(
            prog="doctor.py",
            description="Check that a machine is fit to train on.",
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        parser.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda or cuda:N")
        parser.add_argument("--quick", action="store_true", help="only try the speed measurements")
        parser.add_argument(
            "--alive",
            action="store_true",
            help="only ask whether driver and device answer: takes no GPU memory, so it may run beside a training",
        )
        given = parser.parse_args(arguments)
        try:
            findings = alive(given.device) if given.alive else examine(given.device, size=0 if given.quick else 1)
            return SUCCESS if show(Console(), given.device, findings) else FAILURE
        except ValueError as error:  # an unknown device
            parser.error(str(error))

    return run_command(command)
