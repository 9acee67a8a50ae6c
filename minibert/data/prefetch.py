"""Make the next batches in a background thread while the model works on this one. This saves only time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import count
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")


def prefetch(
    make: Callable[[int], T], first_step: int, last_step: int | None, depth: int = 4
) -> Generator[T, None, None]:
    """Yield `make(first_step), make(first_step + 1), ...` in order, computed in a background thread.

    NumPy and the tokenizer release Python's lock in their loops, so the thread really runs beside the model.
    The thread starts when the first value is asked for, and ends after the last one. If the consumer stops early
    (it calls `close()` on the generator, or drops it), the thread ends after the value that it is computing.

    Args:
        make: a function of the step; only the background thread calls it. If it raises an error, the consumer
            gets the values before it and then this error.
        first_step: the first step.
        last_step: the last step, included; None: no end.
        depth: how many finished values may wait in memory, at least 1.

    Raises:
        ValueError: `depth` is below 1.
    """
    if depth < 1:
        raise ValueError(f"prefetch needs room for at least one value; got depth {depth}")
    return _generate(make, first_step, last_step, depth)


def _generate(make: Callable[[int], T], first_step: int, last_step: int | None, depth: int) -> Generator[T, None, None]:
    """Yield the values of `prefetch`, whose arguments are already checked."""
    steps = count(first_step) if last_step is None else iter(range(first_step, last_step + 1))
    room = Semaphore(depth)
    ready: SimpleQueue[tuple[T | None, BaseException | None, bool]] = SimpleQueue()
    stopped = False

    def work() -> None:
        try:
            for step in steps:
                room.acquire()
                if stopped:
                    return
                ready.put((make(step), None, False))
        except BaseException as error:
            ready.put((None, error, False))
        else:
            ready.put((None, None, True))

    thread = Thread(target=work, name="prefetch", daemon=True)  # daemon: the program can end without waiting for it
    thread.start()
    try:
        while True:
            value, error, finished = ready.get()
            if error is not None:
                raise error
            if finished:
                return
            room.release()
            yield value  # type: ignore[misc]
    finally:
        stopped = True
        room.release()
        thread.join()
