"""The backends that every test of the mathematics runs on.

Besides NumPy there are read-only NumPy arrays, which catch an operation that changes its input, and `array_api_strict`,
which refuses everything that the Array API standard does not promise. Its devices also refuse to mix with host arrays,
as a GPU does. PyTorch is a third library, where it is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import array_api_strict
import numpy as np
from scipy import special

from backends import Array, Backend, Memory, get_backend
from backends.cpu.backend import NumpyBackend
from tests.support.emulated_cuda import modules as emulated_cuda


class ReadOnlyNumpyBackend(NumpyBackend):
    """NumPy whose transferred arrays cannot be written to."""

    name = "numpy:readonly"

    def asarray(self, host: Any, dtype: Any = None) -> Array:
        array = np.asarray(host, dtype=dtype).view()
        array.flags.writeable = False
        return array


def segment_sums(xp: Any, indices: Array, rows: Array) -> tuple[Array, Array]:
    """Sum the rows that share an index, in a fixed order, with functions of the Array API standard only.

    Sorting brings equal indices together. A segmented scan (Hillis & Steele, "Data parallel algorithms", 1986) then
    sums every run of equal indices in log2(longest run) steps. After step k each row holds the sum of itself and the
    rows before it in its run, 2**k rows at most. At the end, the last row of a run holds the sum of the whole run.

    Args:
        xp: the Array API namespace.
        indices: (N,) integers.
        rows: (N, H).

    Returns:
        The distinct indices (U,) in increasing order, and the sums (U, H) of their rows.
    """
    order = xp.argsort(indices, stable=True)
    indices, rows = xp.take(indices, order, axis=0), xp.take(rows, order, axis=0)
    reach = 1
    while reach < rows.shape[0]:
        same = indices[reach:] == indices[:-reach]
        if not bool(xp.any(same)):  # no run is longer than `reach`
            break
        earlier = xp.where(same[:, None], rows[:-reach, :], xp.zeros_like(rows[:-reach, :]))
        rows = xp.concat((rows[:reach, :], rows[reach:, :] + earlier), axis=0)
        reach *= 2
    ends_run = xp.concat((indices[1:] != indices[:-1], xp.ones_like(indices[:1], dtype=xp.bool)))
    (last,) = xp.nonzero(ends_run)
    return xp.take(indices, last, axis=0), xp.take(rows, last, axis=0)


class StrictBackend(Backend):
    """`array_api_strict` on one of its devices, whose arrays mix with no others."""

    xp = array_api_strict
    twins: Mapping[str, Any] = {}

    def __init__(self, device: str) -> None:
        self.name = f"array_api_strict:{device}"
        self.device = array_api_strict.Device(device)
        self._host = array_api_strict.Device("CPU_DEVICE")

    def asarray(self, host: Any, dtype: Any = None) -> Array:
        if isinstance(host, type(self.xp.empty(0))):
            if host.device != self.device:
                raise TypeError(f"the array lives on {host.device}, this backend on {self.device}")
            return host if dtype is None else self.xp.astype(host, dtype)
        host = np.asarray(host)
        if dtype is not None:  # converted on the host: the device may lack the host's dtype
            host = host.astype(dtype._np_dtype)
        return self.xp.asarray(host, device=self.device)

    def to_numpy(self, array: Array) -> np.ndarray:
        return np.asarray(array.to_device(self._host))

    def scatter_add(self, target: Array, indices: Array, rows: Array, *, deterministic: bool = False) -> None:
        """Gather instead of scattering, since the standard cannot assign to several indices at once."""
        if rows.shape[0] == 0:
            return
        xp = self.xp
        unique, sums = segment_sums(xp, indices, rows)
        numbers = xp.arange(target.shape[0], dtype=unique.dtype, device=self.device)
        place = xp.searchsorted(unique, numbers)
        place = xp.where(place < unique.shape[0], place, xp.zeros_like(place))
        hit = xp.take(unique, place) == numbers
        gathered = xp.take(sums, place, axis=0)
        target[...] = target + xp.where(hit[:, None], gathered, xp.zeros_like(gathered))

    def erf(self, x: Array) -> Array:
        return self.asarray(special.erf(self.to_numpy(x)))

    def synchronize(self) -> None:
        """Return at once: there is nothing to wait for."""

    def memory(self) -> Memory:
        return Memory(None, None, None)

    def description(self) -> str:
        return f"array_api_strict {array_api_strict.__version__} on {self.device}"


_CPU: dict[str, Callable[[], Backend]] = {
    "numpy": NumpyBackend,
    "numpy:readonly": ReadOnlyNumpyBackend,
    "array_api_strict:device1": lambda: StrictBackend("device1"),
    "array_api_strict:device2": lambda: StrictBackend("device2"),
    "array_api_strict:no_float64": lambda: StrictBackend("no_float64"),
}

if importlib.util.find_spec("torch") is not None:
    _CPU["torch"] = lambda: get_backend("torch")


def names(device: str) -> list[str]:
    """Return the names of the backends to test for a device; pytest shows them."""
    if device == "cpu":
        return list(_CPU)
    if device.startswith("torch"):
        return [device]
    return ["cupy EMULATED" if emulated_cuda.installed() else "cupy"]


def make(name: str, device: str) -> Backend:
    """Make one of these backends."""
    return _CPU[name]() if name in _CPU else get_backend(device)


def float_dtypes(backend: Backend) -> list[str]:
    """Return the floating dtypes that the backend's device has, the most precise first."""
    return [name for name in ("float64", "float32") if name in _available(backend)]


def _available(backend: Backend) -> Mapping[str, Any]:
    return backend.xp.__array_namespace_info__().dtypes(device=backend.device, kind="real floating")
