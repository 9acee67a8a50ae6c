"""Return the picture of the imports between the rooms of the house, read from the code by grimp."""

from __future__ import annotations

import tomllib

import grimp

from documents.files import ROOT


def _edges() -> set[tuple[str, str]]:
    """Return (importer, imported) for every two rooms: a file of `minibert/`, a folder of it, or `backends/`."""
    graph = grimp.build_graph("minibert", "backends", exclude_type_checking_imports=True, cache_dir=None)
    for module in (*graph.find_children("minibert"), "backends"):
        if graph.find_children(module):
            graph.squash_module(module)
    rooms = graph.modules - {"minibert"}  # it only gathers the public names
    return {(a, b) for a in rooms for b in graph.find_modules_directly_imported_by(a) if b in rooms and a != b}


def _reachable(start: str, edges: set[tuple[str, str]]) -> set[str]:
    """Return all rooms that a room imports, directly or through others."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        room = waiting.pop()
        new = {b for a, b in edges if a == room} - found
        found |= new
        waiting += new
    return found


def graph() -> str:
    """Return a Mermaid picture of the imports.

    An arrow is left out where the importer reaches the imported room through another room anyway.
    """
    edges = _edges()
    imported = {a: {b for x, b in edges if x == a} for a, _ in edges}
    through_others = {
        (a, b) for a, b in edges if any(b in _reachable(other, edges) for other in imported[a] if other != b)
    }
    rooms = sorted({room for edge in edges for room in edge})
    lines = ["```mermaid", "flowchart TB"]
    for room in rooms:
        path = room.replace(".", "/")
        kind = "/" if (ROOT / path).is_dir() else ".py"
        lines.append(f'    {room.removeprefix("minibert.")}["{path}{kind}"]')
    for a, b in sorted(edges - through_others):
        lines.append(f"    {a.removeprefix('minibert.')} --> {b.removeprefix('minibert.')}")
    return "\n".join([*lines, "```"])


def contracts() -> str:
    """Return the contracts that `make lint` proves, as a list."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return "\n".join(f"- {contract['name']}." for contract in project["tool"]["importlinter"]["contracts"])


def layers() -> str:
    """Return the layers of `minibert/`, the highest first; a layer imports only those below it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (c for c in project["tool"]["importlinter"]["contracts"] if c.get("containers") == ["minibert"])
    names = [
        ", ".join(f"`{name.strip(' ()')}`" for name in layer.replace("|", ":").split(":"))
        for layer in contract["layers"]
    ]
    return "\n".join(f"{number}. {name}" for number, name in enumerate(names, 1))
