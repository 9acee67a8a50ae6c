"""Fixtures of the tests that need the emulated device: they run with `--device cuda-emulated` only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from backends import Backend, get_backend
from tests.support.emulated_cuda import cublas, modules
from tests.support.emulated_cuda.device import ACTIVITY, Device
from tests.support.emulated_cuda.functions import RawKernel


@pytest.fixture(autouse=True)
def _emulated() -> None:
    assert modules.installed(), "run these tests with --device cuda-emulated"


@pytest.fixture
def cuda() -> Backend:
    """Return the backend of the emulated device, with all counts at zero."""
    backend = get_backend("cuda")
    ACTIVITY.reset()
    return backend


@pytest.fixture
def use_tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that sets CUPY_TF32 for new backends. After the test the device computes as before."""
    handle = Device(0).cublas_handle
    before = cublas.getMathMode(handle)
    yield lambda value: monkeypatch.setenv("CUPY_TF32", value)
    cublas.setMathMode(handle, before)


@pytest.fixture
def thread_order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Set the order in which the threads of a block run."""
    monkeypatch.setattr(RawKernel, "order", request.param)
    return int(request.param)
