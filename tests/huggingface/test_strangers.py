"""Model folders from strangers: sizes that the weights do not have cost nothing, and every fault is named briefly."""

from __future__ import annotations

import json
import os
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minibert import MiniBERT
from minibert.errors import PretrainedError
from minibert.huggingface.pretrained import PretrainedWarning
from tests.support.small_bert import small_bert


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_bert(dtype="float32").save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder: Path, **changes: object) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **changes}, path)


def refused(folder: Path, match: str) -> str:
    """Return the message of the error; it is short, and comes without memory for sizes that nobody has stored."""
    tracemalloc.start()
    try:
        with pytest.raises(PretrainedError, match=match) as error:
            MiniBERT.from_pretrained(folder)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 1000
    return str(error.value)


@pytest.mark.parametrize(
    "name", ["vocab_size", "max_position_embeddings", "type_vocab_size", "intermediate_size", "num_hidden_layers"]
)
@pytest.mark.parametrize("size", [100_000, 2**31, 10**300])
def test_a_size_that_is_not_stored_is_refused_before_any_work(folder: Path, name: str, size: int):
    change_config(folder, **{name: size})
    refused(folder, "is missing, like all of its layer" if name == "num_hidden_layers" else "but config.json asks for")


def test_a_hidden_size_that_is_not_stored_is_refused_before_any_work(folder: Path):
    change_config(folder, hidden_size=3 * 2**31)
    refused(folder, "asks for")


def test_classes_that_are_not_stored_are_refused_before_any_work(folder: Path):
    change_config(folder, architectures=["BertForSequenceClassification"], num_labels=2**31)
    refused(folder, "num_labels is 2147483648, but no classifier is stored")
    change_tensors(folder, **{"classifier.weight": np.zeros((3, 12), "f4"), "classifier.bias": np.zeros(3, "f4")})
    refused(folder, "num_labels is 2147483648, but the stored classifier has 3 classes")


@pytest.mark.parametrize("value", [float("inf"), 1e30, float("nan"), 0.0, "1e-12"])
def test_a_layer_norm_without_a_sensible_epsilon_is_refused(folder: Path, value: object):
    change_config(folder, layer_norm_eps=value)
    refused(folder, "layer_norm_eps must be")


@pytest.mark.parametrize("field", ["hidden_act", "vocab_size", "model_type", "architectures", "classifier_dropout"])
def test_a_value_of_a_megabyte_is_shortened_in_the_message(folder: Path, field: str):
    for value in ("x" * 1_000_000, ["x" * 1000] * 1000, {"x" * 1000: [[]]}):
        change_config(folder, **{field: value})
        if field != "architectures" or not isinstance(value, list):
            assert len(refused(folder, field)) < 700


@pytest.mark.parametrize("digits", [10, 5000])
def test_a_layer_with_a_very_long_number_is_named(folder: Path, digits: int):
    change_tensors(folder, **{f"bert.encoder.layer.{'9' * digits}.attention.self.key.bias": np.zeros(12, "f4")})
    refused(folder, "belongs to layer 1000000000, counted from 0, but")


def test_names_of_unknown_tensors_are_shortened(folder: Path):
    change_tensors(folder, **{"x" * 100_000: np.zeros(1, "f4")})
    with pytest.warns(PretrainedWarning, match="ignored tensors that BERT does not have: xxx") as warned:
        MiniBERT.from_pretrained(folder)
    assert len(str(warned[0].message)) < 500


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json"])
def test_a_pipe_in_place_of_a_file_blocks_nobody(folder: Path, name: str):
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, f"{name} cannot be read: it is a pipe")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_an_index_that_names_something_odd_is_refused(folder: Path):
    (folder / "model.safetensors").rename(folder / "kept.safetensors")
    os.mkfifo(folder / "pipe")
    for shard in ("pipe", "..", ".", "", "a\0b", "../bert/kept.safetensors", 5, None, "config.json", "x" * 300):
        names = dict.fromkeys(load_file(folder / "kept.safetensors"), shard)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        refused(folder, "cannot be read|in the folder itself|is missing|damaged")


def test_a_file_without_access_is_not_called_missing_or_damaged(folder: Path, monkeypatch):
    opened = Path.open

    def denied(path: Path, *arguments, **keywords):
        if path.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", denied)
    refused(folder, r"model\.safetensors cannot be read: Permission denied")


@pytest.mark.parametrize("damage", ["[" * 100_000, "9" * 5000, '{"a": ' * 5000, "\ud800"])
def test_json_that_python_cannot_read_is_refused(folder: Path, damage: str):
    (folder / "config.json").write_bytes(damage.encode(errors="surrogatepass"))
    refused(folder, r"config\.json is not valid JSON")


def test_a_header_that_lies_about_offsets_is_refused(folder: Path):
    content = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    header["cls.predictions.bias"]["data_offsets"] = [0, 2**40]
    changed = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + size :])
    refused(folder, "damaged")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + content[8:])
    refused(folder, "damaged")
