"""Random bits from a counter: the same draws on every device, and nothing to save for a resume.

A conventional generator has a state that advances with every draw, so the draws depend on the order
of the calls, on the library and on the device. Here a draw is a pure function of *where* it is used:

    (seed, stream, step, layer, site)  ->  a key of two 32-bit words        (`derive_key`, on the host)
    key, row, column                   ->  32 random bits                   (`random_bits`, on the device)

in wrapping 32-bit integer arithmetic, which NumPy, CuPy, CUDA C++ and Numba all compute alike. A row
is numbered by what it *is* (which sequence, which position), not by where it happens to be stored, so
splitting a batch, leaving out padding or pruning the last layer does not change a single bit. The
backward pass draws its masks again instead of storing them.

The idea is that of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the mixing
function is Chris Wellons' `lowbias32` (two multiplications, measured bias 0.17), which is much cheaper
than Philox and ample for dropout, masking and shuffling. It is not for cryptography.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from array_api_compat import array_namespace, device

Array = Any
Key = tuple[int, int]

_WORD = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads consecutive counters over the whole word
_FIRST_MULTIPLIER, _SECOND_MULTIPLIER = 0x7FEB352D, 0x846CA68B  # of lowbias32


class Stream(IntEnum):
    """What random bits are drawn for. Different streams never share a key."""

    INITIALISATION = 1
    ORDER = 2
    MASKING = 3
    PAIRING = 4
    DROPOUT = 5
    EVALUATION = 6
    SPLIT = 7


def _mix(words: Array) -> Array:
    """`lowbias32`: a bijection of 32-bit words in which every input bit reaches every output bit.

    Products of uint32 arrays wrap by themselves.
    """
    words = words ^ (words >> 16)
    words = words * _FIRST_MULTIPLIER
    words = words ^ (words >> 15)
    words = words * _SECOND_MULTIPLIER
    return words ^ (words >> 16)


def _mix_int(word: int) -> int:
    """`_mix` of a Python int, which does not wrap by itself."""
    word ^= word >> 16
    word = (word * _FIRST_MULTIPLIER) & _WORD
    word ^= word >> 15
    word = (word * _SECOND_MULTIPLIER) & _WORD
    return word ^ (word >> 16)


def derive_key(seed: int, stream: Stream, *path: int) -> Key:
    """The key for one use of randomness, e.g. `derive_key(seed, Stream.DROPOUT, step, layer, site)`.

    Args:
        seed: any integer from 0 to 2**64 - 1.
        stream: what the bits are for.
        path: further integers from 0 to 2**64 - 1 that tell this use from the others; their number matters.

    Raises:
        ValueError: an integer outside that range.
    """
    low, high = _mix_int(len(path) + 1), _mix_int(_GOLDEN)
    for value in (seed, int(stream), *path):
        if not 0 <= value < 2**64:
            raise ValueError(f"random keys are made of integers from 0 to 2**64 - 1; got {value}")
        for word in (value & _WORD, value >> 32):
            low = _mix_int(low ^ _mix_int((word + _GOLDEN) & _WORD))
            high = _mix_int((high + low) & _WORD)
    return low, high


def random_bits(rows: Array, key: Key, columns: int | None = None) -> Array:
    """32 independent random bits for every counter.

    Args:
        rows: (R,) uint32, the numbers of the rows; wraps, need not be contiguous or sorted.
        key: from `derive_key`.
        columns: how many columns to draw, or None for one word per row.

    Returns:
        (R, columns) uint32, or (R,) without `columns`, in the namespace and on the device of `rows`.
        Entry (r, c) depends on `key`, `rows[r]` and `c` only.
    """
    row_words = _mix(rows * _GOLDEN + key[0])
    if columns is None:
        return _mix(row_words + key[1])
    xp = array_namespace(rows)
    counters = xp.arange(columns, dtype=xp.uint32, device=device(rows))
    column_words = _mix(counters * _GOLDEN + key[1])
    return _mix(row_words[:, None] + column_words[None, :])
