"""Text that is damaged, endless or in another encoding: an error that names the place, or left out and counted."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import tracemalloc
import zlib

import pytest

from minibert.data import corpus as corpus_module
from minibert.data import text_stream
from minibert.data.corpus import CorpusWarning, open_corpus
from minibert.errors import DataError


def texts(path, **options) -> list[str]:
    return [document.text for document in open_corpus([str(path)], **options)]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "gbk", "utf-8"])
def test_a_corpus_may_have_another_encoding(tmp_path, encoding):
    content = "A déjà vu.\r\n\r\nAnother." if encoding != "gbk" else "東京。\r\n\r\nAnother."
    content = content + "\r\n\r\n" + "x" * text_stream.CHUNK_BYTES
    (tmp_path / "a.txt").write_bytes(content.encode(encoding))
    assert texts(tmp_path / "a.txt", encoding=encoding) == content.split("\r\n\r\n")
    (tmp_path / "a.jsonl").write_bytes(json.dumps({"text": content}, ensure_ascii=False).encode(encoding))
    assert texts(tmp_path / "a.jsonl", encoding=encoding) == [content]


def test_another_encoding_is_another_text_for_the_cache(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc")
    fingerprints = {
        open_corpus([str(tmp_path)], encoding=encoding, skip_damaged=skip).fingerprint()
        for encoding in ("utf-8", "latin-1")
        for skip in (False, True)
    }
    assert len(fingerprints) == 4


@pytest.mark.parametrize("name", ["no-such-encoding", "rot13", "hex", "", "a" * 5000, "\0"])
def test_an_unknown_encoding_is_refused(tmp_path, name):
    (tmp_path / "a.txt").write_text("Text.")
    with pytest.raises(DataError, match="is not the name of an encoding") as refused:
        open_corpus([str(tmp_path)], encoding=name)
    assert len(str(refused.value)) < 300


def test_a_byte_outside_the_encoding_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a" * 100_000 + b"\x81")
    with pytest.raises(DataError, match=r"byte 100000 \(0x81\) is not CP1252"):
        texts(tmp_path / "a.txt", encoding="cp1252")
    (tmp_path / "b.txt").write_bytes(b"text without a byte order mark")
    with pytest.raises(DataError, match=r"b\.txt is not UTF-16"):
        texts(tmp_path / "b.txt", encoding="utf-16")


def test_damaged_text_is_left_out_and_counted_if_asked(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"One.\n\nTwo \xe9.\nThree.\n\n\xff\n\nFour \xe2\x82")
    (tmp_path / "b.jsonl").write_bytes(
        b'{"text": "Five."}\n{oops\n{"text": 6}\n{"text": "S\xe9ven."}\n{"text": "Eight."}'
    )
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"Nine.\n\n" + os.urandom(100_000).hex().encode())[:-8])
    (tmp_path / "d.txt.xz").write_bytes(b"not compressed")
    with pytest.raises(DataError, match=r"a\.txt: byte 10"):
        texts(tmp_path)
    with pytest.warns(CorpusWarning) as warned:
        assert texts(tmp_path, skip_damaged=True)[:5] == ["One.", "Three.", "Five.", "Eight.", "Nine."]
    message = str(warned[-1].message)
    assert "4 x line that is not UTF-8 (first: " in message
    assert "a.txt, line 3)" in message
    assert '2 x line without a JSON object that has a string field "text" (first: ' in message
    assert "b.jsonl, line 2)" in message
    assert "2 x end of a damaged file (first: " in message


def test_a_corpus_that_is_damaged_throughout_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"no text in .*1 x line that is not UTF-8 \(first: .*a\.txt, line 1\)"):
        texts(tmp_path, skip_damaged=True)


def test_an_endless_line_of_json_is_refused_or_left_out_with_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "MAX_JSON_CHARACTERS", 1 << 20)
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(b'{"text": "One."}\n{"text": "')
        for _ in range(64):
            file.write(b"a b " * (1 << 18))
        file.write(b'"}\n{"text": "Two."}\n')
    tracemalloc.start()
    with pytest.raises(DataError, match=r"line 2: this line has more than 1,048,576 characters; divide"):
        texts(path)
    with pytest.warns(CorpusWarning, match=r"1 x line of more than 1,048,576 characters \(first: .*, line 2\)"):
        assert texts(path, skip_damaged=True) == ["One.", "Two."]
    assert tracemalloc.get_traced_memory()[1] < 12 << 20
    tracemalloc.stop()


def test_a_line_of_the_largest_length_is_read(tmp_path, monkeypatch):
    line = json.dumps({"text": "x" * 200_000})
    (tmp_path / "a.jsonl").write_text(f"{line}\n{line}")
    monkeypatch.setattr(corpus_module, "MAX_JSON_CHARACTERS", len(line))
    assert len(texts(tmp_path)) == 2
    monkeypatch.setattr(corpus_module, "MAX_JSON_CHARACTERS", len(line) - 1)
    with pytest.raises(DataError, match="line 1: this line has more than"):
        texts(tmp_path)


def test_all_streams_of_an_xz_file_are_read(tmp_path):
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"One.\n\n") + b"\0" * 8 + lzma.compress(b"Two." + b"\n" * 200_000) + b"\0" * 4)
    assert texts(path) == ["One.", "Two."]
    path.write_bytes(lzma.compress(b"One.") + b"garbage")
    with pytest.raises(DataError, match=r"not a whole \.xz file"):
        texts(path)


def test_an_xz_file_may_not_ask_for_gigabytes_of_memory(tmp_path):
    content = bytearray(lzma.compress(b"One.", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}]))
    header = content[12 : 12 + 4 * (content[12] + 1)]  # the header of the first block, with a checksum at its end
    header[header.index(b"\x21\x01") + 2] = 40  # a dictionary of 4 GB
    header[-4:] = zlib.crc32(header[:-4]).to_bytes(4, "little")
    content[12 : 12 + len(header)] = header
    (tmp_path / "a.txt.xz").write_bytes(content)
    with pytest.raises(DataError, match="Memory usage limit"):
        texts(tmp_path)
