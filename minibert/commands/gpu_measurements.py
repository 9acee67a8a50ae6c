"""Parts of `scripts/verify_gpu.py`, each a process of its own: facts, losses, the time of each kernel, one step.

    python -m minibert.commands.gpu_measurements kernels --device cuda

Lines that begin with "=> " are shown on the page of the report.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from backends import Backend, get_backend
from minibert.commands.device_checks import TF32_TOLERANCE, take_steps
from minibert.commands.process import FAILURE, SUCCESS, run_command
from minibert.commands.verify_gpu import FINDING, NOT_RUN
from minibert.config import MiniBERTConfig
from minibert.data.batch_source import Batch
from minibert.model import MiniBERT
from minibert.optimizer import AdamW
from minibert.training.trainer import Trainer

LOSS_TOLERANCE = 1e-4
"""The largest relative difference between the losses of 20 steps. Rounding differs, and the difference grows."""

COMPARED_STEPS = 20
PACKAGES = ("numpy", "cupy-cuda12x", "cupy-cuda13x", "array-api-compat", "torch", "transformers")
CHANGED = {
    "adamw_update": (0, 2, 3),
    "add_scaled": (0,),
    "attention_softmax_backward": (0,),
    "attention_softmax_forward": (0,),
}
"""Kernel -> the arguments that it reads and writes. Those of other kernels it does only one of both to."""


def show_facts(device: str, quick: bool) -> int:
    """Print what the machine is, and the versions of what computes."""
    backend = get_backend(device)
    print(f"{FINDING}{backend.description()}")
    versions = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    print(f"{FINDING}{', '.join(versions)}")
    if program := shutil.which("nvidia-smi"):
        print(subprocess.run([program], capture_output=True, text=True, check=False).stdout)
    return SUCCESS


def compare_losses(device: str, quick: bool) -> int:
    """Compare the losses of 20 training steps (with `quick`, of 3) with those of the definitions on the CPU."""
    backend, steps = get_backend(device), 3 if quick else COMPARED_STEPS
    expected, _ = take_steps(get_backend("cpu"), "reference", steps)
    found, _ = take_steps(backend, "auto", steps)
    for step, pair in enumerate(zip(found.losses, expected.losses, strict=True), start=1):
        print(f"step {step}: loss {pair[0]:.6f}, on the CPU {pair[1]:.6f}")
    error = float(np.abs(found.losses / expected.losses - 1.0).max())
    tolerance = TF32_TOLERANCE if getattr(backend, "tf32", False) else LOSS_TOLERANCE
    print(f"{FINDING}the relative difference of {steps} losses is at most {error:.1e} (allowed {tolerance:g})")
    return SUCCESS if error <= tolerance else FAILURE


def random_batch(config: MiniBERTConfig, sequences: int, length: int) -> Batch:
    """Return a batch of random tokens without padding; every seventh token (14%) is predicted."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, (sequences, length)).astype(np.int32)
    positions = np.arange(3, ids.size, 7)
    labels = rng.integers(0, config.vocab_size, len(positions)).astype(np.int32)
    return Batch(ids, None, None, positions, labels, None)


def _trainer_and_batch(backend: Backend, quick: bool) -> tuple[Trainer, Batch]:
    """Return a trainer and a batch: BERT-Base with 32 x 128 tokens, or with `quick` BERT-Tiny with 2 x 16."""
    config = MiniBERTConfig.preset("tiny", vocab_size=1000) if quick else MiniBERTConfig.preset("base")
    model = MiniBERT(config, backend=backend)
    return Trainer(model, AdamW(model)), random_batch(config, *((2, 16) if quick else (32, 128)))


def take_one_step(device: str, quick: bool) -> int:
    """Take a step of BERT-Tiny, for compute-sanitizer to watch."""
    trainer, batch = _trainer_and_batch(get_backend(device), quick=True)
    trainer.step(batch, 1e-4)
    print(f"{FINDING}loss {trainer.collect().losses[-1]:.4f}")
    return SUCCESS


class KernelTimer:
    """Times every launch of a kernel by CUDA events, without waiting in between.

    Args:
        backend: a CuPy backend, whose launches are timed from now on.
    """

    def __init__(self, backend: Any) -> None:
        self._cuda, self._array = backend.cupy.cuda, backend.cupy.ndarray
        self._launch: Callable[..., None] = backend.kernels.launch
        self._records: list[tuple[str, Any, Any, int]] = []
        backend.kernels.launch = self._timed

    def _timed(self, name: str, dtype: Any, grid: tuple[int, ...], block: tuple[int, ...], *rest: Any) -> None:
        start, end = self._cuda.Event(), self._cuda.Event()
        start.record()
        self._launch(name, dtype, grid, block, *rest)
        end.record()
        self._records.append((name, start, end, self._bytes(name, rest[0])))

    def _bytes(self, name: str, arguments: tuple[Any, ...]) -> int:
        """Return the bytes that a kernel moves if it reads and writes every number once."""
        arrays = [argument for argument in arguments if isinstance(argument, self._array)]
        if name == "embedding_forward":  # one row of each table for every row of the result
            tables = [array for array in arrays if array.ndim == 2][:-1]
            arrays = [arrays[-1]] * (len(tables) + 1)
        arrays += [arguments[place] for place in CHANGED.get(name, ())]
        return sum(int(array.nbytes) for array in arrays)

    def collect(self) -> list[tuple[str, int, float, float]]:
        """Wait for the device; return name, launches, milliseconds and GB/s of each kernel, the slowest first."""
        launches, moved, milliseconds = Counter[str](), Counter[str](), defaultdict[str, float](float)
        for name, start, end, size in self._records:
            end.synchronize()
            launches[name] += 1
            milliseconds[name] += self._cuda.get_elapsed_time(start, end)
            moved[name] += size
        self._records.clear()
        slowest = sorted(milliseconds.items(), key=lambda item: -item[1])
        return [(name, launches[name], time, moved[name] / max(time, 1e-6) / 1e6) for name, time in slowest]


def time_kernels(device: str, quick: bool) -> int:
    """Print the time and the bandwidth of each kernel in a training step of BERT-Base."""
    if not device.startswith("cuda"):
        print("the kernels are CUDA's")
        return NOT_RUN
    backend = get_backend(device)
    trainer, batch = _trainer_and_batch(backend, quick)
    for _ in range(2):  # compiles, and fills the memory pool
        trainer.step(batch, 1e-4)
    backend.synchronize()
    timer = KernelTimer(backend)
    trainer.step(batch, 1e-4)
    figures = timer.collect()
    for name, launches, time, rate in figures:
        print(f"{name}: {launches} launches, {time:.3f} ms, {rate:,.0f} GB/s")
    total, slowest = sum(time for _, _, time, _ in figures), ", ".join(name for name, *_ in figures[:3])
    print(f"{FINDING}{len(figures)} kernels take {total:.2f} ms of a step (products not counted); most: {slowest}")
    return SUCCESS


PARTS: dict[str, Callable[[str, bool], int]] = {
    "facts": show_facts,
    "losses": compare_losses,
    "kernels": time_kernels,
    "step": take_one_step,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; the figures mean nothing")
    given = parser.parse_args(arguments)
    return run_command(lambda: PARTS[given.part](given.device, given.quick))


if __name__ == "__main__":
    sys.exit(main())
