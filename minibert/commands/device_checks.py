"""Check that a device is ready for training and computes correctly: bandwidth, products, twins, dropout, steps."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from backends import Backend, BackendError, get_backend
from backends.cuda.diagnosis import Finding, answers, diagnose
from minibert.config import MiniBERTConfig
from minibert.data.batch_source import Batch
from minibert.kernels import Kernels
from minibert.model import MiniBERT
from minibert.ops import Dropout, dropout_mask
from minibert.optimizer import AdamW
from minibert.random_bits import Stream, derive_key
from minibert.training.trainer import StepFigures, Trainer
from minibert.twin_check import ONE_ROUNDING, TOLERANCE, compare_twins

LOSS_TOLERANCE = 1e-5
"""The largest relative difference of float32 losses between devices, with the same dropout masks."""

TF32_TOLERANCE = 1e-2
"""The largest relative difference with TF32, which keeps 10 bits of the operands of matrix products."""

_REPORT_IT = (
    "run it again with nothing else on the device; if it fails again, please report this table with the output of "
    "nvidia-smi, and train with --kernels reference until then"
)


class CheckError(AssertionError):
    """A device computed a wrong result."""


def check_device(device: str, *, quick: bool = False) -> Iterator[Finding]:
    """Check a device, from the driver to a training step.

    Args:
        device: a name that `get_backend` knows.
        quick: True to measure speed on tiny arrays, whose figures mean nothing.

    Yields:
        One finding for each check. The checks end early if the driver or CuPy does not work.

    Raises:
        ValueError: there is no such name.
    """
    if device.startswith("cuda"):
        findings = list(diagnose(device))
        yield from findings
        if not findings[-1].passed:
            return
    try:
        backend = get_backend(device)
    except BackendError as error:
        yield Finding("the device is there", False, str(error).split(". ")[0], str(error))
        return
    checks: list[tuple[str, Callable[[Backend], str], str]] = [
        ("memory bandwidth", lambda b: check_memory_bandwidth(b, quick=quick), _REPORT_IT),
        ("matrix products", lambda b: check_matrix_products(b, quick=quick), _REPORT_IT),
        ("every twin agrees with its definition", check_twins, _REPORT_IT),
        ("precisions in hardware", check_precisions, _REPORT_IT),
        ("dropout masks equal the CPU's, bit for bit", check_dropout_masks, _REPORT_IT),
        ("a training step has the CPU's loss", check_training_step, _REPORT_IT),
        ("two runs give the same bits", check_determinism, _REPORT_IT),
    ]
    for name, check, remedy in checks:
        try:
            yield Finding(name, True, check(backend))
        except Exception as error:
            yield Finding(name, False, f"{type(error).__name__}: {error}"[:400], remedy)


def check_alive(device: str) -> Iterator[Finding]:
    """Check only that a device answers. This takes no memory and almost no time from a training that runs on it.

    Args:
        device: a name that `get_backend` knows.

    Raises:
        ValueError: there is no such name.
    """
    if re.fullmatch(r"cuda(:\d+)?", device):
        yield answers(device)
        return
    try:
        yield Finding("the device answers", True, get_backend(device).description())
    except BackendError as error:
        yield Finding("the device answers", False, str(error).split(". ")[0], str(error))


def _seconds(backend: Backend, work: Callable[[], Any], repetitions: int) -> float:
    """Return the seconds of one repetition: the best of three measurements, after a first call that is not counted."""
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


def check_memory_bandwidth(backend: Backend, *, quick: bool) -> str:
    """Measure the bandwidth of copying an array that is too large for a cache; return it in words."""
    count = 1 << 16 if quick else 64 << 20
    x = backend.xp.ones((count,), dtype=backend.xp.float32, device=backend.device)
    y = backend.xp.zeros_like(x)

    def copy() -> None:
        y[...] = x

    return f"{2 * 4 * count / _seconds(backend, copy, 3) / 1e9:,.0f} GB/s"


def check_matrix_products(backend: Backend, *, quick: bool) -> str:
    """Check a square float32 product by its row sums; return its speed in words.

    Raises:
        CheckError: the product is wrong.
    """
    n = 32 if quick else 2048 if backend.name in ("cpu", "torch") else 8192
    x = backend.asarray(np.random.default_rng(0).standard_normal((n, n)), dtype=backend.xp.float32)
    seconds = _seconds(backend, lambda: x @ x, 3)
    host = backend.to_numpy(x).astype(np.float64)
    found, expected = backend.to_numpy(x @ x).astype(np.float64).sum(axis=1), host @ host.sum(axis=1)
    if np.abs(found - expected).max() > 1e-2 * np.abs(expected).max():
        raise CheckError("the product of two matrices is wrong")
    return f"{2 * n**3 / seconds / 1e9:,.0f} GFLOP/s in float32 at {n} x {n}"


def check_twins(backend: Backend) -> str:
    """Compare all twins with their definitions, on the operands of training steps.

    Raises:
        CheckError: some twins are wrong, or no step called them; the message names them.
    """
    errors = compare_twins(backend)
    tolerance = TF32_TOLERANCE if getattr(backend, "tf32", False) else TOLERANCE
    rounding = ONE_ROUNDING if backend.precision == "bfloat16" else tolerance
    wrong = {
        name: error
        for name, error in errors.items()
        if not error <= (rounding if name.startswith("attention") else tolerance)  # NaN: no step called this twin
    }
    if wrong:
        raise CheckError("; ".join(f"{name} is off by {error:.1e}" for name, error in wrong.items()))
    return f"{len(errors)} twins, the largest difference is {max(errors.values(), default=0.0):.1e}"


def check_precisions(backend: Backend) -> str:
    """Return the precisions in which matrix products are fast here; compare their twins with the definitions.

    Raises:
        CheckError: a twin is wrong in bfloat16 or in int8.
    """
    fast, slow = ["float32"], []
    for precision, check in (("bfloat16", check_twins), ("int8", _check_int8_product)):
        rounded = backend.with_precision(precision, "float32")
        if rounded.twins_have_precision:
            fast.append(f"{precision} ({check(rounded)})")
        else:
            slow.append(precision)
    return ", ".join(fast) + (f"; {' and '.join(slow)} only by the slow definitions" if slow else "")


def _check_int8_product(backend: Backend) -> str:
    """Compare the twin of a linear layer in int8 with its definition; return the difference in words.

    Raises:
        CheckError: the twin is wrong.
    """
    rng = np.random.default_rng(2)
    x, weight, bias = (
        backend.asarray(rng.standard_normal(shape), dtype=backend.xp.float32) for shape in ((200, 300), (100, 300), 100)
    )
    expected, found = (
        backend.to_numpy(Kernels(backend, choice).linear_forward(x, weight, bias)) for choice in ("reference", "auto")
    )
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise CheckError(f"linear_forward is off by {error:.1e} in int8")
    return f"the largest difference is {error:.1e}"


def check_dropout_masks(backend: Backend) -> str:
    """Compare the dropout masks of this device with the CPU's.

    Raises:
        CheckError: some elements differ.
    """
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
    """Return 8 sequences of 64 random tokens, one of them padded, with 15% of the tokens to predict."""
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


def take_steps(backend: Backend, kernels: str, number: int) -> tuple[StepFigures, np.ndarray[Any, Any]]:
    """Take some training steps with dropout; return their figures, and all parameters (P,) on the host."""
    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=1000), backend=backend, seed=1, kernels=kernels)
    trainer = Trainer(model, AdamW(model))
    for _ in range(number):
        trainer.step(_batch(), 1e-3)
    return trainer.collect(), backend.to_numpy(model.parameters.flat)


def check_training_step(backend: Backend) -> str:
    """Compare the losses of training steps with those of the definitions on the CPU.

    Both start from the same seed, and so from the same parameters, masks and dropout.

    Raises:
        CheckError: the losses differ by more than rounding does.
    """
    expected, _ = take_steps(get_backend("cpu"), "reference", 3)
    found, _ = take_steps(backend, "auto", 3)
    error = float(np.abs(found.losses / expected.losses - 1.0).max())
    tolerance = TF32_TOLERANCE if getattr(backend, "tf32", False) else LOSS_TOLERANCE
    if not error <= tolerance:
        raise CheckError(f"the losses are {found.losses}, but {expected.losses} by the definitions on the CPU")
    return f"3 steps, loss {found.losses[-1]:.6f}, relative difference {error:.1e}"


def check_determinism(backend: Backend) -> str:
    """Take the same training steps twice and compare the parameters, bit for bit.

    CUDA adds embeddings in a fixed order here, as with MINIBERT_DETERMINISTIC=1.

    Raises:
        CheckError: some parameters differ.
    """
    usual = getattr(backend, "deterministic", None)
    if usual is not None:
        backend.deterministic = True  # type: ignore[attr-defined]
    try:
        (_, first), (_, second) = (take_steps(backend, "auto", 3) for _ in range(2))
    finally:
        if usual is not None:
            backend.deterministic = usual  # type: ignore[attr-defined]
    if not np.array_equal(first, second):
        raise CheckError(f"{int((first != second).sum())} of {first.size} parameters differ")
    asked = "" if usual is None else ", with MINIBERT_DETERMINISTIC=1"
    return f"{first.size:,} parameters after 3 steps, bit for bit{asked}"
