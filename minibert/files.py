"""Files that are either the old ones or the new ones, never half of either."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.numpy import save_file

from backends import Array


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written in the same folder, flush it to the disk, and rename it to `path`.

    Args:
        path: where the file shall be; its folder exists.
        write: called with the path to write to.
    """
    with _written_beside(path, write) as beside:
        beside.replace(path)
    _flush_names(path.parent)


def write_tensors_and_text(
    tensors_path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str], text_path: Path, text: str
) -> None:
    """Write host arrays as safetensors, and the text that says what they are, in place of others in the same folder.

    No two renames are one, so a crash can come between them. It must not leave new tensors with an old text, which
    may well fit in shape and mean something else: a text that changes is moved away first, and comes back if the
    tensors cannot be put in place. A crash in between leaves no text at all, which nobody takes for a whole folder.

    Args:
        tensors_path: where the tensors shall be; its folder exists.
        tensors: by name.
        metadata: of the safetensors file.
        text_path: where the text shall be.
        text: written in UTF-8.
    """
    kept = before_save(text_path)
    with (
        _written_beside(tensors_path, lambda path: save_file(dict(tensors), path, dict(metadata))) as new_tensors,
        _written_beside(text_path, lambda path: path.write_text(text, encoding="utf-8", newline="")) as new_text,
    ):
        changed = not text_path.exists() or text_path.read_bytes() != text.encode()
        try:
            if changed and text_path.exists():
                text_path.replace(kept)
                _flush_names(text_path.parent)
            new_tensors.replace(tensors_path)
        except BaseException:
            if new_tensors.exists() and kept.exists() and not text_path.exists():  # the old tensors are still there
                kept.replace(text_path)
            raise
        _flush_names(tensors_path.parent)
        if changed:
            new_text.replace(text_path)
            _flush_names(text_path.parent)
    kept.unlink(missing_ok=True)


def before_save(path: Path) -> Path:
    """Where `write_tensors_and_text` keeps the old text while it puts the new files in place."""
    return path.with_name(f"{path.name}.before-save")


@contextmanager
def _written_beside(path: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """A new file in the folder of `path`, on the disk; removed in the end where it was not renamed."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    beside = Path(name)
    try:
        write(beside)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.chmod(0o666 & ~_umask())
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def _flush_names(folder: Path) -> None:
    """Makes sure that the renames in a folder have reached the disk, and so in their order."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows does not open folders, and some that may be written to may not be read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems over a network cannot
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    """What a plain open() would have left out; a temporary file is made for its owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
