"""Measure what packages take on the disk, with all their dependencies, in the environment of this interpreter.

`benchmarks.cold_start` runs this module with requirements such as minibert[fast], in the interpreter that has them.
The size is the sum of the files that each package installed, without Python's bytecode. So no environment has to be
made, but a package counts in the variant that is installed here, e.g. PyTorch for CPUs only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).parents[2]
_OURS = "minibert"


def main() -> None:
    """Print the bytes and the names of the packages as JSON; the arguments are the requirements."""
    found = dependencies(sys.argv[1:])
    sizes = {name: bytes_of(package) for name, package in found.items()}
    print(json.dumps({"bytes": sum(sizes.values()), "packages": sizes}))


def dependencies(requirements: Sequence[str]) -> dict[str, Distribution]:
    """Return the packages that the requirements ask for and all that these depend on: name -> package.

    Exits the program if one of the requirements is not installed. A dependency that is not installed is left out, since
    users do not need it either.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    queue = [Requirement(text) for text in requirements]
    first = len(queue)
    while queue:
        requirement = queue.pop(0)
        first -= 1
        name = canonicalize_name(requirement.name)
        try:
            package = distribution(name)
        except PackageNotFoundError:
            if first >= 0:
                sys.exit(f"error: {sys.executable} has no package {name}, whose size was asked for")
            continue
        found[name] = package
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in package.requires or ():
                needed = Requirement(text)
                if needed.marker.evaluate({"extra": extra}) if needed.marker else extra == "":
                    queue.append(needed)
    return found


def bytes_of(package: Distribution) -> int:
    """Return the bytes of a package's files, without bytecode.

    Mini-BERT is counted in its source folders, because an editable installation does not list its files.
    """
    if canonicalize_name(package.name) == _OURS:
        paths = [path for folder in ("minibert", "backends") for path in (_ROOT / folder).rglob("*")]
    else:
        paths = [Path(str(package.locate_file(file))) for file in package.files or ()]
    return sum(path.stat().st_size for path in paths if "__pycache__" not in path.parts and path.is_file())


if __name__ == "__main__":
    main()
