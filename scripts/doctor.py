"""Check that this machine can train. Run it first on a GPU: scripts/doctor.py --device cuda."""

from __future__ import annotations

import sys

try:
    from minibert.commands.doctor import main
except ModuleNotFoundError as error:
    advice = "run `pip install -e .` in Mini-BERT's folder and in a virtual environment (see docs/cuda.md)"
    print(f"error: {error}. Mini-BERT is not installed: {advice}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
