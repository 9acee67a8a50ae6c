"""scripts/benchmark.py: what would spoil its result is said before it measures, and no figure is lost."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with measurements that take no time; `benchmark.measured` lists them."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # it puts the project there
    spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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
        (["scatter", "--chart", "x.png"], "only step draws a chart, not scatter"),
        (["scatter", "--rounds", "0"], "--rounds and --steps must be at least 1"),
        (["step", "--size", "Q4"], "'Q4' is none of L, H, V, B, T"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_measured(
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
