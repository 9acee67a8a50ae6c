"""Turn texts into vectors, one for each line of a file. All options: scripts/embed.py --help."""

from __future__ import annotations

import sys

from minibert.commands.embed import main

if __name__ == "__main__":
    sys.exit(main())
