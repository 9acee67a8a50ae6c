"""Run a script on the emulated CUDA device.

    python tests/support/emulated_cuda/run.py scripts/train.py --device cuda --steps 20 --output runs/emulated

The script needs no change: it imports `cupy` and gets the emulated one, which calls itself "EMULATED". At the end, the
numbers of launches, transfers and waits are written to standard error.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
STAND_IN = Path(__file__).resolve().parent / "stand_in"


def python_path() -> str:
    """Return the PYTHONPATH with which child processes get the emulated CuPy, too."""
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(ROOT), str(STAND_IN), *([inherited] if inherited else [])])


def main() -> None:
    """Replace CuPy, then run the script with its arguments."""
    sys.path[0] = str(ROOT)
    os.environ["PYTHONPATH"] = python_path()
    from tests.support.emulated_cuda.device import ACTIVITY
    from tests.support.emulated_cuda.modules import install

    install()
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        print(
            f"EMULATED CUDA device: {ACTIVITY.launches.total()} launches, {ACTIVITY.uploads} uploads, "
            f"{ACTIVITY.downloads} downloads, the host waited {ACTIVITY.waits} times",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
