"""Where the text comes from: files, folders, globs, compressed files, JSON lines, the standard library.

`open_corpus(sources)` finds the files; iterating over the `Corpus` streams their documents, as often as
one likes, one document in memory at a time.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minibert.data.stdlib_text import STDLIB, stdlib_documents, stdlib_fingerprint
from minibert.data.text_stream import read_lines
from minibert.errors import DataError

TEXT_EXTENSIONS = (".txt", ".text", ".md", ".rst", ".jsonl")
COMPRESSIONS = (".gz", ".xz")

# A text without blank lines is cut into documents of this size, so that memory stays bounded. The longest
# of 233 State of the Union addresses has 217,000 characters: real documents are hardly ever cut.
MAX_DOCUMENT_CHARACTERS = 1 << 18

CORPUS_HELP = f"""\
Where the text comes from: one or more of
  a text file      documents are separated by blank lines (the format of the original BERT); inside a
                   document, line breaks and the ends of sentences separate sentences. A document
                   longer than {MAX_DOCUMENT_CHARACTERS:,} characters is cut at a line break.
  a .jsonl file    one JSON object per line, its document in the field "text" (blank lines are kept, so
                   this is the format for books and articles)
  a folder         every {" ".join(TEXT_EXTENSIONS)} file below it, in sorted order; hidden
                   files and folders are left out
  a glob           quoted, for example 'books/**/*.txt'
  stdlib           the documentation inside Python's own standard library, about 2 MB of English that
                   is on every machine (for a folder of that name write ./stdlib)
Files are UTF-8 and may be compressed ({" ".join(COMPRESSIONS)}); a file named twice is read once."""


@dataclass(frozen=True)
class Document:
    """One document of a corpus.

    Attributes:
        text: the document, never blank; sentences are told apart later (`minibert.data.sentences`).
        source: where it stands, for messages.
    """

    text: str
    source: str


class Corpus:
    """The documents of some files, and perhaps of the standard library; iterate over it as often as you like.

    Args:
        files: what to read, in this order.
        with_stdlib: whether the standard library's documentation comes after them.
        description: how the person who chose the text calls it.

    Raises:
        DataError: while iterating, when a file cannot be read or there is no text at all.
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
            raise DataError(f"there is no text in {self.description}: every file is empty or blank")

    def _documents(self) -> Iterator[Document]:
        for path in self.files:
            reader = _json_lines if _extension(path) == ".jsonl" else _blank_line_separated
            yield from reader(path)
        if self.with_stdlib:
            for name, text in stdlib_documents():
                yield Document(text, f"{STDLIB}:{name}")

    def fingerprint(self) -> str:
        """64 hexadecimal digits that change when a file's path, size or time of change does.

        The text itself is not read, so this is cheap for any corpus.

        Raises:
            DataError: a file has gone since the corpus was opened.
        """
        digest = hashlib.sha256()
        for path in self.files:
            try:
                status = path.stat()
            except OSError as error:
                raise DataError(f"{path} cannot be read any more: {error.strerror}") from error
            digest.update(repr((str(path), status.st_size, status.st_mtime_ns)).encode())
        if self.with_stdlib:
            digest.update(stdlib_fingerprint().encode())
        return digest.hexdigest()


def open_corpus(sources: Sequence[str]) -> Corpus:
    """Finds the text named by `sources`; see `CORPUS_HELP` for what they may be.

    Args:
        sources: files, folders, globs and the word `stdlib`; the order is kept.

    Raises:
        DataError: a source does not exist or matches nothing, or the first document cannot be read.
    """
    if isinstance(sources, str):
        raise TypeError("open_corpus takes a list of sources, not one string")
    if not sources:
        raise DataError("no text was named; give a file, a folder or the word stdlib")
    # A dictionary keeps the order and reads a file that two sources name only once.
    files = {path.resolve(): None for source in sources if source != STDLIB for path in _find(source)}
    corpus = Corpus(list(files), STDLIB in sources, " + ".join(sources))
    next(iter(corpus))  # most mistakes show in the first document: better now than after the model is built
    return corpus


def _extension(path: Path) -> str:
    """`.txt` for `a.txt` and for `a.txt.gz`."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    return suffixes[-1].lower() if suffixes else ""


def _find(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        files = _files_below(path)
        if not files:
            raise DataError(
                f"the folder {source} has no text: no file ends in {', '.join(TEXT_EXTENSIONS)} "
                f"(also compressed, {' or '.join(COMPRESSIONS)}); name other files directly or by a glob"
            )
        return files
    if path.exists():
        return [path]
    if glob.has_magic(source):
        # Path.glob takes no absolute pattern.
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
        files = [match for match in matches if match.is_file()]
        if not files:
            raise DataError(f"no file matches {source!r} (looked in {Path.cwd()}); use ** to look in folders below")
        return files
    raise DataError(f"there is no file or folder {source!r} (looked in {Path.cwd()}), and it is not the word {STDLIB}")


def _files_below(folder: Path) -> list[Path]:
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = [Path(parent, name) for name in names if not name.startswith(".")]
        found += [path for path in visible if _extension(path) in TEXT_EXTENSIONS]
    return sorted(found)


def _blank_line_separated(path: Path) -> Iterator[Document]:
    """The documents of a plain text file: stretches of lines without a blank one, cut where they get too long."""
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


def _json_lines(path: Path) -> Iterator[Document]:
    """The documents of a JSON lines file; a line is an object whose field "text" is the document."""
    for number, line in enumerate(read_lines(path, None), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except RecursionError as error:
            raise DataError(f"{where} is nested too deeply to be read; write its text as one string") from error
        except ValueError as error:
            raise DataError(f'{where} is not JSON ({error}); every line is one object with a field "text"') from error
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            found = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise DataError(f'{where} has no string field "text" (found {found}); rename the field that holds the text')
        text = record["text"]
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where} holds half a surrogate pair, which is no character: {error}") from error
        if text.strip():
            yield Document(text, where)
