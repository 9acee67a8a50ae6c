"""Show what a model would put in the place of [MASK]. All options: scripts/fill_mask.py --help."""

from __future__ import annotations

import sys

from minibert.training.fill_mask_command import main

if __name__ == "__main__":
    sys.exit(main())
