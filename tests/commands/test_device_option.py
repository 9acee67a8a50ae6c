"""`pytest --device cuda` never passes for want of a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOME_TESTS = str(Path(__file__).parents[1] / "model" / "test_config.py")


def test_asking_for_cuda_without_a_gpu_fails_with_a_reason():
    without_emulation = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--device",
            "cuda",
            "-q",
            SOME_TESTS,
        ],
        env={**without_emulation, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "--device cuda: CUDA was asked for" in run.stderr
    assert "passed" not in run.stdout


def test_an_unknown_device_fails_with_the_choice():
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--device",
            "tpu",
            "-q",
            SOME_TESTS,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "use 'cpu', 'cuda' or 'cuda:N'" in run.stderr
