"""Arrays on a CUDA GPU: CuPy, used through its plainest documented calls (see docs/cuda.md)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from backends import checks
from backends.base import Array, Backend, BackendError, Memory
from backends.cuda.launch import FLOATS, INT32, CudaKernels, column_block, contiguous, int32, shared_bytes
from backends.cuda.twins import TWINS

_CUBLAS_TF32_TENSOR_OP_MATH = 3  # from cublas_api.h; CuPy has no name for it
_LONGEST_SHORT_RUN = 64  # equal indices; most runs are shorter, so most blocks are idle and should be small
_UPLOAD_ALIGNMENT = 16  # bytes; each array of a transfer starts at a multiple, which is enough for every dtype


class CupyBackend(Backend):
    """CuPy on one CUDA device.

    Work is queued on the device's current stream, so a call returns before the device has computed. Reading a value
    (`float`, `to_numpy`) waits for the device, so the training loop reads only the values that it reports.

    Use one GPU per process, and only from the thread that made the backend. CuPy keeps the current device and the mode
    of matrix products per thread, and this class sets them only when it is made. On another thread, or after a second
    backend was made on another GPU, new arrays would lie on another device than `name` says.

    Args:
        index: the number of the GPU, or None for the current one.

    Attributes:
        cupy: the module.
        kernels: launches the CUDA kernels.
        deterministic: True if embeddings are added in a fixed order (MINIBERT_DETERMINISTIC=1 in the environment).
        tf32: True if float32 products round their operands to 10 bits of fraction (CUPY_TF32=1 in the environment).

    Raises:
        BackendError: CuPy, the driver, the GPU or cuBLAS is missing, or CUPY_TF32 is no number.
    """

    twins: Mapping[str, Callable[..., Any]] = TWINS

    def __init__(self, index: int | None = None) -> None:
        cupy = self.cupy = _import_cupy()
        index = _chosen(cupy, index)
        cublas = _import_cublas(cupy)
        self.tf32 = _tf32_is_asked_for()
        import array_api_compat.cupy

        self.xp = array_api_compat.cupy
        self.name = f"cuda:{index}"
        self.device = cupy.cuda.Device(index)
        self.device.use()  # from now on, this thread's new arrays, kernels and memory pool belong to the device
        self.kernels = CudaKernels(cupy)
        if self.tf32:  # CuPy reads CUPY_TF32 for plain products only; this sets it for batched products and `gemm`
            cublas.setMathMode(self.device.cublas_handle, _CUBLAS_TF32_TENSOR_OP_MATH)
        self.deterministic = os.environ.get("MINIBERT_DETERMINISTIC", "0") not in ("", "0")

    def asarray(self, host: Any, dtype: Any = None) -> Array:
        if isinstance(host, self.cupy.ndarray) and host.device != self.device:
            raise TypeError(
                f"the array lives on cuda:{host.device.id}, but this backend uses {self.name}; pass a NumPy array"
            )
        return self.cupy.asarray(host, dtype=dtype)

    def upload(self, host: Mapping[str, Array]) -> dict[str, Array]:
        """See `Backend.upload`.

        CuPy copies the packed arrays to pinned memory and returns at once. The device fetches them from there when
        its stream reaches the transfer. So a host that is ahead of the device also uploads ahead of it.
        """
        starts, size = [], 0
        for array in host.values():
            size += -size % _UPLOAD_ALIGNMENT
            starts.append(size)
            size += array.nbytes
        packed = np.empty(size, dtype=np.uint8)
        for start, array in zip(starts, host.values(), strict=True):
            packed[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        moved = self.cupy.asarray(packed)
        return {
            name: moved[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            for start, (name, array) in zip(starts, host.items(), strict=True)
        }

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        host: np.ndarray[Any, Any] = self.cupy.asnumpy(array)
        return host

    def scatter_add(self, target: Array, indices: Array, rows: Array, *, deterministic: bool = False) -> None:
        """See `Backend.scatter_add`.

        `cupy.add.at` adds with atomics, whose order, and so whose rounding, varies from run to run. With
        `deterministic`, or MINIBERT_DETERMINISTIC=1 in the environment, the indices are sorted, and a kernel sums the
        rows of every index in a fixed order.

        Neither way checks the values of the indices: reading them would make the host wait for the device, and CuPy
        silently wraps indices that are out of range. The host checks ids before it transfers them.

        Raises:
            ValueError, TypeError: shapes or dtypes do not match.
        """
        checks.check_arrays("scatter_add", rows.dtype, ("target", target, (*target.shape[:1], *rows.shape[1:])))
        checks.check_integers("scatter_add", "indices", indices, rows.shape[:1])
        if deterministic or self.deterministic:
            self._scatter_add_runs(target, indices, rows)
            return
        self.cupy.add.at(target, indices, rows)

    def _scatter_add_runs(self, target: Array, indices: Array, rows: Array) -> None:
        """Sort the indices, then launch a kernel that sums the rows of each run of equal indices."""
        dtype = target.dtype
        count, columns = checks.check_matrix("scatter_add", "rows", rows, FLOATS)
        checks.check_integers("scatter_add", "indices", indices, (count,), INT32)
        checks.check_contiguous("scatter_add", ("target", target))
        indices = contiguous(indices)
        order = self.cupy.argsort(indices)  # CuPy's is stable, and int64
        block = column_block(min(count, _LONGEST_SHORT_RUN))
        grid = count, -(-columns // block[0])
        arguments = indices, order, contiguous(rows), int32(count), int32(columns), target
        self.kernels.launch("scatter_add_runs", dtype, grid, block, arguments, shared_bytes(block))

    def erf(self, x: Array) -> Array:
        from cupyx.scipy import special

        return special.erf(x)

    def synchronize(self) -> None:
        self.device.synchronize()

    def memory(self) -> Memory:
        """Return the figures of CuPy's memory pool: bytes in use, and bytes that the pool keeps reserved."""
        pool = self.cupy.get_default_memory_pool()
        _, total = self.device.mem_info
        return Memory(used=pool.used_bytes(), peak=pool.total_bytes(), total=total)

    def description(self) -> str:
        properties = self.cupy.cuda.runtime.getDeviceProperties(self.device.id)
        runtime = self.cupy.cuda.runtime.runtimeGetVersion()
        return (
            f"{properties['name'].decode()} ({self.name}, compute capability {properties['major']}."
            f"{properties['minor']}), CuPy {self.cupy.__version__}, CUDA {runtime // 1000}.{runtime % 1000 // 10}"
            f"{', TF32' if self.tf32 else ''}{', deterministic' if self.deterministic else ''}"
        )


def gpu_number(device: str) -> int | None:
    """Return N for the device "cuda:N", and None, which means the current GPU, for "cuda".

    Raises:
        ValueError: the name is none of these.
    """
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise ValueError(
            f"unknown device {device!r}: use 'cpu', 'cuda' or 'cuda:N' with N the number of the GPU, or 'torch'"
        )
    return None if match[1] is None else int(match[1])


def gpu_in_words(device: str) -> str:
    """Return the name of a GPU as the driver gives it. This computes nothing on the GPU and takes none of its memory.

    Args:
        device: "cuda" or "cuda:N".

    Raises:
        BackendError: CuPy, the driver, or the GPU is missing or does not answer.
    """
    cupy = _import_cupy()
    index = _chosen(cupy, gpu_number(device))
    runtime = cupy.cuda.runtime
    try:
        properties = runtime.getDeviceProperties(index)
    except runtime.CUDARuntimeError as error:
        raise BackendError(
            f"the driver shows cuda:{index}, but the GPU does not answer ({error}). Look at nvidia-smi and at the log "
            "of the operating system's kernel (dmesg, lines with Xid). A lost GPU comes back after a restart of the "
            "machine."
        ) from error
    return f"{properties['name'].decode()} (cuda:{index})"


def _chosen(cupy: Any, index: int | None) -> int:
    """Return the number of a GPU, after checking that it exists; None stands for the current one."""
    count = _device_count(cupy)
    index = int(cupy.cuda.runtime.getDevice()) if index is None else index
    if index >= count:
        raise BackendError(
            f"cuda:{index} was asked for, but this machine shows {count} CUDA GPU(s), numbered from 0 to "
            f"{count - 1}. Choose one of them, or check whether CUDA_VISIBLE_DEVICES hides cuda:{index}."
        )
    return index


def _import_cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise BackendError(
            "CUDA was asked for, but CuPy cannot be imported "
            f"({error}). Install the CuPy that fits the driver, in Mini-BERT's folder: pip install '.[cuda12]' for "
            "CUDA 12 or pip install '.[cuda13]' for CUDA 13, never both. Or run with --device cpu."
        ) from error
    return cupy


def _import_cublas(cupy: Any) -> Any:
    """Return CuPy's module for NVIDIA's library of matrix products, which CuPy loads only on request."""
    try:
        return cupy.cuda.cublas
    except ImportError as error:
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        raise BackendError(
            "CUDA was asked for; CuPy, the driver and a GPU are here, but cuBLAS, which multiplies matrices, cannot be "
            f"loaded ({' '.join(str(error).split())}). Install it with CuPy, in Mini-BERT's folder: "
            f"pip install '.[cuda{major}]'. Or run with --device cpu."
        ) from error


def _tf32_is_asked_for() -> bool:
    """Read CUPY_TF32 as CuPy does: as a number, where everything above 0 asks for TF32.

    Raises:
        BackendError: it is not a number. CuPy would fail at the first product.
    """
    value = os.environ.get("CUPY_TF32", "0")
    try:
        return int(value) > 0
    except ValueError:
        raise BackendError(
            f"CUPY_TF32 is {value!r}, but CuPy reads it as a number. Set it to 1 for products in TF32; for products in "
            "float32, set it to 0 or unset it."
        ) from None


def _device_count(cupy: Any) -> int:
    """Return how many GPUs the driver shows, at least one.

    Raises:
        BackendError: the driver is missing or too old, or there is no GPU; each has its own message.
    """
    runtime = cupy.cuda.runtime
    try:
        driver = runtime.driverGetVersion()  # 0 where no driver is installed
        count = runtime.getDeviceCount() if driver else 0
    except runtime.CUDARuntimeError as error:
        if "cudaErrorNoDevice" not in str(error):
            raise BackendError(
                f"CUDA was asked for and CuPy {cupy.__version__} is installed, but the NVIDIA driver does not "
                f"serve it ({error}). Compare the CUDA version in the first lines of nvidia-smi with CuPy's "
                f"({runtime.runtimeGetVersion() // 1000}), and update the driver or install the CuPy that fits it."
            ) from error
        driver, count = -1, 0
    if driver == 0:
        raise BackendError(
            f"CUDA was asked for and CuPy {cupy.__version__} is installed, but there is no NVIDIA driver. Install "
            "it on the host (nvidia-smi must work there); in a container, start it with `docker run --gpus all`; "
            "or run with --device cpu."
        )
    if count == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f" CUDA_VISIBLE_DEVICES is {visible!r}, which may hide it."
        raise BackendError(
            "CUDA was asked for; CuPy and the NVIDIA driver are here, but no GPU is visible."
            f"{hidden} Check that nvidia-smi lists one, or run with --device cpu."
        )
    return int(count)
