"""Check a CUDA machine before any mathematics: CuPy, driver, GPU, compiler and memory, each with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from typing import Any

from backends.base import BackendError
from backends.cuda.backend import CupyBackend, gpu_in_words, gpu_number
from backends.cuda.launch import STORAGE_BITS, CudaKernels

OLDEST_CAPABILITY = {12: (7, 0), 13: (7, 5)}  # CUDA's major version -> Volta (2017); Turing (2018)
EXTRAS = (12, 13)  # the major versions of CUDA for which pyproject.toml has an extra
_CUDA_PATH = "Then unset CUDA_PATH, or set it to a CUDA toolkit of the same major version"
ENOUGH_MEMORY = 1 << 30  # bytes; a training step of BERT-Mini needs less


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what is true if the check passed.
        passed: True if all is well.
        detail: what was found.
        remedy: what to do if the check failed.
    """

    name: str
    passed: bool
    detail: str
    remedy: str = ""


def installed_cupys() -> list[str]:
    """Return the CuPy wheels that are installed, as "name version"."""
    found = {(str(d.metadata["Name"]).lower(), d.version) for d in distributions() if d.metadata["Name"]}
    return sorted(f"{name} {version}" for name, version in found if name == "cupy" or name.startswith("cupy-cuda"))


def one_cupy(wheels: list[str]) -> Finding:
    """Check that at most one CuPy is installed, because two overwrite each other's files."""
    remedy = "pip uninstall all of them, then install the one that fits the driver: '.[cuda12]' or '.[cuda13]'"
    return Finding("no two CuPys are installed", len(wheels) <= 1, ", ".join(wheels) or "pip knows of none", remedy)


def driver_fits(driver: int, runtime: int) -> Finding:
    """Check that the driver serves CuPy's version of CUDA. A driver serves all up to its own major version.

    Args:
        driver: the newest CUDA version that the driver serves, as 1000 * major + 10 * minor.
        runtime: the CUDA version that CuPy was built for, as 1000 * major + 10 * minor.
    """
    detail = f"the driver serves CUDA {_version(driver)}, CuPy is built for {_version(runtime)}"
    major = driver // 1000
    remedy = f"update the driver to one that serves CUDA {runtime // 1000}"
    if major in EXTRAS:
        remedy += f", or install the CuPy for CUDA {major} instead: {_install(major, runtime // 1000)}"
    return Finding("the driver serves CuPy", driver // 1000 >= runtime // 1000, detail, remedy)


def capability_suffices(name: str, capability: tuple[int, int], runtime: int) -> Finding:
    """Check that the GPU is new enough for the kernels (Volta or later) and for CuPy's version of CUDA.

    Args:
        name: the name of the GPU.
        capability: its compute capability.
        runtime: the CUDA version that CuPy was built for, as 1000 * major + 10 * minor.
    """
    major = runtime // 1000
    oldest = OLDEST_CAPABILITY.get(major, max(OLDEST_CAPABILITY.values()))
    if capability >= OLDEST_CAPABILITY[12]:
        remedy = f"CUDA {major} does not serve this GPU, but CUDA 12 does: {_install(12, major)}"
    else:
        remedy = "a GPU of compute capability 7.0 (Volta, 2017) or later is needed; use --device cpu here"
    return Finding(
        "the GPU is new enough",
        capability >= oldest,
        f"{name}, compute capability {capability[0]}.{capability[1]}",
        remedy,
    )


def memory_suffices(free: int, total: int) -> Finding:
    """Check that enough memory is free, since another process may hold it."""
    return Finding(
        "memory is free",
        free >= ENOUGH_MEMORY,
        f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
        "nvidia-smi shows which processes hold the GPU's memory: end them, or choose another GPU with cuda:N",
    )


def kernels_compile(kernels: Any, runtime: int) -> Finding:
    """Check that NVRTC is installed, compiles a kernel for each dtype, and the GPU accepts the code.

    The source includes no headers, but CuPy compiles nothing unless it finds a folder of CUDA's headers.

    Args:
        kernels: a `CudaKernels`.
        runtime: the CUDA version that CuPy was built for, as 1000 * major + 10 * minor.
    """
    for dtype in STORAGE_BITS:
        try:
            kernels.function("dropout", dtype)
        except Exception as error:
            return Finding(
                "NVRTC compiles the kernels",
                False,
                f"{dtype}: {str(error)[:300]}",
                f"install CuPy with NVIDIA's compiler and headers: {_install_fitting(runtime)}. {_CUDA_PATH}",
            )
    return Finding("NVRTC compiles the kernels", True, ", ".join(STORAGE_BITS))


def headers_are_found(cupy: Any, runtime: int) -> Finding:
    """Check that CuPy's own kernels compile. Unlike ours, they include CUDA's headers, above all those for float16.

    Args:
        cupy: the module.
        runtime: the CUDA version that CuPy was built for, as 1000 * major + 10 * minor.
    """
    name = "CuPy finds CUDA's headers"
    try:
        ones = cupy.ones((3,), dtype=cupy.float16)
        total = float((ones + ones).sum())
    except Exception as error:
        return Finding(
            name,
            False,
            str(error)[:300],
            f"install CuPy with NVIDIA's headers: {_install_fitting(runtime)}. {_CUDA_PATH}",
        )
    return Finding(
        name, total == 6.0, f"one of CuPy's kernels adds 1 + 1 three times: {total:g} in all", "reinstall CuPy"
    )


def answers(device: str) -> Finding:
    """Check that the driver answers and still shows the GPU.

    Unlike `diagnose`, this asks the driver alone. It takes none of the GPU's memory and none of its time, so it can run
    beside a training that uses all of both.

    Args:
        device: "cuda" or "cuda:N".
    """
    name = "driver and GPU answer"
    try:
        return Finding(name, True, gpu_in_words(device))
    except BackendError as error:
        return Finding(name, False, str(error).split(". ")[0], str(error))


def diagnose(device: str) -> Iterator[Finding]:
    """Make all checks, one after the other, until one fails that makes the others impossible.

    Args:
        device: "cuda" or "cuda:N".

    Raises:
        ValueError: the name is none of these.
    """
    yield one_cupy(installed_cupys())
    try:
        backend = CupyBackend(gpu_number(device))
    except BackendError as error:
        yield Finding("CuPy, driver and GPU are there", False, str(error).split(". ")[0], str(error))
        return
    runtime = backend.cupy.cuda.runtime
    properties = runtime.getDeviceProperties(backend.device.id)
    yield Finding("CuPy, driver and GPU are there", True, backend.description())
    version = runtime.runtimeGetVersion()
    yield driver_fits(runtime.driverGetVersion(), version)
    capability = properties["major"], properties["minor"]
    yield capability_suffices(properties["name"].decode(), capability, version)
    yield memory_suffices(*backend.device.mem_info)
    yield kernels_compile(CudaKernels(backend.cupy), version)
    yield headers_are_found(backend.cupy, version)


def _install(major: int, present: int) -> str:
    """Return the commands that install CuPy for CUDA `major` and first remove a CuPy for another version."""
    install = f"pip install -e '.[cuda{major}]'"
    return install if present == major else f"pip uninstall cupy-cuda{present}x, then {install}"


def _install_fitting(runtime: int) -> str:
    """Return the commands that install all parts of the CuPy that is present."""
    present = runtime // 1000
    return _install(min(max(present, EXTRAS[0]), EXTRAS[-1]), present)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
