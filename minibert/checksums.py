"""Checksums of the files of a folder, in a file beside them: they find a bit that a disk, a memory or a copy flipped.

CRC-32 finds every damage of up to 32 bits in a row, and all but one in four thousand million others. It takes about a
quarter of a second for a gigabyte on one core. It is no protection against somebody who changes a file on purpose.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

from minibert.files import write_text
from minibert.reading import open_file, read_bytes

CHECKSUMS_FILE = "checksums.json"

MODEL_FILES = ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""The files of a model's folder that have no place for a checksum. `model.safetensors` has one in its header."""

_CHUNK_BYTES = 1 << 22  # large files are checked in chunks, on several cores


def write_checksums(folder: Path, names: Iterable[str]) -> None:
    """Write the checksums of some files of a folder into `checksums.json` there; files that do not exist are left out.

    Raises:
        OSError: a file cannot be read or written.
    """
    checksums = {name: _checksum(folder / name) for name in names if (folder / name).is_file()}
    write_text(folder / CHECKSUMS_FILE, json.dumps({"crc32": checksums}, indent=1) + "\n")


def find_damage(folder: Path, *, required: bool) -> str | None:
    """Compare the files of a folder with their checksums.

    Args:
        folder: the folder.
        required: True if a folder without `checksums.json` is damaged.

    Returns:
        What is wrong, in words that name the file; None if all is well.

    Raises:
        PermissionError: a file may not be read.
    """
    path = folder / CHECKSUMS_FILE
    try:
        recorded = json.loads(read_bytes(path))["crc32"]
        names = [str(name) for name in recorded]
    except FileNotFoundError:
        return f"{path} is missing" if required else None
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        return f"{path} is damaged ({type(error).__name__}: {error})"
    for name in names:
        try:
            found = _checksum(folder / name)
        except PermissionError:
            raise
        except OSError as error:
            return f"{folder / name} is missing or damaged ({error.strerror or error})"
        if found != recorded[name]:
            return f"{folder / name} is damaged (its checksum differs from the one in {CHECKSUMS_FILE})"
    return None


def _checksum(path: Path) -> str:
    """Return the size of a file and the CRC-32 of its chunks, as text."""
    size = path.stat().st_size
    starts = range(0, size, _CHUNK_BYTES)
    if len(starts) <= 1:
        parts = [_checksum_of_chunk(path, 0)]
    else:
        from concurrent.futures import ThreadPoolExecutor  # small files, which commands read at their start, need none

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            parts = list(threads.map(lambda start: _checksum_of_chunk(path, start), starts))
    digest = parts[0] if len(parts) == 1 else zlib.crc32(b"".join(part.to_bytes(4, "little") for part in parts))
    return f"{size}-{digest:08x}"


def _checksum_of_chunk(path: Path, start: int) -> int:
    with open_file(path) as file:
        file.seek(start)
        return zlib.crc32(file.read(_CHUNK_BYTES))
