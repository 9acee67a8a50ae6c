"""What the README shows is what one gets."""

from __future__ import annotations

import contextlib
import io
import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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


def test_every_script_that_the_readme_names_exists_and_explains_itself():
    named = set(re.findall(r"scripts/\w+\.py", README))
    assert named
    for script in named:
        assert (ROOT / script).exists(), script


def test_every_make_target_that_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z][a-z-]+)", README)) - {"it"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_figures_of_the_performance_page_are_those_of_the_record():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    record = json.loads((ROOT / "docs" / "benchmark.json").read_text(encoding="utf-8"))
    ratios = [
        (result["name"], party["ratios"])
        for run in ("step", "step, torch.compile")
        for result in record[run]["steps"]
        for name, party in result["parties"].items()
        if name != "minibert"
    ]
    assert len(ratios) > 15
    for size, values in ratios:
        cell = f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        assert re.search(rf"^\| {re.escape(size)} \| [^|]+ \| {re.escape(cell)} \|", page, re.MULTILINE), (size, cell)
    for quantity, results in record["scaling"]["scaling"].items():
        for result in results:
            row = rf"^\| {quantity} \| {result['value']} \| {1e3 * result['seconds']:.0f} \|"
            assert re.search(row, page, re.MULTILINE), row
    for what, digits in (("throughput", 1), ("start", 1)):
        times = statistics.median(record[what][what]["ratios"])
        assert f"{times:.{digits}f} times as fast" in page
