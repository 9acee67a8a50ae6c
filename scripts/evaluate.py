"""Measure a model on held-out text. All options: scripts/evaluate.py --help."""

from __future__ import annotations

from minibert.commands.evaluate import main
from minibert.commands.process import exit_with

if __name__ == "__main__":
    exit_with(main)
