"""Keep the memory of large arrays in a pool, and use it again as soon as no array refers to it.

A training step asks for the same shapes as the step before it. Fresh memory costs a page fault for every 4 KiB that is
touched, so the pool keeps the memory of deleted arrays and gives it to new arrays.

Reuse cannot overwrite an array. Every array made here, and every view of it, holds a reference to the lease of its
memory. The lease returns the memory to the pool only when the last of these arrays is deleted. A user who keeps logits,
or two caches, simply keeps their memory.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, insort
from collections import deque
from typing import Any

import numpy as np

from backends.cpu.threads import hold_while_forking

SMALLEST = 1 << 16
"""Bytes. Smaller arrays are left to NumPy, whose own allocator reuses their memory."""

_LOCK = threading.Lock()  # of all pools: a process has one pool, but for tests
hold_while_forking(_LOCK)

_ALIGNMENT = 64  # bytes: a cache line, and the longest vector


class _Block:
    """A part of a segment, in use or free.

    Attributes:
        memory: the whole segment.
        start: the address.
        size: in bytes.
        before: its neighbour in the segment, at lower addresses; None for the first block.
        after: its neighbour at higher addresses; None for the last block.
        free: True if no array uses it.
    """

    __slots__ = ("after", "before", "free", "memory", "size", "start")

    def __init__(self, memory: np.ndarray[Any, Any], start: int, size: int) -> None:
        self.memory, self.start, self.size = memory, start, size
        self.before: _Block | None = None
        self.after: _Block | None = None
        self.free = False

    @property
    def whole(self) -> bool:
        """True if this block is the only one in its segment."""
        return self.before is None and self.after is None


class _Lease:
    """A block in use. Arrays are made from its `__array_interface__`, and each of them keeps the lease alive."""

    def __init__(self, returned: deque[_Block], block: _Block, shape: tuple[int, ...], dtype: Any) -> None:
        self._returned, self._block = returned, block
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (block.start, False),
        }

    def __del__(self) -> None:
        # Python may delete a lease at any line of any thread, even in the pool's own code. So this must not take the
        # lock. It only appends to a deque, which is safe without a lock.
        self._returned.append(self._block)


class BufferPool:
    """Segments of memory, divided into blocks, which arrays use.

    An array gets the smallest free block that is large enough. The rest of the block stays free, and free neighbours
    become one block again. So a small batch uses the memory of a large one.

    If no block is large enough, the pool allocates a new segment. In exchange it gives up smaller segments that are
    idle. The pool thus keeps about as much memory as the largest step needed. Steps of one size allocate nothing once
    the pool has all that they ask for. A larger segment is never given up for a smaller one, so steps of two sizes in
    turn also stop allocating. `clear` gives up all that is not in use.

    Attributes:
        reserved: bytes that were allocated and not given up.
    """

    def __init__(self) -> None:
        self._free: list[tuple[int, int, _Block]] = []  # sorted by size, then address, so that high addresses stay free
        self._returned: deque[_Block] = deque()
        self.reserved = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """Return an uninitialised array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < SMALLEST:
            return np.empty(shape, dtype=dtype)
        # Sizes are rounded up, in eighths of a power of two, so that batches of about equal size need equal blocks.
        step = 1 << (size.bit_length() - 4)
        size = -(-size // step) * step
        with _LOCK:
            self._take_back()
            place = bisect_left(self._free, (size, 0))
            block = self._free.pop(place)[-1] if place < len(self._free) else self._allocate(size)
            block.free = False
            if block.size - size >= SMALLEST:
                self._split(block, size)
        return np.asarray(_Lease(self._returned, block, tuple(shape), dtype))

    def clear(self) -> None:
        """Return unused memory to the system."""
        with _LOCK:
            self._take_back()
            for _, _, block in [entry for entry in self._free if entry[-1].whole]:
                self._give_up(block)

    def _allocate(self, size: int) -> _Block:
        """Allocate a segment, and give up idle ones that are too small: the smallest first, no more than needed."""
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
        """Cut off the rest of a block that an array does not need; sizes are multiples of the alignment."""
        rest = _Block(block.memory, block.start + size, block.size - size)
        block.size = size
        rest.before, rest.after, block.after = block, block.after, rest
        if rest.after is not None:
            rest.after.before = rest
        self._insert(rest)

    def _take_back(self) -> None:
        """Free the blocks whose leases have died, and join them with their free neighbours."""
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
