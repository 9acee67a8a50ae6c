"""Dropout from counted random bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends import Array, Backend
from minibert.random_bits import Key, random_bits


@dataclass(frozen=True)
class Dropout:
    """One use of dropout (Srivastava et al. 2014) in one training step.

    The mask is a function of these fields, so the backward pass draws it again instead of storing it.

    Attributes:
        probability: of dropping an element, 0 < p < 1.
        key: what the random bits depend on besides the element (see `random_bits`).
        row_numbers: (N,) uint32, the number of each row: which token of which sequence of the step it is.
    """

    probability: float
    key: Key
    row_numbers: Array

    @property
    def threshold(self) -> int:
        """An element is kept if its 32 random bits are this number or more."""
        return int(self.probability * 2**32)

    @property
    def keep_scale(self) -> float:
        """The factor on what is kept, so that the mean stays."""
        return 1.0 / (1.0 - self.probability)


def dropout_mask(backend: Backend, dropout: Dropout, columns: int, dtype: Any) -> Array:
    """(R, columns): 0 with the dropout's probability, otherwise `keep_scale`; R row numbers."""
    keep = random_bits(dropout.row_numbers, dropout.key, columns) >= dropout.threshold
    return backend.xp.astype(keep, dtype) * dropout.keep_scale


def dropout_forward(backend: Backend, x: Array, dropout: Dropout | None) -> Array:
    """y = x * mask: (N, H) -> (N, H); without dropout, x itself."""
    if dropout is None:
        return x
    mask = dropout_mask(backend, dropout, x.shape[1], x.dtype)
    return x * mask


def dropout_backward(backend: Backend, dy: Array, dropout: Dropout | None) -> Array:
    """Returns dx (N, H). The mask is a constant, so dropping out the gradient is its gradient."""
    # y = x * mask
    return dropout_forward(backend, dy, dropout)
