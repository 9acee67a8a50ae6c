"""Files that are either the old ones or the new ones, never half of either."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.numpy import save_file

from backends import Array


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written in the same folder, flush it to the disk, and rename it to `path`.

    Args:
        path: where the file shall be; its folder exists.
        write: called with the path to write to.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    beside = Path(name)
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.chmod(0o666 & ~_umask())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, beside its place first."""
    write_beside(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write host arrays as safetensors, beside their place first."""
    write_beside(path, lambda beside: save_file(dict(tensors), beside, dict(metadata)))


def _umask() -> int:
    """What a plain open() would have left out; a temporary file is made for its owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
