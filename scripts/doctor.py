"""Check that this machine is fit to train on; first thing to run on a GPU: scripts/doctor.py --device cuda."""

from __future__ import annotations

import sys

try:
    from minibert.commands.doctor import main
except ModuleNotFoundError as error:
    advice = "in Mini-BERT's folder and in an environment of its own: pip install -e . (docs/cuda.md)"
    print(f"error: {error}; install Mini-BERT first, {advice}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
