"""The files that a tokenizer is kept in, as they are on the disk: names, fields, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minibert.errors import DataError

TOKENIZER_FILE, VOCABULARY_FILE = "tokenizer.json", "vocab.txt"
CONFIG_FILE, SPECIAL_FILE = "tokenizer_config.json", "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"

# What transformers calls a tokenizer that is read from tokenizer.json and nothing else. Of a BertTokenizer it takes
# only the vocabulary from there, and makes normalizer and pre-tokenizer itself, as tokenizer_config.json says.
GENERIC_CLASS = "PreTrainedTokenizerFast"
GENERIC_CLASSES = (GENERIC_CLASS, "TokenizersBackend")  # its name before and since transformers 5

# For each field of BertNormalizer: what tokenizer_config.json calls it, and what it is if that file does not say.
NORMALIZER_FIELDS: dict[str, tuple[str, bool | None]] = {
    "lowercase": ("do_lower_case", True),
    "strip_accents": ("strip_accents", None),
    "handle_chinese_chars": ("tokenize_chinese_chars", True),
}


def check_config(path: Path, config: Mapping[str, Any], roles: Iterable[str]) -> None:
    """That the fields that are heeded are of the right kind, before the library stumbles over them.

    Args:
        path: of tokenizer_config.json, for the message.
        config: its fields.
        roles: those of the special tokens.

    Raises:
        DataError: one is of another kind; names it.
    """
    for role in roles:
        entry = config.get(role)
        content = entry.get("content") if isinstance(entry, dict) else entry
        if entry is not None and not isinstance(content, str):
            raise DataError(f"{path}: {role} must be a token or an object with its content")
    for theirs, default in NORMALIZER_FIELDS.values():
        value = config.get(theirs, default)
        if not isinstance(value, bool) and not (value is default is None):
            raise DataError(f"{path}: {theirs} must be true or false, not {json.dumps(value)}")


def longest_sequence(config: Mapping[str, Any]) -> int | None:
    """What tokenizer_config.json says; transformers writes 10^30 where nothing is known, sometimes as a float."""
    length = config.get("model_max_length")
    known = isinstance(length, int) and not isinstance(length, bool) and 0 < length < 2**31
    return length if known else None


def token_of(entry: str | Mapping[str, Any]) -> str:
    """A special token is written as a string or as an object with its flags."""
    return entry if isinstance(entry, str) else str(entry["content"])


def read_added_tokens(path: Path) -> dict[str, int]:
    """Token -> id, in the order of the ids, from added_tokens.json, which old versions of transformers wrote.

    Raises:
        DataError: the file is damaged.
    """
    tokens = read_json(path)
    if wrong := [token for token, id_ in tokens.items() if type(id_) is not int]:
        raise DataError(f"{path}: the id of {wrong[0]!r} is no whole number")
    return dict(sorted(tokens.items(), key=lambda entry: entry[1]))


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds; an empty one if there is no such file.

    Raises:
        DataError: something else is there.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__} where an object belongs")
    return content


def read_vocabulary(path: Path) -> dict[str, int]:
    """Token -> id, which is its line; of a token that stands in two lines the last, as in Hugging Face.

    Raises:
        DataError: the file is not UTF-8.
    """
    try:
        tokens = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; a vocabulary has one token a line") from error
    if tokens[-1] == "":
        tokens.pop()
    return {token: id_ for id_, token in enumerate(tokens)}
