"""Memory for large arrays, used again as soon as nothing refers to it.

A training step asks for the same shapes as the one before it. Fresh memory costs a page fault for every 4 KiB
that is touched, so the blocks of arrays that are gone are kept and handed out again.

Reuse cannot overwrite anything: an array made here, and with it every view of it, holds a reference to the
lease of its memory, and only when the last of them is gone does the lease return the memory to the pool. Two
caches that are both kept, or logits that are, simply hold their memory.
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from typing import Any

import numpy as np

SMALLEST = 1 << 16
"""Bytes; smaller arrays are left to NumPy, whose own allocator reuses them."""

_WASTE = 2  # an array may take a free block up to twice its size, rather than fresh memory
_ALIGNMENT = 64  # bytes: a cache line, and the longest vector


class _Lease:
    """One block of memory in use; NumPy finds it through `__array_interface__` and keeps it alive."""

    def __init__(self, pool: BufferPool, block: np.ndarray[Any, Any], shape: tuple[int, ...], dtype: Any) -> None:
        self._pool, self._block = pool, block
        address = block.ctypes.data
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "data": (address + -address % _ALIGNMENT, False),
        }

    def __del__(self) -> None:
        self._pool.give_back(self._block)


class BufferPool:
    """Blocks of memory by size.

    Sizes are rounded up to eighths of a power of two, so that batches whose number of tokens varies a little
    share blocks; the smallest that fits is taken. The pool keeps what the largest step needed; `clear` gives
    up what is not in use.

    Attributes:
        reserved: bytes that were allocated and not given up.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[np.ndarray[Any, Any]]] = defaultdict(list)
        self._lock = threading.RLock()  # a lease may die while the pool is at work: in the same thread, too
        self.reserved = 0

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        """An uninitialised array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < SMALLEST:
            return np.empty(shape, dtype=dtype)
        step = 1 << (size.bit_length() - 4)
        size = -(-size // step) * step
        with self._lock:
            fitting = [free for free, blocks in self._free.items() if blocks and size <= free <= _WASTE * size]
            if fitting:
                block = self._free[min(fitting)].pop()
            else:
                block = np.empty(size + _ALIGNMENT, dtype=np.uint8)
                self.reserved += block.nbytes
        return np.asarray(_Lease(self, block, tuple(shape), dtype))

    def give_back(self, block: np.ndarray[Any, Any]) -> None:
        """Called by a lease when the last array on it is gone."""
        with self._lock:
            self._free[block.nbytes - _ALIGNMENT].append(block)

    def clear(self) -> None:
        """Return unused memory to the system."""
        with self._lock:
            self.reserved -= sum(block.nbytes for blocks in self._free.values() for block in blocks)
            self._free.clear()
