"""Train a text classifier from a pretrained BERT. All options: scripts/finetune.py --help."""

from __future__ import annotations

import sys

from minibert.commands.finetune import main

if __name__ == "__main__":
    sys.exit(main())
