"""Read and check the files of a tokenizer on disk. A helper of `tokenizer.py`.

This module knows the names and fields of the files, and which file counts if two contradict each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers

from minibert import reading
from minibert.errors import DataError, brief

TOKENIZER_FILE, VOCABULARY_FILE = "tokenizer.json", "vocab.txt"
CONFIG_FILE, SPECIAL_FILE = "tokenizer_config.json", "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"

# The class name for which transformers takes everything from tokenizer.json. For a BertTokenizer it takes only the
# vocabulary from there, and makes normalizer and pre-tokenizer itself, following tokenizer_config.json.
GENERIC_CLASS = "PreTrainedTokenizerFast"
GENERIC_CLASSES = (GENERIC_CLASS, "TokenizersBackend")  # the names before and since transformers 5

# Field of BertNormalizer -> (its name in tokenizer_config.json, its value if that file lacks it).
NORMALIZER_FIELDS: dict[str, tuple[str, bool | None]] = {
    "lowercase": ("do_lower_case", True),
    "strip_accents": ("strip_accents", None),
    "handle_chinese_chars": ("tokenize_chinese_chars", True),
}


def check_config(path: Path, config: Mapping[str, Any], token_fields: Iterable[str]) -> None:
    """Check the types of the fields that `Tokenizer.load` uses, before the library fails on them.

    Args:
        path: the path of tokenizer_config.json, for the error message.
        config: the fields of that file.
        token_fields: the fields that name special tokens, such as "mask_token".

    Raises:
        DataError: a field has the wrong type; the message names it.
    """
    for field in token_fields:
        entry = config.get(field)
        content = entry.get("content") if isinstance(entry, dict) else entry
        if entry is not None and not isinstance(content, str):
            raise DataError(f'{path}: {field} must be a string, or an object with the token in its field "content"')
        if isinstance(content, str) and not _is_unicode(content):
            raise DataError(f"{path}: {field} is {brief(content)}, which is not Unicode text")
    for theirs, default in NORMALIZER_FIELDS.values():
        value = config.get(theirs, default)
        if not isinstance(value, bool) and not (value is default is None):
            raise DataError(f"{path}: {theirs} must be true or false, not {brief(json.dumps(value), quoted=False)}")


def _is_unicode(text: str) -> bool:
    """Return False if a text holds half a surrogate pair, which JSON can write and the library cannot read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_max_length(config: Mapping[str, Any]) -> int | None:
    """Return model_max_length of tokenizer_config.json, or None if it is unknown.

    Transformers writes 10^30 if it does not know the length, sometimes as a float.
    """
    length = config.get("model_max_length")
    known = isinstance(length, int) and not isinstance(length, bool) and 0 < length < 2**31
    return length if known else None


def read_token(entry: str | Mapping[str, Any]) -> str:
    """Return a special token, which is written either as a string or as an object with the token and its flags."""
    return entry if isinstance(entry, str) else str(entry["content"])


def read_added_tokens(path: Path) -> dict[str, int]:
    """Read token -> id, in the order of the ids, from added_tokens.json, which old versions of transformers wrote.

    Raises:
        DataError: the file is not a JSON object of whole numbers.
    """
    tokens = read_json(path)
    if wrong := [token for token, id_ in tokens.items() if type(id_) is not int]:
        raise DataError(f"{path}: the id of {brief(wrong[0])} must be a whole number")
    if wrong := [token for token in tokens if not _is_unicode(token)]:
        raise DataError(f"{path}: the token {brief(wrong[0])} is not Unicode text")
    return dict(sorted(tokens.items(), key=lambda entry: entry[1]))


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; return an empty one if there is no such file.

    Raises:
        DataError: the file cannot be read, or does not hold a JSON object.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(read_bytes(path))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number too long or a nesting too deep
        raise DataError(f"{path} is not valid JSON ({error}); download or write it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        DataError: the file cannot be read, for example without the right to; the message gives the system's reason.
    """
    try:
        return reading.read_bytes(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read token -> id from vocab.txt. The id is the number of the line, from 0.

    If a token is in two lines, the last one counts, as in Hugging Face.

    Raises:
        DataError: the file cannot be read or is not UTF-8.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; a vocabulary has one token a line") from error
    tokens = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if tokens[-1] == "":
        tokens.pop()
    return {token: id_ for id_, token in enumerate(tokens)}


def check_vocabulary(folder: Path, backend: tokenizers.Tokenizer) -> None:
    """Check that a vocab.txt beside tokenizer.json gives every token the same id. Other programs prefer vocab.txt.

    Raises:
        DataError: a token has another id in vocab.txt.
    """
    path = folder / VOCABULARY_FILE
    if not path.is_file():
        return
    ids = backend.get_vocab(with_added_tokens=True)
    for token, number in read_vocabulary(path).items():
        if ids.get(token) != number and token != name_unused(number):
            raise DataError(
                f"{path} says that the token {brief(token)} has the id {number}, {TOKENIZER_FILE} beside it says "
                f"{ids.get(token, 'that there is no such token')}: the files belong to different vocabularies; keep "
                "the one that belongs to the model, and remove the other"
            )


def apply_config(folder: Path, backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Normalize text as tokenizer_config.json says, even if tokenizer.json says otherwise, as in Hugging Face.

    Raises:
        DataError: tokenizer_config.json lacks a field, and the field's default contradicts tokenizer.json. Hugging Face
            takes the default, which is probably a mistake: a cased vocabulary would get lower-cased text.
    """
    options = read_normalizer(backend)
    if not options:
        return
    wanted = {ours: config.get(theirs, default) for ours, (theirs, default) in NORMALIZER_FIELDS.items()}
    if _effect(options) == _effect(wanted):
        return
    for ours, (theirs, default) in NORMALIZER_FIELDS.items():
        if theirs not in config and options[ours] != default:
            said, instead = json.dumps({theirs: options[ours]}), json.dumps(default)
            raise DataError(
                f"{folder / TOKENIZER_FILE} has {ours} {json.dumps(options[ours])}, but {CONFIG_FILE} beside it does "
                f"not say {theirs}, and transformers then takes {instead}: write {said} into {CONFIG_FILE}, or "
                f"{json.dumps({theirs: default})} if the model was trained that way"
            )
    backend.normalizer = normalizers.BertNormalizer(clean_text=options["clean_text"], **wanted)


def _effect(options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return (lowercase, strip accents, handle Chinese). If strip_accents is not set, it is the same as lowercase."""
    strip = options["lowercase"] if options["strip_accents"] is None else options["strip_accents"]
    return options["lowercase"], strip, options["handle_chinese_chars"]


def add_tokens(path: Path, backend: tokenizers.Tokenizer) -> None:
    """Add the tokens of added_tokens.json to those of vocab.txt.

    Raises:
        DataError: a token would get another id than the file gives it.
    """
    for token, id_ in read_added_tokens(path).items():
        if backend.token_to_id(token) is None:
            backend.add_tokens([tokenizers.AddedToken(token, normalized=True)])
        if backend.token_to_id(token) != id_:
            raise DataError(
                f"{path} gives the token {brief(token)} the id {brief(id_)}, but by {VOCABULARY_FILE} beside it the id "
                f"is {backend.token_to_id(token)}: the files belong to different vocabularies; fetch both again"
            )


def read_normalizer(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """Return the fields of the tokenizer's BertNormalizer; empty if it has another normalizer."""
    options = read_part(backend.normalizer)
    return options if options.get("type") == "BertNormalizer" else {}


def read_part(part: Any) -> dict[str, Any]:
    """Return the fields that tokenizer.json has for a part of the tokenizer; no fields if the part is None."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def name_unused(id_: int) -> str:
    """Return the line that stands in vocab.txt for an id without a token."""
    return f"[unused {id_}]"
