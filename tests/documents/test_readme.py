"""Test that the README's example, links, scripts and make targets work as the pages say."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    """Call `--help` from another folder: it has a description, and a text for every option."""
    command = [sys.executable, str(ROOT / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    _, description, *_ = done.stdout.split("\n\n")
    assert len(description.split()) > 3, description
    bare = re.findall(r"^  (-\S+)(?: [A-Z{]\S*)*$(?!\n {8,})", done.stdout, re.MULTILINE)
    assert not bare, f"{script} says nothing of {bare}"


def test_every_make_target_that_the_readme_names_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z][a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
