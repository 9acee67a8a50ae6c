"""Measure a model on held-out text. All options: scripts/evaluate.py --help."""

from __future__ import annotations

import sys

from minibert.training.evaluate_command import main

if __name__ == "__main__":
    sys.exit(main())
