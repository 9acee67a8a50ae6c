"""Write the generated tables, lists and graphs of the documentation anew, from docs/benchmark.json and the code.

    python scripts/generate_docs.py            # rewrite the pages in place: make docs-tables
    python scripts/generate_docs.py --check    # only say what would change; exit status 1 if anything would

The generated parts stand between the markers of cogapp, `[[[cog ... ]]]` and `[[[end]]]`; see scripts/documents. Links
to the lines of a definition follow the code in all pages and lessons; see scripts/documents/places.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from documents import places  # noqa: E402

from minibert.commands.parser import Parser  # noqa: E402
from minibert.commands.process import BAD_INPUT, FAILURE, SUCCESS  # noqa: E402

try:
    from cogapp import Cog
except ModuleNotFoundError as error:
    print(f"error: {error}; run make docs-tables, or install it: pip install '.[test]'", file=sys.stderr)
    sys.exit(BAD_INPUT)


def main(words: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = Parser(prog="generate_docs.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; show what would change")
    arguments = parser.parse_args(words)
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    mode = ["--check", "--diff", "--check-fail-msg=Run `make docs-tables`."] if arguments.check else ["-r"]
    failed = Cog().main(["cog", "-P", "-U", "-n", "utf-8", "--verbosity=1", *mode, *map(str, pages)])
    for page in [*pages, *sorted((ROOT / "notebooks").glob("*.ipynb"))]:
        before = page.read_text(encoding="utf-8")
        after = places.refresh(before, page)
        if before != after and arguments.check:
            print(f"{page.name} links to lines that have moved. Run `make docs-tables`.")
            failed = True
        elif before != after:
            page.write_text(after, encoding="utf-8")
    return FAILURE if failed else SUCCESS


if __name__ == "__main__":
    sys.exit(main())
