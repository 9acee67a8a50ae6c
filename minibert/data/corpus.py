"""Read text: find the files of a corpus, and yield their documents and sentences.

`open_corpus(sources)` finds the files: text files, compressed files, JSON lines, folders, globs, or Python's
standard library. Iterating over the `Corpus` yields its documents, one in memory at a time, and can be
repeated. `split_sentences` divides a document into sentences.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minibert.data.content import ContentIndex
from minibert.data.stdlib_text import STDLIB, stdlib_documents, stdlib_fingerprint
from minibert.data.text_files import COMPRESSIONS, TEXT_EXTENSIONS, NotRead, extension, find_files
from minibert.data.text_stream import Decoding, LeftOut, read_lines
from minibert.errors import DataError, brief

# A text without blank lines is cut into documents of this size, so that memory stays bounded. The longest
# of 233 State of the Union addresses has 217,000 characters, so real documents are hardly ever cut.
MAX_DOCUMENT_CHARACTERS = 1 << 18

# A line of JSON is read whole, so a longer one is refused. It has room for any book.
MAX_JSON_CHARACTERS = 1 << 25

# Text without any sentence end (a table, a program) is cut here, so that a sentence is never a whole file.
MAX_SENTENCE_CHARACTERS = 1000

_CLOSING = "\"')\\]}\u2019\u201d\u00bb"
_NOT_SPACE = re.compile(r"\S")
_SENTENCE_END = re.compile(rf"\n|(?<=[.!?])\s+|(?<=[.!?][{_CLOSING}])\s+|(?<=[\u3002\uff01\uff1f])")

CORPUS_HELP = f"""\
Where the text comes from: one or more of
  a text file      blank lines separate documents (the format of the original BERT); inside a document,
                   a sentence ends at a line break or after a full stop, "!" or "?". A document longer
                   than {MAX_DOCUMENT_CHARACTERS:,} characters is cut at a line break, and a longer line at a space.
  a .jsonl file    one JSON object per line, with the document in its field "text". The document may
                   contain blank lines, so this is the format for books and articles.
                   A line has at most {MAX_JSON_CHARACTERS:,} characters.
  a folder         every {" ".join(TEXT_EXTENSIONS)} file in it and in its subfolders, in
                   sorted order; what else it holds is counted and named
  a glob           in quotes, for example 'books/**/*.txt'
  stdlib           the documentation inside Python's own standard library: about 2 MB of English, present
                   on every machine (for a folder of that name write ./stdlib)
Files are UTF-8, unless --encoding says otherwise, and may be compressed ({" ".join(COMPRESSIONS)}). A file named
twice is read once. Damaged text is an error; with --skip-damaged it is left out and counted."""


class CorpusWarning(UserWarning):
    """Something that a corpus holds is not read."""


@dataclass(frozen=True)
class Document:
    """One document of a corpus.

    Attributes:
        text: the whole document, never blank; `split_sentences` divides it.
        source: the file (for JSON lines also the line) it was read from, for messages.
    """

    text: str
    source: str


class Corpus:
    """The documents of some files. Iterating reads the files again each time.

    Args:
        files: what to read, in this order.
        with_stdlib: True to add the standard library's documentation after the files.
        description: the sources as the user named them, for messages.
        encoding: the encoding of the files.
        skip_damaged: leave out lines and files that are damaged, instead of raising an error.

    Raises:
        DataError: there is no such encoding; while iterating, if a file cannot be read or there is no text at all.

    Warns:
        CorpusWarning: at the end of an iteration, if damaged parts were left out.
    """

    def __init__(
        self,
        files: Sequence[Path],
        with_stdlib: bool,
        description: str,
        *,
        encoding: str = "utf-8",
        skip_damaged: bool = False,
    ) -> None:
        self.files = tuple(files)
        self.with_stdlib = with_stdlib
        self.description = description
        self.encoding = encoding
        self.skip_damaged = skip_damaged
        Decoding(encoding)  # refuses an unknown one

    def __iter__(self) -> Iterator[Document]:
        empty = True
        left_out = LeftOut()
        for document in self._documents(Decoding(self.encoding, left_out if self.skip_damaged else None)):
            empty = False
            yield document
        if empty:
            why = f"what is damaged was left out: {left_out}" if left_out else "every file is empty or blank"
            raise DataError(f"there is no text in {self.description}: {why}; name others")
        if left_out:
            # stacklevel 1: Python shows a repeated warning once, although the text is read several times
            warnings.warn(f"{self.description}: damaged text was left out: {left_out}", CorpusWarning, stacklevel=1)

    def _documents(self, decoding: Decoding) -> Iterator[Document]:
        for path in self.files:
            read = _read_json_lines if extension(path) == ".jsonl" else _read_text_file
            yield from read(path, decoding)
        if self.with_stdlib:
            for name, text in stdlib_documents():
                yield Document(text, f"{STDLIB}:{name}")

    def fingerprint(self, cache: Path | None = None) -> str:
        """Return 64 hexadecimal digits that identify the text: content, order, kinds and decoding of the files.

        Where the files lie, and when they were changed, does not matter.

        Args:
            cache: the folder that remembers the content of files, see `ContentIndex`; None reads all files.

        Raises:
            DataError: a file can no longer be found or read.
        """
        index = ContentIndex(cache)
        digest = hashlib.sha256()
        for path in self.files:
            kind = (extension(path) == ".jsonl", path.suffix.lower() if path.suffix in COMPRESSIONS else "")
            digest.update(repr((kind, index.digest(path))).encode())
        index.save()
        if self.with_stdlib:
            digest.update(stdlib_fingerprint().encode())
        if (self.encoding, self.skip_damaged) != ("utf-8", False):
            digest.update(repr((self.encoding, self.skip_damaged)).encode())
        return digest.hexdigest()

    def status(self) -> tuple[tuple[str, int, int], ...]:
        """Return path, size in bytes and time of change in nanoseconds of every file, to notice a change.

        Raises:
            DataError: a file can no longer be found or read.
        """
        found = []
        for path in self.files:
            try:
                status = path.stat()
            except OSError as error:
                raise DataError(f"{path} was found but can no longer be read: {error.strerror}") from error
            found.append((str(path), status.st_size, status.st_mtime_ns))
        return tuple(found)

    def check_unchanged(self, before: tuple[tuple[str, int, int], ...]) -> None:
        """Refuse a text that changed while it was read.

        Args:
            before: the `status` before the text was read.

        Raises:
            DataError: a file has changed since; the message names it.
        """
        for then, now in zip(before, self.status(), strict=True):
            if then != now:
                raise DataError(
                    f"{now[0]} changed while it was read: start again when nobody writes to it any more, or read a copy"
                )

    def number_of_bytes(self) -> int:
        """Return the size of all files together, as they lie on the disk."""
        return sum(size for _, size, _ in self.status())

    def fingerprint_of_names(self) -> str:
        """Return the fingerprint that earlier versions used: it follows paths, sizes and times of change."""
        digest = hashlib.sha256()
        for entry in self.status():
            digest.update(repr(entry).encode())
        if self.with_stdlib:
            digest.update(stdlib_fingerprint().encode())
        if (self.encoding, self.skip_damaged) != ("utf-8", False):
            digest.update(repr((self.encoding, self.skip_damaged)).encode())
        return digest.hexdigest()


def open_corpus(sources: Sequence[str], *, encoding: str = "utf-8", skip_damaged: bool = False) -> Corpus:
    """Find the files named by `sources`; `CORPUS_HELP` describes every kind of source.

    Args:
        sources: files, folders, globs and the word `stdlib`; the order is kept.
        encoding: the encoding of the files.
        skip_damaged: leave out lines and files that are damaged, instead of raising an error.

    Raises:
        DataError: a source does not exist or matches nothing, the first document cannot be read, or there is no such
            encoding.
        TypeError: `sources` is a string instead of a list of strings.

    Warns:
        CorpusWarning: a folder holds entries that are not read; the message counts and names them.
    """
    if isinstance(sources, str):
        raise TypeError("open_corpus takes a list of sources, not one string")
    if not sources:
        raise DataError("no text was named; give a file, a folder or the word stdlib")
    files: dict[Path, None] = {}  # keeps the order, and a file that two sources name only once
    for source in sources:
        not_read = NotRead()
        if source != STDLIB:
            files |= {path.resolve(): None for path in find_files(source, not_read)}
        if not_read:
            warnings.warn(f"{source} also holds what is not read: {not_read}", CorpusWarning, stacklevel=2)
    corpus = Corpus(list(files), STDLIB in sources, " + ".join(sources), encoding=encoding, skip_damaged=skip_damaged)
    next(iter(corpus))  # most mistakes show in the first document; report them before a model is built
    return corpus


def split_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a document; none is blank or longer than `MAX_SENTENCE_CHARACTERS`.

    A sentence ends at a line break; after `.`, `!` or `?` (and one closing quote or bracket) if white space
    follows; and after the full-width forms of these marks, with or without white space. So abbreviations end
    sentences, too. Next-sentence prediction needs coherent stretches of text, not correct grammar, so this does
    no harm.
    """
    start = 0
    for end in _SENTENCE_END.finditer(text):
        yield from _cut_sentence(text[start : end.start()].strip())
        start = end.end()
    yield from _cut_sentence(text[start:].strip())


def _cut_sentence(sentence: str) -> Iterator[str]:
    """Yield pieces of at most `MAX_SENTENCE_CHARACTERS`, cut at a space if there is one."""
    start = 0
    while len(sentence) - start > MAX_SENTENCE_CHARACTERS:
        space = sentence.rfind(" ", start + 1, start + MAX_SENTENCE_CHARACTERS)
        cut = space if space > 0 else start + MAX_SENTENCE_CHARACTERS
        yield sentence[start:cut].rstrip()
        following = _NOT_SPACE.search(sentence, cut)
        start = len(sentence) if following is None else following.start()
    if start < len(sentence):
        yield sentence[start:]


def _read_text_file(path: Path, decoding: Decoding) -> Iterator[Document]:
    """Yield the documents of a text file: runs of lines without a blank line, cut where they get too long."""
    lines: list[str] = []
    length = 0
    for _, line in read_lines(path, decoding, cut_at=MAX_DOCUMENT_CHARACTERS):
        blank = not line.strip()
        if lines and (blank or length + len(line) > MAX_DOCUMENT_CHARACTERS):
            yield Document("\n".join(lines), str(path))
            lines, length = [], 0
        if not blank:
            lines.append(line)
            length += len(line) + 1
    if lines:
        yield Document("\n".join(lines), str(path))


def _read_json_lines(path: Path, decoding: Decoding) -> Iterator[Document]:
    """Yield the documents of a JSON lines file; each line is an object with the document in its field "text"."""
    for number, line in read_lines(path, decoding, longest=MAX_JSON_CHARACTERS):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            text = _text_of_json(line, where)
        except DataError as error:
            decoding.damage('line without a JSON object that has a string field "text"', where, error)
            continue
        if text.strip():
            yield Document(text, where)


def _text_of_json(line: str, where: str) -> str:
    """Return the field "text" of a JSON object.

    Raises:
        DataError: the line is not JSON, has no such field, or its text is not Unicode.
    """
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply to be read; write the text as one string") from error
    except ValueError as error:
        raise DataError(f'{where} is not JSON ({error}); every line must be one object with a field "text"') from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise DataError(
            f'{where} has no string field "text" (found {brief(found, quoted=False)}); rename the field that holds the '
            "text"
        )
    text = str(record["text"])
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half a surrogate pair, which is not a character ({error.reason}, at character "
            f"{error.start}); write the whole character"
        ) from error
    return text
