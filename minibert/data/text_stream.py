"""Decode the bytes of a file into lines of text. A helper of `corpus.py`.

Plain, gzip and xz files are decoded chunk by chunk. `read_lines` can return a long line in pieces, so that even
a file without a line break needs little memory. An error names the place in the file; with `LeftOut`, what is
damaged is counted and left out instead.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from minibert.errors import DataError, brief

CHUNK_BYTES = 1 << 16

_XZ_MEMORY = 1 << 28  # bytes; the strongest preset of xz needs a quarter of it, but a file may ask for 4 GB

_DAMAGED = "\udcff"  # half a surrogate pair, which no encoding yields: it stands for bytes that cannot be decoded
_MARK_DAMAGED = "minibert-mark-damaged"
codecs.register_error(_MARK_DAMAGED, lambda error: (_DAMAGED, cast(UnicodeDecodeError, error).end))


class LeftOut:
    """The damaged parts of a text that were left out, counted by kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[int, str]] = {}  # how many, and where the first one is

    def add(self, kind: str, where: str) -> None:
        """Count a part that is left out: a kind such as "line that is not JSON", and its place."""
        count, first = self._kinds.get(kind, (0, where))
        self._kinds[kind] = count + 1, first

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def __str__(self) -> str:
        """Return the counts, such as "2 times a line that is not JSON (first: a.jsonl, line 7)"."""
        return "; ".join(f"{count:,} x {kind} (first: {where})" for kind, (count, where) in self._kinds.items())


@dataclass(frozen=True)
class Decoding:
    """How the bytes of a corpus become text.

    Attributes:
        encoding: the name of the encoding, such as "utf-8" or "latin-1".
        left_out: counts damaged parts, which are then left out; None makes each of them an error.

    Raises:
        DataError: Python knows no such encoding.
    """

    encoding: str = "utf-8"
    left_out: LeftOut | None = None

    def __post_init__(self) -> None:
        check_encoding(self.encoding)

    def damage(self, kind: str, where: str, error: DataError) -> None:
        """Count a damaged part, or raise the error."""
        if self.left_out is None:
            raise error
        self.left_out.add(kind, where)


def check_encoding(name: str) -> None:
    """Refuse a name that is not that of an encoding of text.

    Raises:
        DataError: Python knows no such encoding.
    """
    try:
        "".encode(name)
        b"".decode(name)
    except (LookupError, ValueError) as error:
        raise DataError(
            f"{brief(name)} is not the name of an encoding; such names are utf-8, latin-1, cp1252"
        ) from error


def read_lines(
    path: Path, decoding: Decoding, *, cut_at: int | None = None, longest: int | None = None
) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file without their line breaks, each with its number from 1.

    The last line may lack its line break.

    Args:
        path: a plain, `.gz` or `.xz` file.
        decoding: the encoding, and what to do with damaged parts.
        cut_at: a line with more characters is yielded in pieces, cut after a space if there is one; None: never cut.
        longest: a line with more characters is damaged; None allows any length.

    Raises:
        DataError: the file cannot be read, is damaged, or holds bytes that are not text. The message gives
            the offset of the first such byte (for a compressed file, in its decompressed text).
    """
    number = 1
    parts: list[str] = []  # the line read so far, which has not ended yet
    length = 0
    for text in _read_text(path, decoding):
        first, *others = text.split("\n")
        if longest is None or length <= longest:  # what follows in a line that is too long is not kept
            parts.append(first)
        length += len(first)
        if others:
            yield from _checked(path, number, _cut_line("".join(parts), cut_at), longest, decoding)
            for line in others[:-1]:
                number += 1
                yield from _checked(path, number, _cut_line(line, cut_at), longest, decoding)
            number += 1
            parts, length = [others[-1]], len(others[-1])
        if cut_at is not None and length > cut_at:
            *whole, rest = _cut_line("".join(parts), cut_at)
            yield from _checked(path, number, whole, longest, decoding)
            parts, length = [rest], len(rest)
        if longest is not None and length > longest and decoding.left_out is None:
            raise _too_long(path, number, longest)
    if length:
        yield from _checked(path, number, _cut_line("".join(parts), cut_at), longest, decoding)


def _checked(
    path: Path, number: int, pieces: Iterator[str] | list[str], longest: int | None, decoding: Decoding
) -> Iterator[tuple[int, str]]:
    """Yield the pieces of a line with its number, but leave out those that are damaged or too long."""
    where = f"{path}, line {number}"
    for piece in pieces:
        if decoding.left_out is not None and _DAMAGED in piece:
            decoding.left_out.add(f"line that is not {decoding.encoding.upper()}", where)
        elif longest is not None and len(piece) > longest:
            decoding.damage(f"line of more than {longest:,} characters", where, _too_long(path, number, longest))
        else:
            yield number, piece


def _too_long(path: Path, number: int, longest: int) -> DataError:
    return DataError(
        f"{path}, line {number}: this line has more than {longest:,} characters; divide the text among several lines"
    )


def _cut_line(line: str, max_characters: int | None) -> Iterator[str]:
    """Yield a line in pieces of at most `max_characters`, cut after a space if there is one."""
    start = 0
    while max_characters is not None and len(line) - start > max_characters:
        space = line.rfind(" ", start + 1, start + max_characters)
        cut = space + 1 if space > 0 else start + max_characters
        yield line[start:cut]
        start = cut
    yield line[start:]


def _read_text(path: Path, decoding: Decoding) -> Iterator[str]:
    r"""Yield the text of a file in chunks, without a byte order mark and with `\n` for every line break."""
    newlines = io.IncrementalNewlineDecoder(decoder=None, translate=True)
    errors = "strict" if decoding.left_out is None else _MARK_DAMAGED
    decoder = codecs.getincrementaldecoder(decoding.encoding)(errors)
    read = 0  # bytes
    begun = False
    for chunk in _read_chunks(path, decoding):
        undecoded = len(decoder.getstate()[0])  # the bytes before this chunk that are a character's first part
        try:
            # An empty chunk is the end of the file; a character that is still incomplete there is an error.
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeError as error:
            if not isinstance(error, UnicodeDecodeError):  # UTF-16 without a byte order mark, for example
                decoding.damage("file", str(path), DataError(f"{path} is not {decoding.encoding.upper()}: {error}"))
                return
            raise _decoding_error(path, decoding, read - undecoded, error) from error
        if text and not begun:
            begun, text = True, text.removeprefix("\ufeff")
        read += len(chunk)
        yield newlines.decode(text, final=not chunk)


def _read_chunks(path: Path, decoding: Decoding) -> Iterator[bytes]:
    """Yield the (decompressed) bytes of a file, then one empty chunk."""
    try:
        with open(path, "rb") as file:
            yield from _decompressed(file, path.suffix)
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        damage = DataError(
            f"{path} is not a whole {path.suffix} file ({error}); it may be damaged or only partly downloaded: "
            f"download it again, or rename it if it is not compressed"
        )
        damage.__cause__ = error
        decoding.damage("end of a damaged file", str(path), damage)
    except OSError as error:
        decoding.damage(
            "file that cannot be read", str(path), DataError(f"{path} cannot be read: {error.strerror or error}")
        )
    yield b""


def _decompressed(file: BinaryIO, suffix: str) -> Iterator[bytes]:
    """Yield the content of an open file in chunks; decompress it if the suffix is `.gz` or `.xz`."""
    if suffix == ".xz":
        yield from _decompressed_xz(file)
        return
    content = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if suffix == ".gz" else file
    while chunk := content.read(CHUNK_BYTES):
        yield chunk


def _decompressed_xz(file: BinaryIO) -> Iterator[bytes]:
    """Yield the content of all streams of an .xz file. `lzma.open` cannot bound the memory that a file asks for."""
    compressed = file.read(CHUNK_BYTES)
    while True:  # once for each stream
        stream = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        while not stream.eof:
            if chunk := stream.decompress(compressed, CHUNK_BYTES):
                yield chunk
            compressed = b""
            if stream.needs_input and not stream.eof and not (compressed := file.read(CHUNK_BYTES)):
                raise EOFError("the compressed data end too early")
        compressed = stream.unused_data.lstrip(b"\0")  # zeros may fill up the end
        while not compressed:
            if not (more := file.read(CHUNK_BYTES)):
                return
            compressed = more.lstrip(b"\0")


def _decoding_error(path: Path, decoding: Decoding, base: int, error: UnicodeDecodeError) -> DataError:
    """Return the error for a byte that cannot be decoded.

    Args:
        path: the file.
        decoding: the encoding that the file should have.
        base: the place of the bytes that were being decoded, in the (decompressed) file.
        error: says which of them failed. Those at the start of a file may show that it is UTF-16.
    """
    where = f"{path}: byte {base + error.start}"
    if path.suffix in {".gz", ".xz"}:
        where += " of the decompressed text"
    if base == 0 and error.object[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
        advice = "it looks like UTF-16: give --encoding utf-16, or convert it with `iconv -f UTF-16 -t UTF-8`"
    else:
        advice = (
            "if the files have another encoding, name it (--encoding latin-1, for example); if only some are damaged, "
            "leave damaged lines out (--skip-damaged)"
        )
    return DataError(f"{where} (0x{error.object[error.start]:02x}) is not {decoding.encoding.upper()}; {advice}")
