"""Saving a model: whatever fails, the folder holds the old model or the new one, never parts of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minibert import MiniBERT
from minibert.errors import PretrainedError
from minibert.files import write_beside
from minibert.parameters import CLASSIFICATION_HEADS
from tests.support.small_bert import CONFIG, small_bert

OLD_LABELS, NEW_LABELS = ("neg", "pos"), ("pos", "neg")
INDEX = "model.safetensors.index.json"


def classifier(labels: tuple[str, ...], seed: int) -> MiniBERT:
    return MiniBERT(replace(CONFIG, labels=labels), heads=CLASSIFICATION_HEADS, seed=seed)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved classifier. The tests save another one over it, with the same labels in another order."""
    classifier(OLD_LABELS, seed=1).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def assert_is(folder: Path, labels: tuple[str, ...], seed: int) -> None:
    model = MiniBERT.from_pretrained(folder)
    assert model.config.labels == labels
    np.testing.assert_array_equal(model.parameters.flat, classifier(labels, seed).parameters.flat)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- files ---------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_and_not_written_over(tmp_path):
    """A program that has the old file open or mapped, or another link to it, keeps the old content."""
    path = tmp_path / "a.txt"
    write_beside(path, lambda beside: beside.write_text("old"))
    os.link(path, tmp_path / "old.txt")
    write_beside(path, lambda beside: beside.write_text("new"))
    assert (path.read_text(), (tmp_path / "old.txt").read_text()) == ("new", "old")


def recorded(monkeypatch, root: Path) -> list[str]:
    """Record what is flushed and renamed from now on, in order. A temporary name is recorded as the final one."""
    events: list[str] = []
    fsync, rename = os.fsync, os.replace

    def name(path: Path) -> str:
        return path.name.rsplit(".", 1)[0][1:] if path.name.startswith(".") else path.name

    def flushed(handle):
        numbers = os.fstat(handle).st_ino
        (path,) = (path for path in (root, *root.iterdir()) if path.stat().st_ino == numbers)
        if path != root:
            assert path.stat().st_size > 0  # written before it is flushed
        events.append("flush names" if path == root else f"flush {name(path)}")
        fsync(handle)

    def replaced(self, target):
        events.append(f"rename {target.name}")
        rename(self, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", replaced)
    return events


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = recorded(monkeypatch, tmp_path)
    write_beside(tmp_path / "a.txt", lambda beside: beside.write_text("new"))
    assert events == ["flush a.txt", "rename a.txt", "flush names"]


def test_both_files_of_a_model_are_on_the_disk_before_either_has_its_name(folder, monkeypatch):
    events = recorded(monkeypatch, folder)
    classifier(NEW_LABELS, seed=2).save_pretrained(folder)
    assert sorted(events[:2]) == ["flush config.json", "flush model.safetensors"]
    renames = ("config.json.before-save", "model.safetensors", "config.json")
    assert events[2:] == [event for name in renames for event in (f"rename {name}", "flush names")]


def test_weights_alone_are_replaced_where_the_config_stays(folder, monkeypatch):
    """This is the usual save during a training. One rename is enough, so no crash can come between two."""
    events = recorded(monkeypatch, folder)
    classifier(OLD_LABELS, seed=2).save_pretrained(folder)
    assert [event for event in events if event.startswith("rename")] == ["rename model.safetensors"]
    assert_is(folder, OLD_LABELS, seed=2)


# --- a save that fails ---------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_model(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full_disk(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minibert.files.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        classifier(NEW_LABELS, seed=2).save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_rename_that_fails_never_leaves_half_of_each(folder, monkeypatch, failing):
    rename, calls = os.replace, []

    def replace_or_fail(self, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_or_fail)
        with pytest.raises(OSError, match="Input/output error"):
            classifier(NEW_LABELS, seed=2).save_pretrained(folder)
    if failing < 3:
        assert_is(folder, OLD_LABELS, seed=1)
        assert names(folder) == ["config.json", "model.safetensors"]
        return
    with pytest.raises(PretrainedError, match=r"saving .* was interrupted.*config\.json\.before-save is the old"):
        MiniBERT.from_pretrained(folder)


CRASH = """
import os, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.huggingface.test_saving import NEW_LABELS, classifier
rename, calls = os.replace, []
def replace_or_die(self, target):
    calls.append(target)
    if len(calls) == {dying}:
        os._exit(9)
    rename(self, target)
Path.replace = replace_or_die
classifier(NEW_LABELS, seed=2).save_pretrained({folder!r})
"""


@pytest.mark.parametrize("dying", [1, 2, 3])
def test_a_crash_leaves_the_old_model_or_none_and_saving_again_mends_it(folder, dying):
    code = CRASH.format(root=str(Path(__file__).parents[2]), dying=dying, folder=str(folder))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    if dying == 1:
        assert_is(folder, OLD_LABELS, seed=1)
    else:
        with pytest.raises(PretrainedError, match="saving a model into it was interrupted"):
            MiniBERT.from_pretrained(folder)
    classifier(NEW_LABELS, seed=2).save_pretrained(folder)
    assert_is(folder, NEW_LABELS, seed=2)
    assert [name for name in names(folder) if not name.startswith(".")] == ["config.json", "model.safetensors"]


# --- shards --------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    small_bert(dtype="float32").save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_save_replaces_shards_and_nothing_else(sharded):
    (sharded / "adapter.safetensors").write_bytes(b"of someone else")
    model = MiniBERT.from_pretrained(sharded)
    model.parameters.flat[...] = 1.0
    model.save_pretrained(sharded)
    assert names(sharded) == ["adapter.safetensors", "config.json", "model.safetensors"]
    assert (MiniBERT.from_pretrained(sharded).parameters.flat == 1.0).all()


def test_an_index_removes_only_shards_of_its_own_folder(sharded):
    outside = sharded.parent / "outside.safetensors"
    outside.write_bytes(b"of someone else")
    strange = ["../outside.safetensors", str(outside), "config.json", "model.safetensors", 5]
    (sharded / INDEX).write_text(json.dumps({"weight_map": dict(enumerate(strange))}))
    small_bert(dtype="float32").save_pretrained(sharded)
    assert outside.exists()
    kept = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors"]
    assert names(sharded) == kept
    (sharded / INDEX).write_text("{")
    small_bert(dtype="float32").save_pretrained(sharded)
    assert names(sharded) == kept


def test_one_file_wins_over_shards_as_in_transformers(sharded):
    """Older versions of Mini-BERT left an index behind."""
    index = (sharded / INDEX).read_text()
    small_bert(dtype="float32", seed=3).save_pretrained(sharded)
    (sharded / INDEX).write_text(index)
    expected = small_bert(dtype="float32", seed=3).parameters.flat
    np.testing.assert_array_equal(MiniBERT.from_pretrained(sharded).parameters.flat, expected)


def test_a_save_that_fails_leaves_the_shards(sharded, monkeypatch):
    before = names(sharded)

    def full_disk(tensors, path, metadata):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minibert.files.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        small_bert(dtype="float32", seed=3).save_pretrained(sharded)
    assert names(sharded) == before
