"""Assemble the emulated functions as the modules `cupy` and `cupyx`, and install these in place of CuPy."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.support.emulated_cuda import cublas, device, functions
from tests.support.emulated_cuda.array import ndarray
from tests.support.emulated_cuda.functions import words

FUNCTIONS = words(
    "array asarray ascontiguousarray empty empty_like full full_like zeros zeros_like ones ones_like arange reshape "
    "moveaxis swapaxes transpose expand_dims broadcast_to broadcast_arrays concatenate stack take take_along_axis "
    "where nonzero argsort sort searchsorted unique clip round sum mean max min all any argmax matmul asnumpy "
    "get_default_memory_pool result_type isdtype dot"
)
"""The functions that are emulated. tests/cuda_build compares their signatures with the real ones."""

DTYPES = words(
    "bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128 intp dtype "
    "broadcast_shapes integer signedinteger unsignedinteger floating complexfloating number issubdtype finfo iinfo"
)
"""The names that CuPy takes from NumPy."""

NOT_EMULATED = words("eye linspace std var tensordot cumsum cumprod flip meshgrid isin count_nonzero squeeze")
"""Names that array_api_compat binds when it is imported, and that Mini-BERT never calls. Calling them is an error."""

_LINALG = words("lstsq")


def _refusing(name: str) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"cupy.{name} is not emulated: add it to tests/support/emulated_cuda/functions.py")

    function.__name__ = name
    return function


def make_cupy() -> dict[str, ModuleType]:
    """Return the emulated modules by name."""
    cupy = ModuleType("cupy", "CuPy, EMULATED: no GPU, see tests/support/emulated_cuda.")
    cupy.__path__ = []  # a package, so that its parts can be imported
    for name in DTYPES:
        setattr(cupy, name, getattr(np, name))
    for name in FUNCTIONS:
        setattr(cupy, name, getattr(functions, name))
    for name, ufunc in functions.UFUNCS.items():
        setattr(cupy, name, ufunc)
    for name in NOT_EMULATED:
        setattr(cupy, name, _refusing(name))
    for name in ("pi", "e", "inf", "nan", "newaxis"):
        setattr(cupy, name, getattr(np, name))
    cupy.abs, cupy.ndarray, cupy.RawModule, cupy.ufunc = functions.abs, ndarray, functions.RawModule, functions.ufunc
    cupy.__version__ = "14.2.0 (EMULATED)"

    runtime = ModuleType("cupy.cuda.runtime")
    runtime.driverGetVersion = runtime.runtimeGetVersion = lambda: 12090
    runtime.getDeviceCount = lambda: 1
    runtime.getDevice = lambda: 0
    runtime.getDeviceProperties = device.getDeviceProperties
    runtime.CUDARuntimeError = device.CUDARuntimeError
    cuda = ModuleType("cupy.cuda")
    cuda.__path__ = []
    cuda.cublas = ModuleType("cupy_backends.cuda.libs.cublas")
    for name in ("setMathMode", "getMathMode", "CUBLASError", "CUBLAS_DEFAULT_MATH"):
        setattr(cuda.cublas, name, getattr(cublas, name))
    cupy.cublas = ModuleType("cupy.cublas")
    cupy.cublas.gemm, cupy.cublas.dot = cublas.gemm, cublas.dot
    cuda.runtime, cuda.Device, cuda.Stream = runtime, device.Device, device.Stream
    cuda.Event, cuda.get_elapsed_time = device.Event, device.get_elapsed_time
    cupy.cuda = cuda
    of_device = ModuleType("cupy.cuda.device")
    of_device.Device = device.Device
    linalg, fft = ModuleType("cupy.linalg"), ModuleType("cupy.fft")
    for name in _LINALG:
        setattr(linalg, name, _refusing(f"linalg.{name}"))
    for name in words("fft ifft fftn ifftn rfft irfft rfftn irfftn hfft ihfft fftfreq rfftfreq fftshift ifftshift"):
        setattr(fft, name, _refusing(f"fft.{name}"))
    cupy.linalg, cupy.fft = linalg, fft

    cupyx, scipy = ModuleType("cupyx"), ModuleType("cupyx.scipy")
    cupyx.__path__, scipy.__path__ = [], []
    special = ModuleType("cupyx.scipy.special")
    special.erf = functions.erf
    cupyx.scipy, scipy.special = scipy, special
    modules = (cupy, cuda, cuda.cublas, cupy.cublas, runtime, of_device, linalg, fft, cupyx, scipy, special)
    return {module.__name__: module for module in modules}


def installed() -> bool:
    """True if `import cupy` gives the emulated CuPy."""
    return "EMULATED" in str(getattr(sys.modules.get("cupy"), "__version__", ""))


def install() -> SimpleNamespace:
    """Make `import cupy` give the emulated CuPy for the rest of this process.

    Raises:
        RuntimeError: the real CuPy is already imported.
    """
    if "cupy" in sys.modules and not installed():
        raise RuntimeError("the real CuPy is already imported; the emulated one cannot take its place")
    modules = make_cupy()
    sys.modules.update(modules)
    return SimpleNamespace(**{name.replace(".", "_"): module for name, module in modules.items()})
