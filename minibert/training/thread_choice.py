"""Choose, during a training, between all threads of the kernels and one, whichever is faster.

On an idle machine all threads are. But if other programs keep every core busy, the short kernels of a small model wait
longer for a thread that was pushed aside than one thread needs for the whole work. The bits of the results are the same
with any number of threads, so a choice by the clock changes only the time.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

from backends.cpu import threads
from minibert.model import MiniBERT

_TRIED = 6  # steps with each number of threads; the first two follow the change and do not count
_PERIOD = 1000  # steps from one trial to the next, so that trials take less than a hundredth of the time
_LONG = 0.1  # seconds: in longer steps the kernels are so long that all threads are faster in any case
_GAIN = 0.9  # one thread must take less than this share of the time, so that noise does not decide


class ThreadChoice:
    """Tries both numbers of threads now and then, and keeps the faster one.

    Args:
        use: sets the number of threads.
        most: how many threads there are; with 1 there is nothing to choose.
        clock: returns the time in seconds.
    """

    def __init__(self, use: Callable[[int], None], most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._use = use
        self._most = most
        self._clock = clock
        self._step = 0  # within the period
        self._began = 0.0
        self._seconds: dict[int, list[float]] = {}

    def before_step(self) -> None:
        """Set the number of threads of the step that begins now."""
        if self._most == 1:
            return
        now = self._clock()
        tried = 2 * _TRIED
        if 0 < self._step <= tried:
            number = self._most if self._step <= _TRIED else 1
            self._seconds.setdefault(number, []).append(now - self._began)
        if self._step == 0:
            self._seconds = {}
            self._use(self._most)
        elif self._step == _TRIED:
            if statistics.median(self._seconds[self._most][2:]) > _LONG:
                self._step = tried  # no trial of one thread
            else:
                self._use(1)
        elif self._step == tried:
            many, one = (statistics.median(self._seconds[number][2:]) for number in (self._most, 1))
            self._use(1 if one < _GAIN * many else self._most)
        self._began = now
        self._step = (self._step + 1) % _PERIOD

    def close(self) -> None:
        """Go back to all threads."""
        if self._most > 1:
            self._use(self._most)


def thread_choice(model: MiniBERT) -> ThreadChoice:
    """Return the choice for the training of a model; none where the user set a number, or where no kernel runs."""
    chosen = threads.number_set() is not None or "NUMBA_NUM_THREADS" in os.environ
    if chosen or model.backend.name != "cpu" or not model.kernels.twins:
        return ThreadChoice(lambda number: None, 1)
    return ThreadChoice(threads.use_kernel_threads, threads.kernel_threads())
