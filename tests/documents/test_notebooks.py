"""The lessons in notebooks/ run, and print what the reader sees in them.

Each lesson runs in an interpreter of its own, as it does for a learner: this file, called with a notebook,
executes its code cells in order, in one namespace.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
SOLUTION = re.compile(r"<details>(?:(?!</details>).)*?```python\n(.*?)```", re.DOTALL)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    """A notebook."""
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(path: Path) -> list[dict[str, Any]]:
    """Its code cells, in their order."""
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict[str, Any]) -> str:
    """What a cell printed when the notebook was saved."""
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def numbers(text: str) -> list[float]:
    """The numbers in a text."""
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def execute(path: Path) -> list[tuple[str, bool]]:
    """Run a notebook here: for each code cell, what it printed, and whether it drew a figure.

    The solutions of its exercises run, too, each in a copy of the names that the reader has at that point.
    """
    from matplotlib import pyplot

    results = []
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in read(path)["cells"]:
        source, name = "".join(cell["source"]), f"{path.name}, cell {cell['id']}"
        if cell["cell_type"] == "markdown":
            for solution in SOLUTION.findall(source):
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(solution, f"{name}, solution", "exec"), dict(namespace))
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(source, name, "exec"), namespace)
        results.append((out.getvalue(), bool(pyplot.get_fignums())))
        pyplot.close("all")
    return results


@each_notebook
def test_a_lesson_runs_and_prints_what_it_shows(path: Path):
    """Numbers may differ as far as another machine's rounding can carry them; the words must be the same."""
    # one thread: products as small as these only wait for a second one, for long when the machine is busy
    environment = {**os.environ, "MPLBACKEND": "Agg", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", __file__, str(path)]
    run = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for cell, (now, drawn) in zip(code_cells(path), json.loads(run.stdout), strict=True):
        shown = printed(cell)
        assert NUMBER.sub("#", now).split() == NUMBER.sub("#", shown).split(), f"cell {cell['id']} prints {now}"
        np.testing.assert_allclose(numbers(now), numbers(shown), rtol=0.05, atol=0.01, err_msg=f"cell {cell['id']}")
        assert drawn == any(output["output_type"] == "display_data" for output in cell["outputs"]), cell["id"]


@each_notebook
def test_a_lesson_was_saved_after_running_from_top_to_bottom(path: Path):
    notebook, cells = read(path), code_cells(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {(output["output_type"], output.get("name")) for cell in cells for output in cell["outputs"]}
    assert kinds <= {("stream", "stdout"), ("display_data", None)}  # no error, no warning
    assert path.stat().st_size < 300_000


@each_notebook
def test_a_lesson_has_an_aim_three_exercises_with_solutions_and_links_to_the_lines(path: Path):
    from documents import places  # not at the top: this file is a script, too

    texts = ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == "markdown"]
    text = "\n\n".join(texts)
    assert re.match(rf"# {int(path.stem[:2])} · .*\n\n\*\*Aim: [^*]+\.\*\*\n", texts[0])
    assert len(re.findall(r"^\*\*\d\. ", text, re.MULTILINE)) == text.count("<details><summary>Solution</summary>") == 3
    assert SOLUTION.findall(text), "at least one solution is code"
    assert "\n## Where it is in the code\n" in text
    assert len(places.LINK.findall(text)) >= 3
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        assert "://" in link or (FOLDER / link).exists(), link


def test_the_index_lists_every_lesson():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    assert re.findall(r"\]\((\w+\.ipynb)\)", index) == [path.name for path in NOTEBOOKS]


if __name__ == "__main__":
    print(json.dumps(execute(Path(sys.argv[1]))))
