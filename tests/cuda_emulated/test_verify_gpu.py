"""`make verify-gpu` runs to its end on the emulated device, at tiny sizes, and shows one page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backends import get_backend
from minibert.commands.gpu_measurements import KernelTimer, main
from minibert.kernels import Kernels

ROOT = Path(__file__).parents[2]
FEW_TESTS = "tests/model/test_recorded_reference.py"


def test_every_part_passes_or_says_why_it_cannot_run(tmp_path: Path):
    run_on_it = [sys.executable, str(ROOT / "tests" / "support" / "emulated_cuda" / "run.py")]
    options = ["--device", "cuda", "--quick", "--minutes", "60", "--output", str(tmp_path / "out")]
    command = [*run_on_it, str(ROOT / "scripts" / "verify_gpu.py"), *options, FEW_TESTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    page = report[: report.index("\n## ")]
    assert page.startswith("# Mini-BERT on EMULATED CUDA device")
    assert page.strip() in done.stdout
    results = {cells[1].strip(): cells[2].strip() for line in page.splitlines()[6:] if (cells := line.split("|"))[1:]}
    ran = {name for name, result in results.items() if result == "pass"}
    assert {"facts", "doctor", "tests", "kernels, by CUDA events", "step times in float32"} <= ran
    assert "step times in TF32" in ran
    assert set(results.values()) <= {"pass", "not run"}
    assert "ms a step" in page
    assert len(page.splitlines()) < 60


def test_each_kernel_of_a_step_is_timed(capsys: pytest.CaptureFixture[str]):
    assert main(["kernels", "--device", "cuda", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("adamw_update: 2 launches, ") for line in lines)
    assert any(line.startswith("attention_softmax_backward: 2 launches, ") for line in lines)


def test_bytes_are_those_of_all_arrays_and_twice_those_that_change():
    backend = get_backend("cuda")
    total, values = (backend.xp.ones((1000,), dtype=backend.xp.float32) for _ in range(2))
    timer = KernelTimer(backend)
    Kernels(backend).add_scaled(total, values, 0.5)
    ((name, launches, milliseconds, rate),) = timer.collect()
    assert (name, launches) == ("add_scaled", 1)
    assert rate * milliseconds * 1e6 == pytest.approx(3 * 4000)
