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


def dropout_mask(backend: Backend, row_numbers: Array, columns: int, key: Key, probability: float, dtype: Any) -> Array:
    """(R, columns): 0 with the given probability, otherwise 1 / (1 - probability), so that the mean is 1."""
    xp = backend.xp
    keep = random_bits(row_numbers, key, columns) >= int(probability * 2**32)
    return xp.astype(keep, dtype) * (1.0 / (1.0 - probability))


def dropout_forward(backend: Backend, x: Array, dropout: Dropout | None) -> Array:
    """y = x * mask: (N, H) -> (N, H); without dropout, x itself."""
    if dropout is None:
        return x
    mask = dropout_mask(backend, dropout.row_numbers, x.shape[1], dropout.key, dropout.probability, x.dtype)
    return x * mask


def dropout_backward(backend: Backend, dy: Array, dropout: Dropout | None) -> Array:
    """Returns dx (N, H). The mask is a constant, so dropping out the gradient is its gradient."""
    # y = x * mask
    return dropout_forward(backend, dy, dropout)
