"""Draw what the fuzz targets are fed with: strange values of JSON, files that are nearly whole, and odd arrays."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

ODD_NUMBERS = (0, 1, -1, 2, 12, 1000, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, 10**300, -(2**63), 0.5, -0.0)
ODD_FLOATS = (1e-45, 1e-12, 1.0, 1e30, 1e308, float("inf"), float("-inf"), float("nan"))
ODD_TEXTS = (
    "", " ", "\n", "\0", "a", "[MASK]", "[UNK]", "##", "the cat", "..", "../x", "/", "bert", "gelu", "LABEL_0",
    "\ud800", "\udcff", "\ufeff", "\u0130\u0301", "\U0001f600", "(a+)+$", "x" * 5000, "9" * 5000, "e\u0301" * 300,
)  # fmt: skip
RAW_JSON = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"1",
    b"{}",
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b"9" * 5000,
    b'{"a": NaN}',
    b"\xff",
)

texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=12)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_FLOATS),
    st.integers(-3, 40),
    texts,
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=6
)
"""Any value that JSON can hold."""


def changed_fields(names: tuple[str, ...], special: Any = values) -> st.SearchStrategy[dict[str, Any]]:
    """Some fields of a JSON object with new values."""
    return st.dictionaries(st.sampled_from(names) | texts, special | values, min_size=1, max_size=4)


def as_json(value: Any) -> bytes:
    """Write a value as JSON, half surrogate pairs included."""
    return json.dumps(value).encode()


_EDITS = st.lists(
    st.tuples(st.integers(0, 2**20), st.sampled_from(["flip", "set", "cut", "insert", "repeat"]), st.integers(0, 255)),
    min_size=1,
    max_size=6,
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes of a file with some of them flipped, overwritten, cut off, inserted or repeated."""
    content = bytearray(whole)
    for place, edit, byte in draw(_EDITS):
        at = place % (len(content) + 1)
        if edit == "cut":
            del content[at : at + byte]
        elif edit == "insert":
            content[at:at] = bytes([byte]) * (byte % 9)
        elif edit == "repeat":
            content[at:at] = content[at : at + byte]
        elif at < len(content):
            content[at] = content[at] ^ 1 << byte % 8 if edit == "flip" else byte
    return bytes(content)
