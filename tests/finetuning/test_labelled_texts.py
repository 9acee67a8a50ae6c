"""Labelled texts from strangers: a fault is found before the training, and named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minibert.data.permutation import permute
from minibert.errors import TrainingError
from minibert.finetuning.labelled_texts import LabelledText, hold_out, labels_of, read_labelled_texts
from minibert.random_bits import Stream, derive_key


@pytest.mark.parametrize("field", ["text", "label"])
def test_half_a_surrogate_pair_is_named_with_its_line(tmp_path: Path, field: str):
    row = {"text": "a cat", "label": "animal"}
    lines = [json.dumps(row), json.dumps({**row, field: "x\ud83d"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(TrainingError, match=rf"a\.jsonl, line 2: '{field}' holds half a surrogate pair.*character 1"):
        read_labelled_texts(tmp_path / "a.jsonl", "text", "label")


def test_labels_of_thousands_of_digits_are_sorted_as_texts():
    examples = [LabelledText("a", None, label) for label in ("9" * 5000, "10", "9")]
    assert labels_of(examples) == ["10", "9", "9" * 5000]
    assert labels_of(examples[1:]) == ["9", "10"]


def test_what_is_held_out_has_not_changed():
    rng = np.random.default_rng(3)
    examples = [LabelledText(str(n), None, str(rng.integers(0, 12))) for n in range(200)]
    expected: set[int] = set()
    for number, label in enumerate(labels_of(examples)):  # as before it was linear in the number of classes
        members = [index for index, example in enumerate(examples) if example.label == label]
        order = permute(np.arange(len(members)), len(members), derive_key(5, Stream.SPLIT, number))
        expected |= {members[int(index)] for index in order[: min(round(0.3 * len(members)), len(members) - 1)]}
    _, evaluation = hold_out(examples, 0.3, seed=5)
    assert evaluation == [examples[index] for index in sorted(expected)]


def test_holding_out_looks_at_every_text_once():
    class Counted:
        looks = 0
        text, pair = "a", None

        def __init__(self, label: str) -> None:
            self._label = label

        @property
        def label(self) -> str:
            Counted.looks += 1
            return self._label

    examples = [Counted(str(number % 500)) for number in range(1500)]
    hold_out(examples, 0.2, seed=0)  # type: ignore[arg-type]
    assert Counted.looks < 5 * len(examples)


def test_values_and_column_names_are_shortened_in_messages(tmp_path: Path):
    names = [f"{number:09}" * 100 for number in range(1000)]
    (tmp_path / "a.csv").write_text(",".join(names) + "\n" + ",".join(names))
    with pytest.raises(TrainingError, match="there is no column 'text'") as error:
        read_labelled_texts(tmp_path / "a.csv", "text", "label")
    assert len(str(error.value)) < 700
    (tmp_path / "a.csv").write_text(",".join(["text"] * 100_000) + "\n")
    with pytest.raises(TrainingError, match="two columns are called 'text'"):
        read_labelled_texts(tmp_path / "a.csv", "text", "label")
    with pytest.raises(TrainingError, match="every text has the label") as error:
        labels_of([LabelledText("a", None, "x" * 1_000_000)])
    assert len(str(error.value)) < 300


def test_a_column_with_a_very_long_name_is_shortened(tmp_path: Path):  # found by `make fuzz`
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    with pytest.raises(TrainingError, match="there is no column 'xxx") as error:
        read_labelled_texts(tmp_path / "a.csv", "text", "label", "x" * 5000)
    assert len(str(error.value)) < 400
