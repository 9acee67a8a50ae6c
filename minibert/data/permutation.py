"""Compute a random order of n things without storing it. A helper of `batch_source.py` and of fine-tuning.

An epoch visits every sequence once in random order. A shuffled array of numbers would cost 8 bytes per
sequence and would have to be saved for an exact resume. Here the order is a function of the position and a
key: a keyed *bijection* of `range(n)`, which needs no memory.

The bijection is a Feistel network (Luby and Rackoff, "How to construct pseudorandom permutations from
pseudorandom functions", SIAM J. Computing 1988) on the smallest power of two that is at least n. A result
outside `range(n)` is enciphered again until it lies inside: the "cycle walking" of Black and Rogaway,
"Ciphers with arbitrary finite domains" (CT-RSA 2002). This takes fewer than two passes on average.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from minibert.random_bits import Key, Stream, derive_key, random_bits

# Four rounds make a Feistel network pseudorandom. Small domains have short halves, so we take more rounds.
_ROUNDS = 8


def permute(positions: npt.ArrayLike, size: int, key: Key) -> npt.NDArray[np.int64]:
    """Return the things at the given positions of a random order of `range(size)`.

    Args:
        positions: integers of any shape, each from 0 to size - 1.
        size: the number of things in the order, 1 to 2**62.
        key: from `derive_key`; another key gives another order.

    Returns:
        int64, with the shape of `positions`. All positions from 0 to size - 1 together give every thing exactly once.

    Raises:
        ValueError: `size` is outside 1 to 2**62, or a position is outside `range(size)`.
    """
    if not 1 <= size <= 2**62:
        raise ValueError(f"a permutation orders 1 to 2**62 things; got {size}")
    given = np.asarray(positions, dtype=np.int64)
    if given.size and not (given.min() >= 0 and given.max() < size):
        raise ValueError(f"positions must be from 0 to {size - 1}; got {given.min()} to {given.max()}")
    words = given.astype(np.uint64).reshape(-1)
    outside = np.arange(words.size)
    while outside.size:
        words[outside] = _encipher(words[outside], (size - 1).bit_length(), key)
        outside = outside[words[outside] >= size]
    return words.astype(np.int64).reshape(given.shape)


def _encipher(words: npt.NDArray[np.uint64], bits: int, key: Key) -> npt.NDArray[np.uint64]:
    """Apply a keyed bijection of the integers below 2**bits (bits <= 62) to each word."""
    right_bits = bits - bits // 2
    left = (words >> np.uint64(right_bits)).astype(np.uint32)
    right = (words & ((1 << right_bits) - 1)).astype(np.uint32)
    left_mask, right_mask = (1 << (bits // 2)) - 1, (1 << right_bits) - 1
    for step, round_key in enumerate(_round_keys(key)):
        # The halves may differ in length by one bit, so they are changed in turn instead of being swapped.
        if step % 2:
            left ^= random_bits(right, round_key) & left_mask
        else:
            right ^= random_bits(left, round_key) & right_mask
    return left.astype(np.uint64) << np.uint64(right_bits) | right


@lru_cache(maxsize=8)  # every batch of an epoch needs the same keys
def _round_keys(key: Key) -> tuple[Key, ...]:
    return tuple(derive_key(key[0] | key[1] << 32, Stream.ORDER, step) for step in range(_ROUNDS))
