"""The emulated device: counts of its launches, transfers and waits, its memory, and CuPy's `cuda` module."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Any

import numpy as np

NAME = "EMULATED CUDA device (no GPU, the kernels run on the CPU)"
GUARD, POISON = 0xA5, 0xFF  # bytes around an array, and in one that was not written to: a NaN in every dtype
GUARD_BYTES = 4096  # wider than a row of the tests, and a multiple of what CuPy aligns memory to


class DeviceError(RuntimeError):
    """A kernel wrote outside an array, or used an address that is not a multiple of the number's size."""


class Activity:
    """Counts of what the host asked of the device since the last `reset`.

    Attributes:
        launches: name -> how many; library calls count as many as CuPy makes of them (see functions.py).
        uploads, downloads: transfers from and to the host.
        waits: times that the host waited for the device; a download is one too.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        self.launches: Counter[str] = Counter()
        self.uploads = self.downloads = self.waits = 0

    def launch(self, name: str, times: int = 1) -> None:
        """Count a launch."""
        self.launches[name] += times

    def download(self) -> None:
        """Count a transfer to the host, for which the host waits."""
        self.downloads += 1
        self.waits += 1


ACTIVITY = Activity()


class MemoryPool:
    """The figures of `cupy.cuda.MemoryPool`: bytes in use, and the most that were in use."""

    def __init__(self) -> None:
        self._used = self._most = 0

    def changed(self, change: int) -> None:
        """Count an allocation, or with a negative change its end."""
        self._used += change
        self._most = max(self._most, self._used)

    def used_bytes(self) -> int:
        return self._used

    def total_bytes(self) -> int:
        return self._most

    def free_all_blocks(self, stream: Any = None) -> None:
        self._most = self._used


POOL = MemoryPool()


class Allocation:
    """Memory with a guard before and after it.

    Args:
        shape: of the array that will lie in it.
        dtype: of that array.
    """

    def __init__(self, shape: Any, dtype: Any) -> None:
        dtype = np.dtype(dtype)
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._bytes = np.full(size + 2 * GUARD_BYTES, POISON, dtype=np.uint8)
        self._bytes[:GUARD_BYTES] = self._bytes[GUARD_BYTES + size :] = GUARD
        self.array = self._bytes[GUARD_BYTES : GUARD_BYTES + size].view(dtype).reshape(shape)

    def check(self, kernel: str) -> None:
        """Check that nothing was written around the array.

        Raises:
            DeviceError: a kernel wrote there.
        """
        if (self._bytes[:GUARD_BYTES] != GUARD).any() or (self._bytes[-GUARD_BYTES:] != GUARD).any():
            raise DeviceError(f"{kernel} wrote outside an array of the shape {self.array.shape}")


class Device:
    """`cupy.cuda.Device`. There is one device, number 0."""

    def __init__(self, device: Any = None) -> None:
        self.id = 0 if device is None else int(device)
        if self.id != 0:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal (EMULATED)")

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}, EMULATED>"

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def use(self) -> None:
        pass

    def synchronize(self) -> None:
        ACTIVITY.waits += 1

    @property
    def compute_capability(self) -> str:
        return "80"

    @property
    def cublas_handle(self) -> int:
        return 1 + self.id

    @property
    def mem_info(self) -> tuple[int, int]:
        total = 16 << 30
        return total - POOL.total_bytes(), total


class Stream:
    """`cupy.cuda.Stream`. The emulated device runs everything in order, so a stream changes nothing."""

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None):
        pass

    def synchronize(self) -> None:
        ACTIVITY.waits += 1


class Event:
    """`cupy.cuda.Event`: a moment on the stream, which here is a moment on the CPU's clock."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self._seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        ACTIVITY.waits += 1


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Return the milliseconds between two moments."""
    return 1e3 * (end_event._seconds - start_event._seconds)


class CUDARuntimeError(RuntimeError):
    """`cupy.cuda.runtime.CUDARuntimeError`."""


def getDeviceProperties(device: int) -> dict[str, Any]:  # noqa: N802 - CuPy's name
    """Return the properties that Mini-BERT reads."""
    return {"name": NAME.encode(), "major": 8, "minor": 0, "totalGlobalMem": 16 << 30, "multiProcessorCount": 1}
