"""Memory is used again when nothing refers to it any more, and never before."""

from __future__ import annotations

import numpy as np

from backends.buffers import SMALLEST, BufferPool
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


def test_a_smaller_array_takes_a_free_block_of_up_to_twice_its_size():
    pool = BufferPool()
    where = address(pool.empty(SHAPE, np.float64))
    assert address(pool.empty(SHAPE, np.float32)) == where
    assert address(pool.empty((SHAPE[0] // 4, SHAPE[1]), np.float32)) != where


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
    """Logits and two caches outlive later steps, and give the gradients that they would have given at once."""
    step = Step()
    logits, cache = step.forward(1)
    expected_logits = logits.copy()
    step.gradients.backward(cache, step.labels)
    expected = step.gradients.gradients.flat.copy()

    _, other = step.forward(2)
    kept = other.layers[0].intermediate_input[5:7]
    expected_row = kept.copy()
    for number in (3, 4):
        step.gradients.backward(step.forward(number)[1], step.labels)
    np.testing.assert_array_equal(logits, expected_logits)
    step.gradients.backward(cache, step.labels)
    np.testing.assert_array_equal(step.gradients.gradients.flat, expected)
    del cache, other
    step.forward(5)
    np.testing.assert_array_equal(kept, expected_row)
