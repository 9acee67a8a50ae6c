"""Choose the backend that starts fastest, for commands that users type again and again with short texts.

With little to compute, most of the time goes into starting. This module does not import NumPy, because the choice
has to be made before NumPy is loaded: NumPy's BLAS reads its number of threads then, and waking a second thread takes
longer than computing one sentence.
"""

from __future__ import annotations

import os
import sys

from backends import Backend

_FEW_CHARACTERS = 500  # for a text this short, computing without SciPy is faster than importing SciPy


def quick_backend(device: str, kernels: str, precision: str, characters: int) -> Backend | str:
    """Return the backend that starts fastest if there is little to compute; otherwise return `device` unchanged.

    Args:
        device: the value of `--device`.
        kernels: the value of `--kernels`.
        precision: the value of `--precision`.
        characters: number of characters in all texts together.
    """
    if (device, kernels, precision) != ("cpu", "auto", "float32") or characters > _FEW_CHARACTERS:
        return device
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from backends.cpu.quick_start import QuickStartNumpyBackend

    return QuickStartNumpyBackend()
