"""The random bits of `minibert.random_bits` inside kernels: the same 32-bit arithmetic, bit for bit.

Numba widens products of 32-bit integers to 64 bits, so every step is cut back to 32; the compiler finds that
only the low half matters.
"""

from __future__ import annotations

import numpy as np

from backends.cpu.kernels.jit import elementwise, inlined

_GOLDEN = np.uint32(0x9E3779B9)
_FIRST_MULTIPLIER, _SECOND_MULTIPLIER = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


@inlined
def mix(word):
    """`lowbias32`: see `minibert.random_bits`."""
    word = np.uint32(word ^ (word >> np.uint32(16)))
    word = np.uint32(word * _FIRST_MULTIPLIER)
    word = np.uint32(word ^ (word >> np.uint32(15)))
    word = np.uint32(word * _SECOND_MULTIPLIER)
    return np.uint32(word ^ (word >> np.uint32(16)))


@inlined
def counter_word(counter, key):
    """What a row (with the key's first word) or a column (with its second) contributes to the bits."""
    return mix(np.uint32(np.uint32(counter * _GOLDEN) + key))


@elementwise
def column_words(columns, key):
    """(columns,) uint32: the words of columns 0, 1, ..."""
    words = np.empty(columns, dtype=np.uint32)
    for column in range(columns):
        words[column] = counter_word(np.uint32(column), key)
    return words


@inlined
def kept(row_word, column_word, threshold):
    """Whether dropout keeps the element at a row and column: its 32 bits are at least `threshold`."""
    return mix(np.uint32(row_word + column_word)) >= threshold
