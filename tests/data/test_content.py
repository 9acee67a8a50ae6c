"""Files are identified by their content, and are read again only when they may have changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from minibert.data.content import INDEX_FILE, ContentIndex


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file that was written an hour ago."""
    path = tmp_path / "text.txt"
    path.write_text("the red fox")
    age(path, 3600)
    return path


def age(path: Path, seconds: int) -> None:
    changed = path.stat().st_mtime_ns - seconds * 10**9
    os.utime(path, ns=(changed, changed))


def digest(path: Path, cache: Path) -> str:
    index = ContentIndex(cache)
    found = index.digest(path)
    index.save()
    return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read."""
    names: list[str] = []
    file_digest = hashlib.file_digest

    def counted(file, algorithm):
        names.append(Path(file.name).name)
        return file_digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return names


def test_an_unchanged_file_is_read_once(text: Path, tmp_path: Path, reads: list[str]):
    cache = tmp_path / "cache"
    expected = hashlib.sha256(b"the red fox").hexdigest()
    assert [digest(text, cache) for _ in range(3)] == [expected] * 3
    assert reads == ["text.txt"]


def test_a_touched_file_is_read_again_and_is_the_same(text: Path, tmp_path: Path, reads: list[str]):
    first = digest(text, tmp_path)
    age(text, 5)
    assert digest(text, tmp_path) == first
    assert len(reads) == 2


def test_a_change_of_the_same_size_is_noticed(text: Path, tmp_path: Path):
    first = digest(text, tmp_path)
    text.write_text("the red cow")
    assert digest(text, tmp_path) != first


def test_a_file_that_changed_a_moment_ago_is_read_again(text: Path, tmp_path: Path, reads: list[str]):
    """Within the resolution of the clock, two contents have the same time of change."""
    text.write_text("the red cow")
    status = text.stat()
    first = digest(text, tmp_path)
    text.write_text("the red fox")
    os.utime(text, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert digest(text, tmp_path) != first


@pytest.mark.parametrize("damage", [b"", b"\xff\xff", b"0\n{}\n"], ids=["empty", "not text", "wrong checksum"])
def test_a_damaged_index_is_not_believed(text: Path, tmp_path: Path, reads: list[str], damage: bytes):
    first = digest(text, tmp_path)
    (tmp_path / INDEX_FILE).write_bytes(damage)
    assert digest(text, tmp_path) == first
    assert len(reads) == 2


def test_a_flipped_bit_in_the_index_is_found(text: Path, tmp_path: Path, reads: list[str]):
    first = digest(text, tmp_path)
    content = bytearray((tmp_path / INDEX_FILE).read_bytes())
    content[-10] ^= 1  # within the digest
    (tmp_path / INDEX_FILE).write_bytes(content)
    assert digest(text, tmp_path) == first
    assert len(reads) == 2


def test_a_cache_that_cannot_be_written_to_is_done_without(text: Path, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    assert digest(text, tmp_path / "file" / "cache") == hashlib.sha256(b"the red fox").hexdigest()
