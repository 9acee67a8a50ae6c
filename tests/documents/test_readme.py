"""What the README shows is what one gets."""

from __future__ import annotations

import contextlib
import io
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.report import (
    memory_table,
    operations_table,
    products_table,
    scaling_table,
    scatter_table,
    steps_table,
)

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_verbatim_and_prints_what_the_readme_says():
    ((code, expected),) = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == expected


def test_every_python_block_of_the_readme_is_that_example():
    assert README.count("```python") == 1


PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_to_one(page: str):
    path = ROOT / page
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert "://" in link or (path.parent / link).exists(), link


SCRIPTS = sorted(set(re.findall(r"scripts/\w+\.py", README)))


def test_the_readme_names_scripts():
    assert "scripts/train.py" in SCRIPTS


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_that_the_readme_names_exists_and_explains_itself(script: str, tmp_path: Path):
    """From any folder; the help has a description, and a word on every option."""
    command = [sys.executable, str(ROOT / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    _, description, *_ = done.stdout.split("\n\n")
    assert len(description.split()) > 3, description
    bare = re.findall(r"^  (-\S+)(?: [A-Z{]\S*)*$(?!\n {8,})", done.stdout, re.MULTILINE)
    assert not bare, f"{script} says nothing of {bare}"


def test_every_make_target_that_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z][a-z-]+)", README)) - {"it"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


RECORD = json.loads((ROOT / "docs" / "benchmark.json").read_text(encoding="utf-8"))
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def _results(*runs: str) -> list[dict[str, Any]]:
    return [result for run in runs for result in RECORD[run]["steps"]]


def test_the_tables_of_the_performance_page_are_what_the_benchmark_printed():
    fast, slow = _results("step"), _results("step, Zen 4")
    printed = [
        steps_table(_results("step", "step, torch.compile", "step, no dropout")),
        *(text(slow) for text in (steps_table, products_table, memory_table)),
        products_table(fast),
        operations_table(fast[1]),
        scatter_table(RECORD["scatter"]["scatter"]),
        scaling_table(RECORD["scaling"]["scaling"]),
    ]
    for text in printed:
        assert text in PERFORMANCE, text
    for what in ("throughput", "start"):
        times = statistics.median(RECORD[what][what]["ratios"])
        assert f"{times:.1f} times as fast" in PERFORMANCE


def test_the_figures_of_the_readme_are_those_of_the_record():
    size, base = "L4 H256 V8192 B32 T128", "L12 H768 V30522 B8 T128"
    runs = {
        (run, result["name"]): result
        for run in ("step", "step, no dropout", "step, Zen 4")
        for result in RECORD[run]["steps"]
    }

    def times(run: str, name: str, party: str) -> str:
        return f"{statistics.median(runs[run, name]['parties'][party]['ratios']):.1f} times"

    section = README[README.index("## How fast") : README.index("## What is where")]
    assert re.findall(r"[0-9.]+ times", section) == [
        times("step", size, "torch"),
        times("step, no dropout", f"{size}, no dropout", "torch"),
        times("step", size, "torch-bfloat16"),
        times("step", size, "transformers"),
        times("step", base, "torch"),
        times("step, Zen 4", size, "torch"),
        times("step, Zen 4", size, "torch-pruned"),
        times("step, Zen 4", size, "torch-bfloat16"),
        times("step, Zen 4", size, "transformers"),
    ]
    assert f"{1e3 * runs['step', size]['parties']['minibert']['seconds']:.0f} ms" in section
    for run in ("step", "step, Zen 4"):
        assert f"{runs[run, size]['sgemm_gflops']['best']:.0f} GFLOP/s" in section
        memory = {party: figures["peak_bytes"] for party, figures in runs[run, size]["parties"].items()}
        assert memory["torch"] == pytest.approx(2 * memory["minibert"], rel=0.15)  # "twice the memory"
