"""Measure a model on held-out text. All options: scripts/evaluate.py --help."""

from __future__ import annotations

import sys

from minibert.commands.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
