"""The order of an epoch: a random permutation that is computed, not stored."""

import numpy as np
import pytest

from minibert.data.permutation import permute
from minibert.random_bits import Stream, derive_key


def order_of(size, seed=0):
    return permute(np.arange(size), size, derive_key(seed, Stream.ORDER, 0))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 64, 100, 1023, 1024, 1025, 70_001])
def test_an_epoch_visits_every_sequence_exactly_once(size):
    assert np.array_equal(np.sort(order_of(size)), np.arange(size))


def test_another_seed_gives_another_order():
    assert (order_of(1000, seed=0) == order_of(1000, seed=1)).sum() < 10


def test_a_place_in_the_order_does_not_depend_on_the_others_asked_for():
    key = derive_key(3, Stream.ORDER, 5)
    whole = permute(np.arange(999), 999, key)
    assert permute(500, 999, key) == whole[500]
    assert np.array_equal(permute([[7, 3], [998, 7]], 999, key), whole[[[7, 3], [998, 7]]])


def test_every_sequence_comes_equally_often_to_every_place():
    # 10 things in 2,000 orders: each of the 100 (thing, place) pairs is expected 200 times, sigma 14.
    counts = np.zeros((10, 10), dtype=int)
    for seed in range(2000):
        counts[np.arange(10), order_of(10, seed)] += 1
    assert counts.min() > 200 - 5 * 14
    assert counts.max() < 200 + 5 * 14


def test_neighbours_in_the_text_are_not_neighbours_in_the_order():
    order = order_of(10_000)
    # The mean distance of two random places is a third of the length; neighbours must be as far apart.
    assert abs(np.abs(np.diff(order)).mean() / 10_000 - 1 / 3) < 0.01


def test_an_order_of_more_things_than_fit_into_memory_is_no_harder():
    size = 2**61 + 12_345
    places = np.arange(size - 1000, size)
    order = permute(places, size, derive_key(0, Stream.ORDER, 0))
    assert np.unique(order).size == 1000
    assert order.min() >= 0
    assert order.max() < size
    assert order.std() > size / 5


@pytest.mark.parametrize(("places", "size"), [([5], 5), ([-1], 5), ([0], 0), ([0], 2**62 + 1)])
def test_places_outside_the_order_are_refused(places, size):
    with pytest.raises(ValueError, match=r"permutation orders|positions must be"):
        permute(places, size, (0, 0))
