"""Decode the bytes of a file into lines of text. A helper of `corpus.py`.

Plain, gzip and xz files are decoded chunk by chunk. `read_lines` can return a long line in pieces, so that even
a file without a line break needs little memory. An error names the place in the file.
"""

from __future__ import annotations

import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from minibert.errors import DataError

CHUNK_BYTES = 1 << 16


def read_lines(path: Path, max_characters: int | None) -> Iterator[str]:
    """Yield the lines of a UTF-8 file without their line breaks; the last line may lack its line break.

    Args:
        path: a plain, `.gz` or `.xz` file.
        max_characters: a longer line is yielded in pieces, cut after a space if there is one; None: never cut.

    Raises:
        DataError: the file cannot be read, is damaged, or holds bytes that are not UTF-8. The message gives
            the offset of the first such byte (for a compressed file, in its decompressed text).
    """
    parts: list[str] = []  # the line read so far, which has not ended yet
    length = 0
    for text in _read_text(path):
        first, *others = text.split("\n")
        parts.append(first)
        length += len(first)
        if others:
            yield from _cut_line("".join(parts), max_characters)
            for line in others[:-1]:
                yield from _cut_line(line, max_characters)
            parts, length = [others[-1]], len(others[-1])
        if max_characters is not None and length > max_characters:
            *whole, rest = _cut_line("".join(parts), max_characters)
            yield from whole
            parts, length = [rest], len(rest)
    if length:
        yield from _cut_line("".join(parts), max_characters)


def _cut_line(line: str, max_characters: int | None) -> Iterator[str]:
    """Yield a line in pieces of at most `max_characters`, cut after a space if there is one."""
    start = 0
    while max_characters is not None and len(line) - start > max_characters:
        space = line.rfind(" ", start + 1, start + max_characters)
        cut = space + 1 if space > 0 else start + max_characters
        yield line[start:cut]
        start = cut
    yield line[start:]


def _read_text(path: Path) -> Iterator[str]:
    r"""Yield the text of a UTF-8 file in chunks, without a byte order mark and with `\n` for every line break."""
    newlines = io.IncrementalNewlineDecoder(decoder=None, translate=True)
    offset = 0  # the place of the first byte that is not yet decoded
    pending = b""
    for chunk in _read_chunks(path):
        pending += chunk
        try:
            # An empty chunk is the end of the file; a character that is still incomplete there is an error.
            text, used = codecs.utf_8_decode(pending, "strict", not chunk)
        except UnicodeDecodeError as error:
            raise _decoding_error(path, offset + error.start, pending[error.start], offset, pending) from error
        if offset == 0 and used:
            text = text.removeprefix("\ufeff")
        offset += used
        pending = pending[used:]
        yield newlines.decode(text, final=not chunk)


def _read_chunks(path: Path) -> Iterator[bytes]:
    """Yield the (decompressed) bytes of a file, then one empty chunk."""
    try:
        with _open_bytes(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
        yield b""
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise DataError(
            f"{path} is not a whole {path.suffix} file ({error}); it may be damaged or only partly downloaded: "
            f"download it again, or rename it if it is not compressed"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading bytes; decompress it if its name ends in `.gz` or `.xz`."""
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    return open(path, "rb")


def _decoding_error(path: Path, offset: int, byte: int, base: int, data: bytes) -> DataError:
    """Return the error for a byte that is not UTF-8.

    Args:
        path: the file.
        offset: the place of the byte in the (decompressed) file.
        byte: its value.
        base: the place of `data` in the file.
        data: the bytes being decoded; at the start of a file they may show that it is UTF-16.
    """
    where = f"{path}: byte {offset}"
    if path.suffix in {".gz", ".xz"}:
        where += " of the decompressed text"
    if base == 0 and data[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
        advice = "it looks like UTF-16: convert it with `iconv -f UTF-16 -t UTF-8`"
    else:
        advice = "convert the file to UTF-8 (for example `iconv -f LATIN1 -t UTF-8`), or leave it out"
    return DataError(f"{where} (0x{byte:02x}) is not UTF-8; {advice}")
