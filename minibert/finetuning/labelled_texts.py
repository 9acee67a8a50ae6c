"""Labelled texts from CSV or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minibert.data.permutation import permute
from minibert.errors import TrainingError
from minibert.random_bits import Stream, derive_key


@dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts, and the name of its class."""

    text: str
    pair: str | None
    label: str


def read_labelled_texts(
    path: Path, text_column: str, label_column: str, text_pair_column: str | None = None
) -> list[LabelledText]:
    """All rows of a `.csv` (with a line of column names) or `.jsonl` file (one object a line).

    Args:
        path: UTF-8.
        text_column: the column, or field, of the text.
        label_column: of the class. Numbers and booleans are taken as they are written, here and as texts.
        text_pair_column: of a second text, if there is one.

    Raises:
        TrainingError: another kind of file, no rows, or a row without one of the columns, with nothing or with a
            list or an object in it, or with another number of fields than there are names; names file and row.
    """
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix not in readers:
        raise TrainingError(f"{path}: labelled texts are read from .csv and .jsonl files")
    columns = [text_column, label_column] + ([text_pair_column] if text_pair_column else [])
    examples = []
    try:
        for number, row in readers[path.suffix](path):
            values = [row.get(column) for column in columns]
            for column, value in zip(columns, values, strict=True):
                if column not in row:
                    has = ", ".join(map(repr, row))
                    raise TrainingError(
                        f"{path}, line {number}: there is no column {column!r}; this row has {has or 'nothing'}"
                    )
                if value is None or value == "":
                    raise TrainingError(f"{path}, line {number}: {column!r} is empty; leave the row out or fill it in")
                if isinstance(value, list | dict):
                    raise TrainingError(
                        f"{path}, line {number}: {column!r} must be a string, not a {type(value).__name__}; write it "
                        "out as one, or name another column"
                    )
            text, label, *pair = (value if isinstance(value, str) else json.dumps(value) for value in values)
            examples.append(LabelledText(text, pair[0] if pair else None, label))
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: byte {error.start} is not UTF-8") from error
    if not examples:
        raise TrainingError(f"{path} has no rows")
    return examples


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(2**31 - 1)  # a text may be longer than 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)  # otherwise a quote that is never closed swallows the rows after it
        names: list[str] | None = None
        try:
            for fields in reader:
                if not fields:  # a blank line
                    continue
                if names is None:
                    names = fields
                    if twice := {name for name in names if name and names.count(name) > 1}:
                        raise TrainingError(f"{path}: two columns are called {', '.join(map(repr, sorted(twice)))}")
                    continue
                if len(fields) != len(names):
                    raise TrainingError(f"{path}, line {reader.line_num}: {_miscounted(names, fields)}")
                yield reader.line_num, dict(zip(names, fields, strict=True))
        except csv.Error as error:
            raise TrainingError(f"{path}, line {reader.line_num}: this is not CSV ({error})") from error


def _miscounted(names: Sequence[str], fields: Sequence[str]) -> str:
    """What is wrong with a row of too many or too few fields: its text would pass for its label."""
    counts = f"there are {len(fields)} fields, but {len(names)} column names"
    if len(fields) > len(names):
        return f'{counts}; a text with a comma in it must stand in quotes ("like this, for example")'
    return f"{counts}; a comma is missing, or a quote is in the wrong place"


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except RecursionError as error:
                raise TrainingError(f"{path}, line {number}: this is nested too deeply to be read") from error
            except ValueError as error:  # no JSON, or a number of too many digits
                message = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise TrainingError(f"{path}, line {number}: this is not JSON ({message})") from error
            if not isinstance(row, dict):
                raise TrainingError(f"{path}, line {number}: there must be an object, not a {type(row).__name__}")
            yield number, row


def labels_of(examples: Sequence[LabelledText]) -> list[str]:
    """The names of the classes, in order: of numbers if all are numbers.

    Raises:
        TrainingError: fewer than two.
    """
    labels = sorted({example.label for example in examples})
    if all(label.isdecimal() for label in labels):
        labels.sort(key=int)
    if len(labels) < 2:
        raise TrainingError(f"there is nothing to tell apart: every text has the label {labels[0]!r}")
    return labels


def hold_out(
    examples: Sequence[LabelledText], share: float, seed: int
) -> tuple[list[LabelledText], list[LabelledText]]:
    """Texts to train on and texts to evaluate on, with about the share of every class in the latter.

    Args:
        examples: to divide.
        share: of the texts to evaluate on, between 0 and 1; at least one text of each class is trained on.
        seed: decides which.

    Raises:
        TrainingError: too few texts to hold any out.
    """
    held_out: set[int] = set()
    for number, label in enumerate(labels_of(examples)):
        members = [index for index, example in enumerate(examples) if example.label == label]
        wanted = min(round(share * len(members)), len(members) - 1)
        order = permute(np.arange(len(members)), len(members), derive_key(seed, Stream.SPLIT, number))
        held_out |= {members[int(index)] for index in order[:wanted]}
    if not held_out:
        raise TrainingError(
            f"{len(examples)} texts are too few to hold {share:.0%} out; give --evaluation-data or more texts"
        )
    train = [example for index, example in enumerate(examples) if index not in held_out]
    return train, [examples[index] for index in sorted(held_out)]
