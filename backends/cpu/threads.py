"""The number of threads that compute on the CPU, in NumPy's BLAS and in the kernels.

Two sets of threads that work at the same time, or that spin while they wait, take processor time from each other. So
the kernels run all their work on Numba's threads, matrix products included (see `backends/cpu/kernels/blas.py`). When
NumPy's BLAS is called, no kernel is running, and the BLAS has the cores to itself.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from backends.base import BackendError


def set_threads(number: int) -> None:
    """Set the number of threads of NumPy's BLAS and of the kernels.

    Numba keeps a number of threads for each Python thread. This sets the number of the calling one.

    Args:
        number: at least 1. Runs with the same number give the same bits.

    Raises:
        ValueError: fewer than 1, or more than the kernels can have.
        BackendError: threadpoolctl, which sets the threads of NumPy's BLAS, is not installed.
    """
    if number < 1:
        raise ValueError(f"the number of threads must be at least 1, not {number}")
    if importlib.util.find_spec("threadpoolctl") is None:
        raise BackendError("setting the number of threads needs threadpoolctl: pip install '.[fast]'")
    if importlib.util.find_spec("numba") is not None:
        import numba

        if number > numba.config.NUMBA_NUM_THREADS:
            raise ValueError(
                f"{number} threads were asked for, but the kernels have {numba.config.NUMBA_NUM_THREADS}, one per "
                "core that this process may use; set the environment variable NUMBA_NUM_THREADS to allow more"
            )
        numba.set_num_threads(number)
    libraries = _blas_libraries()
    for library in libraries:
        if not _is_scipys(library):
            library.set_num_threads(number)
    if "backends.cpu.kernels" in sys.modules and not any(map(_is_scipys, libraries)):
        hold_kernel_blas()  # NumPy and the kernels share one BLAS, and each thread of the kernels calls it


def hold_kernel_blas() -> None:
    """Set SciPy's BLAS to one thread, because the kernels call it from every thread of their own.

    Call this after SciPy has loaded its BLAS.
    """
    libraries = _blas_libraries()
    scipys = [library for library in libraries if _is_scipys(library)]
    for library in scipys or libraries:  # where NumPy and SciPy share one BLAS, there is no library of SciPy's own
        library.set_num_threads(1)


def describe_threads() -> str:
    """Return one line for reports: the BLAS of NumPy and its threads."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return f"{os.cpu_count()} logical cores"
    names = [
        f"{library.internal_api} {library.version} ({getattr(library, 'architecture', None) or 'any processor'}), "
        f"{library.num_threads} thread{'s' if library.num_threads > 1 else ''}"
        for library in _blas_libraries()
        if not _is_scipys(library)
    ]
    return "; ".join(names) if names else f"{os.cpu_count()} logical cores"


def _blas_libraries() -> list[Any]:
    import threadpoolctl

    return [library for library in threadpoolctl.ThreadpoolController().lib_controllers if library.user_api == "blas"]


def _is_scipys(library: Any) -> bool:
    """True if SciPy's wheel brought the library, in scipy.libs (Linux, Windows) or scipy/.dylibs (macOS)."""
    path = Path(library.filepath)
    return path.parent.name == "scipy.libs" or path.parts[-3:-1] == ("scipy", ".dylibs")
