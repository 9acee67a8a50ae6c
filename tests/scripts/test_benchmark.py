"""scripts/benchmark.py refuses an impossible request before it measures, loses no figure, and starts its workers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from benchmarks import crowded

from backends.cpu.threads import default_threads

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"
PATHS = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (SCRIPT.parent, SCRIPT.parents[1])))}


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def benchmark() -> ModuleType:
    """The script with measurements that take no time; `benchmark.measured` lists them."""
    module = load_script()
    module.measured = []

    def measure(arguments: Any) -> dict[str, Any]:
        module.measured.append(arguments.what)
        return {"steps": []}

    module.COMMANDS = dict.fromkeys(module.COMMANDS, measure)
    return module


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scatter", "--json", "nowhere/x.json"], "--json: there is no folder"),
        (["scatter", "--json", "."], "is no file"),
        (["step", "--chart", "nowhere/x.png"], "--chart: there is no folder"),
        (["step", "--chart", "x.doc"], "must be one of"),
        (["scatter", "--chart", "x.png"], "scatter draws no chart; these commands do: step, throughput, pretraining"),
        (["scatter", "--rounds", "0"], "--rounds and --steps must be at least 1"),
        (["throughput", "--texts", "0"], "--texts must be at least 1"),
        (["step", "--size", "Q4"], "'Q4' is none of L, H, V, B, T"),
        (["crowded", "--threads", "1"], "--threads must be at least 2"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
    ],
)
def test_an_impossible_request_fails_with_one_line_before_anything_is_measured(
    benchmark: ModuleType,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert benchmark.measured == []
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_a_chart_is_refused_before_anything_is_measured(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["step", "--chart", str(tmp_path / "x.png")])
    assert "pip install '.[plot]'" in capsys.readouterr().err
    assert benchmark.measured == []


def test_the_figures_are_written_before_the_chart_which_may_fail(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    benchmark.chart = fail
    figures, picture = tmp_path / "x.json", tmp_path / "x.png"
    assert benchmark.main(["step", "--json", str(figures), "--chart", str(picture)]) == 2
    assert capsys.readouterr().err == "error: No space left on device\n"
    assert json.loads(figures.read_text(encoding="utf-8"))["steps"] == []


def test_a_training_step_is_timed_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = tmp_path / "x.json"
    words = ["step", "--size", "L1,H64,V64,B1,T8", "--peers", "--rounds", "1", "--steps", "1", "--json", str(figures)]
    assert load_script().main(words) == 0
    (result,) = json.loads(figures.read_text(encoding="utf-8"))["steps"]
    assert result["parties"]["minibert"]["seconds"] > 0
    assert {"linear_forward", "bias_gelu_forward", "attention_backward", "adamw_update"} <= set(
        result["parties"]["minibert"]["operations"]
    )
    assert "| L1 H64 V64 B1 T8 | minibert |" in capsys.readouterr().out


def test_without_fast_products_the_step_leaves_bfloat16_out_and_says_so(capsys: pytest.CaptureFixture[str]):
    script = load_script()
    measured = []

    def compare(work: Any, others: list[str], rounds: int, peer_python: str) -> dict[str, Any]:
        measured.append(others)
        return {"parties": {}}

    script.get_backend = lambda device: SimpleNamespace(has_bfloat16=lambda: False)
    script.compare = compare
    script.steps_table = script.losses_table = script.products_table = script.memory_table = lambda results: ""
    assert script.main(["step", "--size", "L1,H64", "--peers"]) == 0
    assert measured == [[]]
    assert "minibert-bfloat16 is left out, because it is slow on this machine" in capsys.readouterr().out


@pytest.mark.skipif(default_threads() < 2, reason="this process may use one core only")
def test_many_threads_are_compared_with_one_while_all_cores_are_busy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    figures = tmp_path / "x.json"
    words = ["crowded", "--size", "L1,H64,V64,B1,T8", "--threads", "2", "--rounds", "2", "--steps", "1"]
    assert load_script().main([*words, "--json", str(figures)]) == 0
    (result,) = json.loads(figures.read_text(encoding="utf-8"))["crowded"]
    assert result["threads"] == 2
    assert len(result["ratios"]) == 2
    assert re.search(r"\| L1 H64 V64 B1 T8 \| 2, (tbb|workqueue) \|", capsys.readouterr().out)


def test_the_busy_loops_end_with_the_measurement_even_if_it_fails():
    loops = []

    def fail() -> None:
        with crowded.busy_cores(2) as started:
            loops.extend(started)
            assert [loop.poll() for loop in loops] == [None, None]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [loop.returncode is not None for loop in loops] == [True, True]


_KILLED = """
import os, signal
from benchmarks.crowded import busy_cores
with busy_cores(1) as loops:
    print(loops[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="the test looks for the process in /proc")
def test_the_busy_loops_end_when_the_measurement_is_killed():
    killed = subprocess.run([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True, check=False, env=PATHS)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while (status := Path(f"/proc/{int(killed.stdout)}/stat")).exists():
        with contextlib.suppress(OSError):
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                break  # ended, and nobody has asked for its exit status
        assert time.monotonic() < deadline, "the loop still runs"
        time.sleep(0.05)
