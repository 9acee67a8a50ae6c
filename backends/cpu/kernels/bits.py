"""The random bits of `minibert.random_bits` inside kernels: the same 32-bit arithmetic, bit for bit.

Numba widens products of 32-bit integers to 64 bits, so every step is cut back to 32 bits. The compiler notices that
only the low half matters.
"""

from __future__ import annotations

import numpy as np

from backends.cpu.kernels.jit import elementwise

_GOLDEN = np.uint32(0x9E3779B9)
_FIRST_MULTIPLIER, _SECOND_MULTIPLIER = np.uint32(0x7FEB352D), np.uint32(0x846CA68B)


@elementwise
def mix(word):
    """Mix a word with `lowbias32`: see `minibert.random_bits`."""
    word = np.uint32(word ^ (word >> np.uint32(16)))
    word = np.uint32(word * _FIRST_MULTIPLIER)
    word = np.uint32(word ^ (word >> np.uint32(15)))
    word = np.uint32(word * _SECOND_MULTIPLIER)
    return np.uint32(word ^ (word >> np.uint32(16)))


@elementwise
def counter_word(counter, key):
    """Return the word of a row (for `key` = row_key) or of a column (for `key` = column_key)."""
    return mix(np.uint32(np.uint32(counter * _GOLDEN) + key))


@elementwise
def counter_words(columns, column_key):
    """Return the words of the columns 0, 1, ...: (columns,) uint32."""
    column_words = np.empty(columns, dtype=np.uint32)
    for column in range(columns):
        column_words[column] = counter_word(np.uint32(column), column_key)
    return column_words


@elementwise
def kept(row_word, column_word, threshold):
    """Return True if dropout keeps the element of a row and a column: its 32 random bits are at least `threshold`."""
    return mix(np.uint32(row_word + column_word)) >= threshold
