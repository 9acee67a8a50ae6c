"""Test that the generated tables, lists and graphs of the documentation are up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "generate_docs.py"


def check() -> subprocess.CompletedProcess[str]:
    """Run the check in a process of its own, where no emulated device and no hidden Numba changes the lists."""
    return subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)


def test_generating_the_documentation_anew_changes_nothing():
    done = check()
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("page", "call"),
    [
        ("README.md", "figures.speed()"),
        ("README.md", "lists.core("),
        ("CONTRIBUTING.md", "lists.make_targets()"),
        ("docs/architecture.md", "imports.graph()"),
        ("docs/architecture.md", "lists.twins("),
        ("docs/commands.md", 'lists.options("train")'),
        ("docs/gradients.md", 'formulas.code("softmax")'),
        ("docs/pretraining.md", "curves.runs()"),
        ("docs/performance.md", "figures.steps()"),
        ("docs/performance.md", "figures.memory()"),
    ],
)
def test_a_page_generates_its_figures_and_lists(page: str, call: str):
    assert call in (ROOT / page).read_text(encoding="utf-8")
