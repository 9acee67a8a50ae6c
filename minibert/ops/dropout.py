"""Dropout, whose random bits come from a counter.

The names are those of docs/gradients.md, section "Dropout".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import Array, Backend
from minibert.random_bits import Key, random_bits


@dataclass(frozen=True)
class Dropout:
    """One use of dropout (Srivastava et al. 2014) in one training step.

    The dropout mask is a function of these fields. So the backward pass draws the mask again instead of storing it.

    Attributes:
        probability: p, the probability that an element is dropped, 0 < p < 1.
        key: the key of the random bits, from `minibert.random_bits.derive_key`.
        row_numbers: (N,) uint32, the number of each row: which token of which sequence of the step the row is.
    """

    probability: float
    key: Key
    row_numbers: Array

    @property
    def threshold(self) -> int:
        """floor(p * 2**32): an element is kept if its 32 random bits are at least this number."""
        return int(self.probability * 2**32)

    @property
    def keep_scale(self) -> float:
        """1 / (1 - p), the factor on kept elements; with it the mean of the dropout mask is 1."""
        return 1.0 / (1.0 - self.probability)


def dropout_mask(backend: Backend, dropout: Dropout, columns: int, dtype: Any) -> Array:
    """Return the dropout mask (N, columns) for N row numbers: `keep_scale` where an element is kept, 0 elsewhere.

    Formula: docs/gradients.md#dropout
    """
    keep = random_bits(dropout.row_numbers, dropout.key, columns) >= dropout.threshold  # (N, columns)
    return backend.xp.astype(keep, dtype) * dropout.keep_scale


def dropout_forward(backend: Backend, x: Array, dropout: Dropout | None) -> Array:
    """Return y = x * dropout_mask: (N, H) -> (N, H). Without dropout (None), return x itself.

    Formula: docs/gradients.md#dropout
    """
    if dropout is None:
        return x
    return x * dropout_mask(backend, dropout, x.shape[1], x.dtype)


def dropout_backward(backend: Backend, dy: Array, dropout: Dropout | None) -> Array:
    """Return dx = dy * dropout_mask (N, H): the mask does not depend on x, so the gradient gets the same mask.

    Formula: docs/gradients.md#dropout
    """
    # y = x * dropout_mask
    return dropout_forward(backend, dy, dropout)
