"""What can be wrong with a CUDA machine before any mathematics: CuPy, driver, GPU, compiler, memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import distributions
from typing import Any

from backends.base import BackendError
from backends.cuda.backend import CupyBackend, gpu_in_words, number_of
from backends.cuda.launch import STORAGE_BITS, CudaKernels

OLDEST_CAPABILITY = {12: (7, 0), 13: (7, 5)}  # CUDA's major version -> Volta, which CUDA 13 gave up; Turing
EXTRAS = (12, 13)  # the major versions of CUDA for which pyproject.toml has an extra
ENOUGH_MEMORY = 1 << 30  # bytes; a training step of BERT-Mini takes less


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of what was looked at.
        passed: whether it is as it should be.
        detail: what was found.
        remedy: what to do, where it is not.
    """

    name: str
    passed: bool
    detail: str
    remedy: str = ""


def installed_cupys() -> list[str]:
    """The CuPy wheels that are installed, as "name version"."""
    found = {(str(d.metadata["Name"]).lower(), d.version) for d in distributions() if d.metadata["Name"]}
    return sorted(f"{name} {version}" for name, version in found if name == "cupy" or name.startswith("cupy-cuda"))


def one_cupy(wheels: list[str]) -> Finding:
    """Two CuPys overwrite each other's files."""
    remedy = "pip uninstall all of them, then install the one that fits the driver: '.[cuda12]' or '.[cuda13]'"
    return Finding("no two CuPys are installed", len(wheels) <= 1, ", ".join(wheels) or "pip knows of none", remedy)


def driver_fits(driver: int, runtime: int) -> Finding:
    """A driver serves CUDA versions up to its own major version.

    Args:
        driver: the newest CUDA version that the driver serves, as 1000 * major + 10 * minor.
        runtime: the CUDA version that CuPy was built for, likewise.
    """
    detail = f"the driver serves CUDA {_version(driver)}, CuPy is built for {_version(runtime)}"
    major = driver // 1000
    remedy = f"update the driver to one that serves CUDA {runtime // 1000}"
    if major in EXTRAS:
        remedy += f", or change to the CuPy for CUDA {major}: {_install(major, runtime // 1000)}"
    return Finding("the driver serves CuPy", driver // 1000 >= runtime // 1000, detail, remedy)


def capability_suffices(name: str, capability: tuple[int, int], runtime: int) -> Finding:
    """The kernels are written for Volta and later, and CUDA compiles for some GPUs only.

    Args:
        name: of the GPU.
        capability: its compute capability.
        runtime: the CUDA version that CuPy was built for, as 1000 * major + 10 * minor.
    """
    major = runtime // 1000
    oldest = OLDEST_CAPABILITY.get(major, max(OLDEST_CAPABILITY.values()))
    if capability >= OLDEST_CAPABILITY[12]:
        remedy = f"CUDA {major} does not serve this GPU, CUDA 12 does: {_install(12, major)}"
    else:
        remedy = "a GPU of compute capability 7.0 (Volta, 2017) or later is needed; use --device cpu here"
    return Finding(
        "the GPU is new enough",
        capability >= oldest,
        f"{name}, compute capability {capability[0]}.{capability[1]}",
        remedy,
    )


def memory_suffices(free: int, total: int) -> Finding:
    """Another process may hold the memory."""
    return Finding(
        "memory is free",
        free >= ENOUGH_MEMORY,
        f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free",
        "nvidia-smi shows which processes hold the GPU's memory; end them, or choose another GPU with cuda:N",
    )


def kernels_compile(kernels: Any, runtime: int) -> Finding:
    """NVRTC is there, finds what it needs, and this GPU takes its code.

    Args:
        kernels: the launcher that is asked to compile one.
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
                f"install CuPy with NVIDIA's compiler: {_install_fitting(runtime)} (it brings NVRTC and headers)",
            )
    return Finding("NVRTC compiles the kernels", True, ", ".join(STORAGE_BITS))


def headers_are_found(cupy: Any, runtime: int) -> Finding:
    """CuPy writes kernels of its own, and unlike ours they include CUDA's headers; those of float16 the most.

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
            f"install CuPy with NVIDIA's headers: {_install_fitting(runtime)}; and unset CUDA_PATH, "
            "or let it name a CUDA toolkit of the same major version",
        )
    return Finding(
        name, total == 6.0, f"a kernel of its own computes 1 + 1, three times over: {total:g} in all", "reinstall CuPy"
    )


def answers(device: str) -> Finding:
    """The driver answers, and it still shows the GPU. Unlike `diagnose` this asks the driver alone: it takes none of
    the GPU's memory and none of its time, so it can be asked beside a training that fills both.

    Args:
        device: "cuda" or "cuda:N".
    """
    name = "driver and GPU answer"
    try:
        return Finding(name, True, gpu_in_words(device))
    except BackendError as error:
        return Finding(name, False, str(error).split(". ")[0], str(error))


def diagnose(device: str) -> Iterator[Finding]:
    """Look at everything, as far as one can get; a failure that stops the rest comes last.

    Args:
        device: "cuda" or "cuda:N".
    """
    yield one_cupy(installed_cupys())
    try:
        backend = CupyBackend(number_of(device))
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
    """How to come by the CuPy for a version of CUDA where that for another one may be installed."""
    install = f"pip install -e '.[cuda{major}]'"
    return install if present == major else f"pip uninstall cupy-cuda{present}x, then {install}"


def _install_fitting(runtime: int) -> str:
    """How to come by all that belongs to the CuPy that is there."""
    present = runtime // 1000
    return _install(min(max(present, EXTRAS[0]), EXTRAS[-1]), present)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
