"""The configuration of the site: `make docs` builds it with Sphinx from the pages, the lessons and the docstrings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from documents import site  # noqa: E402

project = "Mini-BERT"
html_title = "Mini-BERT"
html_theme = "furo"
root_doc = "docs/index"
include_patterns = ["docs/*.md", "notebooks/*", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinxcontrib.mermaid"]

nb_execution_mode = "off"  # the tests execute the lessons; the site shows the outputs that are stored in them
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
myst_fence_as_directive = ["math", "mermaid"]
myst_url_schemes = {"http": None, "https": None, "mailto": None, site.SCHEME: "{{path}}#{{fragment}}"}

default_role = "code"  # docstrings set names in single backticks
autodoc_typehints = "none"  # the types are in the signatures
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_rtype = False

_shown: set[str] = set()


def _adapt(app: Any, name: str, source: list[str]) -> None:
    page = Path(app.env.doc2path(name))
    source[0], shown = site.adapt(source[0], page)
    _shown.update(shown)


def _write_code_pages(app: Any, exception: Exception | None) -> None:
    if exception is None:
        site.write_code_pages(_shown, Path(app.outdir))


def setup(app: Any) -> None:
    """Connect the functions of `documents.site` to the build."""
    app.connect("source-read", _adapt)
    app.connect("build-finished", _write_code_pages)
