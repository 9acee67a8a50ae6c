"""Runs that end early: by Ctrl-C, by a loss that is not finite, or because the reader of their output ends."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from minibert.commands import train as train_command
from minibert.commands.screen import PlainScreen
from minibert.errors import NonFiniteError, TrainingError
from minibert.options import flag
from minibert.training import session
from minibert.training.checkpoint import list_checkpoints
from minibert.training.log import METRICS_FILE, RunLog, read_history, read_run_description
from tests.support.small_run import SMALL, go_on, losses, of_kind, run, write_text

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "animals.txt")


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished run. Copy it before changing it."""
    output = tmp_path_factory.mktemp("trained") / "run"
    run(corpus, output)
    return output


def options(corpus: Path, output: Path, **changes: Any) -> list[str]:
    values = {**SMALL, "corpus": corpus, "output": output, **changes}
    return [str(word) for name, value in values.items() for word in (flag(name), value)]


# --- before the first checkpoint ------------------------------------------------------------------------------


def press_ctrl_c_while_warming_up(display: PlainScreen, stage: str, tokens: int) -> None:
    if stage == "warming up":
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_while_warming_up_leaves_a_folder_in_which_the_same_command_starts_again(
    corpus: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(PlainScreen, "preparing", press_ctrl_c_while_warming_up)
        assert train_command.main(options(corpus, output)) == 130
    (output / "notes.txt").write_text("mine")
    capsys.readouterr()

    assert train_command.main(["--output", str(output), "--resume"]) == 2
    assert "ended before its first checkpoint" in (error := capsys.readouterr().err)
    assert "start it again, without --resume" in error

    assert train_command.main(options(corpus, output)) == 0
    assert "starting again in its place" in capsys.readouterr().out
    assert losses(read_history(output / METRICS_FILE)) == losses(read_history(trained / METRICS_FILE))
    assert (output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert (output / "notes.txt").read_text() == "mine"


def test_what_a_run_without_a_checkpoint_recorded_stays_and_counts_no_more(corpus: Path, tmp_path: Path):
    output = tmp_path / "run"
    with pytest.raises(NonFiniteError, match="Start again, the same --output will do"):
        run(corpus, output, learning_rate=1e30)
    first = (output / METRICS_FILE).read_bytes()
    assert b'"stopped"' in first
    history = run(corpus, output, learning_rate=1e-3)
    assert (output / METRICS_FILE).read_bytes().startswith(first)
    assert [entry["kind"] for entry in history] == ["run", "train", "train", "train", "evaluation", "result"]
    assert read_run_description(output)["settings"]["learning_rate"] == 1e-3


def test_a_run_killed_while_it_wrote_its_first_checkpoint_is_started_again(corpus: Path, tmp_path: Path):
    output = tmp_path / "run"
    with pytest.raises(NonFiniteError):
        run(corpus, output, learning_rate=1e30)
    with open(output / METRICS_FILE, "a", encoding="utf-8") as file:
        file.write('{"kind": "train", "st')
    unfinished = output / "checkpoints" / ".writing-2"
    unfinished.mkdir(parents=True)
    (unfinished / "tensors.safetensors").write_bytes(b"half of it")
    assert of_kind(run(corpus, output), "result")
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000006"]


@pytest.mark.parametrize(
    ("what", "message"),
    [("a finished run", "holds another run"), ("a model of somebody else", "is not an empty folder")],
)
def test_a_model_is_never_overwritten_by_a_run_that_is_started_again(
    corpus: Path, trained: Path, tmp_path: Path, what: str, message: str
):
    """Even without a checkpoint: somebody has deleted the checkpoints, or put another model there."""
    output = shutil.copytree(trained, tmp_path / "copy")
    shutil.rmtree(output / "checkpoints")
    if what == "a finished run":
        (output / "config.json").unlink()  # then the metrics alone tell
    else:
        first, *_ = (output / METRICS_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
        (output / METRICS_FILE).write_text(first, encoding="utf-8")
    before = {path: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(TrainingError, match=f"{message}, and nothing is overwritten"):
        run(corpus, output)
    assert {path: path.read_bytes() for path in output.iterdir()} == before


@pytest.mark.parametrize(
    "content", ["my notes, without an end of line", '{"kind": "epoch", "number": 1}\n'], ids=["notes", "fine-tuning"]
)
def test_metrics_of_something_else_are_left_alone(corpus: Path, tmp_path: Path, content: str):
    output = tmp_path / "mine"
    output.mkdir()
    (output / METRICS_FILE).write_text(content)
    with pytest.raises(TrainingError, match="nothing is overwritten"):
        run(corpus, output)
    assert [path.read_text() for path in output.iterdir()] == [content]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot tell, and starts nothing again")
def test_a_run_that_still_goes_on_is_neither_started_again_nor_resumed(corpus: Path, trained: Path, tmp_path: Path):
    early, late = tmp_path / "early", shutil.copytree(trained, tmp_path / "late")
    with pytest.raises(NonFiniteError):
        run(corpus, early, learning_rate=1e30)
    for output, go in ((early, lambda: run(corpus, early)), (late, lambda: go_on(late, steps=7))):
        before = (output / METRICS_FILE).read_bytes()
        with closing(RunLog(output / METRICS_FILE)):  # like the log of another process
            with pytest.raises(TrainingError, match=f"another process is training in {output}"):
                go()
            assert (output / METRICS_FILE).read_bytes() == before
        assert of_kind(go(), "result")


def test_where_it_cannot_be_told_whether_a_run_goes_on_it_is_not_started_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("minibert.training.log.lock_file", lambda *_, **__: False)
    output = tmp_path / "run"
    with pytest.raises(NonFiniteError):
        run(corpus, output, learning_rate=1e30)
    with pytest.raises(TrainingError, match="cannot tell whether it is still going on: give another --output"):
        run(corpus, output)


def test_a_run_that_another_process_trained_while_the_text_was_prepared_is_not_overwritten(
    corpus: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    output = tmp_path / "run"
    prepare_data = session.prepare_data

    def prepare_slowly(*arguments: Any) -> Any:
        shutil.copytree(trained, output)  # as if by another process
        return prepare_data(*arguments)

    monkeypatch.setattr(session, "prepare_data", prepare_slowly)
    with pytest.raises(TrainingError, match="holds another run"):
        run(corpus, output)
    for name in ("metrics.jsonl", "model.safetensors", "vocab.txt"):
        assert (output / name).read_bytes() == (trained / name).read_bytes()


# --- a reader that goes away ----------------------------------------------------------------------------------


@pytest.mark.parametrize("errors_too", [False, True], ids=["stdout", "stdout and stderr"])
def test_a_closed_pipe_ends_the_training_like_ctrl_c(corpus: Path, tmp_path: Path, errors_too: bool):
    """The pipe is closed by `| head -4`, or by a `2>&1 | tee log` that the same Ctrl-C has ended."""
    output = tmp_path / "run"
    command = [sys.executable, str(SCRIPT), *options(corpus, output, steps=100_000, evaluate_every=1)]
    with (
        open(tmp_path / "stderr", "w+", encoding="utf-8") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if errors_too else errors, text=True
        ) as training,
    ):
        try:
            for _ in range(4):
                training.stdout.readline()
            training.stdout.close()
            status = training.wait(timeout=60)
        finally:
            training.kill()  # where it has not ended
        told = (tmp_path / "stderr").read_text(encoding="utf-8")
    assert status == 130
    (saved,) = list_checkpoints(output / "checkpoints")
    step = int(saved.name.removeprefix("step-"))
    assert not (output / "model.safetensors").exists()
    if not errors_too:
        (line,) = told.splitlines()
        assert line.startswith(f"standard output was closed: stopped after step {step}, which is saved.")
        assert line.endswith(f"--output {output} --resume")
    assert of_kind(go_on(output, steps=step + 1), "result")[-1]["step"] == step + 1
