"""Test that the routes in docs/architecture.md name the files that a batch and a resume really pass."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
from documents import routes

from minibert.commands import train
from minibert.options import flag
from tests.support.small_run import SMALL, write_text

ROOT = Path(__file__).parents[2]
OF_A_BATCH = ("minibert/data/", "minibert/ops/", "minibert/training/")
NOT_OF_A_BATCH = {  # what a training does besides: it begins, tells, measures and saves
    *("minibert/training/" + name + ".py" for name in ("checkpoint", "display", "evaluation", "log", "output_folder")),
    *("minibert/training/" + name + ".py" for name in ("loss_check", "provenance", "saver", "session", "settings")),
}


def command_line(output: Path, **changes: object) -> list[str]:
    values = {"output": output, **changes}
    return [str(word) for name, value in values.items() for word in (flag(name), value)]


def traced_files(arguments: list[str]) -> set[str]:
    """Run the command; return the files of minibert/ in which a function was called."""
    seen: set[str] = set()

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_name != "<module>":
            seen.add(frame.f_code.co_filename)

    sys.setprofile(note)
    threading.setprofile(note)  # batches are prepared in a thread
    try:
        assert train.main(arguments) == 0
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    root = f"{ROOT}/"
    return {name.removeprefix(root) for name in seen if name.startswith(root + "minibert/")}


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    folder = tmp_path_factory.mktemp("routes")
    corpus = write_text(folder / "animals.txt")
    values = {**SMALL, "corpus": corpus, "kernels": "reference", "dropout": 0.1}
    output = folder / "run"
    begun = traced_files(command_line(output, **{**values, "steps": 2}))
    resumed = traced_files([*command_line(output, steps=3), "--resume"])
    return {"batch": begun, "resume": resumed}


def test_every_file_on_the_way_of_a_batch_takes_part_in_a_training(traces: dict[str, set[str]]):
    data_only = {"minibert/cache.py"}  # dataclasses without functions of their own
    assert set(routes.BATCH) - data_only <= traces["batch"]


def test_no_file_of_data_ops_or_training_is_left_out(traces: dict[str, set[str]]):
    passed = {name for name in traces["batch"] if name.startswith(OF_A_BATCH)}
    assert passed - NOT_OF_A_BATCH <= {*routes.BATCH, *routes.SIDE_ROADS}


def test_every_file_on_the_way_of_a_resume_takes_part_in_one(traces: dict[str, set[str]]):
    assert set(routes.RESUME) - {"scripts/train.py"} <= traces["resume"]


def test_the_routes_are_short():
    assert len(routes.BATCH) <= 25
    assert len(routes.RESUME) <= 10
    assert len(routes.LAYER_NORM) <= 5
    assert all(
        (ROOT / name).is_file() for name in (*routes.BATCH, *routes.SIDE_ROADS, *routes.RESUME, *routes.LAYER_NORM)
    )
