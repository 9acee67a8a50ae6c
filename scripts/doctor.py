"""Check that this machine is fit to train on; first thing to run on a GPU: scripts/doctor.py --device cuda."""

from __future__ import annotations

import sys

from minibert.training.doctor import main

if __name__ == "__main__":
    sys.exit(main())
