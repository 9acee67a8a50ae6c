"""A disk that is full, or a folder that cannot be written to: one line, nothing lost, and the training goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from minibert.commands import train as train_command
from minibert.commands.screen import PlainScreen
from minibert.errors import DataError, SavingError
from minibert.options import flag
from minibert.training.checkpoint import find_newest, list_checkpoints
from minibert.training.log import METRICS_FILE, RunLog, read_history
from minibert.training.run import Run
from minibert.training.session import start
from tests.support.full_disk import full_disk
from tests.support.small_run import SMALL, display, go_on, losses, of_kind, run, small_settings, write_text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits on the size of files")

TOO_SMALL = 100_000  # bytes: room for the log, not for a checkpoint


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "animals.txt")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times for which a run waits before it tries again."""
    waited: list[float] = []
    monkeypatch.setattr("minibert.training.saver.time.sleep", waited.append)
    return waited


def full_between(first: int, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the disk be full when the checkpoints of these steps are written."""
    save = Run._save_checkpoint

    def full_sometimes(self: Run, **options: bool) -> None:
        if first <= self.step <= last:
            with full_disk(TOO_SMALL):
                save(self, **options)
        else:
            save(self, **options)

    monkeypatch.setattr(Run, "_save_checkpoint", full_sometimes)


def train(corpus: Path, output: Path, **changes: object) -> PlainScreen:
    screen = display()
    with start(small_settings(corpus, **changes), output, screen) as begun:
        begun.train()
    return screen


def test_a_run_goes_on_while_the_disk_is_full_and_saves_when_there_is_space(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    every = {"steps": 8, "checkpoint_every": 1, "report_every": 1}
    whole = run(corpus, tmp_path / "whole", **every)
    output = tmp_path / "run"
    full_between(3, 5, monkeypatch)
    screen = train(corpus, output, **every)
    shown = screen.console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("cannot be written to") == 3
    assert "step 3 cannot be written" in shown
    assert f"going on and trying again; the last checkpoint is {output / 'checkpoints' / 'step-00000002'}" in shown
    assert "the checkpoint of step 6 was written" in shown
    assert losses(read_history(output / METRICS_FILE)) == losses(whole)
    assert [path.name for path in (output / "checkpoints").iterdir() if path.name.startswith(".")] == []
    one, other = (
        load_file(folder / "checkpoints" / "step-00000008" / "tensors.safetensors")
        for folder in (output, tmp_path / "whole")
    )
    assert all((one[name] == other[name]).all() for name in other)


def test_a_disk_that_stays_full_ends_the_run_with_the_remedy_and_loses_no_checkpoint(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    full_between(3, 100, monkeypatch)
    with pytest.raises(SavingError, match=r"step 7 cannot be written.*5 times in a row.*step-00000002.*--resume"):
        train(corpus, tmp_path / "run", steps=20, checkpoint_every=1)
    assert find_newest(tmp_path / "run" / "checkpoints").state.step == 2
    monkeypatch.undo()
    assert of_kind(go_on(tmp_path / "run"), "result")[-1]["step"] == 20


def test_without_another_checkpoint_the_run_waits_before_it_goes_on(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
):
    full_between(1, 100, monkeypatch)
    with pytest.raises(SavingError, match="There is no other checkpoint"):
        train(corpus, tmp_path / "run", checkpoint_every=1)
    assert waits == [10.0] * 4


def test_the_last_checkpoint_is_waited_for(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
):
    full_between(6, 6, monkeypatch)
    with pytest.raises(SavingError, match=r"step 6 cannot be written.*5 times in a row.*step-00000004"):
        train(corpus, tmp_path / "run", checkpoint_every=4)
    assert waits == [10.0] * 4


@pytest.mark.parametrize(("seconds", "saved"), [(0.0, 7), (60.0, 3)])
def test_a_checkpoint_is_tried_again_before_the_next_is_due(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, saved: int
):
    monkeypatch.setattr("minibert.training.saver._SECONDS_BETWEEN_ATTEMPTS", seconds)
    full_between(6, 6, monkeypatch)
    train(corpus, tmp_path / "run", steps=9, checkpoint_every=3)
    before_last, _ = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert before_last.name == f"step-{saved:08d}"


def test_a_model_that_cannot_be_written_is_written_by_a_resume(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from minibert import MiniBERT

    save = MiniBERT.save_pretrained

    def full(self: MiniBERT, folder: Path) -> None:
        with full_disk(TOO_SMALL):
            save(self, folder)

    output = tmp_path / "run"
    values = {**SMALL, "corpus": corpus, "output": output}
    command = [str(word) for name, value in values.items() for word in (flag(name), value)]
    with monkeypatch.context() as patch:
        patch.setattr(MiniBERT, "save_pretrained", full)
        assert train_command.main(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: the model cannot be written to {output}: File too large.")
    assert not (output / "model.safetensors").exists()
    assert train_command.main(["--output", str(output), "--resume"]) == 0
    assert (output / "model.safetensors").exists()


# --- the log ----------------------------------------------------------------------------------------------------


def test_lines_that_do_not_fit_are_written_when_there_is_space(tmp_path: Path):
    log = RunLog(tmp_path / METRICS_FILE)
    log.write("run", text="a" * 100)
    with full_disk(150):
        log.write("train", step=1, text="b" * 100)
        assert log.failure == "File too large"
        log.write("train", step=2)
        assert log.failure == "File too large"
    assert [line["kind"] for line in read_history(tmp_path / METRICS_FILE)] == ["run"]
    log.write("train", step=3)
    assert log.failure is None
    log.close()
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [line.get("step") for line in lines] == [None, 1, 2, 3]


def test_a_full_disk_under_the_log_does_not_end_the_run(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write = RunLog.write

    def full_until_the_evaluation(self: RunLog, kind: str, **fields: object) -> None:
        if kind == "train":
            with full_disk(1):
                write(self, kind, **fields)
        else:
            write(self, kind, **fields)

    monkeypatch.setattr(RunLog, "write", full_until_the_evaluation)
    screen = train(corpus, tmp_path / "run")
    shown = screen.console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("metrics.jsonl cannot be written (File too large)") == 1
    assert "metrics.jsonl can be written again, and has all its lines" in shown
    assert len(losses(read_history(tmp_path / "run" / METRICS_FILE))) == 3


def test_lines_that_were_lost_at_the_end_are_mentioned(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    close = RunLog.close

    def full_at_the_end(self: RunLog) -> None:
        with full_disk(1):
            self.write("train", step=7)
            close(self)

    monkeypatch.setattr(RunLog, "close", full_at_the_end)
    shown = train(corpus, tmp_path / "run").console.file.getvalue()  # type: ignore[attr-defined]
    assert f"the last lines of {tmp_path / 'run' / METRICS_FILE} could not be written: File too large" in shown


# --- the cache --------------------------------------------------------------------------------------------------


def test_tokens_that_do_not_fit_are_an_error_of_one_line_and_leave_nothing(tmp_path: Path):
    corpus = write_text(tmp_path / "text.txt", documents=1500)
    with (
        full_disk(20_000),
        pytest.raises(DataError, match=r"the tokens of .*text\.txt cannot be written to .*too large"),
    ):
        run(corpus, tmp_path / "run")
    cache = tmp_path / ".minibert-cache"
    assert [path.name.split("-")[0] for path in cache.iterdir()] == ["vocabulary"]


def test_a_file_in_the_place_of_the_output_folder_is_an_error_of_one_line(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("mine")
    values = {**SMALL, "corpus": corpus, "output": tmp_path / "file" / "run", "cache_dir": tmp_path / "cache"}
    assert train_command.main([str(word) for name, value in values.items() for word in (flag(name), value)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in line
