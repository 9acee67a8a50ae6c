"""Check and measure a GPU, and write a report. All options: scripts/verify_gpu.py --help.

Nothing needs to be installed but NumPy, CuPy and what the tests need. `--site DIR` names a folder with missing modules.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if "--site" in sys.argv[:-1]:  # before the first import that may need a module from there
    sys.path.append(sys.argv[sys.argv.index("--site") + 1])

try:
    from minibert.commands.verify_gpu import main
except ModuleNotFoundError as error:
    advice = "run `pip install -e .` in Mini-BERT's folder and in a virtual environment (see docs/cuda.md)"
    print(f"error: {error}. Mini-BERT is not installed: {advice}", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
