"""Checkpoints: a run that was interrupted goes on as if nothing had happened, or says why it cannot."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from minibert import AdamW, MiniBERT
from minibert.data.corpus import open_corpus
from minibert.errors import TrainingError
from minibert.training.checkpoint import (
    FoundCheckpoint,
    RunState,
    find_newest,
    list_checkpoints,
    restore,
    save_checkpoint,
)
from minibert.training.log import METRICS_FILE, read_history
from minibert.training.session import resume
from tests.support.small_run import display, go_on, losses, of_kind, run, small_settings, write_text

TENSORS, STATE = "tensors.safetensors", "state.json"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "animals.txt")


@pytest.fixture(scope="module")
def interrupted_run(corpus, tmp_path_factory):
    """A run of 8 steps that was stopped after 5, with checkpoints of steps 4 and 5. Copy it before changing it."""
    output = tmp_path_factory.mktemp("interrupted") / "run"
    run(corpus, output, steps=8, checkpoint_every=2, stop_after=5)
    return output


@pytest.fixture
def interrupted(interrupted_run, tmp_path):
    """A copy of the interrupted run, to be damaged."""
    return shutil.copytree(interrupted_run, tmp_path / "run")


def small_model(seed=0, **changes):
    settings = small_settings("unused.txt", **changes)
    model = MiniBERT(settings.model_config(50), dtype=settings.dtype, seed=seed)
    return model, AdamW(model)


def progress(step=3):
    return RunState(step, elapsed=1.5, settings={"preset": "tiny"}, tokenizer="a", corpus="b")


# --- continuing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="plain"),
        pytest.param({"dropout": 0.1, "accumulate": 3}, id="dropout and micro-batches"),
        pytest.param({"objective": "mlm+nsp", "seq_length": 32, "dropout": 0.1}, id="next sentence"),
    ],
)
def test_a_resumed_run_continues_bit_for_bit(corpus, tmp_path, changes):
    every = {"steps": 7, "report_every": 1, "checkpoint_every": 3}
    whole = run(corpus, tmp_path / "whole", **every, **changes)
    run(corpus, tmp_path / "parts", **every, **changes, stop_after=2)
    go_on(tmp_path / "parts", stop_after=2)
    parts = go_on(tmp_path / "parts")
    assert losses(parts) == losses(whole)
    assert len(losses(whole)) == 7
    assert of_kind(parts, "evaluation")[-1]["loss"] == of_kind(whole, "evaluation")[-1]["loss"]
    for name in ("step-00000006", "step-00000007"):
        expected = load_file(tmp_path / "whole" / "checkpoints" / name / TENSORS)
        found = load_file(tmp_path / "parts" / "checkpoints" / name / TENSORS)
        assert expected.keys() == found.keys()
        for tensor, values in expected.items():
            np.testing.assert_array_equal(found[tensor], values, err_msg=tensor)


def test_steps_lost_in_a_crash_are_done_again_alike(corpus, tmp_path):
    output = tmp_path / "run"
    whole = run(corpus, output, steps=6, report_every=1, checkpoint_every=2)
    shutil.rmtree(output / "checkpoints" / "step-00000006")
    again = go_on(output)
    assert of_kind(again, "resumed")[0]["step"] == 4
    assert losses(again) == losses(whole)


def test_a_run_resumed_at_its_end_only_writes_its_results_again(corpus, tmp_path):
    output = tmp_path / "run"
    first = run(corpus, output)
    (output / "model.safetensors").unlink()
    again = go_on(output)
    assert (output / "model.safetensors").exists()
    assert losses(again) == losses(first)
    assert of_kind(again, "result")[-1]["loss"] == of_kind(first, "result")[-1]["loss"]


def test_the_clock_of_a_resumed_run_goes_on(interrupted):
    before = find_newest(interrupted / "checkpoints").state
    assert before.elapsed > 0.0
    history = go_on(interrupted)
    assert all(line["elapsed"] > before.elapsed for line in of_kind(history, "train") if line["step"] > 5)


def test_a_longer_run_may_be_asked_for_and_the_intervals_changed(interrupted):
    history = go_on(interrupted, steps=10, report_every=1, evaluate_every=3, checkpoint_every=100)
    assert of_kind(history, "result")[-1]["step"] == 10
    assert [line["step"] for line in of_kind(history, "evaluation")] == [6, 9, 10]


def test_fewer_steps_than_were_taken_are_refused(interrupted):
    with pytest.raises(TrainingError, match="has taken 5 steps already, and --steps 2 is the total"):
        go_on(interrupted, steps=2)


def test_a_run_by_steps_may_go_on_by_minutes(interrupted):
    elapsed = find_newest(interrupted / "checkpoints").state.elapsed
    history = go_on(interrupted, minutes=elapsed / 60.0 + 0.002)
    assert of_kind(history, "resumed")[-1]["settings"]["steps"] is None
    assert of_kind(history, "result")


# --- refusing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 1}, "--seed is 0 in this run, not 1"),
        ({"preset": "mini"}, "--preset is tiny in this run, not mini"),
        ({"batch_size": 4, "seq_length": 8}, "--batch-size is 8 in this run, not 4; --seq-length is 16"),
        ({"vocab_size": 50}, "--vocab-size is 120 in this run, not 50"),
    ],
)
def test_options_that_contradict_the_run_are_refused(interrupted_run, given, message):
    with pytest.raises(TrainingError, match=f"cannot resume: {message}.*Free to change: .*--device"):
        go_on(interrupted_run, **given)


def test_options_that_repeat_the_runs_own_are_welcome(interrupted, corpus):
    go_on(interrupted, seed=0, batch_size=8, corpus=(str(corpus),))


def test_a_folder_without_a_run_or_a_checkpoint_cannot_be_resumed(tmp_path):
    with pytest.raises(TrainingError, match="no run to resume"):
        go_on(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(TrainingError, match=r"no run to resume.*no checkpoint"):
        go_on(tmp_path)


def test_another_vocabulary_is_refused(interrupted):
    text = (interrupted / "tokenizer.json").read_text()
    (interrupted / "tokenizer.json").write_text(text.replace('"camel"', '"llama"'))
    (interrupted / "vocab.txt").unlink()  # beside which the other one would be noticed at once
    with pytest.raises(TrainingError, match=r"vocabulary in .*run \(\d+ tokens\) is not the one"):
        go_on(interrupted)


@pytest.mark.parametrize("damage", ["cut short", "one bit", "missing"])
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_damaged_vocabulary_is_written_again_from_the_cache(interrupted_run, tmp_path, name, damage):
    output = shutil.copytree(interrupted_run, tmp_path / "run")
    content = (output / name).read_bytes()
    (output / name).unlink()
    if damage != "missing":
        (output / name).write_bytes(content[:40] if damage == "cut short" else content)
    if damage == "one bit":
        flip(output / name, content.index(b"a"), bit=1)
    with resume({}, output, display(), cache=interrupted_run.parent / ".minibert-cache") as resumed:
        resumed.train()
    assert (output / name).read_bytes() == content


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda text: text + "the red fox eats berries.\n", r"it has grown from \d\d,\d\d\d to \d\d,\d\d\d bytes"),
        (lambda text: text[:-30], "it has shrunk from"),
        (lambda text: text[:-30] + text[-30:].upper(), "bytes, but other content"),
    ],
    ids=["grown", "shrunk", "changed"],
)
def test_another_text_is_refused_before_it_is_tokenized(corpus, interrupted, tmp_path, monkeypatch, change, difference):
    text = tmp_path / "text.txt"
    text.write_text(change(corpus.read_text()))
    monkeypatch.setattr("minibert.data.token_file._tokenize", None)
    with pytest.raises(
        TrainingError, match=rf"text in .*text\.txt is not the one that the checkpoint.*: .*{difference}"
    ):
        go_on(interrupted, corpus=(str(text),))


def test_a_text_that_was_touched_or_lies_elsewhere_is_the_same(corpus, interrupted, tmp_path):
    copy = shutil.copy(corpus, tmp_path / "copy.txt")
    os.utime(copy, (1, 1))
    history = go_on(interrupted, corpus=(str(copy),))
    assert of_kind(history, "result")


def test_a_checkpoint_of_an_earlier_version_knows_its_text(corpus, interrupted):
    """Earlier versions identified a text by path, size and time of change."""
    newest = list_checkpoints(interrupted / "checkpoints")[-1]
    state = json.loads((newest / STATE).read_text())
    old = (1, open_corpus([str(corpus)]).fingerprint_of_names(), state["tokenizer"], 0.02)
    state["corpus"] = hashlib.sha256(repr(old).encode()).hexdigest()
    del state["state_sha256"], state["corpus_bytes"]
    (newest / STATE).write_text(json.dumps(state))
    assert of_kind(go_on(interrupted), "resumed")[-1]["step"] == 5


# --- damaged files -------------------------------------------------------------------------------------------


def flip(path, at, bit=0):
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("file", [TENSORS, STATE])
@pytest.mark.parametrize("damage", ["cut short", "changed", "missing"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(interrupted_run, tmp_path, file, damage):
    whole = go_on(shutil.copytree(interrupted_run, tmp_path / "whole"))
    interrupted = shutil.copytree(interrupted_run, tmp_path / "run")
    _, newest = list_checkpoints(interrupted / "checkpoints")
    content = (newest / file).read_bytes()
    if damage == "cut short":
        (newest / file).write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        flip(newest / file, content.rindex(b'"format"') if file == STATE else len(content) - 9)
    else:
        (newest / file).unlink()
    screen = display()
    with resume({}, interrupted, screen) as resumed:
        resumed.train()
    shown = screen.console.file.getvalue()
    assert f"{newest / file} is damaged" in shown
    assert "going on from the checkpoint before it, of step 4" in shown
    assert (interrupted / "checkpoints" / "damaged-step-00000005").is_dir()  # nothing was deleted
    assert [path.name for path in list_checkpoints(interrupted / "checkpoints")] == ["step-00000006", "step-00000008"]
    again = read_history(interrupted / METRICS_FILE)
    assert of_kind(again, "resumed")[-1]["step"] == 4
    assert losses(again)[-1] == losses(whole)[-1]
    assert of_kind(again, "result")[-1]["loss"] == of_kind(whole, "result")[-1]["loss"]


def test_every_flipped_bit_of_the_state_is_found_or_changes_nothing(interrupted_run, tmp_path):
    checkpoints = shutil.copytree(interrupted_run / "checkpoints", tmp_path / "checkpoints")
    _, newest = list_checkpoints(checkpoints)
    content, state = (newest / STATE).read_bytes(), find_newest(checkpoints).state
    found = 0
    for at in range(0, len(content), 3):
        flip(newest / STATE, at, bit=at % 8)
        after = find_newest(checkpoints)
        assert after.state == state or after.path != newest, content[max(0, at - 20) : at + 20]
        found += after.path != newest
        (newest / STATE).write_bytes(content)
    assert found > len(content) / 6


def test_a_checkpoint_without_a_checksum_of_its_state_is_read(interrupted):
    """Earlier versions wrote none."""
    newest = list_checkpoints(interrupted / "checkpoints")[-1]
    state = json.loads((newest / STATE).read_text())
    del state["state_sha256"]
    (newest / STATE).write_text(json.dumps(state))
    assert of_kind(go_on(interrupted), "resumed")[-1]["step"] == 5


def test_when_no_checkpoint_is_whole_the_error_says_so(interrupted):
    for path in list_checkpoints(interrupted / "checkpoints"):
        (path / TENSORS).write_bytes(b"")
    with pytest.raises(TrainingError, match=r"step-00000005.*damaged.*There is no undamaged checkpoint: start again"):
        go_on(interrupted)


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(interrupted, monkeypatch):
    def forbidden(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_text", forbidden)
    with pytest.raises(TrainingError, match=r"step-00000005/state\.json cannot be read: Permission denied"):
        find_newest(interrupted / "checkpoints")


def test_a_checkpoint_of_another_format_is_refused(interrupted):
    newest = list_checkpoints(interrupted / "checkpoints")[-1]
    state = json.loads((newest / STATE).read_text())
    del state["state_sha256"]
    (newest / STATE).write_text(json.dumps({**state, "format": 99}))
    with pytest.raises(TrainingError, match="has format 99, this version reads 1"):
        go_on(interrupted)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    save_checkpoint(tmp_path, *small_model(), progress())
    with pytest.raises(TrainingError, match=r"another model: hidden_size, .*num_hidden_layers differ"):
        restore(list_checkpoints(tmp_path)[0], *small_model(preset="mini"))


# --- the files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_checkpoint_brings_back_every_bit(tmp_path, dtype):
    model, optimizer = small_model(dtype=dtype)
    optimizer.steps = 3
    rng = np.random.default_rng(0)
    for moment in (optimizer.first_moment, optimizer.second_moment):
        moment.flat[...] = rng.standard_normal(moment.flat.shape)
    path = save_checkpoint(tmp_path / "new" / "folder", model, optimizer, progress())
    other, other_optimizer = small_model(seed=9, dtype=dtype)
    restore(path, other, other_optimizer)
    assert other_optimizer.steps == 3
    np.testing.assert_array_equal(other.parameters.flat, model.parameters.flat)
    np.testing.assert_array_equal(other_optimizer.first_moment.flat, optimizer.first_moment.flat)
    np.testing.assert_array_equal(other_optimizer.second_moment.flat, optimizer.second_moment.flat)
    assert find_newest(tmp_path / "new" / "folder") == FoundCheckpoint(path, progress())


def test_the_last_two_are_kept(tmp_path):
    model, optimizer = small_model()
    for step in (1, 2, 10, 9_999_999_9):
        save_checkpoint(tmp_path, model, optimizer, progress(step))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-99999999"]


def test_there_is_no_pickle(interrupted_run):
    files = {path.name for path in (interrupted_run / "checkpoints").rglob("*") if path.is_file()}
    assert files == {TENSORS, STATE}


def test_a_disk_that_fills_up_leaves_the_older_checkpoints_whole(tmp_path, monkeypatch):
    model, optimizer = small_model()
    save_checkpoint(tmp_path, model, optimizer, progress(1))
    save_checkpoint(tmp_path, model, optimizer, progress(2))

    def full(tensors, path, metadata):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("minibert.files.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, model, optimizer, progress(3))
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "step-00000002"}
    assert find_newest(tmp_path).state.step == 2
    (tmp_path / ".writing-3").mkdir()  # a killed process could not clear it away
    save_checkpoint(tmp_path, model, optimizer, progress(3))
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000002", "step-00000003"}


def test_a_checkpoint_appears_under_its_name_only_when_it_is_on_the_disk(tmp_path, monkeypatch):
    flushed = []

    def flush(path):
        flushed.append(path.name)
        if path.name != tmp_path.name:
            assert not list_checkpoints(tmp_path)

    monkeypatch.setattr("minibert.files.flush", flush)
    save_checkpoint(tmp_path, *small_model(), progress())
    assert flushed == [STATE, TENSORS, ".writing-3", tmp_path.name]
