"""Use tokenizers from strangers: refuse those that could run for ever, and explain failures of the library.

A `tokenizer.json` may hold regular expressions and replacements, which the `tokenizers` library runs as they are. Some
take exponential time or memory, and nothing can interrupt them. So they are looked at when a tokenizer is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tokenizers
from tokenizers import models

from minibert.data.tokenizer_files import read_part
from minibert.errors import DataError, brief

LONGEST_TEXT = 1 << 22
"""Characters that are tokenized at once. The library needs up to 200 bytes for each."""

_LARGEST_GROWTH = 1000  # by replacements; beyond it, even a short text would not fit into memory
_LONGEST_WORD = 256  # WordPiece takes quadratic time for each word; BERT's own limit is 100
_UNUSED_IDS = 1 << 16  # a vocabulary may have about this many ids without a token; each costs some bytes


@contextmanager
def library_errors(doing: str, texts: Sequence[str] = ()) -> Iterator[None]:
    """Turn failures of the `tokenizers` library inside the block into DataErrors.

    The library raises bare Exceptions, and where Rust panics something that is no Exception at all.

    Args:
        doing: what the block does, to complete "the tokenizers library fails when ...".
        texts: the texts that it gets. Half a surrogate pair in one has an error of its own: the library says only that
            the text is no string.

    Raises:
        DataError: the library failed, or a text is not Unicode; the message gives the place.
    """
    try:
        yield
    except TypeError:
        for text in texts:
            check_unicode(text)
        raise
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"
        if panic or type(error) is Exception or isinstance(error, ValueError | OverflowError):
            why = brief(str(error), 300, quoted=False)
            raise DataError(f"the tokenizers library fails when {doing}: {why}") from error
        raise


def check_unicode(text: str, where: str = "") -> None:
    """Refuse half a surrogate pair.

    Args:
        text: the text.
        where: begins the message, such as "tokenizer_config.json: ".

    Raises:
        DataError: the text has one; the message gives the place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as why:
        here = text[max(0, why.start - 10) : why.start + 10]
        raise DataError(
            f"{where}this is not Unicode text: {brief(here)}, at character {why.start}; remove that character"
        ) from why


def check_vocabulary_size(vocabulary: dict[str, int]) -> None:
    """Refuse ids that are far larger than the number of tokens: arrays over all ids would fill the memory.

    Raises:
        DataError: there is such an id; the message names its token.
    """
    token = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[token] >= 2 * len(vocabulary) + _UNUSED_IDS:
        raise DataError(
            f"the token {brief(token)} has the id {vocabulary[token]:,} in a vocabulary of {len(vocabulary):,} tokens; "
            "ids number the tokens from 0, so the file is damaged"
        )


def longest_text(backend: tokenizers.Tokenizer) -> int:
    """Look at the parts of a tokenizer, and return the number of characters that it may get at once.

    Raises:
        DataError: a part could run for ever or fill the memory, or lacks its token for unknown words.
    """
    parts = [read_part(part) for part in (backend.normalizer, backend.pre_tokenizer, backend.decoder)]
    growth = 1
    for fields in _dictionaries(parts):
        if isinstance(fields.get("Regex"), str):
            check_pattern(fields["Regex"])
        if fields.get("type") == "Replace":
            growth *= _growth(fields)
    if growth > _LARGEST_GROWTH:
        raise DataError(
            f"the replacements in the tokenizer can make a text {brief(growth)} times as long, which would fill the "
            "memory; remove them from tokenizer.json"
        )
    model = backend.model
    if isinstance(model, models.WordPiece) and model.max_input_chars_per_word > _LONGEST_WORD:
        raise DataError(
            f"max_input_chars_per_word is {model.max_input_chars_per_word:,}, and long words take quadratic time; "
            f"write at most {_LONGEST_WORD} into tokenizer.json (BERT has 100)"
        )
    if isinstance(model, models.WordPiece | models.WordLevel) and model.token_to_id(model.unk_token) is None:
        raise DataError(
            f"the token for unknown words is {brief(model.unk_token)}, which the vocabulary lacks; correct unk_token "
            "in tokenizer.json"
        )
    return LONGEST_TEXT // growth


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all dictionaries in a value from JSON, however nested."""
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            yield current
            pending += current.values()
        elif isinstance(current, list):
            pending += current


def _growth(replace: dict[str, Any]) -> int:
    """Return how many times as long a text can become by a replacement."""
    content, pattern = str(replace.get("content", "")), replace.get("pattern", {})
    found = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(found, str) and found:
        return max(1, math.ceil(len(content) / len(found)))
    return len(content) + 1  # a regular expression, or an empty text, matches between characters, too


def check_pattern(pattern: str) -> None:
    """Refuse a regular expression whose search can take exponential time, such as (a+)+$.

    These have a group that is repeated without a small bound, and that holds another such repetition or a choice.
    Several unbounded repetitions in a row take polynomial time; more than four are refused, too.

    Raises:
        DataError: the pattern is such a one, or ends in the middle of something.
    """
    nested = [False]  # for every open group: does it hold an unbounded repetition or a choice?
    repetitions, last_group_nested, place = 0, False, 0
    while place < len(pattern):
        character = pattern[place]
        after = place + 1
        if character == "\\":
            after, last_group_nested = place + 2, False
        elif character == "[":
            after, last_group_nested = _end_of_class(pattern, place), False
        elif character == "(":
            nested.append(False)
            last_group_nested = False
            if pattern[after : after + 1] == "?":
                after += 1
        elif character == ")":
            last_group_nested = nested.pop() if len(nested) > 1 else False
            nested[-1] |= last_group_nested
        elif character == "|":
            nested[-1] = True
            repetitions = 0 if len(nested) == 1 else repetitions
        elif (end := _end_of_repetition(pattern, place)) is not None:
            repetitions += 1
            if last_group_nested or repetitions > 4:
                raise DataError(
                    f"the tokenizer has the regular expression {brief(pattern)}, whose search can take for ever; write "
                    "it without repetitions inside of repetitions"
                )
            nested[-1] = True
            after = end
        elif character not in "?{}+":
            last_group_nested = False
        place = after


def _end_of_class(pattern: str, place: int) -> int:
    """Return the index after a character class such as [^]a-z] that begins at a place."""
    place += 2 if pattern[place + 1 : place + 2] == "^" else 1
    place += pattern[place : place + 1] == "]"  # a bracket at the beginning stands for itself
    while place < len(pattern) and pattern[place] != "]":
        if pattern[place] == "[":
            place = _end_of_class(pattern, place)
        else:
            place += 2 if pattern[place] == "\\" else 1
    return place + 1


def _end_of_repetition(pattern: str, place: int) -> int | None:
    """Return the index after an unbounded repetition (*, +, {n,} or a bound of 10 or more) at a place, or None."""
    if pattern[place] in "*+":
        return place + 2 if pattern[place + 1 : place + 2] in ("?", "+") else place + 1
    if pattern[place] != "{":
        return None
    end = pattern.find("}", place)
    bounds = pattern[place + 1 : end].split(",") if end > place else []
    most = bounds[-1].strip() if bounds else "0"
    unbounded = most == "" or (most.isascii() and most.isdigit() and (len(most) > 1))
    return end + 1 if bounds and unbounded else None
