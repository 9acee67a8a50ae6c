"""Choose, by name, where arrays live: NumPy on a CPU or CuPy on a CUDA GPU.

No code in this package knows anything about BERT.

from backends import get_backend
backend = get_backend("cuda:1")
"""

from __future__ import annotations

from backends.base import PRECISIONS, Array, Backend, BackendError, Memory

__all__ = ["PRECISIONS", "Array", "Backend", "BackendError", "Memory", "get_backend"]


def get_backend(device: str | Backend = "cpu") -> Backend:
    """Return the backend for a device.

    Args:
        device: "cpu", "cuda" (the current CUDA device) or "cuda:N"; a `Backend` is returned as it is.

    Raises:
        ValueError: the name is none of these.
        BackendError: CUDA was asked for, and CuPy, the driver or the GPU is missing. The message says which of them,
            and what to do.
    """
    if isinstance(device, Backend):
        return device
    if device == "cpu":
        from backends.cpu.backend import NumpyBackend

        return NumpyBackend()
    from backends.cuda.backend import CupyBackend, gpu_number  # CuPy itself is imported when a backend is made

    return CupyBackend(gpu_number(device))
