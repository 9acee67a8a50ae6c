"""Interrupted fine-tuning, and output that is not UTF-8: no work is lost, and no files block the next start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minibert import AdamW, MiniBERT
from minibert.commands import classify as classify_command
from minibert.commands import finetune as finetune_command
from minibert.finetuning.checkpoints import CHECKPOINTS_FOLDER
from minibert.finetuning.labelled_texts import LabelledText
from minibert.finetuning.text_classifier import TextClassifier
from minibert.parameters import CLASSIFICATION_HEADS
from tests.support.small_classifier import command, save_base, sentences, write_csv

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """16 texts to train on, in two steps an epoch, and 4 to evaluate on."""
    return write_csv(tmp_path / "data.csv", sentences(20))


def signal_after(monkeypatch, steps: int, *numbers: int) -> None:
    """Send signals to this process during an optimizer step."""
    step = AdamW.step

    def counted(self, gradients, rate):
        result = step(self, gradients, rate)
        if self.steps == steps:
            for number in numbers:
                os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(AdamW, "step", counted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_saves_its_best_epoch(base, data, tmp_path, monkeypatch, capsys, number):
    epochs = ("--batch-size", "8", "--warmup", "0", "--patience", "9")
    signal_after(monkeypatch, 7, number)
    output = tmp_path / "out"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert finetune_command.main(command(base, data, output, *epochs, "--epochs", "50")) == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    out, err = capsys.readouterr()
    assert err == (
        "\nfinishing this step and saving the best epoch so far (again to stop at once)\n"
        "interrupted: the best of the finished epochs is saved, and --resume goes on\n"
    )
    assert "Try next" in out
    *history, result = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [entry["number"] for entry in history] == [1, 2, 3]  # the seventh step is the first of the fourth
    best = min(history, key=lambda entry: entry["loss"])
    assert (result["kind"], result["epoch"], result["finished"]) == ("result", best["number"], False)
    assert result["confusion"] == best["confusion"]
    assert TextClassifier.load(output).labels == ("animal", "tool")


def test_before_the_first_epoch_nothing_is_left_in_the_way(base, data, tmp_path, monkeypatch, capsys):
    arguments = command(base, data, tmp_path / "out", "--batch-size", "8", "--epochs", "1")
    for made in (False, True):
        if made:
            (tmp_path / "out").mkdir()
        with monkeypatch.context() as patch:
            signal_after(patch, 1, signal.SIGTERM)
            assert finetune_command.main(arguments) == 130
        assert "interrupted before the first epoch was finished: nothing was saved" in capsys.readouterr().err
        assert (tmp_path / "out").exists() == made
    assert finetune_command.main(arguments) == 0


@pytest.mark.parametrize(("steps", "left"), [(1, set()), (7, {"metrics.jsonl", CHECKPOINTS_FOLDER})])
def test_the_second_interrupt_ends_it_at_once(base, data, tmp_path, monkeypatch, capsys, steps, left):
    signal_after(monkeypatch, steps, signal.SIGINT, signal.SIGINT)
    arguments = command(base, data, tmp_path / "out", "--batch-size", "8", "--epochs", "50", "--patience", "9")
    assert finetune_command.main(arguments) == 130
    assert capsys.readouterr().err.endswith("error: interrupted\n")
    assert {path.name for path in tmp_path.glob("out/*")} == left


# --- going on ----------------------------------------------------------------------------------------------------

SHORT = ("--batch-size", "8", "--epochs", "4", "--warmup", "0")


def kill_after(monkeypatch, steps: int) -> None:
    """End the training after an optimizer step, without any cleaning up."""
    step = AdamW.step

    def counted(self, gradients, rate):
        result = step(self, gradients, rate)
        if self.steps == steps:
            raise Killed
        return result

    monkeypatch.setattr(AdamW, "step", counted)


class Killed(BaseException):
    """Like a real kill, this is not an Exception."""


@pytest.mark.parametrize("steps", [1, 3, 6, 8], ids=["epoch 1", "epoch 2", "epoch 3", "the last step"])
def test_a_killed_training_goes_on_with_the_same_bits(base, data, tmp_path, monkeypatch, capsys, steps):
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert finetune_command.main(command(base, data, whole, *SHORT)) == 0
    table = capsys.readouterr().out.partition("best epoch")[2].partition("The classifier is in")[0]
    arguments = command(base, data, output, *SHORT)
    with monkeypatch.context() as patch:
        kill_after(patch, steps)
        patch.setattr(Path, "unlink", lambda self, **_: None)  # a killed process cleans nothing up
        patch.setattr(Path, "rmdir", lambda self: None)
        with pytest.raises(Killed):
            finetune_command.main(arguments)
    if steps > 2:
        assert finetune_command.main(arguments) == 2
        assert "was interrupted: continue it with --resume, or give a new folder" in capsys.readouterr().err
    assert finetune_command.main([*arguments, "--resume"]) == 0
    captured = capsys.readouterr()
    assert (f"going on after epoch {(steps - 1) // 2}" in captured.err) == (steps > 2)
    assert captured.out.partition("best epoch")[2].partition("The classifier is in")[0] == table
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {path.name for path in output.iterdir()} == {path.name for path in whole.iterdir()}
    assert finetune_command.main([*arguments, "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_resume_where_there_is_nothing_starts(base, data, tmp_path):
    assert finetune_command.main([*command(base, data, tmp_path / "out", *SHORT), "--resume"]) == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert finetune_command.main([*command(base, data, tmp_path / "mine", *SHORT), "--resume"]) == 2


def test_a_training_that_was_interrupted_politely_goes_on(base, data, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert finetune_command.main(command(base, data, whole, *SHORT)) == 0
    with monkeypatch.context() as patch:
        signal_after(patch, 5, signal.SIGTERM)
        assert finetune_command.main(command(base, data, output, *SHORT)) == 130
    assert finetune_command.main([*command(base, data, output, *SHORT), "--resume"]) == 0
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--batch-size", "4"), "--batch-size is 8 in this fine-tuning, not 4"),
        (("--evaluation-share", "0.4"), "the labelled texts have changed"),
    ],
)
def test_a_resume_with_other_options_is_refused(base, data, tmp_path, monkeypatch, capsys, change, message):
    arguments = command(base, data, tmp_path / "out", *SHORT)
    with monkeypatch.context() as patch:
        signal_after(patch, 5, signal.SIGTERM)
        assert finetune_command.main(arguments) == 130
    assert finetune_command.main([*arguments, *change, "--resume"]) == 2
    assert message in capsys.readouterr().err


def test_a_signal_while_the_model_is_loaded_ends_it_at_once(base, data, tmp_path, monkeypatch, capsys):
    load = finetune_command.load_model

    def terminated(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return load(*arguments, **options)

    monkeypatch.setattr(finetune_command, "load_model", terminated)
    assert finetune_command.main(command(base, data, tmp_path / "out")) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert not (tmp_path / "out").exists()


def test_a_classifier_that_cannot_be_saved_leaves_nothing_in_the_way(base, data, tmp_path, monkeypatch, capsys):
    def full_disk(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minibert.files.save_file", full_disk)
    monkeypatch.setattr("minibert.training.saver.time.sleep", lambda seconds: None)
    assert finetune_command.main(command(base, data, tmp_path / "out", "--epochs", "1")) == 1
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: the checkpoint of step 1 cannot be written")
    assert "No space left on device" in error
    assert not (tmp_path / "out").exists()


# --- output that is not UTF-8 ----------------------------------------------------------------------------------


def run_in_ascii(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    script = [sys.executable, str(SCRIPTS / f"{name}.py"), *arguments]
    return subprocess.run(script, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("name", ["classify", "embed"])
def test_json_is_escaped_where_the_output_is_not_unicode(name, base):
    MiniBERT.from_pretrained(base, heads=CLASSIFICATION_HEADS, labels=["été", "😀"]).save_pretrained(base)
    words = {"classify": ["café"], "embed": ["--text", "café"]}[name]
    done = run_in_ascii(name, "--model", str(base), "--threads", "1", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    found = json.loads(done.stdout)
    assert found["text"] == "café"
    if name == "classify":
        assert list(found["probabilities"]) == ["été", "😀"]


def test_json_is_readable_where_the_output_is_unicode(base, capsys):
    MiniBERT.from_pretrained(base, heads=CLASSIFICATION_HEADS, labels=["été", "😀"]).save_pretrained(base)
    assert classify_command.main(["--model", str(base), "café"]) == 0
    assert '"café"' in capsys.readouterr().out


def test_a_label_that_cannot_be_printed_does_not_end_a_training(base, tmp_path):
    named = {"animal": "été", "tool": "hiver"}
    examples = [LabelledText(example.text, None, named[example.label]) for example in sentences(20)]
    data = write_csv(tmp_path / "data.csv", examples)
    done = run_in_ascii("finetune", *command(base, data, tmp_path / "out", "--epochs", "1", "--threads", "1"))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^\\xe9t\\xe9 ", done.stdout, re.MULTILINE)
    assert "été" in (tmp_path / "out" / "confusion_matrix.txt").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "confusion_matrix.png").exists()
