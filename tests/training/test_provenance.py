"""A resumed run says what has changed that changes its bits."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from minibert.errors import DataError
from minibert.training.provenance import changes
from minibert.training.session import resume
from tests.support.small_run import display, run, write_text

NOW = {
    "device": "CPU, NumPy 2.4",
    "precision": "float32",
    "kernels": ["a", "b"],
    "environment": {"NUMBA_NUM_THREADS": "2"},
    "settings": {"accumulate": 1},
}


@pytest.fixture(scope="module")
def interrupted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interrupted")
    run(write_text(folder / "animals.txt"), folder / "run", stop_after=2)
    return folder / "run"


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ({"device": "cuda:0"}, "computed by cuda:0, now by CPU, NumPy 2.4: equal up to rounding"),
        ({"precision": "bfloat16"}, "products were computed in bfloat16, now in float32"),
        ({"kernels": []}, "0 operations had faster versions on this device, now 2 have: equal up to rounding"),
        ({"settings": {"accumulate": 4}}, "a step had 4 micro-batches (--accumulate), now 1: equal up to rounding"),
        ({"environment": {}}, "NUMBA_NUM_THREADS was not set, now it is 2: equal up to rounding"),
        (
            {"environment": {"NUMBA_CPU_NAME": "generic", **NOW["environment"]}},
            "NUMBA_CPU_NAME was generic, now",
        ),
    ],
)
def test_every_change_of_the_bits_is_a_sentence(before, words):
    (found,) = changes({**NOW, **before}, NOW)
    assert words in found


def test_no_change_is_no_sentence():
    assert not list(changes(NOW, NOW))
    assert not list(changes({}, NOW))  # the log is gone
    old = {name: value for name, value in NOW.items() if name not in ("environment", "precision")}
    assert not list(changes(old, NOW))  # the log of an earlier version


def test_a_resume_tells_them(interrupted_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = shutil.copytree(interrupted_run, tmp_path / "run")
    monkeypatch.setenv("NUMBA_CPU_NAME", "generic")
    shown = []
    for given in ({"accumulate": 2, "kernels": "reference"}, {"accumulate": 2}):
        screen = display()
        with resume(given, output, screen, cache=interrupted_run.parent / ".minibert-cache") as resumed:
            resumed.train(lambda: True)
        shown.append(screen.console.file.getvalue())  # type: ignore[attr-defined]
    assert "a step had 1 micro-batches (--accumulate), now 2" in shown[0]
    assert "operations had faster versions on this device, now 0 have" in shown[0]
    assert "NUMBA_CPU_NAME was not set, now it is generic" in shown[0]
    assert "micro-batches" not in shown[1]
    assert "NUMBA_CPU_NAME" not in shown[1]


def test_a_text_without_a_token_to_predict_is_refused_before_the_training(tmp_path: Path):
    rng = random.Random(0)
    text = tmp_path / "word.txt"
    text.write_text("".join(rng.choice("abcdefghij") for _ in range(2_000_000)))
    with pytest.raises(
        DataError, match=r"knows no word of .*word\.txt: every token is \[UNK\].*at most 100 characters"
    ):
        run(text, tmp_path / "run")
    assert not (tmp_path / "run").exists()
