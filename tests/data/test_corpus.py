"""Reading text: documents and sentences, every kind of source, and errors that name the place of a fault."""

import gzip
import json
import lzma
import os
import tracemalloc

import pytest

from minibert.data import stdlib_text
from minibert.data.corpus import (
    CORPUS_HELP,
    MAX_DOCUMENT_CHARACTERS,
    CorpusWarning,
    open_corpus,
    split_sentences,
)
from minibert.data.text_stream import CHUNK_BYTES
from minibert.errors import DataError


def texts(*sources):
    return [document.text for document in open_corpus([str(source) for source in sources])]


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def test_blank_lines_separate_documents(write):
    path = write("a.txt", "\n\nOne line.\nTwo lines.\n \t\n\nAnother document.\n\n")
    assert texts(path) == ["One line.\nTwo lines.", "Another document."]


def test_windows_line_breaks_and_a_byte_order_mark_make_no_difference(write):
    unix = write("unix.txt", "Ä first.\nIts second line.\n\nA second.")
    windows = write("windows.txt", "\ufeff" + "Ä first.\r\nIts second line.\r\n\r\nA second.\r\n")
    assert texts(windows) == texts(unix) == ["Ä first.\nIts second line.", "A second."]


def test_line_breaks_and_characters_cut_by_the_reading_buffer_stay_whole(write):
    for shift in range(4):
        content = "x" * (CHUNK_BYTES - 3 + shift) + "\r\n\r\n" + "€" * CHUNK_BYTES
        assert texts(write("a.txt", content)) == content.split("\r\n\r\n")


def test_a_corpus_can_be_read_as_often_as_one_likes(write):
    corpus = open_corpus([str(write("a.txt", "One.\n\nTwo."))])
    assert list(corpus) == list(corpus)
    assert [document.source for document in corpus] == [str(corpus.files[0])] * 2


@pytest.mark.parametrize(("extension", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_compressed_files_read_like_plain_ones(write, extension, compress):
    content = "A document.\n\nAnother one."
    assert texts(write("a.txt" + extension, compress(content.encode()))) == ["A document.", "Another one."]
    record = json.dumps({"text": content}).encode()
    assert texts(write("b.jsonl" + extension, compress(record))) == [content]


def test_each_line_of_a_jsonl_file_is_one_document_blank_lines_included(write):
    records = [{"text": "One.\n\nStill one."}, {"id": 3, "text": "Two."}, {"text": "  "}]
    path = write("a.jsonl", "\n".join(map(json.dumps, records)) + "\n\n")
    assert texts(path) == ["One.\n\nStill one.", "Two."]


def test_a_folder_gives_its_text_files_in_sorted_order(write, tmp_path):
    write("books/b.txt", "b")
    write("books/a/z.md", "z")
    write("books/a.rst.gz", gzip.compress(b"rst"))
    write("books/c.jsonl", '{"text": "c"}')
    write("books/picture.png", b"\x89PNG")
    write("books/.hidden/d.txt", "d")
    write("books/.e.txt", "e")
    with pytest.warns(CorpusWarning, match=r"not read: 1 x \.png \(picture\.png\), 2 x hidden \(\.e\.txt, \.hidden\)$"):
        assert texts(tmp_path / "books") == ["z", "rst", "b", "c"]


def test_a_glob_looks_below_and_a_file_named_twice_is_read_once(write, tmp_path, monkeypatch):
    write("a/1.txt", "one")
    write("a/b/2.txt", "two")
    monkeypatch.chdir(tmp_path)
    assert texts("**/*.txt", "a/1.txt") == ["one", "two"]
    assert texts(tmp_path / "a" / "*" / "*.txt", "a/") == ["two", "one"]
    assert open_corpus(["a", "a/1.txt"]).description == "a + a/1.txt"


def test_a_text_without_blank_lines_is_cut_into_documents_between_words(write):
    line = "word " * 1000
    cut = texts(write("lines.txt", f"{line}\n" * 200))
    assert len(cut) > 1
    assert all(len(text) <= MAX_DOCUMENT_CHARACTERS for text in cut)
    assert "\n".join(cut) == "\n".join([line] * 200)
    cut = texts(write("one_line.txt", line * 200))
    assert len(cut) > 1
    assert all(len(text) <= MAX_DOCUMENT_CHARACTERS for text in cut)
    assert "".join(cut) == line * 200


def test_streaming_a_text_takes_no_more_memory_when_the_text_is_longer(write):
    peaks = []
    for name, repeats in (("short.txt", 5), ("long.txt", 20)):
        path = write(name, "A sentence of a very long line. " * 8192 * repeats)  # 1.3 MB and 5.2 MB
        tracemalloc.start()
        assert sum(len(document.text) for document in open_corpus([str(path)])) == path.stat().st_size
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


@pytest.mark.parametrize("before", [0, 5, CHUNK_BYTES - 1, 3 * CHUNK_BYTES + 7])
def test_an_undecodable_file_is_named_with_its_byte_offset(write, before):
    path = write("latin.txt", b"a" * before + "é".encode("latin-1") + b" is not UTF-8")
    with pytest.raises(
        DataError, match=rf"latin.txt: byte {before} \(0xe9\) is not UTF-8.*--encoding latin-1.*--skip-damaged"
    ):
        texts(path)


def test_a_character_cut_off_at_the_end_of_a_file_is_named_too(write):
    with pytest.raises(DataError, match=r"byte 4 \(0xe2\) is not UTF-8"):
        texts(write("cut.txt", "text€".encode()[:-1]))


def test_the_offset_in_a_compressed_file_is_that_of_its_text(write):
    with pytest.raises(DataError, match="byte 3 of the decompressed text"):
        texts(write("a.txt.gz", gzip.compress(b"abc\xff")))


def test_utf_16_is_recognised(write):
    with pytest.raises(DataError, match=r"byte 0 .* looks like UTF-16"):
        texts(write("a.txt", "text".encode("utf-16")))


def test_a_bad_line_of_json_is_named(write):
    good = '{"text": "x"}\n'
    for bad, message in (
        ("{oops", "line 3 is not JSON"),
        ("[" * 100_000, "line 3 is nested too deeply to be read"),
        ('{"body": "x"}', r"line 3 has no string field \"text\" \(found \['body'\]\)"),
        ('{"text": 5}', "line 3 has no string field"),
        ('["x"]', r"line 3 has no string field .*\(found list\)"),
        (r'{"text": "\ud800"}', "line 3 holds half a surrogate pair"),
    ):
        with pytest.raises(DataError, match=f"a.jsonl, {message}"):
            texts(write("a.jsonl", good + "\n" + bad + "\n"))


@pytest.mark.parametrize(("extension", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_damaged_compressed_file_is_named(write, extension, compress):
    whole = compress(os.urandom(3000).hex().encode())
    for content in (b"plain text", whole[:-20], whole[:100] + b"?????" + whole[105:]):
        with pytest.raises(DataError, match=rf"a.txt\{extension} is not a whole \{extension} file"):
            texts(write("a.txt" + extension, content))


def test_text_that_is_not_there_is_an_error_that_says_where_it_was_looked_for(write, tmp_path):
    for source, message in (
        (tmp_path / "none.txt", "no file or folder .*none.txt"),
        (tmp_path / "*.txt", "no file matches"),
        (tmp_path, r"has no text: no file ends in \.txt"),
    ):
        with pytest.raises(DataError, match=message):
            texts(source)
    with pytest.raises(DataError, match="no text was named"):
        open_corpus([])
    with pytest.raises(TypeError, match="list of sources"):
        open_corpus("stdlib")


def test_a_corpus_without_any_text_is_an_error(write):
    with pytest.raises(DataError, match=r"there is no text in .*every file is empty or blank"):
        texts(write("a.txt", ""), write("b.txt", " \n\n\t\n"))


def test_the_fingerprint_follows_the_content(write):
    path, other = write("a.txt", "text"), write("b.txt", "text")
    first = open_corpus([str(path)]).fingerprint()
    assert len(bytes.fromhex(first)) == 32
    assert open_corpus([str(other)]).fingerprint() == first
    assert open_corpus([str(write("c.jsonl", '{"text": "text"}'))]).fingerprint() != first
    assert open_corpus([str(path), str(other)]).fingerprint() != first
    corpus = open_corpus([str(path)])
    os.utime(path, ns=(1, 1))
    assert corpus.fingerprint() == first
    path.write_text("texT")
    assert corpus.fingerprint() != first
    path.unlink()
    with pytest.raises(DataError, match="was found but can no longer be read"):
        corpus.fingerprint()


def test_the_standard_library_is_a_corpus_on_every_machine():
    documents = list(open_corpus(["stdlib"]))
    characters = sum(len(document.text) for document in documents)
    assert 1_000_000 < characters < 5_000_000
    assert len(documents) > 300
    sources = [document.source for document in documents]
    assert "stdlib:json/__init__.py" in sources
    assert not any("site-packages" in source or "/test/" in source for source in sources)
    assert "JSON (JavaScript Object Notation)" in documents[sources.index("stdlib:json/__init__.py")].text
    assert len(open_corpus(["stdlib"]).fingerprint()) == 64


def test_a_docstring_of_the_standard_library_stands_once_and_sources_are_not_run(write, tmp_path, monkeypatch):
    method = '    def f(self):\n        """Of f.\n\n        More.\n        """\n'
    write("b.py", '"""Module."""\nclass C:\n    """Common."""\n' + method)
    functions = 'def f():\n    "Old \\d escape."\ndef g():\n    "Common."\n'
    write("a/__init__.py", '"""Common."""\n' + functions + "raise SystemExit\n")
    write("a/python2.py", '"""Not parsed."""\nprint "x"\n')
    write("a/latin.py", b'# coding: latin-1\n"""Caf\xe9."""\n')
    write("site-packages/p.py", '"""Installed."""')
    write("a/tests/t.py", '"""Test."""')
    monkeypatch.setattr(stdlib_text.sysconfig, "get_path", lambda name: str(tmp_path))
    documents = dict(stdlib_text.stdlib_documents.__wrapped__())  # not the ones kept in memory
    ours = {name: text for name, text in documents.items() if not name.startswith("pydoc/")}
    assert list(ours.items()) == [
        ("a/__init__.py", "Common.\n\nOld \\d escape."),
        ("a/latin.py", "Café."),
        ("b.py", "Module.\n\nOf f.\n\nMore."),
    ]


def test_the_help_names_every_kind_of_source():
    for word in ("blank lines", ".jsonl", "folder", "glob", "stdlib", ".gz", ".xz", "UTF-8"):
        assert word in CORPUS_HELP


def test_sentences_end_at_line_breaks_and_after_full_stops():
    text = 'One. Two!  "Three?" (Four.) 3.14 is\nnot an end\n\nand 東京。大阪\uff01 x'
    assert list(split_sentences(text)) == [
        "One.", "Two!", '"Three?"', "(Four.)", "3.14 is", "not an end", "and 東京。", "大阪\uff01", "x",
    ]  # fmt: skip


def test_a_text_without_sentences_is_cut_between_words():
    text = " ".join(f"word{n}" for n in range(2000))
    sentences = list(split_sentences(text))
    assert " ".join(sentences) == text
    assert max(map(len, sentences)) <= 1000
    assert [len(sentence) for sentence in split_sentences("x" * 2500)] == [1000, 1000, 500]
    assert list(split_sentences(" \n ")) == []


def test_a_long_text_without_sentences_is_cut_in_linear_time():
    # Copying the rest of the text at every cut would move 2 TB here.
    assert sum(map(len, split_sentences("a b " * (1 << 23)))) > 33_000_000


def test_long_runs_of_spaces_are_no_trouble():
    # A pattern that tries every space as the start of a sentence end would take minutes.
    assert list(split_sentences("one" + " " * 200_000 + "two.\n" + " " * 200_000 + "three"))[-2:] == ["two.", "three"]
