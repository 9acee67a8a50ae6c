"""The pages are adapted for the site, and every link in them leads somewhere. `make docs` builds the site itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import site

ROOT = Path(__file__).parents[2]
SOURCES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.*")),
]
PAGE = ROOT / "docs" / "gradients.md"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_link_of_a_page_leads_to_a_file(path: Path):
    adapted, shown = site.adapt(path.read_text(encoding="utf-8"), path)
    assert all((ROOT / name).exists() for name in shown)
    assert "$`" not in adapted


@pytest.mark.parametrize(
    ("link", "on_the_site"),
    [
        ("[a](../minibert/ops/softmax.py#L46-L49)", "[a](shown:../code/minibert/ops/softmax.py.html#L-46)"),
        ("[a](../minibert/ops)", "[a](shown:../code/minibert/ops.html#)"),
        ("[a](../notebooks)", "[a](../notebooks/README.md)"),
        ("[a](architecture.md#the-folders)", "[a](architecture.md#the-folders)"),
        ("[a](#softmax)", "[a](#softmax)"),
        ("[a](https://arxiv.org/abs/1810.04805)", "[a](https://arxiv.org/abs/1810.04805)"),
        ("with $`x^2`$ it", "with $x^2$ it"),
    ],
)
def test_links_to_code_lead_to_pages_of_their_own(link: str, on_the_site: str):
    assert site.adapt(link, PAGE)[0] == on_the_site


def test_a_link_to_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"gradients\.md links to absent\.md"):
        site.adapt("[a](absent.md)", PAGE)


def test_every_page_and_lesson_is_in_the_index_of_the_site():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").split()
    for path in SOURCES:
        name = path.relative_to(ROOT).with_suffix("").as_posix()
        listed = name.removeprefix("docs/") if name.startswith("docs/") else f"../{name}"
        assert name == "docs/index" or listed in index, name
