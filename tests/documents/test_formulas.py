"""Every formula of docs/gradients.md leads to the lines that compute it, and every operation leads to its formula."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents import formulas

from minibert import ops

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gradients.md").read_text(encoding="utf-8")
NO_CODE = "<!-- no code: a definition or a step of a derivation -->"


def anchors() -> set[str]:
    """Return the anchors of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_formula_is_followed_by_links_to_its_code():
    after = [
        text.splitlines()[0] for text in re.split(r"^```math\n.*?^```\n\n", PAGE, flags=re.MULTILINE | re.DOTALL)[1:]
    ]
    assert len(after) == PAGE.count("```math")
    assert [line for line in after if line != NO_CODE and "formulas.code(" not in line] == []
    assert after.count(NO_CODE) == 3


def test_every_formula_that_is_listed_is_on_the_page():
    assert set(re.findall(r'formulas\.code\("([^"]+)"\)', PAGE)) == set(formulas.FORMULAS)


ON_THE_GPU_ONLY = {"sums", "weighted mean"}
"""Formulas without a twin on the CPU, where the definition is as fast."""


def test_every_twin_has_its_formulas():
    """A formula that has a definition has a line on the CPU and one on the GPU as well."""
    for name, places in formulas.FORMULAS.items():
        if any(file.startswith("minibert/ops/") for file, _, _ in places):
            folders = {file.split("/")[1] for file, _, _ in places if file.startswith("backends/")}
            assert folders == ({"cuda"} if name in ON_THE_GPU_ONLY else {"cpu", "cuda"}), name


@pytest.mark.parametrize(
    ("function", "fragment", "message"), [("absent", "x", "0 times"), ("softmax_backward", "no such line", "no line")]
)
def test_a_line_that_is_gone_is_an_error(function: str, fragment: str, message: str):
    with pytest.raises(ValueError, match=message):
        formulas.line_of(("minibert/ops/softmax.py", function, fragment))


@pytest.mark.parametrize("name", [*ops.DEFINITIONS, "stable_softmax", "softmax_backward"])
def test_the_docstring_of_an_operation_links_to_its_formula(name: str):
    (anchor,) = re.findall(
        r"^Formula: docs/gradients\.md#([\w-]+)$", _dedented(getattr(ops, name).__doc__), re.MULTILINE
    )
    assert anchor in anchors()


def _dedented(text: str) -> str:
    return re.sub(r"^ +", "", text, flags=re.MULTILINE)
