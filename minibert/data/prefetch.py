"""Making the next batches in the background while the model works on this one."""

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
    """`make(first_step), make(first_step + 1), ...` in order, made by a background thread.

    NumPy and the tokenizer release Python's lock in their loops, so the thread really runs beside the model.
    It starts with the first value asked for and ends with the last one; when the consumer stops early
    (`close()` the generator, or drop it), the thread ends after the value it is at.

    Args:
        make: a function of the step; called by one thread only. What it raises is raised to the consumer
            in the place of the value, after the values before it.
        first_step: where to begin.
        last_step: the last step, included; None: without end.
        depth: how many values may wait, at least 1; they are held in memory.

    Raises:
        ValueError: depth below 1.
    """
    if depth < 1:
        raise ValueError(f"prefetch needs room for at least one value; got depth {depth}")
    return _prefetched(make, first_step, last_step, depth)


def _prefetched(
    make: Callable[[int], T], first_step: int, last_step: int | None, depth: int
) -> Generator[T, None, None]:
    """The generator of `prefetch`, whose arguments are right."""
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

    thread = Thread(target=work, name="prefetch", daemon=True)  # daemon: never keeps a dying program alive
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
