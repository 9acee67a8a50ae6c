"""Check a GPU and write a report. All options: scripts/verify_gpu.py --help."""

from __future__ import annotations

import sys

try:
    from minibert.commands.verify_gpu import main
except ModuleNotFoundError as error:
    advice = "run `pip install -e .` in Mini-BERT's folder and in a virtual environment (see docs/cuda.md)"
    print(f"error: {error}. Mini-BERT is not installed: {advice}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
