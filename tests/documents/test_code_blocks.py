"""Every code block of the README and of docs/ works: Python runs; commands exist and have the options shown."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, *languages: str) -> list[str]:
    """Return the code blocks of a page in these languages."""
    found = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [code for language, code in found if language in languages]


def commands(page: str) -> list[list[str]]:
    """Return the commands in the blocks of a page, as words: lines after a $, or all lines of a block without any $."""
    found = []
    for block in blocks(page, "console", "bash", "sh"):
        lines = block.replace("\\\n", " ").splitlines()
        if any(line.startswith("$ ") for line in lines):
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in lines:
            found += [shlex.split(command, comments=True) for command in re.split(r"&&|\|", line)]
    return [words for words in found if words]


@functools.cache
def options_of(script: str) -> set[str]:
    """Return the options of a script, as its --help lists them."""
    command = [sys.executable, str(ROOT / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", done.stdout))


with_python = pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
with_commands = pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])


@with_python
def test_the_python_blocks_of_a_page_run_in_their_order(page: str):
    namespace: dict[str, object] = {}
    for number, code in enumerate(blocks(page, "python"), start=1):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, f"{page}, Python block {number}", "exec"), namespace)


@with_commands
def test_the_commands_of_a_page_exist_and_have_these_options(page: str):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands(page):
        scripts = [word for word in words if word.startswith("scripts/") and word.endswith(".py")]
        if scripts:
            arguments = words[words.index(scripts[0]) + 1 :]
            given = {word.split("=")[0] for word in arguments if word.startswith("-")}
            assert given <= options_of(scripts[0]), f"{scripts[0]} lacks {given - options_of(scripts[0])}"
        elif words[0] == "make":
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words[1:] if "=" not in target)


def test_the_pages_have_blocks_of_both_kinds():
    assert len(blocks("README.md", "python")) == 1
    assert len(commands("README.md")) > 10
