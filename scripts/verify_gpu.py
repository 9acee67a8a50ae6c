"""Everything that only a GPU can show, with a report: doctor, tests, training on both devices, benchmark."""

from __future__ import annotations

import sys

from minibert.training.gpu_verification import main

if __name__ == "__main__":
    sys.exit(main())
