"""Classify texts with a fine-tuned classifier. All options: scripts/classify.py --help."""

from __future__ import annotations

import sys

from minibert.commands.classify import main

if __name__ == "__main__":
    sys.exit(main())
