"""The functions of the emulated `cupy`: CuPy's names and signatures, NumPy's arithmetic, and a count of launches.

The counts follow CuPy's source. An elementwise function is one launch, however many operands it has; so is a reduction,
a gather or a copy. A product is one launch, plus one for the copy of every operand of a batched product that is not
contiguous. Sorting takes several launches and counts as four. `nonzero` and `unique` make the host wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.emulated_cuda import cublas
from tests.support.emulated_cuda.array import allocated, ndarray, operand, uninitialised, wrap, wrap_or_count
from tests.support.emulated_cuda.compiler import ASCENDING, EmulatedModule
from tests.support.emulated_cuda.device import ACTIVITY, POOL, DeviceError

_SORT = 4


def words(text: str) -> list[str]:
    """Return the words of a text, for long lists of names."""
    return text.split()


# --- creation -----------------------------------------------------------------------------------------------------


def array(
    obj: Any,
    dtype: Any = None,
    copy: Any = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    if isinstance(obj, ndarray):
        same = dtype is None or obj.dtype == np.dtype(dtype)
        return obj if same and not copy else obj.astype(dtype or obj.dtype)
    host = np.asarray(obj, dtype=dtype)
    if host.dtype == object:
        raise ValueError("Unsupported dtype object (EMULATED)")
    ACTIVITY.uploads += 1
    return allocated(host)


def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> ndarray:
    return array(a, dtype=dtype, copy=bool(copy))


def ascontiguousarray(a: ndarray, dtype: Any = None) -> ndarray:
    return a if a.flags.c_contiguous and dtype in (None, a.dtype) else a.astype(dtype or a.dtype)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return uninitialised(shape, dtype)


def empty_like(
    prototype: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    return uninitialised(prototype.shape if shape is None else shape, dtype or prototype.dtype)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    result = uninitialised(shape, np.result_type(fill_value) if dtype is None else dtype)
    result.fill(operand(fill_value))
    return result


def full_like(
    a: ndarray, fill_value: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    return full(a.shape if shape is None else shape, fill_value, dtype or a.dtype)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 0, dtype)


def zeros_like(a: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    return full_like(a, 0, dtype, shape=shape)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return full(shape, 1, dtype)


def ones_like(a: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    return full_like(a, 1, dtype, shape=shape)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> ndarray:
    ACTIVITY.launch("arange")
    return wrap(np.arange(start, dtype=dtype) if stop is None else np.arange(start, stop, step, dtype=dtype))


# --- shape --------------------------------------------------------------------------------------------------------


def reshape(a: ndarray, newshape: Any, order: str = "C", *, copy: Any = None) -> ndarray:
    if copy:
        return a.copy().reshape(newshape)
    host = a._host.reshape(newshape)
    if copy is False and host.size and not np.may_share_memory(host, a._host):
        raise ValueError("Unable to avoid copy while reshaping (EMULATED)")
    return wrap_or_count(host, a, "copy")


def moveaxis(a: ndarray, source: Any, destination: Any) -> ndarray:
    return wrap(np.moveaxis(a._host, source, destination), a)


def swapaxes(a: ndarray, axis1: int, axis2: int) -> ndarray:
    return a.swapaxes(axis1, axis2)


def transpose(a: ndarray, axes: Any = None) -> ndarray:
    return wrap(np.transpose(a._host, axes), a)


def expand_dims(a: ndarray, axis: Any) -> ndarray:
    return wrap(np.expand_dims(a._host, axis), a)


def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    return wrap(np.broadcast_to(array._host, shape), array)


def broadcast_arrays(*args: ndarray) -> list[ndarray]:
    return [wrap(host, arg) for host, arg in zip(np.broadcast_arrays(*(a._host for a in args)), args, strict=True)]


def concatenate(tup: Any, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind") -> ndarray:
    ACTIVITY.launch("concatenate", len(tup))
    return wrap(np.concatenate([operand(a) for a in tup], axis=axis, dtype=dtype, casting=casting))


def stack(tup: Any, axis: int = 0, out: Any = None, *, dtype: Any = None, casting: str = "same_kind") -> ndarray:
    ACTIVITY.launch("concatenate", len(tup))
    return wrap(np.stack([operand(a) for a in tup], axis=axis, dtype=dtype, casting=casting))


# --- indexing, searching, sorting ---------------------------------------------------------------------------------


def take(a: ndarray, indices: Any, axis: Any = None, out: Any = None) -> ndarray:
    ACTIVITY.launch("take")
    return allocated(np.take(a._host, operand(indices), axis=axis, mode="wrap"))


def take_along_axis(a: ndarray, indices: ndarray, axis: Any) -> ndarray:
    ACTIVITY.launch("take_along_axis")
    return wrap(np.take_along_axis(a._host, operand(indices) % a.shape[axis], axis))


def where(condition: ndarray, x: Any = None, y: Any = None) -> ndarray:
    ACTIVITY.launch("where")
    return wrap(np.where(operand(condition), operand(x), operand(y)))


def nonzero(a: ndarray) -> tuple[ndarray, ...]:
    ACTIVITY.launch("nonzero", 2)
    ACTIVITY.waits += 1
    return tuple(wrap(part) for part in np.nonzero(a._host))


def argsort(a: ndarray, axis: Any = -1, kind: Any = None) -> ndarray:
    ACTIVITY.launch("argsort", _SORT)
    return wrap(np.argsort(a._host, axis=axis, kind="stable"))


def sort(a: ndarray, axis: Any = -1, kind: Any = None) -> ndarray:
    ACTIVITY.launch("sort", _SORT)
    return wrap(np.sort(a._host, axis=axis, kind="stable"))


def searchsorted(a: ndarray, v: ndarray, side: str = "left", sorter: Any = None) -> ndarray:
    ACTIVITY.launch("searchsorted")
    return wrap(np.searchsorted(a._host, operand(v), side=side))


def unique(
    ar: ndarray,
    return_index: bool = False,
    return_inverse: bool = False,
    return_counts: bool = False,
    axis: Any = None,
    *,
    equal_nan: bool = True,
) -> Any:
    ACTIVITY.launch("unique", _SORT + 2)
    ACTIVITY.waits += 1
    found = np.unique(ar._host, return_index, return_inverse, return_counts, axis, equal_nan=equal_nan)
    return tuple(map(wrap, found)) if isinstance(found, tuple) else wrap(found)


def clip(a: ndarray, a_min: Any, a_max: Any, out: Any = None) -> ndarray:
    ACTIVITY.launch("clip")
    return wrap(np.clip(a._host, *(None if bound is None else operand(bound) for bound in (a_min, a_max))))


# --- reductions: always arrays ------------------------------------------------------------------------------------


def _reduced(name: str, a: ndarray, **arguments: Any) -> ndarray:
    ACTIVITY.launch(name)
    return wrap(np.asarray(getattr(np, name)(a._host, **arguments)))


def sum(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:  # noqa: A001
    return _reduced("sum", a, axis=axis, dtype=dtype, keepdims=keepdims)


def mean(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _reduced("mean", a, axis=axis, dtype=dtype, keepdims=keepdims)


def max(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:  # noqa: A001
    return _reduced("max", a, axis=axis, keepdims=keepdims)


def min(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:  # noqa: A001
    return _reduced("min", a, axis=axis, keepdims=keepdims)


def all(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:  # noqa: A001
    return _reduced("all", a, axis=axis, keepdims=keepdims)


def any(a: ndarray, axis: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:  # noqa: A001
    return _reduced("any", a, axis=axis, keepdims=keepdims)


def argmax(a: ndarray, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: bool = False) -> ndarray:
    return _reduced("argmax", a, axis=axis, keepdims=keepdims)


# --- elementwise --------------------------------------------------------------------------------------------------


class ufunc:  # noqa: N801 - CuPy's name
    """An elementwise function, which is one launch."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.nin, self.nout, self._function = name, function.nin, function.nout, function

    def __call__(self, *args: Any) -> ndarray:
        ACTIVITY.launch(self.name)
        return wrap(self._function(*(operand(arg) for arg in args)))

    def at(self, a: ndarray, indices: Any, b: Any = None) -> None:
        """Equal indices accumulate; indices out of range wrap around."""
        index, _ = a._index(indices)
        ACTIVITY.launch(f"{self.name}.at")
        self._function.at(a._host, index, operand(b))


UFUNCS = {
    name: ufunc(name, getattr(np, name))
    for name in words(
        "absolute abs exp log sqrt tanh conj isfinite isnan sign minimum maximum add subtract multiply divide equal "
        "less greater logical_and logical_or logical_not ceil floor trunc arccos arccosh arcsin arcsinh arctan arctan2 "
        "arctanh left_shift right_shift invert power"
    )
}
del UFUNCS["abs"]
abs = UFUNCS["absolute"]  # noqa: A001


def round(a: ndarray, decimals: int = 0, out: Any = None) -> ndarray:  # noqa: A001
    ACTIVITY.launch("round")
    return wrap(np.round(a._host, decimals))


# --- products -----------------------------------------------------------------------------------------------------


def matmul(
    *args: Any,
    axes: Any = None,
    axis: Any = None,
    keepdims: bool = False,
    casting: str = "same_kind",
    dtype: Any = None,
    signature: Any = None,
    order: str = "K",
    out: Any = None,
) -> ndarray:
    a, b = args
    left, right = (operand(x) for x in (a, b))
    batched = np.maximum(left.ndim, right.ndim) > 2
    tf32 = cublas.handle_says_tf32() if batched else cublas.plain_products_are_tf32()
    product = cublas.product(left, right, tf32)
    copies = [
        not x.flags.c_contiguous if batched else not (x.flags.c_contiguous or x.flags.f_contiguous) for x in (a, b)
    ]
    ACTIVITY.launch("matmul")
    if True in copies:
        ACTIVITY.launch("matmul: copy of an operand", copies.count(True))
    if out is None:
        return allocated(product)
    overlaps = True in [np.may_share_memory(out._host, x) for x in (left, right)]
    if overlaps or not out.flags.c_contiguous or out.dtype != product.dtype:
        ACTIVITY.launch("matmul: copy of the result")
    out._host[...] = product
    return out


def dot(a: ndarray, b: ndarray, out: Any = None) -> ndarray:
    if out is not None and not out.flags.c_contiguous:
        raise ValueError("Output array must be C-contiguous (EMULATED)")
    if a.ndim == b.ndim == 1:  # an array of products, and their sum
        return UFUNCS["multiply"](a, b).sum()
    return matmul(a, b, out=out)


def _erf(x: Any) -> Any:
    from scipy import special

    return special.erf(x)


_erf.nin, _erf.nout = 1, 1
erf = ufunc("erf", _erf)


# --- the rest -----------------------------------------------------------------------------------------------------


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def get_default_memory_pool() -> Any:
    return POOL


def result_type(*arrays_and_dtypes: Any) -> Any:
    return np.result_type(*(a.dtype if isinstance(a, ndarray) else a for a in arrays_and_dtypes))


def isdtype(dtype: Any, kind: Any) -> bool:
    return np.isdtype(dtype, kind)


class RawKernel:
    """A kernel of a `RawModule`, run by the emulation. After each run it checks the guards of its arrays."""

    order = ASCENDING
    """The order in which the threads of all kernels run. A kernel must give the same result in each."""

    def __init__(self, module: EmulatedModule, name: str) -> None:
        self._module, self.name = module, name

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *, shared_mem: int = 0):
        ACTIVITY.launch(self.name)
        arrays = [arg for arg in args if isinstance(arg, ndarray)]
        for array in arrays:
            if array._host.ctypes.data % array.itemsize:
                raise DeviceError(f"{self.name}: misaligned address of an array of {array.dtype}")
        values = [arg._host.ctypes.data if isinstance(arg, ndarray) else arg for arg in args]
        self._module.launch(self.name, grid, block, values, shared_mem, RawKernel.order)
        for argument in arrays:
            if argument._allocation is not None:
                argument._allocation.check(self.name)


class RawModule:
    """`cupy.RawModule`, compiled for the CPU."""

    def __init__(self, code: Any = None, *, path: Any = None, options: tuple[str, ...] = (), backend: str = "nvrtc"):
        self._module = EmulatedModule(code, options)

    def get_function(self, name: str) -> RawKernel:
        self._module.parameters(name)  # raises if there is none
        return RawKernel(self._module, name)
