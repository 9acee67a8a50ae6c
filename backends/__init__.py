"""Choose, by name, where arrays live: NumPy on a CPU, CuPy on a CUDA GPU, or PyTorch on any of its devices.

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
        device: "cpu" (NumPy), "cuda" (CuPy on the current CUDA device), "cuda:N", "torch" (PyTorch on the CPU), or
            "torch:DEVICE" with PyTorch's name of a device: "cuda", "cuda:N", "mps" or "xpu". A `Backend` is
            returned as it is.

    Raises:
        ValueError: the name is none of these.
        BackendError: the array library, a driver or the device is missing. The message says which of them, and what to
            do.
    """
    if isinstance(device, Backend):
        return device
    if device == "cpu":
        from backends.cpu.backend import NumpyBackend

        return NumpyBackend()
    if device.partition(":")[0] == "torch":
        from backends.cpu.threads import number_set
        from backends.torch.backend import TorchBackend, device_of  # PyTorch itself is imported when a backend is made

        return TorchBackend(device_of(device), threads=number_set())
    from backends.cuda.backend import CupyBackend, gpu_number  # CuPy itself is imported when a backend is made

    return CupyBackend(gpu_number(device))
