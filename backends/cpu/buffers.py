"""Memory for large arrays, used again as soon as nothing refers to it.

A training step asks for the same shapes as the one before it. Fresh memory costs a page fault for every 4 KiB
that is touched, so the memory of arrays that are gone is kept and handed out again.

Reuse cannot overwrite anything: an array made here, and with it every view of it, holds a reference to the
lease of its memory, and only when the last of them is gone does the lease return the memory to the pool. Two
caches that are both kept, or logits that are, simply hold their memory.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, insort
from collections import deque
from typing import Any

import numpy as np

SMALLEST = 1 << 16
"""Bytes; smaller arrays are left to NumPy, whose own allocator reuses them."""

_ALIGNMENT = 64  # bytes: a cache line, and the longest vector


class _Block:
    """A stretch of a segment: in use, or free. Its neighbours in the segment are `before` and `after`.

    Attributes:
        memory: the whole segment.
        start: the address.
        size: in bytes.
    """

    __slots__ = ("after", "before", "free", "memory", "size", "start")

    def __init__(self, memory: np.ndarray[Any, Any], start: int, size: int) -> None:
        self.memory, self.start, self.size = memory, start, size
        self.before: _Block | None = None
        self.after: _Block | None = None
        self.free = False

    @property
    def whole(self) -> bool:
        """Whether nothing else is in the segment."""
        return self.before is None and self.after is None


class _Lease:
    """A block in use; NumPy finds it through `__array_interface__` and keeps it alive."""

    def __init__(self, returned: deque[_Block], block: _Block, shape: tuple[int, ...], dtype: Any) -> None:
        self._returned, self._block = returned, block
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (block.start, False),
        }

    def __del__(self) -> None:
        # Only this, which no lock guards: a lease may die on any line of any thread, in the pool's own code, too.
        self._returned.append(self._block)


class BufferPool:
    """Segments of memory, of which arrays get blocks.

    The smallest free block that is large enough is taken; what is left of it stays free, and free neighbours become
    one block again. So a small batch lives in the memory of a large one. Where no block is large enough, a new segment
    is allocated, and segments that are idle and smaller are given up for it: a batch larger than all before takes the
    place of theirs. What is kept is thus close to what the largest step needed, while steps of one size, once all they
    ask for is there, allocate nothing (a larger segment is never given up for a smaller one, so they come to rest).
    `clear` gives up all that is not in use.

    Attributes:
        reserved: bytes that were allocated and not given up.
    """

    def __init__(self) -> None:
        self._free: list[tuple[int, int, _Block]] = []  # by size, then address: the lowest first, to keep ends free
        self._returned: deque[_Block] = deque()
        self._lock = threading.Lock()
        self.reserved = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """An uninitialised array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < SMALLEST:
            return np.empty(shape, dtype=dtype)
        # In eighths of a power of two, so that batches whose number of tokens varies a little need the same.
        step = 1 << (size.bit_length() - 4)
        size = -(-size // step) * step
        with self._lock:
            self._take_back()
            place = bisect_left(self._free, (size, 0))
            block = self._free.pop(place)[-1] if place < len(self._free) else self._allocate(size)
            block.free = False
            if block.size - size >= SMALLEST:
                self._split(block, size)
        return np.asarray(_Lease(self._returned, block, tuple(shape), dtype))

    def clear(self) -> None:
        """Return unused memory to the system."""
        with self._lock:
            self._take_back()
            for _, _, block in [entry for entry in self._free if entry[-1].whole]:
                self._give_up(block)

    def _allocate(self, size: int) -> _Block:
        """A new segment, in exchange for idle ones that are too small: the smallest first, no more than needed."""
        given_up = 0
        for _, _, block in [entry for entry in self._free if entry[-1].whole]:
            if given_up >= size:
                break
            given_up += block.size
            self._give_up(block)
        memory = np.empty(size + _ALIGNMENT, dtype=np.uint8)
        self.reserved += memory.nbytes
        address = memory.ctypes.data
        return _Block(memory, address + -address % _ALIGNMENT, size)

    def _give_up(self, block: _Block) -> None:
        self._remove(block)
        self.reserved -= block.memory.nbytes

    def _split(self, block: _Block, size: int) -> None:
        """Cut off what an array does not need; sizes are multiples of the alignment."""
        rest = _Block(block.memory, block.start + size, block.size - size)
        block.size = size
        rest.before, rest.after, block.after = block, block.after, rest
        if rest.after is not None:
            rest.after.before = rest
        self._insert(rest)

    def _take_back(self) -> None:
        """Blocks whose leases have died become free, one with their free neighbours."""
        while self._returned:
            block = self._returned.popleft()
            if (after := block.after) is not None and after.free:
                self._remove(after)
                self._join(block, after)
            if (before := block.before) is not None and before.free:
                self._remove(before)
                self._join(before, block)
                block = before
            self._insert(block)

    @staticmethod
    def _join(block: _Block, after: _Block) -> None:
        block.size += after.size
        block.after = after.after
        if block.after is not None:
            block.after.before = block

    def _insert(self, block: _Block) -> None:
        block.free = True
        insort(self._free, (block.size, block.start, block))

    def _remove(self, block: _Block) -> None:
        del self._free[bisect_left(self._free, (block.size, block.start))]
        block.free = False
