"""Cases of corpora and of labelled files, and what is done with them."""

from __future__ import annotations

import gzip
import lzma
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from minibert.data.corpus import open_corpus, split_sentences
from minibert.finetuning.labelled_texts import hold_out, labels_of, read_labelled_texts
from tests.fuzz.strategies import ODD_TEXTS, as_json, damaged, texts, values

_SMALL_TEXT = (
    b'{"text": "One. Two!\\n\\nThree"}\n\nA line.\r\n\r\n\xe6\x9d\xb1\xe4\xba\xac\xe3\x80\x82 \xef\xbb\xbf a b c\n'
)
_LINES = (
    b'{"text": "a"}\n',
    b'{"text": 5}\n',
    b"[[[[",
    b"\xff\xfe",
    b'{"text": "\\ud800"}\n',
    b"9" * 5000,
    b"[" * 3000,
    b"\0",
)


@st.composite
def corpora(draw: st.DrawFn) -> dict[str, Any]:
    """Files of a corpus, and how they are opened."""
    files = {}
    for _ in range(draw(st.integers(1, 3))):
        content = draw(damaged(_SMALL_TEXT) | st.lists(st.sampled_from(_LINES) | st.binary(max_size=30)).map(b"".join))
        ending = draw(st.sampled_from([".txt", ".jsonl", ".md", ".png", ""]))
        compression = draw(st.sampled_from(["", "", ".gz", ".xz"]))
        if compression:
            packed = (gzip.compress if compression == ".gz" else lzma.compress)(
                content * draw(st.sampled_from([1, 3000]))
            )
            content = draw(st.just(packed) | damaged(packed))
        name = draw(st.sampled_from(["a", "b", ".c", "d/e", "d/\udce9"]))
        files[name + ending + compression] = content
    return {
        "files": files,
        "source": draw(st.sampled_from(["", "/**/*.txt", "/**", "/*", "/a.txt", "/[", "/d/../a.txt", "/\0"]) | texts),
        "encoding": draw(
            st.sampled_from(["utf-8", "utf-8", "latin-1", "utf-16", "utf-7", "cp1252", "idna", "gb18030"]) | texts
        ),
        "skip_damaged": draw(st.booleans()),
    }


def read_corpus(case: dict[str, Any]) -> None:
    """Open the corpus and read its sentences."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in case["files"].items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        source = case["source"] if case["source"] in ODD_TEXTS else folder + case["source"]
        if source == "/":  # the whole machine is no case
            return
        corpus = open_corpus([source], encoding=case["encoding"], skip_damaged=case["skip_damaged"])
        for document in corpus:
            for sentence in split_sentences(document.text):
                assert sentence.strip()
        corpus.fingerprint()


_LABELLED = b'text,label\n"a, cat",animal\na saw,tool\n\nan owl,animal\n'
_ROWS = st.dictionaries(st.sampled_from(["text", "label", "pair"]) | texts, texts | values, max_size=4)


@st.composite
def labelled_files(draw: st.DrawFn) -> tuple[str, bytes, str | None]:
    """The ending and the content of a labelled file, and the column of a second text."""
    if draw(st.booleans()):
        content = draw(
            st.just(_LABELLED) | damaged(_LABELLED) | st.binary(max_size=60).map(lambda end: _LABELLED + end)
        )
        return ".csv", content, draw(st.sampled_from([None, "text", "label"]) | texts)
    rows = b"\n".join(map(as_json, draw(st.lists(_ROWS | values, max_size=6))))
    good = b'\n{"text": "a", "label": "b"}\n{"text": "c", "label": 1}\n'
    return (
        ".jsonl",
        draw(st.sampled_from([rows, rows + good, good + rows]) | damaged(rows + good)),
        draw(st.sampled_from([None, "pair"])),
    )


def read_labelled(case: tuple[str, bytes, str | None]) -> None:
    """Read labelled texts, find their classes, and hold some out."""
    ending, content, pair = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"data{ending}")
        path.write_bytes(content)
        examples = read_labelled_texts(path, "text", "label", pair)
    labels = labels_of(examples)
    assert len(labels) == len({example.label for example in examples})
    train, held_out = hold_out(examples, 0.3, seed=1)
    assert len(train) + len(held_out) == len(examples)
