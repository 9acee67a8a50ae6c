"""Pretrain BERT on text: text in, trained model out. All options: scripts/train.py --help."""

from __future__ import annotations

import sys

from minibert.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
