"""For commands that are typed again and again: with little to compute, starting is most of the time.

Nothing here imports NumPy, so that the decision is made before NumPy is: its BLAS reads the number of its
threads when it is loaded, and waking a second thread for a sentence takes longer than the sentence.
"""

from __future__ import annotations

import os
import sys

from backends import Backend

_FEW_CHARACTERS = 500  # of text, which takes less time without SciPy than importing it does


def quick_backend(device: str, kernels: str, characters: int) -> Backend | str:
    """The backend that starts fastest where there is little to compute, otherwise the device as it was given.

    Args:
        device: that was asked for.
        kernels: that were asked for.
        characters: of all texts together.
    """
    if device != "cpu" or kernels != "auto" or characters > _FEW_CHARACTERS:
        return device
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from backends.cpu.quick_start import QuickStartNumpyBackend

    return QuickStartNumpyBackend()
