"""Saved models have checksums: a flipped bit is found when the model is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from minibert import MiniBERT
from minibert.checksums import CHECKSUMS_FILE, MODEL_FILES, find_damage, write_checksums
from minibert.errors import PretrainedError, TrainingError
from minibert.inference.loading import load_model
from tests.support.small_bert import small_bert
from tests.support.small_run import run, write_text

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_bert().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished run. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("trained")
    run(write_text(folder / "animals.txt"), folder / "run", steps=1)
    return folder / "run"


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def test_every_flipped_bit_of_the_weights_is_found_or_changes_nothing(folder: Path):
    path = folder / WEIGHTS
    content = path.read_bytes()
    expected = MiniBERT.from_pretrained(folder).parameters.flat
    rng = np.random.default_rng(0)
    places = [*range(0, 3000, 60), *rng.integers(0, len(content), 60).tolist()]  # the header, and anywhere
    found: list[str] = []
    for at in places:
        flip(path, at, at % 8)
        try:
            np.testing.assert_array_equal(MiniBERT.from_pretrained(folder).parameters.flat, expected)
        except PretrainedError as error:
            found.append(str(error))
        path.write_bytes(content)
    assert len(found) > 100
    assert all(WEIGHTS in message for message in found)


def test_the_error_names_the_tensor(folder: Path):
    flip(folder / WEIGHTS, -1)
    with pytest.raises(PretrainedError, match=r"model\.safetensors is damaged: the tensor [a-zA-Z_.]+ does not have"):
        MiniBERT.from_pretrained(folder)


def test_files_of_other_programs_need_no_checksums(folder: Path):
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, {"format": "pt"})
    MiniBERT.from_pretrained(folder)


def test_the_format_that_transformers_looks_for_is_still_there(folder: Path):
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        assert file.metadata()["format"] == "pt"


def test_equal_models_are_equal_files(folder: Path, tmp_path: Path):
    """The library writes metadata in random order."""
    for number in range(8):
        small_bert().save_pretrained(tmp_path / str(number))
        assert (tmp_path / str(number) / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


# --- the files beside the weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODEL_FILES)
def test_a_flipped_bit_beside_the_weights_is_found(trained: Path, tmp_path: Path, name: str):
    copy = shutil.copytree(trained, tmp_path / "run")
    load_model(copy)
    flip(copy / name, (copy / name).stat().st_size // 2)
    with pytest.raises(TrainingError, match=rf"{name} is damaged .*if it was changed on purpose, delete .*checksums"):
        load_model(copy)
    (copy / CHECKSUMS_FILE).unlink()
    assert find_damage(copy, required=False) is None


def test_a_model_saved_over_another_needs_no_old_checksums(trained: Path, tmp_path: Path):
    copy = shutil.copytree(trained, tmp_path / "run")
    model, _ = load_model(copy)
    model.save_pretrained(copy)
    load_model(copy)


def test_large_files_are_checked_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("minibert.checksums._CHUNK_BYTES", 64)
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)))
    write_checksums(tmp_path, ["large", "absent"])
    assert find_damage(tmp_path, required=True) is None
    path.write_bytes(bytes(range(64, 256)) + bytes(range(64)))  # the same chunks in another order
    assert (
        find_damage(tmp_path, required=True)
        == f"{path} is damaged (its checksum differs from the one in checksums.json)"
    )
    path.unlink()
    assert find_damage(tmp_path, required=True) == f"{path} is missing or damaged (No such file or directory)"
