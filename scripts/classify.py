"""Classify texts with a fine-tuned classifier. All options: scripts/classify.py --help."""

from __future__ import annotations

from minibert.commands.classify import main
from minibert.commands.process import exit_with

if __name__ == "__main__":
    exit_with(main)
