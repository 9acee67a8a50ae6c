"""Print the most probable words for every [MASK] in a text. All options: scripts/fill_mask.py --help."""

from __future__ import annotations

import sys

from minibert.commands.fill_mask import main

if __name__ == "__main__":
    sys.exit(main())
