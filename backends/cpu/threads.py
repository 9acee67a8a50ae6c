"""How many threads compute on the CPU: NumPy's BLAS and the kernels share the cores.

Two sets of threads that work at the same time, or spin while they wait, rob each other. The kernels run on
Numba's threads, matrix products included (see `backends/cpu/kernels/blas.py`), so that NumPy's BLAS has its
cores to itself whenever it is called.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from backends.base import BackendError


def set_threads(number: int) -> None:
    """Compute with this many threads, in NumPy's BLAS and in the kernels alike.

    The kernels' number is that of the calling Python thread, as Numba keeps it.

    Args:
        number: at least 1; results are bit-identical from run to run with the same number.

    Raises:
        ValueError: fewer than 1, or more than the kernels can have.
        BackendError: threadpoolctl, which reaches NumPy's BLAS, is not installed.
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
                "core that this process may use; the environment variable NUMBA_NUM_THREADS allows more"
            )
        numba.set_num_threads(number)
    libraries = _blas_libraries()
    for library in libraries:
        if not _is_scipys(library):
            library.set_num_threads(number)
    if "backends.cpu.kernels" in sys.modules and not any(map(_is_scipys, libraries)):
        hold_kernel_blas()  # NumPy and the kernels share one BLAS, which each thread of the kernels calls


def hold_kernel_blas() -> None:
    """Hold the BLAS that kernels call, SciPy's, at one thread: they call it from every thread of their own.

    To be called when SciPy has loaded it.
    """
    libraries = _blas_libraries()
    scipys = [library for library in libraries if _is_scipys(library)]
    for library in scipys or libraries:  # where NumPy and SciPy share one BLAS, that one
        library.set_num_threads(1)


def describe_threads() -> str:
    """One line for reports: the BLAS of NumPy and its threads."""
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
    """Whether SciPy's wheel brought the library: in scipy.libs (Linux, Windows) or scipy/.dylibs (macOS)."""
    path = Path(library.filepath)
    return path.parent.name == "scipy.libs" or path.parts[-3:-1] == ("scipy", ".dylibs")
