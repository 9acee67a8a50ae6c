"""Write files and folders so that a crash leaves either the old one or the new one, never a part of one."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError
from safetensors.numpy import save_file

from backends import Array

if sys.platform != "win32":
    import fcntl

_MAKING = ".making-"  # how the name of a temporary folder begins


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name in the same folder, flush it to the disk, and rename it to `path`.

    Args:
        path: the name of the finished file; its folder exists.
        write: called with the path to write to.

    Raises:
        OSError: the file cannot be written or renamed; the old file is still there.
    """
    with _written_beside(path, write) as beside:
        beside.replace(path)
    flush(path.parent)


def write_tensors_and_text(
    tensors_path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str], text_path: Path, text: str
) -> None:
    """Write a safetensors file and a text file that belong together, in place of the old ones.

    A crash can happen between the two renames. It must never leave new tensors beside the old text: the shapes could
    agree although the meanings differ. So, if the text changes, the old text is moved away first. It comes back if the
    tensors cannot be put in place. A crash in between leaves no text file, and such a folder is refused.

    Args:
        tensors_path: the path of the safetensors file; its folder exists.
        tensors: host arrays, by name.
        metadata: for the header of the safetensors file.
        text_path: the path of the text file, in the same folder.
        text: its new content, written in UTF-8.

    Raises:
        OSError: a file cannot be written or renamed.
    """
    kept = before_save(text_path)
    with (
        _written_beside(tensors_path, lambda path: save_tensors(path, tensors, metadata)) as new_tensors,
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


def save_tensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file.

    Args:
        path: the file to write.
        tensors: host arrays, by name.
        metadata: for the header of the file.

    Raises:
        OSError: the file cannot be written. The library reports this as an error of its own.
    """
    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    if metadata is not None and len(metadata) > 1:
        _sort_metadata(path)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in a safetensors file, which the library writes in random order, so that equal is equal."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        sorted_header = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(sorted_header) == size
        file.seek(8)
        file.write(sorted_header)


def before_save(path: Path) -> Path:
    """Return the path where `write_tensors_and_text` keeps the old text while it puts the new files in place."""
    return path.with_name(f"{path.name}.before-save")


@contextmanager
def _written_beside(path: Path, write: Callable[[Path], object]) -> Iterator[Path]:
    """Write a temporary file in the folder of `path` and flush it; remove it at the end if it was not renamed."""
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
    """Replace a UTF-8 file as `write_beside` does, with the same line ends on every system."""
    write_beside(path, lambda beside: beside.write_text(text, encoding="utf-8", newline=""))


def rename_folder(beside: Path, final: Path) -> None:
    """Flush all files of a folder to the disk, then rename the folder.

    A folder under its final name is therefore complete, even after a power cut.

    Args:
        beside: the complete folder under its temporary name; it holds files only.
        final: its final name, in the same folder as `beside`.

    Raises:
        OSError: for example because `final` exists already and is not empty.
    """
    for path in (*sorted(beside.iterdir()), beside):
        flush(path)
    beside.rename(final)
    flush(final.parent)


@contextmanager
def folder_in_the_making(parent: Path, what: str) -> Iterator[Path]:
    """Make a temporary folder, to be filled and renamed; remove it at the end if it was not renamed.

    Folders that killed processes left behind are removed first.

    Args:
        parent: where the folder is made; created if needed.
        what: the beginning of the folder's name says what is being made.

    Raises:
        OSError: the folder cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(f"{_MAKING}*"):
        if _is_abandoned(leftover):
            shutil.rmtree(leftover, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"{_MAKING}{what}-", dir=parent))
    try:
        with _locked_folder(made):
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    """Return True if no process fills a temporary folder any more.

    Nothing in it has changed for a minute, and no process has locked it. Where there are no locks, nothing in it has
    changed for a day.
    """
    try:
        last_change = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        with _locked_folder(folder) as locked:
            return time.time() - last_change > (60 if locked else 24 * 3600)
    except OSError:  # locked, or another process is removing or renaming it at this moment
        return False


@contextmanager
def _locked_folder(folder: Path) -> Iterator[bool]:
    """Lock a folder until the end of the block; yields False where folders cannot be locked.

    Raises:
        BlockingIOError: another process has locked it.
    """
    if sys.platform == "win32":  # does not open folders
        yield False
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield lock_file(handle)
    finally:
        os.close(handle)


def lock_file(file: IO[bytes] | int, *, shared: bool = False) -> bool:
    """Lock a file until it is closed.

    Args:
        file: open for writing, or for reading if the lock is shared.
        shared: True allows other shared locks beside this one, but no exclusive lock.

    Returns:
        False if the system or the disk has no locks.

    Raises:
        BlockingIOError: the file is locked already.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some network disks have no locks
        return False
    return True


def flush(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, have reached the disk.

    Flushing a folder between two renames keeps their order after a power cut.
    """
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:
        if is_folder:  # Windows does not open folders, and a folder can be writable without being readable
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks cannot flush folders
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    """Return the umask: the permissions that open() takes away from a new file. `mkstemp` does not use it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
