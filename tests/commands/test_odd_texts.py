"""Commands on texts as they lie about: another encoding, damaged lines, names that are not UTF-8, hours of reading."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from minibert.commands import evaluate as evaluate_command
from minibert.commands import screen
from minibert.commands import train as train_command
from minibert.data.corpus import open_corpus
from minibert.training import preparation
from tests.support.small_run import SMALL, display, write_text


def options(*corpus, output, **changes) -> list[str]:
    settings = {**SMALL, "output": output, **changes}
    words = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["--corpus", *map(str, corpus), *words]


@pytest.mark.filterwarnings("default")  # as outside of the tests: each warning is shown once
def test_a_text_in_another_encoding_with_damaged_lines_is_trained_on_and_evaluated(tmp_path, capsys):
    (tmp_path / "text").mkdir()
    text = write_text(tmp_path / "text" / "animals.txt").read_text()
    (tmp_path / "text" / "animals.txt").write_text(f"caf\xe9 \x80\n{text}", encoding="latin-1")
    arguments = options(tmp_path / "text", output=tmp_path / "run")
    assert train_command.main(arguments) == 2
    assert "byte 3 (0xe9) is not UTF-8" in capsys.readouterr().err
    (tmp_path / "text" / "notes.doc").write_text("not read")
    (tmp_path / "text" / "damaged.jsonl").write_text("{oops")
    assert train_command.main([*arguments, "--encoding", "latin-1", "--skip-damaged"]) == 0
    told = capsys.readouterr().err
    assert "warning: " in told
    assert "also holds what is not read: 1 x .doc (notes.doc)" in told
    assert told.count("damaged text was left out: 1 x line without a JSON object") == 1  # although it is read twice
    shutil.rmtree(tmp_path / preparation.CACHE_FOLDER)
    assert evaluate_command.main(["--model", str(tmp_path / "run")]) == 0  # with the encoding of the training
    assert evaluate_command.main(["--model", str(tmp_path / "run"), "--encoding", "no-such"]) == 2
    assert "'no-such' is not the name of an encoding" in capsys.readouterr().err


def test_a_run_on_a_text_in_another_encoding_is_resumed(tmp_path, capsys):
    text = write_text(tmp_path / "animals.txt")
    text.write_text(f"caf\xe9\n{text.read_text()}", encoding="latin-1")
    output = tmp_path / "run"
    assert train_command.main([*options(text, output=output, checkpoint_every=2), "--encoding", "latin-1"]) == 0
    assert train_command.main(["--output", str(output), "--resume", "--steps", "8"]) == 0
    assert "resuming from" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_run_whose_names_are_not_utf_8_is_resumed(tmp_path, capsys):
    text = write_text(tmp_path / os.fsdecode(b"caf\xe9.txt"))
    output = tmp_path / os.fsdecode(b"run \xe9")
    assert train_command.main(options(text, output=output, checkpoint_every=2)) == 0
    assert train_command.main(["--output", str(output), "--resume", "--steps", "8"]) == 0
    assert evaluate_command.main(["--model", str(output)]) == 0


def test_a_long_preparation_says_now_and_then_how_much_is_done(tmp_path, monkeypatch):
    shown, seconds = display(), iter(range(0, 1000, 2))
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(seconds))
    for tokens in range(1000, 7000, 1000):
        shown.preparing("tokenizing", tokens)
    lines = shown.console.file.getvalue().splitlines()
    assert lines == ["tokenizing ...", "tokenizing: 4,000 tokens done"]


def test_making_a_vocabulary_says_how_much_was_read(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "_CHARACTERS_BETWEEN_REPORTS", 1000)
    heard = []
    corpus = open_corpus([str(write_text(tmp_path / "animals.txt"))])
    preparation.cached_tokenizer(corpus, 100, False, tmp_path, lambda stage, tokens: heard.append(stage))
    assert heard[0] == "making a vocabulary"
    assert len(heard) > 5
    assert all(stage.startswith("making a vocabulary, 1,") for stage in heard[1:2])
