"""Refuse results that are not finite: they would look like an answer, and mean nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from minibert.errors import InferenceError, brief


def check_finite(rows: npt.NDArray[np.floating[Any]], what: str, of: Sequence[object]) -> None:
    """Refuse results with NaN or infinities.

    Args:
        rows: (n, ...) results.
        what: what a row is, for the error message.
        of: n things that the rows belong to, such as texts.

    Raises:
        InferenceError: a row is not finite, because the weights are NaN or a number became too large.
    """
    finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)  # (n,)
    if not finite.all():
        raise InferenceError(
            f"{what} of {brief(of[int(np.argmin(finite))], 60)} is not finite: the model's weights are damaged, or too "
            "large for its numbers; use another checkpoint"
        )
