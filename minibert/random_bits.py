"""Random bits from a counter: the same draws on every device, and nothing to save for a resume.

A conventional generator has a state that advances with every draw. So its draws depend on the order of the calls, on
the library and on the device. Here a draw is a pure function of the *place* where it is used:

    (seed, stream, step, layer, site)  ->  (row_key, column_key), two 32-bit words      (`derive_key`, on the host)
    key, row, column                   ->  32 random bits                               (`random_bits`, on the device)

The arithmetic uses 32-bit integers that wrap. NumPy, CuPy, CUDA C++ and Numba all compute it alike. Where a library has
no arithmetic in uint32, as PyTorch, the lower halves of int64 take its place. A row's
number says what the row *is* (which sequence, which position), not where the row is stored. So splitting a batch,
leaving out padding or pruning the last layer does not change a single bit. The backward pass draws its masks again
instead of storing them.

The idea comes from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The mixing function is
Chris Wellons' `lowbias32` (two multiplications, measured bias 0.17), which is much cheaper than Philox and good enough
for dropout, masking and shuffling. It is not for cryptography.
"""

from __future__ import annotations

import operator
from enum import IntEnum
from typing import Any

from array_api_compat import array_namespace, device

from minibert.errors import brief

Array = Any
Key = tuple[int, int]

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads consecutive counters over the whole word
_FIRST_MULTIPLIER, _SECOND_MULTIPLIER = 0x7FEB352D, 0x846CA68B  # of lowbias32


class Stream(IntEnum):
    """The purposes of random bits. Different streams never share a key."""

    INITIALISATION = 1
    ORDER = 2
    MASKING = 3
    PAIRING = 4
    DROPOUT = 5
    EVALUATION = 6
    SPLIT = 7


def _mix(words: Array, wide: bool) -> Array:
    """Apply `lowbias32`, a bijection of 32-bit words in which every input bit affects every output bit.

    Products of uint32 arrays wrap without further code. In int64 arrays (`wide`) the upper half is cut off.
    """
    words = words & _WORD if wide else words
    words = words ^ (words >> 16)
    words = words * _FIRST_MULTIPLIER
    words = words & _WORD if wide else words
    words = words ^ (words >> 15)
    words = words * _SECOND_MULTIPLIER
    words = words & _WORD if wide else words
    return words ^ (words >> 16)


def _mix_int(word: int) -> int:
    """Apply `_mix` to a Python int, which does not wrap and is cut to 32 bits after each product."""
    word ^= word >> 16
    word = (word * _FIRST_MULTIPLIER) & _WORD
    word ^= word >> 15
    word = (word * _SECOND_MULTIPLIER) & _WORD
    return word ^ (word >> 16)


def derive_key(seed: int, stream: Stream, *path: int) -> Key:
    """Return the key for one use of randomness, e.g. `derive_key(seed, Stream.DROPOUT, step, layer, site)`.

    Args:
        seed: any integer from 0 to 2**64 - 1.
        stream: the purpose of the bits.
        path: further integers from 0 to 2**64 - 1, which distinguish this use from others. Paths of different lengths
            give different keys.

    Returns:
        (row_key, column_key), two 32-bit words.

    Raises:
        ValueError: an integer is outside that range.
        TypeError: a value is no integer.
    """
    row_key, column_key = _mix_int(len(path) + 1), _mix_int(_GOLDEN)
    for value in map(operator.index, (seed, stream, *path)):  # a NumPy integer would wrap, or never become 0
        if not 0 <= value < 2**64:
            raise ValueError(f"random keys are made of integers from 0 to 2**64 - 1; got {brief(value)}")
        for word in (value & _WORD, value >> 32):
            row_key = _mix_int(row_key ^ _mix_int((word + _GOLDEN) & _WORD))
            column_key = _mix_int((column_key + row_key) & _WORD)
    return row_key, column_key


def random_bits(rows: Array, key: Key, columns: int | None = None) -> Array:
    """Return 32 independent random bits for every row and column.

    Args:
        rows: (R,) uint32, the numbers of the rows; they need not be contiguous or sorted. Or int64, of which the lower
            32 bits are used.
        key: from `derive_key`.
        columns: how many columns to draw, or None for one word per row.

    Returns:
        (R, columns), or (R,) without `columns`, in the namespace and dtype and on the device of `rows`.
        Entry (r, c) depends on `key`, `rows[r]` and `c` only.
    """
    xp = array_namespace(rows)
    wide = rows.dtype == xp.int64
    row_key, column_key = key
    row_words = _mix(rows * _GOLDEN + row_key, wide)  # (R,)
    if columns is None:
        return _mix(row_words + column_key, wide)
    counters = xp.arange(columns, dtype=rows.dtype, device=device(rows))
    column_words = _mix(counters * _GOLDEN + column_key, wide)  # (columns,)
    return _mix(row_words[:, None] + column_words[None, :], wide)  # (R, columns)
