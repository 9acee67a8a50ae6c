"""Batches made in the background: in order, with their errors, and without a thread left behind."""

import threading
import time

import pytest

from minibert.data.prefetch import prefetch


def prefetching_threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left_behind():
    yield
    assert prefetching_threads() == []


def test_values_come_in_order_and_the_last_step_is_included():
    assert list(prefetch(lambda step: step * step, 3, 6)) == [9, 16, 25, 36]
    assert list(prefetch(lambda step: step, 5, 4)) == []


def test_without_a_last_step_there_is_no_end():
    batches = prefetch(lambda step: step, 10, None)
    assert [next(batches) for _ in range(100)] == list(range(10, 110))
    batches.close()


def test_an_error_reaches_the_consumer_after_the_values_before_it():
    def make(step):
        if step == 3:
            raise RuntimeError("step 3 is bad")
        return step

    values = []
    with pytest.raises(RuntimeError, match="step 3 is bad"):
        values.extend(prefetch(make, 0, 9))
    assert values == [0, 1, 2]


def test_the_thread_works_ahead_as_far_as_the_depth_allows():
    made = []
    batches = prefetch(lambda step: made.append(step) or step, 0, None, depth=3)
    assert made == []
    assert next(batches) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # one with the consumer, three waiting
    batches.close()


def test_values_are_made_while_the_consumer_works():
    begun = threading.Event()
    batches = prefetch(lambda step: begun.set() if step else step, 0, 1)
    next(batches)
    assert begun.wait(5)
    batches.close()


@pytest.mark.parametrize("depth", [1, 4])
def test_the_thread_ends_when_the_consumer_stops_early(depth):
    batches = prefetch(lambda step: step, 0, None, depth=depth)
    next(batches)
    assert len(prefetching_threads()) == 1
    began = time.monotonic()
    batches.close()
    assert time.monotonic() - began < 1
    assert prefetching_threads() == []

    def consume():
        for value in prefetch(lambda step: step, 0, None, depth=depth):
            if value == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()


def test_a_thread_that_was_never_asked_is_never_started():
    batches = prefetch(lambda step: step, 0, None)
    assert prefetching_threads() == []
    batches.close()


def test_room_for_no_value_at_all_is_refused():
    with pytest.raises(ValueError, match="depth 0"):
        prefetch(lambda step: step, 0, 1, depth=0)
