"""The choice between all threads and one follows the time of steps, not the noise, and leaves a user's number alone."""

from __future__ import annotations

import pytest

from backends import get_backend
from backends.cpu import threads
from minibert import MiniBERT, MiniBERTConfig
from minibert.training import thread_choice as module
from minibert.training.thread_choice import ThreadChoice, thread_choice


def simulate(many: float, one: float, steps: int) -> list[int]:
    """Return the threads of each step, when steps take `many` seconds with four threads and `one` with one."""
    now, number, used = 0.0, 4, []

    def use(chosen: int) -> None:
        nonlocal number
        number = chosen

    choice = ThreadChoice(use, 4, lambda: now)
    for _ in range(steps):
        choice.before_step()
        used.append(number)
        now += many if number == 4 else one
    choice.close()
    assert number == 4
    return used


def test_one_thread_is_chosen_where_it_is_faster():
    used = simulate(many=0.05, one=0.03, steps=3 * module._PERIOD)
    assert used[12 : module._PERIOD] == [1] * (module._PERIOD - 12)
    assert used.count(4) == 3 * 6  # the trials


@pytest.mark.parametrize("one", [0.09, 0.048])
def test_all_threads_are_kept_where_one_is_slower_or_hardly_faster(one: float):
    used = simulate(many=0.05, one=one, steps=3 * module._PERIOD)
    assert used.count(1) == 3 * 6


def test_long_steps_are_never_tried_with_one_thread():
    assert simulate(many=0.2, one=0.1, steps=2 * module._PERIOD) == [4] * (2 * module._PERIOD)


def test_the_choice_changes_when_the_machine_does():
    now, number, used = 0.0, 2, []

    def use(chosen: int) -> None:
        nonlocal number
        number = chosen

    choice = ThreadChoice(use, 2, lambda: now)
    for step in range(2 * module._PERIOD):
        choice.before_step()
        used.append(number)
        busy = step < module._PERIOD
        now += {1: 0.03, 2: 0.05 if busy else 0.02}[number]
    assert used[module._PERIOD - 1] == 1
    assert used[-1] == 2


def test_with_one_thread_there_is_nothing_to_choose():
    choice = ThreadChoice(lambda number: pytest.fail("no number is set"), 1)
    for _ in range(30):
        choice.before_step()
    choice.close()


def test_a_number_that_the_user_set_stands(monkeypatch: pytest.MonkeyPatch):
    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=100))
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_number_set", None)
    if model.kernels.twins and get_backend("cpu").twins:
        assert thread_choice(model)._most == threads.kernel_threads()
    monkeypatch.setattr(threads, "_number_set", 2)
    assert thread_choice(model)._most == 1
    monkeypatch.setattr(threads, "_number_set", None)
    monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    assert thread_choice(model)._most == 1


def test_definitions_have_no_threads_to_choose():
    reference = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=100), kernels="reference")
    assert thread_choice(reference)._most == 1
