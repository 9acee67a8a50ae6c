"""The seam between BERT's mathematics and the arrays it runs on.

`Backend` holds what the Python Array API standard lacks, and nothing else: the error function, an
accumulating scatter, moving data to and from the host, waiting for the device, memory figures, and the
*twins*, faster versions of single operations. Everything else goes through `backend.xp`, an Array API
namespace. Nothing here knows what BERT is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

Array = Any
"""An array of whatever namespace the backend has; the standard offers no static type for it."""


class BackendError(RuntimeError):
    """A device was asked for that this machine cannot offer; the message says why and what to do."""


@dataclass(frozen=True)
class Memory:
    """Memory in bytes: in use now, in use at the worst moment so far, and all that the device has.

    A figure that the platform cannot tell is None.
    """

    used: int | None
    peak: int | None
    total: int | None


class Backend(ABC):
    """Arrays on one device.

    Attributes:
        name: for people: "cpu", "cuda:0".
        xp: the Array API namespace.
        device: what `xp` calls the device; passed to every function that creates an array.
        twins: operation name -> a faster function of the same signature and meaning. Each takes the
            backend as its first argument, as the definition does.
    """

    name: str
    xp: Any
    device: Any
    twins: Mapping[str, Callable[..., Any]]

    @abstractmethod
    def asarray(self, host: Any, dtype: Any = None) -> Array:
        """Copy a list or NumPy array to the device; arrays that live there already pass through.

        Args:
            host: numbers in nested lists, a NumPy array, or an array of this backend.
            dtype: of `xp`, or None to keep the dtype.

        Raises:
            TypeError: an array of another library or device, which would hide a transfer.
        """

    @abstractmethod
    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Copy to the host. Waits until the device has computed the array."""

    @abstractmethod
    def scatter_add(self, target: Array, indices: Array, rows: Array, *, deterministic: bool = False) -> None:
        """Add `rows[i]` to `target[indices[i]]`, in place, for every i; duplicates accumulate.

        Args:
            target: (V, H), changed in place.
            indices: (N,) integers from 0 to V - 1; the caller has checked them.
            rows: (N, H), dtype of `target`.
            deterministic: bit-identical results from run to run even where the device's atomic
                additions come in any order.
        """

    @abstractmethod
    def erf(self, x: Array) -> Array:
        """The error function 2/sqrt(pi) * integral of exp(-t^2) from 0 to x, elementwise."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until everything that was asked of the device is done."""

    @abstractmethod
    def memory(self) -> Memory:
        """Memory figures of the device."""

    @abstractmethod
    def description(self) -> str:
        """One line for reports: library and version, device, threads."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """An uninitialised array, which a backend may take from memory that it used before."""
        return self.xp.empty(shape, dtype=dtype, device=self.device)

    def upload(self, host: Mapping[str, Array]) -> dict[str, Array]:
        """Several arrays at once, in one transfer where transfers cost something.

        Args:
            host: name -> NumPy array.

        Returns:
            Name -> the same values in an array of the backend, of the same dtype and shape.
        """
        return {name: self.asarray(array) for name, array in host.items()}

    def dtype(self, name: str) -> Any:
        """The namespace's dtype called "float32" or "float64".

        Raises:
            ValueError: another name, or a dtype that this device does not have.
        """
        if name not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', not {name!r}")
        available = self.xp.__array_namespace_info__().dtypes(device=self.device, kind="real floating")
        if name not in available:
            raise ValueError(f"the device {self.name} has no {name}; it has {', '.join(available)}")
        return available[name]


def score_bound(xp: Any, dtype: Any) -> float:
    """The largest score that counts as finite: a quarter of the dtype's range.

    Two scores within the bound, or a score and a mask of twice the bound, never overflow when they meet.
    """
    return float(xp.finfo(dtype).max) / 4


class AdamWFactors(NamedTuple):
    """The numbers that AdamW derives once per step (Loshchilov & Hutter 2017, algorithm 2; docs/gradients.md).

    Attributes:
        step_size: learning_rate / (1 - beta1**step), the learning rate with the bias correction of the first moment.
        root_correction: 1 / sqrt(1 - beta2**step), the bias correction of the second moment's square root.
        decay: 1 - learning_rate * weight_decay, the factor on the parameters.
    """

    step_size: float
    root_correction: float
    decay: float


def adamw_factors(learning_rate: float, beta1: float, beta2: float, weight_decay: float, step: int) -> AdamWFactors:
    """Return the factors of AdamW's step number `step` (the first is 1), for the definition and for every twin."""
    return AdamWFactors(
        step_size=learning_rate / (1.0 - beta1**step),
        root_correction=1.0 / math.sqrt(1.0 - beta2**step),
        decay=1.0 - learning_rate * weight_decay,
    )


def segment_sums(xp: Any, indices: Array, rows: Array) -> tuple[Array, Array]:
    """Sum the rows that share an index, deterministically, in the standard's own functions.

    Sorting brings equal indices together. A segmented scan (Hillis & Steele, "Data parallel algorithms",
    1986) then sums every run of equal indices in log2(longest run) steps: after step k each row holds the
    sum of up to 2**k rows that end at it, so the last row of a run ends with the run's whole sum.

    Args:
        xp: the Array API namespace.
        indices: (N,) integers.
        rows: (N, H).

    Returns:
        (U,) the distinct indices in increasing order, and (U, H) the sums of their rows.
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
