"""Prepare pages for the site: adapt what GitHub reads and Sphinx does not, and show the code that pages link to.

Pages and lessons link to files of the code by paths, as on GitHub. On the site such a link leads to a page of its own
under `code/`, which shows the file with its line numbers. `docs/conf.py` calls these functions.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from documents.files import ROOT

_LINK = re.compile(r"\]\((?P<target>[^)\s#:]+)(?:#(?P<anchor>[^)\s]*))?\)")
_MATH = re.compile(r"\$`(.+?)`\$", re.DOTALL)
PAGES = (".md", ".ipynb")
"""Files that are pages of the site themselves."""
SCHEME = "shown"
"""The scheme of links to the pages under code/, which tells Sphinx to take the rest as it is."""


def adapt(text: str, page: Path) -> tuple[str, set[str]]:
    """Return the text of a page as Sphinx reads it, and the files of the code that it links to.

    Args:
        text: the page in Markdown, or a notebook as JSON.
        page: its path.

    Raises:
        ValueError: a link leads to nothing.
    """
    shown: set[str] = set()

    def renew(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        file = Path(os.path.normpath(page.parent / target))
        if not file.exists():
            raise ValueError(f"{page.name} links to {target}, which does not exist")
        if file.suffix in PAGES or file.suffix == ".png":
            return match[0]
        name = file.relative_to(ROOT).as_posix()
        if (file / "README.md").exists():
            return f"]({os.path.relpath(file / 'README.md', page.parent)})"
        shown.add(name)
        to_root = "../" * (len(page.relative_to(ROOT).parts) - 1)
        line = re.match(r"L(\d+)", anchor)
        return f"]({SCHEME}:{to_root}code/{name}.html#{f'L-{line[1]}' if line else ''})"

    return _MATH.sub(lambda match: f"${match[1]}$", _LINK.sub(renew, text)), shown


def write_code_pages(names: set[str], site: Path) -> None:
    """Write the pages under `code/`: each file with line numbers and an anchor for every line, folders as lists."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import TextLexer, get_lexer_for_filename
    from pygments.util import ClassNotFound

    for name in sorted(names):
        file, target = ROOT / name, site / "code" / f"{name}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            text = "\n".join(sorted(path.name for path in file.iterdir() if not path.name.startswith((".", "__"))))
            lexer = TextLexer()
        else:
            text = file.read_text(encoding="utf-8")
            try:
                lexer = get_lexer_for_filename("code.cpp" if file.suffix == ".cu" else file.name)
            except ClassNotFound:
                lexer = TextLexer()
        formatter = HtmlFormatter(full=True, title=name, linenos="inline", lineanchors="L", anchorlinenos=True)
        target.write_text(highlight(text, lexer, formatter), encoding="utf-8")
