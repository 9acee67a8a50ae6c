"""Everything that only a GPU can show, with a report: doctor, tests, training on both devices, benchmark."""

from __future__ import annotations

import sys

try:
    from minibert.commands.verify_gpu import main
except ModuleNotFoundError as error:
    advice = "in Mini-BERT's folder and in an environment of its own: pip install -e . (docs/cuda.md)"
    print(f"error: {error}; install Mini-BERT first, {advice}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
