"""Text -> sentences, by a rule simple enough to say in one breath.

A sentence ends at a line break, after `.`, `!` or `?` (and closing quotes or brackets) before white space,
and after their full-width forms. Abbreviations end sentences too; for next-sentence prediction, which needs
coherent stretches rather than grammar, that does no harm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Text without any of these ends (a table, a program) is cut here, so that a sentence is never the whole file.
MAX_SENTENCE_CHARACTERS = 1000

_CLOSING = "\"')\\]}\u2019\u201d\u00bb"
_END = re.compile(rf"\n|(?<=[.!?])\s+|(?<=[.!?][{_CLOSING}])\s+|(?<=[\u3002\uff01\uff1f])")


def split_sentences(text: str) -> Iterator[str]:
    """The sentences of a document, none of them blank, none longer than `MAX_SENTENCE_CHARACTERS`."""
    for sentence in _END.split(text):
        yield from _cut(sentence.strip())


def _cut(sentence: str) -> Iterator[str]:
    while len(sentence) > MAX_SENTENCE_CHARACTERS:
        space = sentence.rfind(" ", 1, MAX_SENTENCE_CHARACTERS)
        cut = space if space > 0 else MAX_SENTENCE_CHARACTERS
        yield sentence[:cut].rstrip()
        sentence = sentence[cut:].lstrip()
    if sentence:
        yield sentence
