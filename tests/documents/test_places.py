"""Test that links to the lines of a definition follow the code."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import places

PYTHON = """import math

LIMIT = 3


def first(x):
    return x


class House:
    def door(self):
        return 1

    def window(self):
        return 2
"""
CUDA = """__device__ int lane() { return 1; }

extern "C" __global__ void first(
    const int* x) {
    lane();
}

struct Gelu {
    int x;
};
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "code.py").write_text(PYTHON, encoding="utf-8")
    (tmp_path / "code.cu").write_text(CUDA, encoding="utf-8")
    return tmp_path / "page.md"


@pytest.mark.parametrize(
    ("file", "name", "lines"),
    [
        ("code.py", "LIMIT", "L3-L3"),
        ("code.py", "first", "L6-L7"),
        ("code.py", "House", "L10-L15"),
        ("code.py", "House.window", "L14-L15"),
        ("code.cu", "lane", "L1-L1"),
        ("code.cu", "first", "L3-L6"),
        ("code.cu", "Gelu", "L8-L10"),
    ],
)
def test_a_link_gets_the_lines_of_its_definition(page: Path, file: str, name: str, lines: str):
    assert places.refresh(f"see [`{name}`]({file}#L99), and", page) == f"see [`{name}`]({file}#{lines}), and"


def test_other_links_stay_as_they_are(page: Path):
    text = "[`first`](code.py), [words](code.py#L9-L10), [`first`](https://example.org/#L1)"
    assert places.refresh(text, page) == text


@pytest.mark.parametrize("link", ["[`second`](code.py#L1)", "[`first`](absent.py#L1)", "[`House.roof`](code.py#L1)"])
def test_a_link_to_nothing_is_an_error(page: Path, link: str):
    with pytest.raises(ValueError, match=r"0 times|does not exist"):
        places.refresh(link, page)
