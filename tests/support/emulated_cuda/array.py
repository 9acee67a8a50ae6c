"""`cupy.ndarray`, emulated: an array that the host cannot touch, with methods of CuPy's array and no others.

The numbers lie in a NumPy array, which only this package sees. Where CuPy differs from NumPy, this follows CuPy: it
refuses host arrays, reductions give 0-d arrays, indices out of range wrap around, no array becomes a NumPy array
implicitly, and reading a value waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.support.emulated_cuda.device import ACTIVITY, POOL, Allocation, Device

_SCALARS = (bool, int, float, complex, np.number, np.bool_)


class ndarray:  # noqa: N801 - CuPy's name
    """An array on the emulated device.

    Args:
        shape: as for `cupy.ndarray`.
        dtype: likewise.
    """

    __array_ufunc__ = None  # a NumPy scalar on the left leaves the operation to us
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Any, dtype: Any = float) -> None:
        self._own(Allocation(shape, dtype).array, None)

    def _own(self, host: np.ndarray, allocation: Allocation | None) -> None:
        self._host, self._allocation = host, allocation
        self._charged = host.nbytes if host.base is None or allocation is not None else 0
        POOL.changed(self._charged)

    def __del__(self) -> None:
        POOL.changed(-getattr(self, "_charged", 0))

    # --- properties ---

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        reshaped = self._host.reshape(shape)
        if reshaped.size and not np.may_share_memory(reshaped, self._host):
            raise AttributeError("incompatible shape (EMULATED)")
        self._host = reshaped

    @property
    def ndim(self) -> int:
        return self._host.ndim

    @property
    def size(self) -> int:
        return self._host.size

    @property
    def dtype(self) -> np.dtype:
        return self._host.dtype

    @property
    def itemsize(self) -> int:
        return self._host.itemsize

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    @property
    def strides(self) -> tuple[int, ...]:
        return self._host.strides

    @property
    def flags(self) -> Any:
        return self._host.flags

    @property
    def data(self) -> SimpleNamespace:
        return SimpleNamespace(ptr=self._host.ctypes.data)

    @property
    def device(self) -> Device:
        return Device(0)

    @property
    def T(self) -> ndarray:  # noqa: N802
        return wrap(self._host.T, self)

    def __len__(self) -> int:
        return len(self._host)

    def __repr__(self) -> str:
        return f"EMULATED {self.get()!r}"

    # --- reading values: the host waits ---

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        ACTIVITY.download()
        return self._host.copy(order="C")

    def item(self) -> Any:
        ACTIVITY.download()
        return self._host.item()

    def __bool__(self) -> bool:
        ACTIVITY.download()
        return bool(self._host)

    def __int__(self) -> int:
        ACTIVITY.download()
        return int(self._host)

    def __index__(self) -> int:
        ACTIVITY.download()
        return self._host.__index__()

    def __float__(self) -> float:
        ACTIVITY.download()
        return float(self._host)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()`. (EMULATED)")

    def __iter__(self) -> Any:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # --- shape and dtype ---

    def reshape(self, *shape: Any, order: str = "C", copy: Any = None) -> ndarray:
        return wrap_or_count(self._host.reshape(*shape), self, "copy")

    def view(self, dtype: Any = None) -> ndarray:
        return wrap(self._host.view() if dtype is None else self._host.view(dtype), self)

    def copy(self, order: str = "C") -> ndarray:
        ACTIVITY.launch("copy")
        return allocated(self._host)

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> ndarray:
        if not copy and self.dtype == np.dtype(dtype):
            return self
        ACTIVITY.launch("astype")
        return allocated(self._host.astype(dtype))

    def swapaxes(self, axis1: int, axis2: int) -> ndarray:
        return wrap(self._host.swapaxes(axis1, axis2), self)

    def transpose(self, *axes: Any) -> ndarray:
        return wrap(self._host.transpose(*axes), self)

    def fill(self, value: Any) -> None:
        ACTIVITY.launch("fill")
        self._host.fill(value)

    # --- indexing ---

    def _index(self, key: Any) -> tuple[Any, bool]:
        """Return the key for the NumPy array, and True if it gathers (int arrays or masks) instead of giving a view."""
        parts = key if isinstance(key, tuple) else (key,)
        gathers, axis, made = False, 0, []
        for part in parts:
            if isinstance(part, np.ndarray | list):
                raise TypeError("an emulated CUDA array cannot be indexed by a host array")
            if isinstance(part, ndarray):
                gathers = True
                if part.dtype == bool:
                    ACTIVITY.waits += 1  # how many there are decides the shape of the result
                    part = part._host
                else:
                    part = part._host % max(self.shape[axis], 1)  # as CuPy wraps it
            axis += 0 if part is None or part is Ellipsis else 1
            made.append(part)
        return (tuple(made) if isinstance(key, tuple) else made[0]), gathers

    def __getitem__(self, key: Any) -> ndarray:
        index, gathers = self._index(key)
        if gathers:
            ACTIVITY.launch("gather")
            return allocated(self._host[index])
        return wrap(np.asarray(self._host[index]), self)

    def __setitem__(self, key: Any, value: Any) -> None:
        index, gathers = self._index(key)
        ACTIVITY.launch("scatter" if gathers else "copy")
        self._host[index] = operand(value)


def allocated(host: np.ndarray) -> ndarray:
    """Return a new guarded array with the values of a host array."""
    allocation = Allocation(host.shape, host.dtype)
    allocation.array[...] = host
    return _made(allocation.array, allocation)


def uninitialised(shape: Any, dtype: Any) -> ndarray:
    """Return a new guarded array, full of NaN."""
    allocation = Allocation(shape, dtype)
    return _made(allocation.array, allocation)


def _made(host: np.ndarray, allocation: Allocation | None) -> ndarray:
    array = object.__new__(ndarray)
    array._own(host, allocation)
    return array


def wrap(host: Any, of: ndarray | None = None) -> ndarray:
    """Return a result, or a view of an array, as an array of the device. NumPy's scalars become 0-d arrays."""
    array = object.__new__(ndarray)
    if of is not None and host.base is not None:
        array._host, array._allocation, array._charged = host, of._allocation, 0
        array._keeps = of  # type: ignore[attr-defined] - the view keeps the memory alive
    else:
        array._own(np.asarray(host), None)
    return array


def wrap_or_count(host: np.ndarray, of: ndarray, name: str) -> ndarray:
    """Return a view if NumPy made one; otherwise a copy, which counts as a launch."""
    if host.size and not np.may_share_memory(host, of._host):
        ACTIVITY.launch(name)
    return wrap(host, of)


def operand(value: Any) -> Any:
    """Return the NumPy form of an operand that CuPy accepts beside an array of the device.

    Raises:
        TypeError: a host array or anything else that CuPy refuses.
    """
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, _SCALARS):
        return value
    raise TypeError(f"Unsupported type {type(value)}: an emulated CUDA array meets CUDA arrays and scalars only")


def _binary(function: Callable[..., Any], name: str, reflected: bool = False) -> Callable[[ndarray, Any], ndarray]:
    def operator(self: ndarray, other: Any) -> ndarray:
        left, right = (operand(other), self._host) if reflected else (self._host, operand(other))
        ACTIVITY.launch(name)
        return wrap(function(left, right))

    return operator


def _in_place(function: Callable[..., Any], name: str) -> Callable[[ndarray, Any], ndarray]:
    def operator(self: ndarray, other: Any) -> ndarray:
        ACTIVITY.launch(name)
        function(self._host, operand(other), out=self._host)
        return self

    return operator


def _unary(function: Callable[..., Any], name: str) -> Callable[[ndarray], ndarray]:
    def operator(self: ndarray) -> ndarray:
        ACTIVITY.launch(name)
        return wrap(function(self._host))

    return operator


def _reduction(name: str) -> Callable[..., ndarray]:
    def reduction(self: ndarray, axis: Any = None, **arguments: Any) -> ndarray:
        ACTIVITY.launch(name)
        return wrap(np.asarray(getattr(self._host, name)(axis=axis, **arguments)))

    return reduction


for _name in ("sum", "mean", "max", "min", "any", "all"):
    setattr(ndarray, _name, _reduction(_name))
for _name, _function in {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "truediv": np.true_divide,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "pow": np.power,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "rshift": np.right_shift,
    "lshift": np.left_shift,
}.items():
    setattr(ndarray, f"__{_name}__", _binary(_function, _name))
    setattr(ndarray, f"__r{_name}__", _binary(_function, _name, reflected=True))
    setattr(ndarray, f"__i{_name}__", _in_place(_function, _name))
for _name in ("lt", "le", "eq", "ne", "gt", "ge"):
    _function = {"lt": np.less, "le": np.less_equal, "eq": np.equal, "ne": np.not_equal}.get(
        _name, np.greater if _name == "gt" else np.greater_equal
    )
    setattr(ndarray, f"__{_name}__", _binary(_function, _name))
for _name, _function in {"neg": np.negative, "abs": np.absolute, "invert": np.invert}.items():
    setattr(ndarray, f"__{_name}__", _unary(_function, _name))


def _matmul(self: ndarray, other: Any) -> ndarray:
    from tests.support.emulated_cuda.functions import matmul

    return matmul(self, other)


ndarray.__matmul__ = _matmul  # type: ignore[attr-defined]
