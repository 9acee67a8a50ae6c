"""Pretrain BERT on text: text in, trained model out. All options: scripts/train.py --help."""

from __future__ import annotations

from minibert.commands.process import exit_with
from minibert.commands.train import main

if __name__ == "__main__":
    exit_with(main)
