"""Arrays on a CPU: NumPy, with SciPy where NumPy has no function.

SciPy is imported only inside the methods that need it, since its import takes as long as embedding a few sentences.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import metadata
from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from backends import checks
from backends.base import Array, Backend, Memory
from backends.cpu.buffers import BufferPool
from backends.cpu.threads import hold_blas_to_quota

_POOL = BufferPool()  # shared by all models of the process


class NumpyBackend(Backend):
    """NumPy on the CPU. Host and device share one memory, so transfers copy nothing.

    Attributes:
        pool: gives `empty` the memory of large arrays.
    """

    name = "cpu"
    xp = xp
    device = "cpu"
    pool = _POOL

    def __init__(self) -> None:
        hold_blas_to_quota()

    @cached_property
    def twins(self) -> Mapping[str, Callable[..., Any]]:  # type: ignore[override] # assignable, as the base promises
        """The twins, loaded on first use. Runs that compute with the definitions never import Numba."""
        from backends.cpu.twins import twins

        return twins()

    def has_bfloat16(self) -> bool:
        """Return True if Numba is installed and compiles for a processor with AVX512-BF16."""
        from backends.cpu.twins import numba_kernels

        kernels = numba_kernels()
        return kernels is not None and kernels.has_bfloat16()

    def has_int8(self) -> bool:
        """Return True if Numba is installed and compiles for a processor with AVX512-VNNI."""
        from backends.cpu.twins import numba_kernels

        kernels = numba_kernels()
        return kernels is not None and kernels.has_int8()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.pool.empty(shape, dtype)

    def asarray(self, host: Any, dtype: Any = None) -> Array:
        return np.asarray(host, dtype=dtype)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return np.asarray(array)

    def scatter_add(self, target: Array, indices: Array, rows: Array, *, deterministic: bool = False) -> None:
        """See `Backend.scatter_add`; always deterministic here.

        One sparse product sums the rows of each distinct index. Row u of its (U, N) matrix has a one in every column
        i with `indices[i] == unique[u]`. `np.add.at` does the same ten times slower, because its fast path covers
        one-dimensional arrays only. Numba's scatter-add is not used here: only its twin of `embedding_backward` calls
        it, so that a model with kernels="reference" runs no compiled kernel.

        Raises:
            ValueError, TypeError: shapes or dtypes do not match.
            IndexError: an index is outside the target. NumPy alone would count negative indices from the end.
        """
        checks.check_arrays("scatter_add", rows.dtype, ("target", target, (*target.shape[:1], *rows.shape[1:])))
        checks.check_indices("scatter_add", "indices", indices, rows.shape[0], target.shape[0])
        if rows.shape[0] == 0:
            return
        from scipy import sparse

        order = np.argsort(indices, kind="stable")
        unique, first = np.unique(indices[order], return_index=True)
        ones = np.ones(order.size, dtype=rows.dtype)
        row_starts = np.append(first, order.size)
        membership = sparse.csr_array((ones, order, row_starts), shape=(unique.size, order.size))
        target[unique] += membership @ rows

    def erf(self, x: Array) -> Array:
        from scipy import special

        return special.erf(x)

    def synchronize(self) -> None:
        """Return at once: NumPy has no queue, so there is nothing to wait for."""

    def memory(self) -> Memory:
        """Return the memory of this process (used, peak) and of this machine (total)."""
        return Memory(used=_resident_bytes(), peak=_peak_resident_bytes(), total=_physical_bytes())

    def description(self) -> str:
        import scipy

        from backends.cpu.threads import describe_threads

        versions = f"NumPy {np.__version__}, SciPy {scipy.__version__}"
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions += f", Numba {metadata.version('numba')}"
        return f"CPU, {versions}, {describe_threads()}"


def _resident_bytes() -> int | None:
    try:
        with open("/proc/self/statm") as statm:  # Linux
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _peak_resident_bytes() -> int | None:
    try:
        import resource  # absent on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


def _physical_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows has no sysconf; others may lack the name
        return None
