"""The counter-based random bits: the same everywhere, different everywhere else, and even."""

from __future__ import annotations

import numpy as np
import pytest

from backends import Backend
from minibert.random_bits import Stream, derive_key, random_bits

MASK = 0xFFFFFFFF
RECORDED_KEY = (131656460, 2502442173)
RECORDED_BITS = [872643422, 191057287, 2936316758]


def plain_lowbias32(x: int) -> int:
    """Written out in unbounded integers, as the reference for wrapping arithmetic on any device."""
    x ^= x >> 16
    x = x * 0x7FEB352D & MASK
    x ^= x >> 15
    x = x * 0x846CA68B & MASK
    return x ^ x >> 16


def plain_bits(row: int, column: int, key: tuple[int, int]) -> int:
    row_word = plain_lowbias32((row * 0x9E3779B9 + key[0]) & MASK)
    column_word = plain_lowbias32((column * 0x9E3779B9 + key[1]) & MASK)
    return plain_lowbias32((row_word + column_word) & MASK)


def test_every_backend_draws_the_bits_of_plain_integer_arithmetic(backend: Backend):
    rows = np.array([0, 1, 2, 77, 2**31, 2**32 - 1], dtype=np.uint32)
    key = derive_key(3, Stream.DROPOUT, 5, 1, 2)
    on_device = backend.asarray(rows)
    drawn = backend.to_numpy(random_bits(on_device, key, columns=5))
    expected = [[plain_bits(int(row), column, key) for column in range(5)] for row in rows]
    np.testing.assert_array_equal(drawn, expected)
    assert drawn.dtype == backend.to_numpy(on_device).dtype  # uint32, or int64 where a library cannot compute in it


def test_recorded_bits_never_change():
    """A checkpoint resumed with a later version must draw what the earlier one would have drawn."""
    key = derive_key(0, Stream.MASKING, 0)
    rows = np.arange(3, dtype=np.uint32)
    assert key == RECORDED_KEY
    assert random_bits(rows, key).tolist() == RECORDED_BITS


def test_keys_differ_in_every_part_of_their_path():
    base = derive_key(1, Stream.DROPOUT, 2, 3)
    others = [
        derive_key(2, Stream.DROPOUT, 2, 3),
        derive_key(1, Stream.MASKING, 2, 3),
        derive_key(1, Stream.DROPOUT, 3, 2),
        derive_key(1, Stream.DROPOUT, 2, 3, 0),
        derive_key(1, Stream.DROPOUT, 2),
        derive_key(1 + 2**32, Stream.DROPOUT, 2, 3),
    ]
    assert len({base, *others}) == 7


@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_seed_outside_64_bits_is_refused(value: int):
    with pytest.raises(ValueError, match=r"integers from 0 to 2\*\*64 - 1"):
        derive_key(value, Stream.DROPOUT)


def test_bits_are_even_and_rows_and_columns_do_not_resemble_each_other():
    bits = random_bits(np.arange(2048, dtype=np.uint32), derive_key(0, Stream.DROPOUT, 1), columns=512)
    ones = np.unpackbits(bits.view(np.uint8))
    assert abs(ones.mean() - 0.5) < 4 * 0.5 / np.sqrt(ones.size)
    uniform = bits.astype(np.float64) / 2**32 - 0.5
    limit = 5 * (1 / 12) / np.sqrt(uniform.size)  # five standard deviations of a mean of products
    assert abs((uniform[1:] * uniform[:-1]).mean()) < limit
    assert abs((uniform[:, 1:] * uniform[:, :-1]).mean()) < limit
    assert len(np.unique(bits)) > 0.999 * bits.size
