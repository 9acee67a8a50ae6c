"""Train a text classifier from a pretrained BERT. All options: scripts/finetune.py --help."""

from __future__ import annotations

from minibert.commands.finetune import main
from minibert.commands.process import exit_with

if __name__ == "__main__":
    exit_with(main)
