"""Turn texts into vectors, one for each line of a file. All options: scripts/embed.py --help."""

from __future__ import annotations

from minibert.commands.embed import main
from minibert.commands.process import exit_with

if __name__ == "__main__":
    exit_with(main)
