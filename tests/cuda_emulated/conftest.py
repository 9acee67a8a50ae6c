"""These tests are of the emulated device: they run with `--device cuda-emulated` and nothing else."""

from __future__ import annotations

import pytest
from emulated_cuda import modules
from emulated_cuda.device import ACTIVITY
from emulated_cuda.functions import RawKernel

from backends import Backend, get_backend


@pytest.fixture(autouse=True)
def _emulated() -> None:
    assert modules.installed(), "run these tests with --device cuda-emulated"


@pytest.fixture
def cuda() -> Backend:
    """The emulated device, with nothing counted yet."""
    backend = get_backend("cuda")
    ACTIVITY.reset()
    return backend


@pytest.fixture
def thread_order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The order in which the threads of a block run."""
    monkeypatch.setattr(RawKernel, "order", request.param)
    return int(request.param)
