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
    flush(path.parent)


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
                flush(text_path.parent)
            new_tensors.replace(tensors_path)
        except BaseException:
            if new_tensors.exists() and kept.exists() and not text_path.exists():  # the old tensors are still there
                kept.replace(text_path)
            raise
        flush(tensors_path.parent)
        if changed:
            new_text.replace(text_path)
            flush(text_path.parent)
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
        flush(beside)
        beside.chmod(0o666 & ~_umask())
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file with the same line ends on every system, beside its place first."""
    write_beside(path, lambda beside: beside.write_text(text, encoding="utf-8", newline=""))


def rename_folder(beside: Path, final: Path) -> None:
    """Flush all files of a folder to the disk, then rename it: under its name it is whole, even after a power cut.

    Args:
        beside: the finished folder; it holds files only.
        final: in the same folder as `beside`.

    Raises:
        OSError: among others, that `final` is there already and not empty.
    """
    for path in (*sorted(beside.iterdir()), beside):
        flush(path)
    beside.rename(final)
    flush(final.parent)


def flush(path: Path) -> None:
    """Make sure that the content of a file, or the names in a folder (and so its renames, in their order), have
    reached the disk.
    """
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if is_folder:  # Windows does not open folders, and some that may be written to may not be read
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    """What a plain open() would have left out; a temporary file is made for its owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
