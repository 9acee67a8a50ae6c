"""Print the most probable words for every [MASK] in a text. All options: scripts/fill_mask.py --help."""

from __future__ import annotations

from minibert.commands.fill_mask import main
from minibert.commands.process import exit_with

if __name__ == "__main__":
    exit_with(main)
