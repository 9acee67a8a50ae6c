"""Read regular files only: a pipe or a device in the place of a file could block for ever, or never end."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import BinaryIO


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading bytes.

    Raises:
        OSError: the file is missing, cannot be read, or is no regular file.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        what = "it is a folder" if stat.S_ISDIR(mode) else "it is a pipe, a socket or a device"
        raise OSError(errno.EINVAL, what, str(path))
    return path.open("rb")


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; see `open_file` for the errors."""
    with open_file(path) as file:
        return file.read()
