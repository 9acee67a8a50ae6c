"""A CPU backend that starts fast: NumPy and the standard library alone.

Importing SciPy, or loading compiled twins, takes longer than embedding a sentence. This backend does without both. For
more than a few hundred tokens, `backends/cpu/backend.py` is faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from backends.base import Array
from backends.cpu.backend import NumpyBackend


class QuickStartNumpyBackend(NumpyBackend):
    """NumPy without SciPy's error function and without twins."""

    twins: Mapping[str, Callable[..., Any]] = {}

    def has_bfloat16(self) -> bool:
        """Return False, without loading Numba to find out: this backend has no twins."""
        return False

    def erf(self, x: Array) -> Array:
        """Compute the error function element by element, in float64: about 50 ns each."""
        values = map(math.erf, x.reshape(-1).tolist())
        return np.fromiter(values, dtype=x.dtype, count=x.size).reshape(x.shape)
