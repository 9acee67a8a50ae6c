"""Find the text files that a source names, and note what a folder holds that is not text. A helper of `corpus.py`.

The search ends in any folder: it needs no recursion, so nesting may be deep; it visits a folder once, so links may lead
in circles; and it opens nothing, so a pipe does not block it.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from minibert.errors import DataError, brief

TEXT_EXTENSIONS = (".txt", ".text", ".md", ".rst", ".jsonl")
COMPRESSIONS = (".gz", ".xz")

_NO_FILE = "without content (a pipe, a device or a broken link)"
_NAMED = 3  # examples of each kind of entry that is not read


class NotRead:
    """The entries of a folder that are no text, by kind.

    Attributes:
        kinds: such as ".png" or "link to a folder" -> the paths.
    """

    def __init__(self) -> None:
        self.kinds: dict[str, list[Path]] = {}

    def add(self, kind: str, path: Path) -> None:
        """Note an entry."""
        self.kinds.setdefault(kind, []).append(path)

    def __bool__(self) -> bool:
        return bool(self.kinds)

    def __str__(self) -> str:
        """Return the number of entries of each kind with some names, such as "2 x .png (a.png, b.png)"."""
        parts = []
        for kind, paths in sorted(self.kinds.items()):
            names = [brief(path.name, 40, quoted=False) for path in paths[:_NAMED]] + ["..."][: len(paths) > _NAMED]
            parts.append(f"{len(paths):,} x {kind} ({', '.join(names)})")
        return ", ".join(parts)


def extension(path: Path) -> str:
    """Return `.txt` for `a.txt` and for `a.txt.gz`."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in COMPRESSIONS]
    return suffixes[-1].lower() if suffixes else ""


def find_files(source: str, not_read: NotRead) -> list[Path]:
    """Return the files that one source names, sorted if it names several.

    Args:
        source: the path of a file or a folder, or a glob.
        not_read: receives what a folder or a glob holds that is not read.

    Raises:
        DataError: the source does not exist, matches nothing, or cannot be read.
    """
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _files_below(path, source, not_read)
        if path.exists():
            if not path.is_file():
                raise DataError(
                    f"{source} is a pipe, a socket or a device, but a text is read several times: write it to a file"
                )
            return [path]
        if glob.has_magic(source):
            return _matching_files(path, source, not_read)
    except OSError as error:
        raise DataError(f"{brief(source)} cannot be read: {error.strerror or error}") from error
    raise DataError(
        f"there is no file or folder {brief(source, 500)} (looked in {Path.cwd()}), and it is not the word stdlib"
    )


def _files_below(folder: Path, source: str, not_read: NotRead) -> list[Path]:
    """Return the visible text files of a folder and its subfolders."""
    files = []
    for path in _walk(folder, not_read):
        if not stat.S_ISREG(_mode(path)):
            not_read.add(_NO_FILE, path)
        elif extension(path) not in TEXT_EXTENSIONS:
            not_read.add(path.suffix or "without an extension", path)
        else:
            files.append(path)
    if not files:
        found = f"; it holds {not_read}" if not_read else ""
        raise DataError(
            f"the folder {source} has no text: no file ends in {', '.join(TEXT_EXTENSIONS)} "
            f"({' or '.join(COMPRESSIONS)} may follow); name other files directly or with a glob{found}"
        )
    return sorted(files)


def _matching_files(path: Path, source: str, not_read: NotRead) -> list[Path]:
    """Return the files that match a glob."""
    if "**" in path.parts:
        first = next(number for number, part in enumerate(path.parts) if glob.has_magic(part))
        base, patterns = Path(*path.parts[:first]), path.parts[first:]
        hidden = any(pattern.startswith(".") for pattern in patterns)
        walked = _walk(base, not_read, into_hidden=hidden, follow_links=True)
        matches = [found for found in walked if _matches(found.relative_to(base).parts, patterns)]
    else:
        # Path.glob takes no absolute pattern.
        matches = [found for found in map(Path, glob.glob(str(path))) if not stat.S_ISDIR(_mode(found))]  # noqa: PTH207
    files = []
    for found in sorted(matches):
        if stat.S_ISREG(_mode(found)):
            files.append(found)
        else:
            not_read.add(_NO_FILE, found)
    if not files:
        raise DataError(f"no file matches {source!r} (looked in {Path.cwd()}); use ** to search subfolders")
    return files


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Return True if the parts of a path match the parts of a glob; `**` stands for any number of visible parts."""

    def with_skipped(places: set[int]) -> set[int]:  # `**` may stand for no part
        reached = set(places)
        for place, pattern in enumerate(patterns):
            if place in reached and pattern == "**":
                reached.add(place + 1)
        return reached

    places = with_skipped({0})  # the patterns that the next part of the path may match
    for name in names:
        after = set()
        for place in places - {len(patterns)}:
            pattern = patterns[place]
            if name.startswith(".") and not pattern.startswith("."):
                continue
            if pattern == "**":
                after.add(place)
            elif fnmatch.fnmatch(name, pattern):
                after.add(place + 1)
        places = with_skipped(after)
    return len(patterns) in places


def _mode(path: Path) -> int:
    """Return what a path is, as the module `stat` understands it; 0 for a broken link or a path without access."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _walk(folder: Path, not_read: NotRead, *, into_hidden: bool = False, follow_links: bool = False) -> Iterator[Path]:
    """Yield everything below a folder that is not a folder itself. Each folder is visited once, links after the rest.

    Args:
        folder: where to begin.
        not_read: receives the hidden entries, links and folders that are passed over.
        into_hidden: also yield hidden entries.
        follow_links: also enter folders to which a symbolic link leads.
    """
    pending, links = deque([folder]), deque[Path]()
    visited = set()
    while pending or links:
        current = pending.popleft() if pending else links.popleft()
        try:
            status = current.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(current) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:  # no permission, for example, or a path that is too long for the system
            not_read.add(f"folder without access ({error.strerror})", current)
            continue
        for entry in entries:
            path = Path(entry.path)
            if entry.name.startswith(".") and not into_hidden:
                not_read.add("hidden", path)
            elif entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif not stat.S_ISDIR(_mode(path)):
                yield path
            elif follow_links:
                links.append(path)
            else:
                not_read.add("link to a folder", path)
