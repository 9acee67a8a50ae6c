"""One name for one thing: every symbol of docs/gradients.md is a name in the code that computes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DERIVATIONS = (ROOT / "docs" / "gradients.md").read_text(encoding="utf-8")

WITH_TWINS = ("Cross-entropy", "Activations", "Layer norm", "Dropout", "The end of a sub-layer", "Attention")
"""The sections whose operations have hand-written kernels for both devices."""

PLACES = {
    "the definitions": [*(ROOT / "minibert" / "ops").glob("*.py")],
    "the Numba twins": [*(ROOT / "backends" / "cpu" / "kernels").glob("*.py")],
    "the CUDA kernels": [*(ROOT / "backends" / "cuda").glob("*.cu")],
}


def section(title: str) -> str:
    return DERIVATIONS.split(f"\n## {title}\n")[1].split("\n## ")[0]


def symbols(text: str) -> set[str]:
    r"""The names in formulas that consist of several words, as \text{x\_mean}."""
    return {name.replace("\\_", "_") for name in re.findall(r"\\text\{(\w+(?:\\_\w+)+)\}", text)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("title", WITH_TWINS)
def test_a_symbol_of_the_derivation_is_found_in_the_code(title: str, place: str):
    code = "\n".join(path.read_text(encoding="utf-8") for path in PLACES[place])
    names = symbols(section(title))
    assert names, "the section has no symbols: its formulas are not written as this test expects"
    # a suffix tells an element or a row of an array from the array
    missing = {name for name in names if not re.search(rf"\b{name}(_[ij]|_row|_of_row)?\b", code)}
    assert not missing, f"{place} lack {sorted(missing)}"


def test_a_symbol_in_a_formula_is_also_written_as_in_the_code():
    r"""A search for x_mean does not find \text{x\_mean}: the section must have the plain name, too."""
    for part in DERIVATIONS.split("\n## ")[1:]:
        missing = {name for name in symbols(part) if not re.search(rf"`[^`$]*\b{name}\b[^`$]*`", part)}
        assert not missing, f"{part.splitlines()[0]}: {sorted(missing)}"


def test_the_functions_that_the_derivations_name_exist():
    for part in DERIVATIONS.split("\n## ")[1:]:
        if "\nComputed by " not in part:
            continue
        computed = part.split("\nComputed by ")[1]
        files = [ROOT / path for path in re.findall(r"\]\(\.\./([^)]*\.(?:py|cu))\)", part)]
        code = "\n".join(path.read_text(encoding="utf-8") for path in files)
        missing = {name for name in re.findall(r"`(\w+)`", computed) if name not in code and "bias_" not in name}
        assert not missing, f"{part.splitlines()[0]}: {sorted(missing)}"
