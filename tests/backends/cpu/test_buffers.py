"""The pool uses memory again as soon as no array refers to it, and never before."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from backends.cpu.backend import NumpyBackend
from backends.cpu.buffers import SMALLEST, BufferPool
from minibert import MiniBERT, MiniBERTConfig, MiniBERTGradients
from minibert.optimizer import AdamW

SHAPE = (256, 128)  # 128 KiB of float32


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def test_the_memory_of_an_array_that_is_gone_is_used_again():
    pool = BufferPool()
    first = pool.empty(SHAPE, np.float32)
    where = address(first)
    assert first.shape == SHAPE
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    assert first.flags.writeable
    assert where % 64 == 0
    del first
    second = pool.empty(SHAPE, np.float32)
    assert address(second) == where
    assert pool.reserved < 2 * second.nbytes


def test_memory_is_kept_as_long_as_any_view_of_it():
    pool = BufferPool()
    array = pool.empty(SHAPE, np.float32)
    where, view = address(array), array[3:, ::2].T.reshape(-1, 1)[:1]
    view = array[200:].reshape(-1)[5:7]
    view[...] = 7.0
    del array
    other = pool.empty(SHAPE, np.float32)
    other[...] = 1.0
    assert address(other) != where
    np.testing.assert_array_equal(view, 7.0)
    del view
    assert address(pool.empty(SHAPE, np.float32)) == where


def test_smaller_arrays_share_the_memory_of_a_larger_one_that_is_gone():
    """They lie side by side. In whatever order they go, the whole block is free again afterwards."""
    for order in itertools.permutations(range(4)):
        pool = BufferPool()
        where = address(pool.empty((4 * SHAPE[0], SHAPE[1]), np.float32))
        reserved = pool.reserved
        parts = [pool.empty(SHAPE, np.float32) for _ in range(4)]
        for number, part in enumerate(parts):
            part[...] = number
        for number, part in enumerate(parts):
            np.testing.assert_array_equal(part, number)
        del part
        assert {address(each) - where for each in parts} == {number * parts[0].nbytes for number in range(4)}
        parts = dict(enumerate(parts))
        for number in order:
            del parts[number]
        assert address(pool.empty((4 * SHAPE[0], SHAPE[1]), np.float32)) == where
        assert pool.reserved == reserved


def test_a_large_array_takes_the_place_of_idle_ones_that_are_smaller():
    pool = BufferPool()
    kept = pool.empty(SHAPE, np.float32)
    kept[...] = 5.0
    for _ in range(3):
        several = [pool.empty(SHAPE, np.float32) for _ in range(8)]
        del several
    large = pool.empty((8 * SHAPE[0], SHAPE[1]), np.float32)
    assert pool.reserved <= 1.01 * (large.nbytes + kept.nbytes)
    np.testing.assert_array_equal(kept, 5.0)


def test_a_larger_array_is_not_given_up_for_a_smaller_one():
    """Otherwise steps of two sizes in turn would allocate memory for ever."""
    pool = BufferPool()
    large = pool.empty((4 * SHAPE[0], SHAPE[1]), np.float32)
    small = pool.empty(SHAPE, np.float32)
    reserved, where = pool.reserved, (address(large), address(small))
    for _ in range(3):
        del large, small
        small = pool.empty(SHAPE, np.float32)
        large = pool.empty((4 * SHAPE[0], SHAPE[1]), np.float32)
        assert (address(large), address(small)) == where
    assert pool.reserved == reserved


def test_arrays_never_overlap_and_all_memory_comes_back():
    """Arrays of random sizes go in random order: each keeps what was written to it until it is gone."""
    rng, pool = np.random.default_rng(0), BufferPool()
    alive: dict[int, np.ndarray] = {}
    for number in range(2000):
        if alive and rng.random() < 0.5:
            del alive[list(alive)[rng.integers(len(alive))]]
        alive[number] = pool.empty((int(rng.integers(SMALLEST // 4, 20 * SMALLEST)),), np.float32)
        alive[number].fill(number)
        if len(alive) > 12:
            alive.pop(next(iter(alive)))
    for number, array in alive.items():
        assert (array == number).all()
    del array
    alive.clear()
    pool.clear()
    assert pool.reserved == 0


def test_small_arrays_are_left_to_numpy():
    pool = BufferPool()
    assert pool.empty((SMALLEST // 8 - 1,), np.float64).base is None
    assert pool.empty((0, 5), np.float32).shape == (0, 5)
    assert pool.reserved == 0


def test_a_cleared_pool_gives_up_what_is_free_and_leaves_what_is_used():
    pool = BufferPool()
    used = pool.empty(SHAPE, np.float32)
    pool.empty((1024, 128), np.float32)
    used[...] = 3.0
    pool.clear()
    assert used.nbytes <= pool.reserved < 2 * used.nbytes
    np.testing.assert_array_equal(used, 3.0)


CONFIG = MiniBERTConfig.preset("tiny", vocab_size=2000, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
BATCH, LENGTH = 16, 64


class Step:
    """Training steps on one batch of 1024 tokens."""

    def __init__(self) -> None:
        self.model = MiniBERT(CONFIG)
        self.gradients, self.optimizer = MiniBERTGradients(self.model), AdamW(self.model)
        rng = np.random.default_rng(0)
        self.ids = rng.integers(0, 2000, (BATCH, LENGTH))
        self.mask = np.arange(LENGTH) < rng.integers(LENGTH // 2, LENGTH, (BATCH, 1))
        self.positions = LENGTH * np.arange(BATCH) + 3
        self.labels = self.ids.reshape(-1)[self.positions]

    def forward(self, number: int = 0):
        return self.model.forward(
            self.ids, self.mask, prediction_positions=self.positions, dropout_step=number, unpad=True
        )

    def __call__(self) -> float:
        _, cache = self.forward(self.optimizer.steps)
        loss = float(self.gradients.backward(cache, self.labels))
        self.optimizer.step(self.gradients.gradients, 1e-3)
        return loss


def test_what_a_user_keeps_is_never_overwritten():
    """Logits and two caches survive later steps, and give the same gradients as before those steps."""
    step = Step()
    logits, cache = step.forward(1)
    expected_logits = logits.copy()
    step.gradients.backward(cache, step.labels)
    expected = step.gradients.gradients.flat.copy()

    _, other = step.forward(2)
    kept = other.layers[0].feed_forward.intermediate_input[5:7]
    expected_row = kept.copy()
    for number in (3, 4):
        step.gradients.backward(step.forward(number)[1], step.labels)
    np.testing.assert_array_equal(logits, expected_logits)
    step.gradients.backward(cache, step.labels)
    np.testing.assert_array_equal(step.gradients.gradients.flat, expected)
    del cache, other
    step.forward(5)
    np.testing.assert_array_equal(kept, expected_row)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> BufferPool:
    """Give all models of the test a pool of their own."""
    fresh = BufferPool()
    monkeypatch.setattr(NumpyBackend, "pool", fresh)
    return fresh


def steps_of(pool: BufferPool, sizes: list[tuple[int, int]]) -> list[int]:
    """Return the bytes reserved after each training step on batches of these sizes, from an empty pool."""
    model = MiniBERT(CONFIG)
    gradients, optimizer, rng = MiniBERTGradients(model), AdamW(model), np.random.default_rng(1)
    pool.clear()
    reserved = []
    for batch, length in sizes:
        ids = rng.integers(0, 2000, (batch, length))
        _, cache = model.forward(ids, dropout_step=optimizer.steps)
        gradients.backward(cache, np.where(rng.random(ids.shape) < 0.15, ids, -100))
        del cache
        optimizer.step(gradients.gradients, 1e-3)
        reserved.append(pool.reserved)
    return reserved


@pytest.mark.parametrize("sizes", ["growing", "shrinking", "random"])
def test_steps_of_all_sizes_keep_what_the_largest_of_them_needs(sizes: str, pool: BufferPool):
    rng = np.random.default_rng(2)
    of_many = {
        "growing": [(batch, 64) for batch in range(1, 25)],
        "shrinking": [(batch, 64) for batch in range(24, 0, -1)],
        "random": [(24, int(length)) for length in rng.permutation(np.r_[64, rng.integers(6, 65, 40)])],
    }[sizes]
    alone = steps_of(pool, [(24, 64)])[-1]
    assert 0 < max(steps_of(pool, of_many)) <= 1.4 * alone


def test_a_step_of_constant_size_reserves_nothing_more_once_it_is_warm(pool: BufferPool):
    reserved = steps_of(pool, [(24, 64)] * 5)
    assert len(set(reserved[1:])) == 1
    after_others = steps_of(pool, [(3, 64), (24, 17), (9, 40), *[(24, 64)] * 4])
    assert len(set(after_others[4:])) == 1
