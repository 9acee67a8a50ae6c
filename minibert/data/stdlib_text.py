"""The corpus that is on every machine: the documentation inside Python's own standard library.

It is the help topics of `pydoc` and every different docstring of the library's sources, about 2 MB of
English. The sources are parsed, never imported, so nothing runs and nothing has side effects.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
import sysconfig
import warnings
from functools import lru_cache
from pathlib import Path

STDLIB = "stdlib"  # the word that stands for this corpus

# Not of Python (installed packages), not documentation (tests, tables of characters), or read another way (topics).
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _library_sources() -> list[tuple[str, Path]]:
    """(name relative to the library, path) of the library's source files, sorted by name."""
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for parent, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        found += [Path(parent, name) for name in names if name.endswith(".py")]
    return sorted((path.relative_to(library).as_posix(), path) for path in found)


@lru_cache(maxsize=1)
def stdlib_documents() -> tuple[tuple[str, str], ...]:
    """(name, text) of every document: each help topic is one, and so are the docstrings of each module.

    A docstring that was met before, in this module or another, is left out. A module's docstrings stand in
    the order of its source, separated by blank lines. Kept in memory (2 MB) because parsing takes seconds.
    """
    from pydoc_data.topics import topics

    documents = [(f"pydoc/{name}", text) for name, text in sorted(topics.items()) if text.strip()]
    seen: set[str] = set()
    for name, path in _library_sources():
        fresh = [docstring for docstring in _docstrings(path) if docstring not in seen]
        fresh = list(dict.fromkeys(fresh))
        seen.update(fresh)
        if fresh:
            documents.append((name, "\n\n".join(fresh)))
    return tuple(documents)


def _docstrings(path: Path) -> list[str]:
    """The cleaned docstrings of one source file in the order of its lines; none if Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources hold escapes that newer Pythons frown upon
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []  # e.g. lib2to3 ships files of Python 2 for its tests
    documented = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    documented.sort(key=lambda node: getattr(node, "lineno", 0))
    docstrings = (ast.get_docstring(node) for node in documented)
    return [docstring for docstring in docstrings if docstring and docstring.strip()]


def stdlib_fingerprint() -> str:
    """Hexadecimal digits that change with the version of Python and the sizes of its library's sources."""
    sizes = [(name, path.stat().st_size) for name, path in _library_sources()]
    return hashlib.sha256(repr((sys.version, sizes)).encode()).hexdigest()
