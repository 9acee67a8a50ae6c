"""Fast twins for the NumPy backend: operation name -> a faster function of the same meaning.

The definition of every operation is in `minibert/ops.py`, in the standard's own functions. A twin here
may do anything that NumPy and SciPy can, as long as `tests/test_twins.py` finds the same values, dtype
and shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

TWINS: Mapping[str, Callable[..., Any]] = {}
