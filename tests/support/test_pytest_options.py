"""The options of tests/conftest.py: a missing GPU is an error, and `--without-numba` leaves out Numba's tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SOME_TESTS = str(TESTS / "model" / "test_config.py")
CPU_TESTS = TESTS / "backends" / "cpu"


def run_pytest(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest in a process of its own; without the emulated CuPy, which PYTHONPATH would bring."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    return subprocess.run(
        command, env={**inherited, **environment}, cwd=TESTS.parent, capture_output=True, text=True, check=False
    )


def test_asking_for_cuda_without_a_gpu_fails_with_a_reason():
    run = run_pytest("--device", "cuda", SOME_TESTS, CUDA_VISIBLE_DEVICES="")
    assert run.returncode != 0
    assert "--device cuda: CUDA was asked for" in run.stderr
    assert "passed" not in run.stdout


def test_an_unknown_device_fails_with_the_choice():
    run = run_pytest("--device", "tpu", SOME_TESTS)
    assert run.returncode != 0
    assert "use 'cpu', 'cuda' or 'cuda:N'" in run.stderr


def test_without_numba_no_test_of_its_kernels_is_collected():
    run = run_pytest("--without-numba", "--collect-only", str(CPU_TESTS))
    assert run.returncode == 0, run.stdout
    assert "tests/backends/cpu/test_buffers.py::" in run.stdout
    assert "tests/backends/cpu/kernels" not in run.stdout


def test_with_numba_the_tests_of_its_kernels_are_collected():
    pytest.importorskip("numba")
    run = run_pytest("--collect-only", str(CPU_TESTS))
    assert "cpu/kernels/test_refusals.py::" in run.stdout
