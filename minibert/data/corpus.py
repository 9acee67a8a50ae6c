"""Read text: find the files of a corpus, and yield their documents and sentences.

`open_corpus(sources)` finds the files: text files, compressed files, JSON lines, folders, globs, or Python's
standard library. Iterating over the `Corpus` yields its documents, one in memory at a time, and can be
repeated. `split_sentences` divides a document into sentences.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minibert.data.content import ContentIndex
from minibert.data.stdlib_text import STDLIB, stdlib_documents, stdlib_fingerprint
from minibert.data.text_stream import read_lines
from minibert.errors import DataError

TEXT_EXTENSIONS = (".txt", ".text", ".md", ".rst", ".jsonl")
COMPRESSIONS = (".gz", ".xz")

# A text without blank lines is cut into documents of this size, so that memory stays bounded. The longest
# of 233 State of the Union addresses has 217,000 characters, so real documents are hardly ever cut.
MAX_DOCUMENT_CHARACTERS = 1 << 18

# Text without any sentence end (a table, a program) is cut here, so that a sentence is never a whole file.
MAX_SENTENCE_CHARACTERS = 1000

_CLOSING = "\"')\\]}\u2019\u201d\u00bb"
_SENTENCE_END = re.compile(rf"\n|(?<=[.!?])\s+|(?<=[.!?][{_CLOSING}])\s+|(?<=[\u3002\uff01\uff1f])")

CORPUS_HELP = f"""\
Where the text comes from: one or more of
  a text file      blank lines separate documents (the format of the original BERT); inside a document,
                   a sentence ends at a line break or after a full stop, "!" or "?". A document longer
                   than {MAX_DOCUMENT_CHARACTERS:,} characters is cut at a line break, and a longer line at a space.
  a .jsonl file    one JSON object per line, with the document in its field "text". The document may
                   contain blank lines, so this is the format for books and articles.
  a folder         every {" ".join(TEXT_EXTENSIONS)} file in it and in its subfolders, in
                   sorted order; hidden files and folders are skipped
  a glob           in quotes, for example 'books/**/*.txt'
  stdlib           the documentation inside Python's own standard library: about 2 MB of English, present
                   on every machine (for a folder of that name write ./stdlib)
Files are UTF-8 and may be compressed ({" ".join(COMPRESSIONS)}); a file named twice is read once."""


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

    Raises:
        DataError: while iterating, if a file cannot be read or there is no text at all.
    """

    def __init__(self, files: Sequence[Path], with_stdlib: bool, description: str) -> None:
        self.files = tuple(files)
        self.with_stdlib = with_stdlib
        self.description = description

    def __iter__(self) -> Iterator[Document]:
        empty = True
        for document in self._documents():
            empty = False
            yield document
        if empty:
            raise DataError(f"there is no text in {self.description}: every file is empty or blank; name others")

    def _documents(self) -> Iterator[Document]:
        for path in self.files:
            read = _read_json_lines if _extension(path) == ".jsonl" else _read_text_file
            yield from read(path)
        if self.with_stdlib:
            for name, text in stdlib_documents():
                yield Document(text, f"{STDLIB}:{name}")

    def fingerprint(self, cache: Path | None = None) -> str:
        """Return 64 hexadecimal digits that identify the text: the content of the files, their order and their kinds.

        Where the files lie, and when they were changed, does not matter.

        Args:
            cache: the folder that remembers the content of files, see `ContentIndex`; None reads all files.

        Raises:
            DataError: a file can no longer be found or read.
        """
        index = ContentIndex(cache)
        digest = hashlib.sha256()
        for path in self.files:
            kind = (_extension(path) == ".jsonl", path.suffix.lower() if path.suffix in COMPRESSIONS else "")
            digest.update(repr((kind, index.digest(path))).encode())
        index.save()
        if self.with_stdlib:
            digest.update(stdlib_fingerprint().encode())
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
        return digest.hexdigest()


def open_corpus(sources: Sequence[str]) -> Corpus:
    """Find the files named by `sources`; `CORPUS_HELP` describes every kind of source.

    Args:
        sources: files, folders, globs and the word `stdlib`; the order is kept.

    Raises:
        DataError: a source does not exist or matches nothing, or the first document cannot be read.
        TypeError: `sources` is a string instead of a list of strings.
    """
    if isinstance(sources, str):
        raise TypeError("open_corpus takes a list of sources, not one string")
    if not sources:
        raise DataError("no text was named; give a file, a folder or the word stdlib")
    # A dictionary keeps the order and reads a file that two sources name only once.
    files = {path.resolve(): None for source in sources if source != STDLIB for path in _find_files(source)}
    corpus = Corpus(list(files), STDLIB in sources, " + ".join(sources))
    next(iter(corpus))  # most mistakes show in the first document; report them before a model is built
    return corpus


def split_sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a document; none is blank or longer than `MAX_SENTENCE_CHARACTERS`.

    A sentence ends at a line break; after `.`, `!` or `?` (and one closing quote or bracket) if white space
    follows; and after the full-width forms of these marks, with or without white space. So abbreviations end
    sentences, too. Next-sentence prediction needs coherent stretches of text, not correct grammar, so this does
    no harm.
    """
    for sentence in _SENTENCE_END.split(text):
        yield from _cut_sentence(sentence.strip())


def _cut_sentence(sentence: str) -> Iterator[str]:
    """Yield pieces of at most `MAX_SENTENCE_CHARACTERS`, cut at a space if there is one."""
    while len(sentence) > MAX_SENTENCE_CHARACTERS:
        space = sentence.rfind(" ", 1, MAX_SENTENCE_CHARACTERS)
        cut = space if space > 0 else MAX_SENTENCE_CHARACTERS
        yield sentence[:cut].rstrip()
        sentence = sentence[cut:].lstrip()
    if sentence:
        yield sentence


def _extension(path: Path) -> str:
    """Return `.txt` for `a.txt` and for `a.txt.gz`."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    return suffixes[-1].lower() if suffixes else ""


def _find_files(source: str) -> list[Path]:
    """Return the files that one source names, sorted if it names several."""
    path = Path(source).expanduser()
    if path.is_dir():
        files = _find_files_below(path)
        if not files:
            raise DataError(
                f"the folder {source} has no text: no file ends in {', '.join(TEXT_EXTENSIONS)} "
                f"({' or '.join(COMPRESSIONS)} may follow); name other files directly or with a glob"
            )
        return files
    if path.exists():
        return [path]
    if glob.has_magic(source):
        # Path.glob takes no absolute pattern.
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
        files = [match for match in matches if match.is_file()]
        if not files:
            raise DataError(f"no file matches {source!r} (looked in {Path.cwd()}); use ** to search subfolders")
        return files
    raise DataError(f"there is no file or folder {source!r} (looked in {Path.cwd()}), and it is not the word {STDLIB}")


def _find_files_below(folder: Path) -> list[Path]:
    """Return the visible text files of a folder and its subfolders, sorted."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = [Path(parent, name) for name in names if not name.startswith(".")]
        found += [path for path in visible if _extension(path) in TEXT_EXTENSIONS]
    return sorted(found)


def _read_text_file(path: Path) -> Iterator[Document]:
    """Yield the documents of a text file: runs of lines without a blank line, cut where they get too long."""
    lines: list[str] = []
    length = 0
    for line in read_lines(path, MAX_DOCUMENT_CHARACTERS):
        blank = not line.strip()
        if lines and (blank or length + len(line) > MAX_DOCUMENT_CHARACTERS):
            yield Document("\n".join(lines), str(path))
            lines, length = [], 0
        if not blank:
            lines.append(line)
            length += len(line) + 1
    if lines:
        yield Document("\n".join(lines), str(path))


def _read_json_lines(path: Path) -> Iterator[Document]:
    """Yield the documents of a JSON lines file; each line is an object with the document in its field "text"."""
    for number, line in enumerate(read_lines(path, None), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except RecursionError as error:
            raise DataError(f"{where} is nested too deeply to be read; write the text as one string") from error
        except ValueError as error:
            raise DataError(
                f'{where} is not JSON ({error}); every line must be one object with a field "text"'
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            found = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise DataError(f'{where} has no string field "text" (found {found}); rename the field that holds the text')
        text = record["text"]
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where} holds half a surrogate pair, which is not a character: {error}; write the whole character"
            ) from error
        if text.strip():
            yield Document(text, where)
