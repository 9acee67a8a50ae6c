"""Read labelled texts from CSV or JSON lines, and hold some out for evaluation."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minibert.data.permutation import permute
from minibert.errors import TrainingError, brief
from minibert.random_bits import Stream, derive_key

_MOST_DIGITS = 1000  # Python refuses to read numbers with many more


@dataclass(frozen=True)
class LabelledText:
    """A text or a pair of texts, with the name of its class."""

    text: str
    pair: str | None
    label: str


def read_labelled_texts(
    path: Path, text_column: str, label_column: str, text_pair_column: str | None = None
) -> list[LabelledText]:
    """Read all rows of a `.csv` file (the first line holds the column names) or a `.jsonl` file (one object a line).

    Args:
        path: a UTF-8 file.
        text_column: the name of the column, or JSON field, with the text.
        label_column: the column with the name of the class.
        text_pair_column: the column with a second text; None for single texts.

    Returns:
        The texts in the order of the file. Numbers and booleans become the text that JSON writes for them.

    Raises:
        TrainingError: the file is neither CSV nor JSON lines, has no rows, or has a row in which one of the columns is
            missing, empty, a list or an object, or the number of fields is wrong. The message names the file and the
            line.
        OSError: the file cannot be read.
    """
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix not in readers:
        raise TrainingError(f"{path}: labelled texts must be in a .csv or .jsonl file")
    columns = [text_column, label_column] + ([text_pair_column] if text_pair_column else [])
    examples = []
    try:
        for number, row in readers[path.suffix](path):
            text, label, *pair = (_cell(row, column, f"{path}, line {number}") for column in columns)
            examples.append(LabelledText(text, pair[0] if pair else None, label))
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    if not examples:
        raise TrainingError(f"{path} has no rows; give a file with labelled texts")
    return examples


def _cell(row: Mapping[str, Any], column: str, place: str) -> str:
    """Return the text in a column of a row.

    Raises:
        TrainingError: the column is missing, empty, a list or an object, or not Unicode; the message names the place.
    """
    if column not in row:
        names = brief(", ".join(map(repr, row)), 300, quoted=False)
        raise TrainingError(f"{place}: there is no column {brief(column)}; this row has {names or 'nothing'}")
    value = row[column]
    if value is None or value == "":
        raise TrainingError(f"{place}: {brief(column)} is empty; fill it in or remove the row")
    if isinstance(value, list | dict):
        raise TrainingError(
            f"{place}: {brief(column)} must be a string, not a {type(value).__name__}; write it as a string, or name "
            "another column"
        )
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TrainingError(
            f"{place}: {brief(column)} holds half a surrogate pair, which is not a character ({brief(text)}, at "
            f"character {error.start}); write the whole character"
        ) from error
    return text


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the fields of every row."""
    csv.field_size_limit(2**31 - 1)  # a text may be longer than 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(
            file, strict=True
        )  # without strict, a quote that is never closed swallows all rows after it
        names: list[str] | None = None
        try:
            for fields in reader:
                if not fields:  # a blank line
                    continue
                if names is None:
                    names = fields
                    if twice := [name for name, count in Counter(names).items() if name and count > 1]:
                        raise TrainingError(
                            f"{path}: two columns are called {', '.join(map(brief, sorted(twice)[:3]))}"
                        )
                    continue
                if len(fields) != len(names):
                    raise TrainingError(f"{path}, line {reader.line_num}: {_wrong_field_count(names, fields)}")
                yield reader.line_num, dict(zip(names, fields, strict=True))
        except csv.Error as error:
            raise TrainingError(f"{path}, line {reader.line_num}: this is not CSV ({error})") from error


def _wrong_field_count(names: Sequence[str], fields: Sequence[str]) -> str:
    """Return the error message for a row with too many or too few fields, in which a text could be read as a label."""
    counts = f"there are {len(fields)} fields, but {len(names)} column names"
    if len(fields) > len(names):
        return f'{counts}; a text that contains a comma must stand in quotes ("like this, for example")'
    return f"{counts}; a comma is missing, or a quote is in the wrong place"


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the fields of every object."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except RecursionError as error:
                raise TrainingError(f"{path}, line {number}: this is nested too deeply to be read") from error
            except ValueError as error:  # not JSON, or a number with too many digits
                message = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise TrainingError(f"{path}, line {number}: this is not JSON ({message})") from error
            if not isinstance(row, dict):
                raise TrainingError(f"{path}, line {number}: there must be an object, not a {type(row).__name__}")
            yield number, row


def labels_of(examples: Sequence[LabelledText]) -> list[str]:
    """Return the names of the classes, sorted: by value if all of them are numbers, otherwise as texts.

    Raises:
        TrainingError: there are fewer than two classes.
    """
    labels = sorted({example.label for example in examples})
    if all(label.isdecimal() and len(label) < _MOST_DIGITS for label in labels):
        labels.sort(key=int)
    if len(labels) < 2:
        raise TrainingError(f"a classifier needs at least two labels, but every text has the label {brief(labels[0])}")
    return labels


def hold_out(
    examples: Sequence[LabelledText], share: float, seed: int
) -> tuple[list[LabelledText], list[LabelledText]]:
    """Split texts into texts to train on and texts to evaluate on, class by class.

    Args:
        examples: the texts to split.
        share: the share of every class to evaluate on, between 0 and 1. At least one text of each class is kept for
            training.
        seed: decides which texts are held out.

    Returns:
        (training texts, evaluation texts), both in the order of `examples`.

    Raises:
        TrainingError: there are too few texts to hold any out.
    """
    indices: dict[str, list[int]] = {}  # of the texts of each class
    for index, example in enumerate(examples):
        indices.setdefault(example.label, []).append(index)
    held_out: set[int] = set()
    for number, label in enumerate(labels_of(examples)):
        members = indices[label]
        wanted = min(round(share * len(members)), len(members) - 1)
        if wanted:
            order = permute(np.arange(wanted), len(members), derive_key(seed, Stream.SPLIT, number))
            held_out |= {members[int(index)] for index in order}
    if not held_out:
        raise TrainingError(
            f"{len(examples)} texts are too few to hold {share:.0%} out; give --evaluation-data or more texts"
        )
    train = [example for index, example in enumerate(examples) if index not in held_out]
    return train, [examples[index] for index in sorted(held_out)]
