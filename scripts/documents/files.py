"""Say where the project is, and read what its files say about themselves."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring.

    Raises:
        ValueError: the module has no docstring.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if docstring is None:
        raise ValueError(f"{path} has no docstring: its first lines must say what the file is for")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<!et al)\. (?=[A-Z`])", paragraph)[0].rstrip(".:")


def link(path: str, page: str) -> str:
    """Return a Markdown link to a file of the project.

    Args:
        path: relative to the project, with / between folders.
        page: the page that shows the link: "README.md", or a file of docs/.
    """
    above = "../" * page.count("/")
    return f"[`{path}`]({above}{path})"
