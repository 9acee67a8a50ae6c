"""The corpus named `stdlib`: the documentation inside Python's own standard library. A helper of `corpus.py`.

It consists of the help topics of `pydoc` and the docstrings of the library's source files, each docstring
once: about 2 MB of English that is present on every machine. The sources are parsed, never imported, so
nothing runs and nothing has side effects.
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

STDLIB = "stdlib"  # the word that names this corpus among the sources

# Folders that are not part of Python (installed packages), hold no documentation (tests, tables of characters),
# or are read in another way (the help topics in pydoc_data).
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _find_sources() -> list[tuple[str, Path]]:
    """Return (name relative to the library, path) for each of the library's source files, sorted by name."""
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for parent, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        found += [Path(parent, name) for name in names if name.endswith(".py")]
    return sorted((path.relative_to(library).as_posix(), path) for path in found)


@lru_cache(maxsize=1)
def stdlib_documents() -> tuple[tuple[str, str], ...]:
    """Return (name, text) for every document. A document is one help topic, or all docstrings of one module.

    A docstring that occurred before, in this module or another, is left out. The docstrings of a module are
    in the order of its source, separated by blank lines. The result is kept in memory (2 MB) because parsing
    takes seconds.
    """
    from pydoc_data.topics import topics

    documents = [(f"pydoc/{name}", text) for name, text in sorted(topics.items()) if text.strip()]
    seen: set[str] = set()
    for name, path in _find_sources():
        fresh = [docstring for docstring in _read_docstrings(path) if docstring not in seen]
        fresh = list(dict.fromkeys(fresh))
        seen.update(fresh)
        if fresh:
            documents.append((name, "\n\n".join(fresh)))
    return tuple(documents)


def _read_docstrings(path: Path) -> list[str]:
    """Return the cleaned docstrings of a source file in the order of its lines; none if Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources hold escapes that newer Pythons warn about
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []  # for example, lib2to3 contains files of Python 2 for its tests
    documented = [node for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)]
    documented.sort(key=lambda node: getattr(node, "lineno", 0))
    docstrings = (ast.get_docstring(node) for node in documented)
    return [docstring for docstring in docstrings if docstring and docstring.strip()]


def stdlib_fingerprint() -> str:
    """Return 64 hexadecimal digits that change with Python's version and the sizes of its library's sources."""
    sizes = [(name, path.stat().st_size) for name, path in _find_sources()]
    return hashlib.sha256(repr((sys.version, sizes)).encode()).hexdigest()
