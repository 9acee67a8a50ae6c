"""Where arrays live: NumPy on a CPU or CuPy on a CUDA GPU, chosen by name. Knows nothing of BERT.

from backends import get_backend
backend = get_backend("cuda:1")
"""

from __future__ import annotations

import re

from backends.base import Array, Backend, BackendError, Memory

__all__ = ["Array", "Backend", "BackendError", "Memory", "get_backend"]


def get_backend(device: str | Backend = "cpu") -> Backend:
    """The backend for a device.

    Args:
        device: "cpu", "cuda" (the current CUDA device) or "cuda:N"; a `Backend` is returned as it is.

    Raises:
        ValueError: any other name.
        BackendError: CUDA was asked for and CuPy, the driver or the GPU is missing; which of them, and
            what to do about it, is in the message.
    """
    if isinstance(device, Backend):
        return device
    if device == "cpu":
        from backends.cpu.backend import NumpyBackend

        return NumpyBackend()
    if match := re.fullmatch(r"cuda(?::(\d+))?", device):
        from backends.cuda.backend import CupyBackend  # imports CuPy only when it is asked for

        return CupyBackend(None if match[1] is None else int(match[1]))
    raise ValueError(f"unknown device {device!r}: use 'cpu', 'cuda' or 'cuda:N' with N the number of the GPU")
