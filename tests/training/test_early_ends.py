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


@pytest.mark.parametrize("resumed", [False, True], ids=["the same command", "--resume alone"])
def test_ctrl_c_while_warming_up_leaves_a_folder_in_which_the_run_starts_again(
    corpus: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    resumed: bool,
):
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(PlainScreen, "preparing", press_ctrl_c_while_warming_up)
        assert train_command.main(options(corpus, output)) == 130
    (output / "notes.txt").write_text("mine")
    capsys.readouterr()

    again = ["--output", str(output), "--resume"] if resumed else options(corpus, output)
    assert train_command.main(again) == 0
    shown = capsys.readouterr().out
    assert "starting again in its place" in shown
    assert ("nothing to resume" in shown) == resumed
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
    [
        ("a finished run", r"holds a run with the same settings \(finished\)"),
        ("a model of somebody else", "is not an empty folder"),
    ],
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
    with pytest.raises(TrainingError, match="holds a run with the same settings"):
        run(corpus, output)
    for name in ("metrics.jsonl", "model.safetensors", "vocab.txt"):
        assert (output / name).read_bytes() == (trained / name).read_bytes()


# --- one command for every end ----------------------------------------------------------------------------------


def test_a_resume_where_there_is_nothing_starts_the_run(
    corpus: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "run"
    command = [*options(corpus, output), "--resume"]
    assert train_command.main(command) == 0
    assert f"there is nothing to resume in {output}: starting the run" in capsys.readouterr().out
    assert (output / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    assert train_command.main(command) == 0
    shown = capsys.readouterr().out
    assert f"the run in {output} has had all its training (6 steps in" in shown
    assert "a larger --steps trains on" in shown
    assert "resuming from" not in shown
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert train_command.main([*options(corpus, tmp_path / "mine"), "--resume"]) == 2
    assert "there is no run to resume" in capsys.readouterr().err


def test_a_start_where_there_is_a_run_says_how_that_run_differs(
    corpus: Path, trained: Path, capsys: pytest.CaptureFixture[str]
):
    for changes, words in (
        ({}, "holds a run with the same settings (finished), and nothing is overwritten"),
        ({"seed": 1, "steps": 9}, "holds another run (finished; other --steps, --seed), and nothing is overwritten"),
    ):
        assert train_command.main(options(corpus, trained, **changes)) == 2
        assert words in (error := capsys.readouterr().err)
        assert "continue that run with --resume" in error


def test_fewer_minutes_than_were_trained_are_refused(corpus: Path, tmp_path: Path):
    run(corpus, tmp_path / "run", steps=None, minutes=0.01)
    with pytest.raises(TrainingError, match=r"been trained for \d+ s already, and --minutes 0\.001 is the total"):
        go_on(tmp_path / "run", minutes=0.001)
    assert of_kind(go_on(tmp_path / "run", minutes=0.01), "result")  # the run's own value, with which it has finished


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_cleans_up_changes_nothing(number: int):
    code = (
        "import atexit, os; from minibert.commands.process import exit_with\n"
        f"atexit.register(lambda: os.kill(os.getpid(), {int(number)}))\n"
        "exit_with(lambda: 130)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


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
