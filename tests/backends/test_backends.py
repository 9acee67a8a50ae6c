"""Every backend keeps the promises of `Backend`; and each way in which CUDA can be missing has its own message."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from backends import Backend, BackendError, get_backend
from backends.cpu.backend import NumpyBackend
from backends.cuda.backend import CupyBackend
from backends.torch.backend import TorchBackend, device_of
from minibert.options import DEVICE_NAME
from tests.support import backends_under_test
from tests.support.backends_under_test import segment_sums
from tests.support.checking import assert_close


def test_data_comes_back_from_the_device_unchanged(backend: Backend):
    for values in (np.arange(6, dtype=np.int32).reshape(2, 3), np.array([0.5, -1.0], dtype=np.float32)):
        there = backend.asarray(values)
        back = backend.to_numpy(there)
        assert isinstance(back, np.ndarray)
        assert back.dtype == values.dtype
        np.testing.assert_array_equal(back, values)
        np.testing.assert_array_equal(backend.to_numpy(backend.asarray(there)), values)


def test_lists_become_arrays_of_the_dtype_asked_for(backend: Backend):
    assert_close(backend, backend.asarray([[1, 2], [3, 4]], dtype=backend.xp.float32), [[1, 2], [3, 4]], "float32")


@pytest.mark.parametrize("deterministic", [False, True])
def test_scatter_add_accumulates_duplicates(deterministic: bool, backend: Backend):
    rng = np.random.default_rng(0)
    indices = np.array([4, 1, 4, 4, 0, 1], dtype=np.int32)
    start, rows = rng.standard_normal((6, 3)), rng.standard_normal((6, 3))
    expected = start.copy()
    for index, row in zip(indices, rows, strict=True):
        expected[index] += row
    for dtype in backends_under_test.float_dtypes(backend):
        target = backend.xp.asarray(backend.asarray(start, dtype=backend.dtype(dtype)), copy=True)
        on_device = backend.asarray(indices), backend.asarray(rows, dtype=backend.dtype(dtype))
        backend.scatter_add(target, *on_device, deterministic=deterministic)
        assert_close(backend, target, expected, dtype)


@pytest.mark.parametrize("deterministic", [False, True])
def test_scatter_add_of_no_rows_changes_nothing(deterministic: bool, backend: Backend):
    target = backend.xp.ones((4, 2), dtype=backend.xp.float32, device=backend.device)
    none = backend.asarray(np.zeros(0, dtype=np.int32)), backend.asarray(np.zeros((0, 2), dtype=np.float32))
    backend.scatter_add(target, *none, deterministic=deterministic)
    assert (backend.to_numpy(target) == 1.0).all()


@pytest.mark.parametrize("indices", [[5], [2, 2, 2, 2, 2, 2, 2], [0, 1, 2], [3, 0, 3, 0, 3, 9, 9, 1]])
def test_segment_sums_sum_the_rows_of_each_index(indices: list[int], backend: Backend):
    rows = np.random.default_rng(1).standard_normal((len(indices), 2)).astype(np.float32)
    unique, sums = segment_sums(backend.xp, backend.asarray(np.array(indices, dtype=np.int32)), backend.asarray(rows))
    expected = sorted(set(indices))
    assert backend.to_numpy(unique).tolist() == expected
    assert_close(backend, sums, [rows[np.array(indices) == index].sum(axis=0) for index in expected], "float32")


def test_erf_is_the_error_function(backend: Backend):
    """The expected values are from Abramowitz & Stegun, table 7.1."""
    for dtype in backends_under_test.float_dtypes(backend):
        x = backend.asarray(np.array([0.0, 0.5, -1.0, 2.0, 6.0]), dtype=backend.dtype(dtype))
        expected = [0.0, 0.5204998778130465, -0.8427007929497149, 0.9953222650189527, 1.0]
        assert_close(backend, backend.erf(x), expected, dtype)


def test_memory_and_description_are_given(backend: Backend):
    held = backend.xp.zeros(
        1000, dtype=backend.xp.float32, device=backend.device
    )  # without it, a pool might have nothing in use
    memory = backend.memory()
    assert held.shape == (1000,)
    for figure in (memory.used, memory.peak, memory.total):
        assert figure is None or figure > 0
    assert backend.description()
    backend.synchronize()


@pytest.mark.parametrize("implementation", [NumpyBackend, CupyBackend, TorchBackend])
def test_every_backend_has_the_methods_and_arguments_of_the_interface(implementation: type[Backend]):
    for name in Backend.__abstractmethods__:
        declared, given = (inspect.signature(getattr(owner, name)) for owner in (Backend, implementation))
        assert given.parameters.keys() == declared.parameters.keys(), name
        for parameter, value in declared.parameters.items():
            assert given.parameters[parameter].default == value.default, (name, parameter)
            assert given.parameters[parameter].kind == value.kind, (name, parameter)


def test_a_backend_is_returned_as_it_is_and_unknown_names_are_refused():
    backend = get_backend("cpu")
    assert get_backend(backend) is backend
    for name in ("gpu", "cuda:", "cuda:-1", "CPU"):
        with pytest.raises(ValueError, match="use 'cpu', 'cuda' or 'cuda:N'"):
            get_backend(name)


# --- PyTorch that is not there --------------------------------------------------------------------------------


def test_a_missing_pytorch_has_its_own_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # makes the import fail
    with pytest.raises(BackendError, match=r"PyTorch was asked for, .* pip install '\.\[torch\]'"):
        get_backend("torch")


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("torch", "cpu"),
        ("torch:cpu", "cpu"),
        ("torch:cuda", "cuda"),
        ("torch:cuda:1", "cuda:1"),
        ("torch:mps", "mps"),
        ("torch:xpu", "xpu"),
    ],
)
def test_a_device_of_pytorch_is_named_after_torch(name: str, device: str):
    assert device_of(name) == device
    assert DEVICE_NAME.holds(name)


@pytest.mark.parametrize("name", ["torch:", "torch:tpu", "torch:cuda:", "torch:meta", "torch cuda"])
def test_a_device_that_pytorch_does_not_have_is_refused(name: str):
    assert not DEVICE_NAME.holds(name)
    with pytest.raises(ValueError, match="unknown device"):
        get_backend(name)


# --- CUDA that is not there -----------------------------------------------------------------------------------


class _CUDARuntimeError(RuntimeError):
    """Takes the place of `cupy.cuda.runtime.CUDARuntimeError`."""


def _cupy_without_gpu(driver: int, devices: int | str) -> ModuleType:
    """Return a stand-in for CuPy on a machine with this driver version and number of devices (or error)."""

    def device_count() -> int:
        if isinstance(devices, str):
            raise _CUDARuntimeError(devices)
        return devices

    cupy = ModuleType("cupy")
    cupy.__version__ = "14.0"
    cupy.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            driverGetVersion=lambda: driver,
            runtimeGetVersion=lambda: 12090,
            getDeviceCount=device_count,
            getDevice=lambda: 0,
            CUDARuntimeError=_CUDARuntimeError,
        )
    )
    return cupy


@pytest.mark.parametrize(
    ("cupy", "device", "what", "remedy"),
    [
        (None, "cuda", "CuPy cannot be imported", r"pip install '\.\[cuda12\]'"),
        (_cupy_without_gpu(0, 0), "cuda", "no NVIDIA driver", "docker run --gpus all"),
        (_cupy_without_gpu(12080, 0), "cuda", "no GPU is visible", "Check that nvidia-smi lists one"),
        (_cupy_without_gpu(12080, "cudaErrorNoDevice: no device"), "cuda", "no GPU is visible", "nvidia-smi"),
        (_cupy_without_gpu(11000, "cudaErrorInsufficientDriver"), "cuda", "does not serve it", "update the driver"),
        (_cupy_without_gpu(12080, 2), "cuda:2", r"shows 2 CUDA GPU\(s\)", "CUDA_VISIBLE_DEVICES"),
    ],
    ids=["no CuPy", "no driver", "no GPU", "no GPU by error", "old driver", "no such GPU"],
)
def test_each_way_in_which_cuda_is_missing_has_its_own_remedy(cupy, device, what, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", cupy)  # None makes the import fail
    with pytest.raises(BackendError, match=what) as raised:
        get_backend(device)
    assert raised.match(remedy)


class _WithoutCublas(SimpleNamespace):
    """Takes the place of `cupy.cuda` where CuPy finds no cuBLAS. CuPy looks for it when it is first used."""

    @property
    def cublas(self) -> object:
        raise ImportError('Failure finding "libcublas.so.12"')


@pytest.mark.parametrize("tf32", ["0", "1"])
def test_a_missing_cublas_has_its_own_remedy(tf32: str, monkeypatch: pytest.MonkeyPatch):
    cupy = _cupy_without_gpu(12080, 1)
    cupy.cuda = _WithoutCublas(runtime=cupy.cuda.runtime)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setenv("CUPY_TF32", tf32)
    with pytest.raises(BackendError, match=r"cuBLAS, .*libcublas\.so\.12.* pip install '\.\[cuda12\]'"):
        get_backend("cuda")


@pytest.mark.parametrize("value", ["", "true", "1.0"])
def test_a_value_of_cupy_tf32_that_cupy_cannot_read_is_refused(value: str, monkeypatch: pytest.MonkeyPatch):
    """CuPy would raise a ValueError at the first product, in the middle of a step."""
    cupy = _cupy_without_gpu(12080, 1)
    cupy.cuda.cublas = None
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setenv("CUPY_TF32", value)
    with pytest.raises(BackendError, match=f"CUPY_TF32 is {value!r}, .* Set it to 1"):
        get_backend("cuda")


def test_a_hidden_gpu_is_pointed_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", _cupy_without_gpu(12080, 0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(BackendError, match="CUDA_VISIBLE_DEVICES is '7', which may hide it"):
        get_backend("cuda")
