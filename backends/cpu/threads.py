"""The number of threads that compute on the CPU, in NumPy's BLAS and in the kernels, and how Numba runs its threads.

Two sets of threads that work at the same time, or that spin while they wait, take processor time from each other. So
the kernels run all their work on Numba's threads, matrix products included (see `backends/cpu/kernels/blas.py`). When
NumPy's BLAS is called, no kernel is running, and the BLAS has the cores to itself.

A process may fork while another of its threads runs a kernel: the fork waits for the kernel. It cannot wait for NumPy's
BLAS, which computes with kernels="reference": such a fork can hang in the BLAS's own preparations for it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import Any

from backends.base import BackendError

_BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which users set the threads of NumPy's BLAS."""

_NUMBAS_PRIORITY = ["tbb", "omp", "workqueue"]
"""The order in which Numba tries its layers unless someone has chosen another."""

_TBB = "libtbb.so.12"
"""The library that Numba's "tbb" layer needs, on Linux."""

_number_set: int | None = None  # by set_threads; it stands against the CPU quota


def hold_while_forking(lock: threading.Lock) -> None:
    """Let a fork of this process wait for a lock, so that the child does not inherit it from a thread that it lacks."""
    if hasattr(os, "register_at_fork"):  # Windows does not fork
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


def default_threads(root: Path = Path("/")) -> int:
    """Return one thread for each core that this process may use, but no more than its CPU quota, and at least 1.

    A quota of 2.5 cores gives 2 threads: the system would stop a third thread for part of the time, and the other two
    would wait for it.

    Args:
        root: the root of the file system, where the quota is read.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return how many cores' time the control groups of Linux (cgroups) allow this process; None without a limit.

    Containers set such limits (`docker run --cpus 2`). A limit holds for all groups below it, so the smallest limit
    from the process's own group up to the root counts. Both versions of the interface are read: `cpu.max` of
    version 2, `cpu.cfs_quota_us` and `cpu.cfs_period_us` of version 1.

    Args:
        root: the root of the file system; the groups are read from proc/self/cgroup and sys/fs/cgroup below it.
    """
    mounts = root / "sys" / "fs" / "cgroup"
    quotas = []
    for line in _words(root / "proc" / "self" / "cgroup", "\n"):
        _, controllers, group = line.split(":", 2)
        if not controllers:
            places, read = [mounts, mounts / "unified"], _quota_of_version_2
        elif "cpu" in controllers.split(","):
            places, read = [mounts / "cpu", mounts / controllers], _quota_of_version_1
        else:
            continue
        # A container may see its own group as the root, under a path that only the host has; parents exist in any case
        inside = Path(group.lstrip("/"))
        quotas += [read(place / folder) for place in places for folder in (inside, *inside.parents)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of_version_2(folder: Path) -> float | None:
    """Return the cores that `cpu.max`, such as "150000 100000" or "max 100000", allows in microseconds a period."""
    words = _words(folder / "cpu.max")
    return None if len(words) != 2 or words[0] == "max" else int(words[0]) / int(words[1])


def _quota_of_version_1(folder: Path) -> float | None:
    """Return the cores that the two files of version 1 allow; a quota of -1 means no limit."""
    words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
    return None if len(words) != 2 or int(words[0]) <= 0 else int(words[0]) / int(words[1])


def _words(path: Path, separator: str | None = None) -> list[str]:
    """Return the parts of a file's text; none if there is no such file, as on other systems than Linux."""
    try:
        return path.read_text(encoding="utf-8").strip().split(separator) if path.is_file() else []
    except OSError:
        return []


def configure_numba() -> None:
    """Choose how Numba runs its threads. Call this before anything starts these threads; later it changes nothing.

    Kernels run on Numba's "tbb" layer, or on "workqueue" where the library TBB is missing or too old. A kernel's
    caller and the threads of TBB share its parts, and who comes first takes the next part. So a kernel does not wait
    for a thread that the system lets sleep, or that another program keeps from a core. "workqueue" hands every part to
    a sleeping thread, and wakes them one by one. Threads of OpenMP spin instead of sleeping, and take cores away from
    the next kernel and from other programs. Numba starts `default_threads()` threads.

    What the user chose stands: NUMBA_THREADING_LAYER, NUMBA_THREADING_LAYER_PRIORITY, NUMBA_NUM_THREADS, and the same
    in Numba's own config.
    """
    from numba import config

    if _numba_threads_run():
        return
    if config.THREADING_LAYER == "default" and config.THREADING_LAYER_PRIORITY == _NUMBAS_PRIORITY:
        if "NUMBA_THREADING_LAYER_PRIORITY" not in os.environ:
            config.THREADING_LAYER_PRIORITY = ["tbb", "workqueue", "omp"]
        _load_tbb()
    if "NUMBA_NUM_THREADS" not in os.environ and config.NUMBA_NUM_THREADS == config.NUMBA_DEFAULT_NUM_THREADS:
        _plan_numba_threads(min(config.NUMBA_NUM_THREADS, default_threads()))


def _load_tbb() -> None:
    """Load TBB from where pip puts it, which the system's loader does not search; otherwise Numba would not find it.

    Numba itself looks for TBB by the name of the library only, and takes one that is already loaded.
    """
    if not sys.platform.startswith("linux"):
        return
    import importlib.metadata  # here, because it takes longer to import than all of this file

    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:  # TBB may still come from conda or from the system
        return
    for file in files:
        if file.name == _TBB:
            try:
                ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
            except OSError:  # for another processor, say; Numba goes on to the next layer
                return


def _plan_numba_threads(number: int) -> None:
    """Set how many threads Numba will start. All Python threads then compute with this number, unless they set less."""
    from numba import config
    from numba.np.ufunc import parallel

    config.NUMBA_NUM_THREADS = number
    parallel.NUM_THREADS = number  # copied from config when Numba was imported, and read when the threads are started


def _numba_threads_run() -> bool:
    import numba

    try:
        numba.threading_layer()
    except ValueError:  # the answer until the threads are started
        return False
    return True


def set_threads(number: int) -> None:
    """Set the number of threads of NumPy's BLAS and of the kernels.

    Numba keeps a number of threads for each Python thread. This sets the number of the calling one.

    A number above the CPU quota (see `default_threads`) is possible if it is set before a kernel has run.

    Args:
        number: at least 1. The kernels compute the same bits with any number.

    Raises:
        ValueError: fewer than 1, or more than the kernels can have.
        BackendError: threadpoolctl, which sets the threads of NumPy's BLAS, is not installed.
    """
    global _number_set
    if number < 1:
        raise ValueError(f"the number of threads must be at least 1, not {number}")
    if importlib.util.find_spec("threadpoolctl") is None:
        raise BackendError("setting the number of threads needs threadpoolctl: pip install '.[fast]'")
    if importlib.util.find_spec("numba") is not None:
        import numba

        configure_numba()  # before set_num_threads, which starts the threads
        config = numba.config
        if "NUMBA_NUM_THREADS" not in os.environ and not _numba_threads_run():
            allowed = max(config.NUMBA_NUM_THREADS, config.NUMBA_DEFAULT_NUM_THREADS)
            _plan_numba_threads(max(config.NUMBA_NUM_THREADS, min(number, allowed)))
        if number > config.NUMBA_NUM_THREADS:
            raise ValueError(
                f"{number} threads were asked for, but the kernels have {config.NUMBA_NUM_THREADS}, one per core that "
                "this process may use; set the environment variable NUMBA_NUM_THREADS to allow more"
            )
        numba.set_num_threads(number)
    _number_set = number
    libraries = _blas_libraries()
    for library in libraries:
        if not _is_scipys(library):
            library.set_num_threads(number)
    if "backends.cpu.kernels" in sys.modules and not any(map(_is_scipys, libraries)):
        hold_kernel_blas()  # NumPy and the kernels share one BLAS, and each thread of the kernels calls it


def kernel_threads() -> int:
    """Return how many threads the kernels that this Python thread calls are divided among."""
    import numba

    configure_numba()  # before get_num_threads, which starts the threads
    return int(numba.get_num_threads())


def use_kernel_threads(number: int) -> None:
    """Divide the kernels that this Python thread calls among fewer threads, or again among all of them.

    Args:
        number: from 1 to the threads that Numba has started.
    """
    import numba

    numba.set_num_threads(number)


def number_set() -> int | None:
    """Return the number that `set_threads` last set; None if it was never called."""
    return _number_set


def hold_blas_to_quota(root: Path = Path("/")) -> None:
    """Let NumPy's BLAS have no more threads than the CPU quota allows: its own default heeds the cores only.

    A number that the user set stands, by `set_threads` or by an environment variable. Without a quota, or without
    threadpoolctl, nothing is changed.

    Args:
        root: the root of the file system, where the quota is read.
    """
    quota = cpu_quota(root)
    if quota is None or _number_set is not None or any(name in os.environ for name in _BLAS_VARIABLES):
        return
    if importlib.util.find_spec("threadpoolctl") is None:
        return
    for library in _blas_libraries():
        if library.num_threads > default_threads(root):
            library.set_num_threads(default_threads(root))


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
