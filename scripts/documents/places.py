"""Find the lines of a definition, and keep the links of pages and lessons on them.

A link whose text is a name in code type, and whose target is a file with line numbers, follows the code:

    [`layer_norm_backward`](../minibert/ops/layer_norm.py#L43-L63)

`make docs-tables` writes the line numbers anew, and a test fails while they are wrong.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<target>[^)\s#]+\.(?:py|cu))#L\d+(?:-L\d+)?\)")
"""A link to the lines of a definition, in Markdown."""


def refresh(text: str, page: Path) -> str:
    """Return the text of a page (or of a notebook, as JSON) with the line numbers of all its links to definitions.

    Args:
        text: what the page contains.
        page: its path; targets are relative to its folder.

    Raises:
        ValueError: a link names something that its file does not define.
    """

    def renew(match: re.Match[str]) -> str:
        name, target = match["name"], match["target"]
        file = page.parent / target
        if not file.is_file():
            raise ValueError(f"{page.name} links to {target}, which does not exist")
        first, last = lines_of(file.resolve(), name)
        return f"[`{name}`]({target}#L{first}-L{last})"

    return LINK.sub(renew, text)


@functools.cache
def lines_of(file: Path, name: str) -> tuple[int, int]:
    """Return the first and the last line of a function, method, class or variable; lines count from 1.

    Args:
        file: a Python file or a CUDA source.
        name: the name, with its class before a dot if it has one.

    Raises:
        ValueError: the file does not define the name, or more than once.
    """
    source = file.read_text(encoding="utf-8")
    found = _in_python(source, name) if file.suffix == ".py" else _in_cuda(source, name)
    if len(found) != 1:
        raise ValueError(f"{file.name} defines {name} {len(found)} times: a link to its lines needs exactly one")
    return found[0]


def _in_python(source: str, name: str) -> list[tuple[int, int]]:
    nodes: list[ast.stmt] = ast.parse(source).body
    *classes, last = name.split(".")
    for outer in classes:
        nodes = [
            inner for node in nodes if isinstance(node, ast.ClassDef) and node.name == outer for inner in node.body
        ]
    return [(node.lineno, node.end_lineno or node.lineno) for node in nodes if last in _names(node)]


def _names(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)}


def _in_cuda(source: str, name: str) -> list[tuple[int, int]]:
    """Find functions and structures whose first line begins at the margin, and which end with a brace there."""
    lines = source.splitlines()
    starts = [
        number
        for number, line in enumerate(lines)
        if re.match(rf'(?:extern "C" |__device__ |struct )[^;=]*\b{name}(?:\(| {{)', line)
    ]
    found = []
    for start in starts:
        one_line = lines[start].rstrip().endswith("}")
        end = start if one_line else next(n for n in range(start, len(lines)) if lines[n].startswith("}"))
        found.append((start + 1, end + 1))
    return found
