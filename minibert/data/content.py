"""Identify files by their content, and remember the answer for as long as a file does not change.

A corpus must be the same wherever it is mounted and whenever it was copied, so its name and its time of change do not
count. Reading all of it at every start would take long, so a small file in the cache folder keeps the digest of every
file with its path, size and time of change. While these three stay the same, the file is not read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import zlib
from pathlib import Path
from typing import Any

from minibert.errors import DataError
from minibert.files import write_text

INDEX_FILE = ".content-index.json"

_SETTLED_NANOSECONDS = 2_000_000_000
"""The digest of a file that changed less than this before it was read is not kept: it might change again within the
resolution of the disk's clock."""


class ContentIndex:
    """The digests of files, remembered in a folder.

    Args:
        folder: the cache folder; it need not exist. None remembers nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / INDEX_FILE
        self._known = {} if self._path is None else _read(self._path)
        self._changed = False

    def digest(self, path: Path) -> str:
        """Return the SHA-256 of a file's content, in hexadecimal digits.

        Raises:
            DataError: the file cannot be read.
        """
        try:
            before = path.stat()
            status = [before.st_size, before.st_mtime_ns]
            known = self._known.get(str(path))
            if known is not None and known[:2] == status:
                return str(known[2])
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = path.stat()
        except OSError as error:
            raise DataError(f"{path} was found but can no longer be read: {error.strerror}") from error
        unchanged = [after.st_size, after.st_mtime_ns] == status
        if unchanged and time.time_ns() - before.st_mtime_ns > _SETTLED_NANOSECONDS:
            self._known[str(path)] = [*status, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Write what was learnt. A folder that cannot be written to only means that files are read again."""
        if self._path is None or not self._changed:
            return
        text = json.dumps(self._known, indent=0)
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, f"{zlib.crc32(text.encode()):08x}\n{text}\n")
        self._changed = False


def _read(path: Path) -> dict[str, Any]:
    """Read the index; empty if there is none, or if its checksum says that it is damaged."""
    try:
        checksum, _, text = path.read_text(encoding="utf-8").partition("\n")
        text = text.removesuffix("\n")
        return dict(json.loads(text)) if f"{zlib.crc32(text.encode()):08x}" == checksum else {}
    except (OSError, ValueError):
        return {}
