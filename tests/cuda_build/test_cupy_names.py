"""The emulated CuPy has only names and parameters that the real CuPy has, which can be imported without a GPU."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import cupy
import pytest
from cuda import pathfinder
from cupy import cublas as real_cublas
from cupyx.scipy import special

from backends.cuda import backend as cupy_backend
from tests.support.emulated_cuda import cublas, functions, modules
from tests.support.emulated_cuda.array import ndarray
from tests.support.emulated_cuda.device import Device, Event, MemoryPool

EMULATED = modules.make_cupy()
POSITIONAL = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty)


def parameters(function: object) -> list[tuple[str, object, object]]:
    """Return the name, kind and default of each parameter."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


@pytest.mark.parametrize("name", modules.FUNCTIONS)
def test_a_function_has_the_parameters_of_the_real_one(name: str):
    assert parameters(getattr(EMULATED["cupy"], name)) == parameters(getattr(cupy, name))


def test_add_at_has_the_parameters_of_the_real_one():
    assert (cupy.ufunc.at.__doc__ or "").startswith("ufunc.at(self, a, indices, b=None)")
    assert (
        str(inspect.signature(functions.ufunc.at)) == "(self, a: 'ndarray', indices: 'Any', b: 'Any' = None) -> 'None'"
    )


@pytest.mark.parametrize("name", ["dot", "gemm"])
def test_a_function_of_cublas_has_the_parameters_of_the_real_one(name: str):
    assert parameters(getattr(EMULATED["cupy.cublas"], name)) == parameters(getattr(real_cublas, name))


def test_math_modes_are_set_as_cupy_sets_them():
    assert (cupy.cuda.cublas.setMathMode.__doc__ or "").startswith("setMathMode(intptr_t handle, int mode)")
    assert (cupy.cuda.cublas.getMathMode.__doc__ or "").startswith("getMathMode(intptr_t handle)")
    assert parameters(cublas.setMathMode) == [(name, *POSITIONAL) for name in ("handle", "mode")]
    assert parameters(cublas.getMathMode) == [("handle", *POSITIONAL)]


def test_the_math_mode_of_tf32_is_that_of_nvidias_header():
    """CuPy accepts any number, so a wrong one would give no error."""
    header = Path(pathfinder.find_nvidia_header_directory("cublas") or "") / "cublas_api.h"
    (number,) = re.findall(r"CUBLAS_TF32_TENSOR_OP_MATH\s*=\s*(\d+)", header.read_text(encoding="utf-8"))
    assert int(number) == cupy_backend._CUBLAS_TF32_TENSOR_OP_MATH


@pytest.mark.parametrize("name", functions.UFUNCS)
def test_an_elementwise_function_takes_as_many_operands_as_the_real_one(name: str):
    real, emulated = getattr(cupy, name), functions.UFUNCS[name]
    if isinstance(real, cupy.ufunc):
        assert (real.nin, real.nout) == (emulated.nin, emulated.nout)
    else:
        assert callable(real)


def test_erf_is_where_the_backend_imports_it():
    assert (special.erf.nin, special.erf.nout) == (functions.erf.nin, functions.erf.nout)


@pytest.mark.parametrize("module", EMULATED)
def test_no_name_is_emulated_that_cupy_lacks(module: str):
    real = inspect.importlib.import_module(module)  # type: ignore[attr-defined]
    invented = [name for name in vars(EMULATED[module]) if not name.startswith("__") and not hasattr(real, name)]
    assert invented == []


@pytest.mark.parametrize(
    ("emulated", "real"),
    [
        (ndarray, cupy.ndarray),
        (Device, cupy.cuda.Device),
        (Event, cupy.cuda.Event),
        (MemoryPool, cupy.cuda.MemoryPool),
        (functions.RawModule, cupy.RawModule),
    ],
    ids=lambda kind: kind.__module__ + "." + kind.__name__,
)
def test_no_method_is_emulated_that_cupy_lacks(emulated: type, real: type):
    allowed = {"changed", "order"}  # the emulation itself uses these; Mini-BERT never does
    invented = [name for name in vars(emulated) if not name.startswith("_") and not hasattr(real, name)]
    assert set(invented) <= allowed


def test_cupy_does_what_the_emulation_relies_on_without_a_device():
    assert cupy.float32 is EMULATED["cupy"].float32
    assert cupy.dtype is EMULATED["cupy"].dtype
    assert "vecdot" not in vars(cupy)
    assert "options" in (cupy.RawModule.__doc__ or "")
