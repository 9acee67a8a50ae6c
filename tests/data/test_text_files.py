"""Finding the files of a corpus: the search ends in any folder, and names what it passes over."""

from __future__ import annotations

import glob
import os
import sys
import warnings

import pytest

from minibert.data.corpus import CorpusWarning, open_corpus
from minibert.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither pipes nor links in folders")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("One.")
    return tmp_path / "text"


def names(corpus) -> list[str]:
    return [path.name for path in corpus.files]


def test_a_pipe_in_a_folder_blocks_nobody_and_is_named(folder):
    os.mkfifo(folder / "pipe.txt")
    (folder / "gone.txt").symlink_to("nowhere")
    with pytest.warns(CorpusWarning, match=r"2 x without content .*\(gone\.txt, pipe\.txt\)"):
        assert names(open_corpus([str(folder)])) == ["a.txt"]
    with pytest.warns(CorpusWarning, match=r"2 x without content .*\(gone\.txt, pipe\.txt\)"):
        assert names(open_corpus([f"{folder}/*.txt"])) == ["a.txt"]
    with pytest.raises(DataError, match=r"pipe\.txt is a pipe.*write it to a file"):
        open_corpus([str(folder / "pipe.txt")])


def test_links_that_lead_in_circles_end(folder):
    for name in ("b", "c", "d"):
        (folder / name).symlink_to(".")
    (folder / "e").mkdir()
    (folder / "e" / "up").symlink_to("..")
    (folder / "e" / "f.txt").write_text("Two.")
    assert names(open_corpus([f"{folder}/**/*.txt"])) == ["a.txt", "f.txt"]
    assert names(open_corpus([f"{folder}/**"])) == ["a.txt", "f.txt"]
    with pytest.warns(CorpusWarning, match=r"4 x link to a folder \(b, c, d, \.\.\.\)"):
        assert names(open_corpus([str(folder)])) == ["a.txt", "f.txt"]


def test_a_double_star_follows_a_link_to_another_folder(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("Two.")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert names(open_corpus([f"{folder}/**/*.txt"])) == ["a.txt", "b.txt"]


def test_a_double_star_means_the_same_as_in_the_module_glob(folder):
    for path in ("b/c/d.txt", "b/e.md", "b/c/.f.txt", ".g/h.txt", ".g/i/j.txt", "b/c/c/k.txt"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("Text.")
    for pattern in ("**", "**/*", "**/*.txt", "**/c/*.txt", "b/**/c/**/*.txt", "**/**/k.txt", "**/.g/**/*.txt", "?/**"):
        expected = sorted({os.path.realpath(found) for found in glob.glob(f"{folder}/{pattern}", recursive=True)})  # noqa: PTH207
        expected = [found for found in expected if os.path.isfile(found)]  # noqa: PTH113
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CorpusWarning)
            assert sorted(map(str, open_corpus([f"{folder}/{pattern}"]).files)) == expected, pattern


def test_very_deep_folders_are_searched(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for _ in range(1500):
        os.mkdir("d")  # noqa: PTH102 - a path of 1500 parts is slow
        os.chdir("d")
    with open("deep.txt", "w") as file:
        file.write("Two.")
    try:
        assert names(open_corpus([str(folder)])) == ["a.txt", "deep.txt"]
        assert names(open_corpus([f"{folder}/**/*.txt"])) == ["a.txt", "deep.txt"]
    finally:
        os.remove("deep.txt")  # noqa: PTH107
        for _ in range(1500):  # shutil would need as many levels of recursion
            os.chdir("..")
            os.rmdir("d")  # noqa: PTH106


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may enter every folder")
def test_a_folder_without_access_is_named(folder):
    (folder / "closed").mkdir(mode=0)
    with pytest.warns(CorpusWarning, match=r"1 x folder without access \(Permission denied\) \(closed\)"):
        assert names(open_corpus([str(folder)])) == ["a.txt"]


def test_a_name_that_is_not_utf_8_is_read(folder):
    (folder / os.fsdecode(b"caf\xe9.txt")).write_text("Two.")
    assert [document.text for document in open_corpus([str(folder)])] == ["One.", "Two."]
    assert len(open_corpus([str(folder)]).fingerprint()) == 64


def test_a_folder_without_text_says_what_it_holds(folder):
    (folder / "a.txt").rename(folder / "a.doc")
    with pytest.raises(DataError, match=r"has no text.*it holds 1 x \.doc \(a\.doc\)"):
        open_corpus([str(folder)])
