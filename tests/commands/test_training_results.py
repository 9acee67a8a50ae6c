"""The end of a training on the command line: the loss curve, the table of results, and examples."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from minibert.commands import train as train_command
from minibert.commands.pictures import draw_loss_curve
from minibert.options import flag
from tests.support.small_run import SMALL, write_text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "animals.txt")


def command_line(corpus: Path, output: Path, **changes: object) -> list[str]:
    values = {**SMALL, "corpus": corpus, "output": output, **changes}
    return [str(word) for name, value in values.items() for word in (flag(name), value)]


def test_a_finished_run_has_a_picture_of_its_loss_curve_beside_the_model(corpus: Path, tmp_path: Path):
    assert train_command.main(command_line(corpus, tmp_path / "run", steps=2)) == 0
    assert (tmp_path / "run" / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_without_matplotlib_the_run_ends_well_and_says_what_is_missing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_loss_curve([], tmp_path / "curve.png")
    assert train_command.main(command_line(corpus, tmp_path / "run", steps=2)) == 0
    assert "Matplotlib is not installed" in capsys.readouterr().out
    assert not (tmp_path / "run" / "loss_curve.png").exists()


def test_figures_and_examples_are_called_what_they_are(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Two steps are too few to get below the baseline."""
    assert train_command.main(command_line(corpus, tmp_path / "run", steps=2)) == 0
    text = capsys.readouterr().out
    assert text.count("nats above the unigram baseline") == 2
    assert "below" not in text
    assert "Held-out sentences with one word hidden" in text
