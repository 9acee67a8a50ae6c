"""Arrays of PyTorch, without autograd: a third array library under the same mathematics (see docs/backends.md).

PyTorch is used as an array library only. No tensor here asks for a gradient, so autograd records nothing, and no
module, optimizer or data loader of PyTorch takes part. There are no twins: every operation is its definition.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from backends import checks
from backends.base import Array, Backend, BackendError, Memory

_UINT32 = np.dtype("uint32")
_NAME = re.compile(r"torch(?::(cpu|mps|xpu|cuda(?::\d+)?))?")


class TorchBackend(Backend):
    """PyTorch on one device.

    On a GPU, calls return before the device has computed, as with CuPy.

    Args:
        device: what PyTorch calls the device: "cpu", "cuda" (an NVIDIA GPU, or an AMD GPU under ROCm), "cuda:1",
            "mps" (Apple), "xpu" (Intel).
        threads: the number of threads on a CPU; None for PyTorch's own choice.

    Attributes:
        torch: the module.

    Raises:
        BackendError: PyTorch or the device is missing.
    """

    twins: Mapping[str, Callable[..., Any]] = {}

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        torch = self.torch = _import_torch()
        import array_api_compat.torch

        self.xp = array_api_compat.torch
        self.name = "torch" if device == "cpu" else f"torch:{device}"
        try:  # a first array gives the device its number, and shows that the device is there
            self.device = torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise BackendError(
                f"{self.name} was asked for, but PyTorch {torch.__version__} cannot use {device} here "
                f"({str(error).splitlines()[0]}). Install the driver and a PyTorch that was built for this device "
                "(https://pytorch.org/get-started), or run with --device torch or --device cpu."
            ) from error
        if threads is not None:
            torch.set_num_threads(threads)

    def asarray(self, host: Any, dtype: Any = None) -> Array:
        """See `Backend.asarray`. Host arrays of uint32 become int64, because PyTorch cannot add or shift uint32."""
        if isinstance(host, self.torch.Tensor):
            if host.device != self.device:
                raise TypeError(
                    f"the array lives on {host.device}, but this backend uses {self.device}; pass a NumPy array"
                )
            return host if dtype is None else host.to(dtype)
        host = np.asarray(host)
        if host.dtype == _UINT32:
            host = host.astype(np.int64)
        # Converted before it is moved: the device may lack the host's dtype. `tensor` copies, `from_numpy` would not.
        return self.torch.tensor(np.ascontiguousarray(host).reshape(host.shape), dtype=dtype).to(self.device)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        host: np.ndarray[Any, Any] = array.cpu().numpy()
        return host

    def scatter_add(self, target: Array, indices: Array, rows: Array, *, deterministic: bool = False) -> None:
        """See `Backend.scatter_add`.

        On a GPU, `index_add_` adds with atomics. With `deterministic`, PyTorch is told to add in a fixed order, which
        it refuses on devices where it cannot.

        Raises:
            ValueError, TypeError: shapes or dtypes do not match.
            IndexError: on a CPU, an index is outside the target.
        """
        checks.check_arrays("scatter_add", rows.dtype, ("target", target, (*target.shape[:1], *rows.shape[1:])))
        if indices.dtype not in (self.torch.int32, self.torch.int64):
            raise TypeError(f"scatter_add: indices must be integers, not {indices.dtype}")
        checks.check_shape("scatter_add", "indices", indices, rows.shape[:1])
        usual = self.torch.are_deterministic_algorithms_enabled()
        self.torch.use_deterministic_algorithms(deterministic or usual)
        try:
            target.index_add_(0, indices, rows)
        finally:
            self.torch.use_deterministic_algorithms(usual)

    def erf(self, x: Array) -> Array:
        return self.torch.erf(x)

    def synchronize(self) -> None:
        if self.device.type != "cpu":
            getattr(self.torch, self.device.type).synchronize()

    def memory(self) -> Memory:
        """Return the figures of PyTorch's pool on a CUDA GPU; elsewhere they are not known."""
        if self.device.type != "cuda":
            return Memory(None, None, None)
        cuda = self.torch.cuda
        used, peak = cuda.memory_allocated(self.device), cuda.max_memory_allocated(self.device)
        return Memory(used, peak, cuda.get_device_properties(self.device).total_memory)

    def description(self) -> str:
        where = self.device.type
        if where == "cpu":
            where = f"CPU, {self.torch.get_num_threads()} threads"
        elif where in ("cuda", "xpu"):
            where = f"{getattr(self.torch, where).get_device_name(self.device)} ({self.device})"
        return f"PyTorch {self.torch.__version__} without autograd, {where}"


def device_of(name: str) -> str:
    """Return PyTorch's name of a device: "cpu" for "torch", "cuda:1" for "torch:cuda:1".

    Raises:
        ValueError: the name is none of these.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"unknown device {name!r}: use 'torch' or 'torch:DEVICE' with DEVICE one of cpu, cuda, cuda:N, mps, xpu"
        )
    return match[1] or "cpu"


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise BackendError(
            f"PyTorch was asked for, but it cannot be imported ({error}). Install it, in Mini-BERT's folder: "
            "pip install '.[torch]'. Or run with --device cpu."
        ) from error
    return torch
