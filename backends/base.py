"""Define the interface between BERT's mathematics and an array library: `Backend`.

`Backend` holds only what the Python Array API standard lacks: the error function, a scatter that accumulates, moving
data to and from the host, waiting for the device, memory figures, and the *twins*, which are faster versions of single
operations. Everything else goes through `backend.xp`, an Array API namespace. Nothing here knows what BERT is.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    import numpy as np

Array = Any
"""An array of the backend's namespace. The standard offers no static type for arrays."""


PRECISIONS = ("float32", "bfloat16", "int8", "auto")
"""The names of the precisions, which say how matrix products round their operands; see `Backend.with_precision`."""

LONGEST_INT8_ROW = (2**31 - 1) // (255 * 127)
"""The most products of quantised numbers whose sum surely fits 32 bits: the most inputs of a linear layer in int8."""


NO_INT8_GRADIENTS = "int8 is a precision for inference, without gradients: train in bfloat16 or float32"
"""The message of the error that every attempt to train in int8 raises."""


class BackendError(RuntimeError):
    """The machine cannot offer the device that was asked for. The message says why, and what to do."""


@dataclass(frozen=True)
class Memory:
    """Memory figures of a device, in bytes. A figure that the platform cannot tell is None.

    Attributes:
        used: bytes in use now.
        peak: the most bytes in use at one time so far.
        total: bytes that the device has.
    """

    used: int | None
    peak: int | None
    total: int | None


class Backend(ABC):
    """Arrays on one device.

    Attributes:
        name: as reports show it: "cpu", "cuda:0".
        xp: the Array API namespace.
        device: the device as `xp` knows it; passed to every function that creates an array.
        twins: operation name -> a faster function of the same signature and meaning. Each takes the backend as its
            first argument, as the definition does, and refuses arrays that do not match (see `backends/checks.py`).
        precision: "float32" if matrix products take their operands as they are, "bfloat16" if they round them first,
            "int8" if linear layers quantise them first. Definitions and twins read this.
        twins_have_precision: False if the backend's twins of linear layers and attention cannot compute in `precision`.
            The definitions must be used instead of these twins.
    """

    name: str
    xp: Any
    device: Any
    twins: Mapping[str, Callable[..., Any]]
    precision: str = "float32"
    twins_have_precision: bool = True

    @abstractmethod
    def asarray(self, host: Any, dtype: Any = None) -> Array:
        """Copy a list or NumPy array to the device. An array that lives there already is returned as it is.

        Args:
            host: numbers in nested lists, a NumPy array, or an array of this backend.
            dtype: a dtype of `xp`, or None to keep the dtype.

        Raises:
            TypeError: `host` is an array of another library or device. Moving it would hide a transfer.
        """

    @abstractmethod
    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Copy an array to the host. This waits until the device has computed it."""

    @abstractmethod
    def scatter_add(self, target: Array, indices: Array, rows: Array, *, deterministic: bool = False) -> None:
        """Add `rows[i]` to `target[indices[i]]`, in place, for every i. Equal indices accumulate.

        Args:
            target: (V, H), changed in place.
            indices: (N,) integers from 0 to V - 1. The caller has checked their values.
            rows: (N, H), dtype of `target`.
            deterministic: give the same bits from run to run, even where the device's atomic additions come in any
                order.

        Raises:
            ValueError, TypeError: shapes or dtypes do not match.
        """

    @abstractmethod
    def erf(self, x: Array) -> Array:
        """Compute the error function 2/sqrt(pi) * integral of exp(-t^2) from 0 to x, elementwise."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the device has done all the work that was queued."""

    @abstractmethod
    def memory(self) -> Memory:
        """Return the memory figures of the device."""

    @abstractmethod
    def description(self) -> str:
        """Return one line for reports: library and version, device, threads."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an uninitialised array. A backend may give it memory that an earlier array used."""
        return self.xp.empty(shape, dtype=dtype, device=self.device)

    def upload(self, host: Mapping[str, Array]) -> dict[str, Array]:
        """Copy several host arrays to the device, in one transfer where transfers cost time.

        Args:
            host: name -> NumPy array.

        Returns:
            Name -> array of the backend, with the same values, dtype and shape.
        """
        return {name: self.asarray(array) for name, array in host.items()}

    def has_bfloat16(self) -> bool:
        """Return True if this backend's twins multiply matrices with the processor's bfloat16 instructions."""
        return False

    def has_int8(self) -> bool:
        """Return True if this backend's twins multiply matrices with the processor's int8 instructions."""
        return False

    def with_precision(self, precision: str, dtype: str) -> Self:
        """Return a backend that multiplies matrices in a precision. It shares device and memory with this one.

        Args:
            precision: "float32": operands are used as they are, in the dtype of the parameters. "bfloat16": operands
                are rounded to bfloat16, and the products are summed in the dtype of the parameters. "int8": operands
                are quantised to 8 bits; there are no gradients. "auto": "bfloat16" if the dtype is float32 and the
                backend has the instructions, otherwise "float32".
            dtype: the dtype of the parameters, "float32" or "float64". With float64 there are no instructions, so the
                definitions compute "bfloat16" and "int8"; this is for checks.

        Returns:
            This backend, if it has the precision already, otherwise a copy. `precision` is never "auto" there.

        Raises:
            ValueError: another precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        if precision == "auto":
            precision = "bfloat16" if dtype == "float32" and self.has_bfloat16() else "float32"
        twins_have_precision = precision == "float32" or (
            dtype == "float32" and (self.has_int8() if precision == "int8" else self.has_bfloat16())
        )
        if (precision, twins_have_precision) == (self.precision, self.twins_have_precision):
            return self
        changed = copy.copy(self)
        changed.precision, changed.twins_have_precision = precision, twins_have_precision
        return changed

    def dtype(self, name: str) -> Any:
        """Return the dtype of `xp` that has the given name.

        Args:
            name: "float32" or "float64".

        Raises:
            ValueError: the name is neither of these, or this device does not have the dtype.
        """
        if name not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', not {name!r}")
        available = self.xp.__array_namespace_info__().dtypes(device=self.device, kind="real floating")
        if name not in available:
            raise ValueError(f"the device {self.name} has no {name}; it has {', '.join(available)}")
        return available[name]


def score_bound(xp: Any, dtype: Any) -> float:
    """Return the largest attention score that counts as finite: a quarter of the dtype's range.

    The sum of two scores within the bound never overflows. Neither does the sum of a score and a mask of twice the
    bound.
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
    """Return the factors of step number `step` (the first is 1); the definition and every twin use them."""
    return AdamWFactors(
        step_size=learning_rate / (1.0 - beta1**step),
        root_correction=1.0 / math.sqrt(1.0 - beta2**step),
        decay=1.0 - learning_rate * weight_decay,
    )
