"""It asks CuPy only for what CuPy has: the emulated functions against the real ones, which import without a GPU."""

from __future__ import annotations

import inspect

import cupy
import cupyx
import pytest
from cupyx.scipy import special
from emulated_cuda import functions, modules
from emulated_cuda.array import ndarray
from emulated_cuda.device import Device, MemoryPool

EMULATED = modules.make_cupy()


def parameters(function: object) -> list[tuple[str, object, object]]:
    """Names, kinds and defaults."""
    signature = inspect.signature(function)  # type: ignore[arg-type]
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


@pytest.mark.parametrize("name", modules.FUNCTIONS)
def test_a_function_has_the_parameters_of_the_real_one(name: str):
    assert parameters(getattr(EMULATED["cupy"], name)) == parameters(getattr(cupy, name))


def test_scatter_add_has_the_parameters_of_the_real_one():
    assert parameters(functions.scatter_add) == parameters(cupyx.scatter_add)


@pytest.mark.parametrize("name", functions.UFUNCS)
def test_an_elementwise_function_takes_as_many_operands_as_the_real_one(name: str):
    real, emulated = getattr(cupy, name), functions.UFUNCS[name]
    if isinstance(real, cupy.ufunc):
        assert (real.nin, real.nout) == (emulated.nin, emulated.nout)
    else:
        assert callable(real)


def test_erf_is_where_it_is_looked_for():
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
        (MemoryPool, cupy.cuda.MemoryPool),
        (functions.RawModule, cupy.RawModule),
    ],
    ids=lambda kind: kind.__module__ + "." + kind.__name__,
)
def test_no_method_is_emulated_that_cupy_lacks(emulated: type, real: type):
    allowed = {"changed", "order"}  # of the emulation itself, on no path of Mini-BERT
    invented = [name for name in vars(emulated) if not name.startswith("_") and not hasattr(real, name)]
    assert set(invented) <= allowed


def test_cupy_does_what_the_emulation_relies_on_without_a_device():
    assert cupy.float32 is EMULATED["cupy"].float32
    assert cupy.dtype is EMULATED["cupy"].dtype
    assert "vecdot" not in vars(cupy)
    assert "options" in (cupy.RawModule.__doc__ or "")
