"""How all kernels are compiled: options, the threads they share, and the on-disk cache.

Numba compiles a kernel when it is first called with a dtype. It keeps the machine code beside the source (or in
NUMBA_CACHE_DIR), so that only the first process waits for the compiler.

Threads: `backends/cpu/threads.py` chooses Numba's "tbb" layer, or "workqueue" where TBB is missing. "workqueue" ends
the process when two Python threads enter it at once, and a parallel loop releases Python's global lock. So a lock of
our own admits one thread at a time. A fork waits for that lock, so a child process finds the threads idle, and starts
its own. Threads of OpenMP, which users may choose, do not survive a fork: the child's first kernel would end it, so it
is refused.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from backends.base import BackendError
from backends.cpu.threads import configure_numba, hold_while_forking

configure_numba()

_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_STAMP = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return `numba.njit` with an on-disk cache that is out of date as soon as any source of the kernels changes.

    By itself Numba looks only at the file of the kernel, and would go on using an old helper from another file.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        # `error_model`: a division by zero gives infinity, as in NumPy, instead of a branch
        dispatcher = numba.njit(cache=True, error_model="numpy", **options)(function)
        dispatcher._cache._cache_file._source_stamp = _STAMP
        return dispatcher

    return decorate


EXACT = {"contract", "nsz"}  # a * b + c may be one instruction, rounded once; the sign of a zero may change
_ANY_ORDER = {*EXACT, "reassoc"}

elementwise = _compiled(fastmath=EXACT, forceinline=True)
"""For functions whose order of operations matters."""

summing = _compiled(fastmath=_ANY_ORDER, forceinline=True)
"""For functions with sums. Their order is free (but always the same), so that they can use vector instructions."""

called = _compiled(fastmath=False)  # without the argument, Numba would take the option of the caller
"""For long functions that only move numbers, or leave the arithmetic to BLAS and to intrinsics.

All other functions are put into the code of their callers, for two reasons. A loop over a function of single elements
then becomes vector instructions. And a function that is called exists twice: compiled by itself, and as part of the
kernel that calls it, where the compiler optimises it again and may order a sum differently. The process that compiles a
kernel runs the first of the two, a process that reads it from the on-disk cache the second. So the bits of a first run
would not be those of later ones.
"""

_IN_PARALLEL = threading.Lock()
hold_while_forking(_IN_PARALLEL)

_forked_with_openmp = False


def _notice_openmp() -> None:
    """Note, in a child process, that the parent's threads were those of OpenMP."""
    global _forked_with_openmp
    try:
        _forked_with_openmp = numba.threading_layer() == "omp"
    except ValueError:  # no threads were started before the fork
        _forked_with_openmp = False


if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_notice_openmp)


def parallel(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a kernel whose `prange` loops are divided among the threads. One kernel runs at a time."""
    dispatcher = _compiled(fastmath=_ANY_ORDER, parallel=True)(function)

    @functools.wraps(function)
    def one_at_a_time(*arguments: Any) -> None:
        if _forked_with_openmp:
            raise BackendError(
                "this process was forked from one in which Numba's threads run on OpenMP, which ends such processes: "
                "start it anew (multiprocessing's method spawn), or leave NUMBA_THREADING_LAYER out"
            )
        with _IN_PARALLEL:
            dispatcher(*arguments)

    return one_at_a_time


BLOCK_ROWS = 32
"""How many rows one pass of a kernel works on. Sums over rows are computed for each block and then over the blocks, so
that they do not depend on the number of threads."""
