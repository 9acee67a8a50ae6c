"""The backends that tests run on, chosen with `--device`, and the warnings that they must not give.

`pytest --device cpu` (the default) runs the whole matrix of tests/support/backends_under_test.py but CuPy;
`pytest --device cuda` runs the same tests on CuPy, and stops at once where there is no GPU;
`pytest --device cuda-emulated` runs them on an emulated CuPy that needs no GPU (see docs/cuda.md).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from backends import Backend, BackendError, get_backend
from tests.support import backends_under_test
from tests.support.emulated_cuda import modules as emulated_cuda
from tests.support.emulated_cuda.run import python_path


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-numba", action="store_true", help="test as on a machine that has no Numba")
    parser.addoption("--device", default="cpu", help="cpu (default), cuda, cuda:N or cuda-emulated: where to compute")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda-emulated":
        emulated_cuda.install()
        os.environ["PYTHONPATH"] = python_path()  # for the processes that tests start
        config.option.device = "cuda"  # from here on it is in CuPy's place, and says "EMULATED" of itself
    if config.getoption("--without-numba"):
        sys.modules["numba"] = None  # type: ignore[assignment] # "not there", for every import from now on
    device = config.getoption("--device")
    try:
        get_backend(device)
    except (BackendError, ValueError) as error:
        raise pytest.UsageError(f"--device {device}: {error}") from error


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Tests of the compiled kernels themselves need what compiles them."""
    is_of_numba = collection_path.name == "kernels"
    return True if is_of_numba and config.getoption("--without-numba") else None


def pytest_report_header(config: pytest.Config) -> str:
    return f"device: {get_backend(config.getoption('--device')).description()}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `backend` on all of the matrix, `float64_backend` where the device has float64."""
    device = metafunc.config.getoption("--device")
    for fixture in ("backend", "float64_backend"):
        if fixture in metafunc.fixturenames:
            names = backends_under_test.names(device)
            if fixture == "float64_backend":
                names = [name for name in names if not name.endswith(":no_float64")]
            metafunc.parametrize(fixture, names, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """What `--device` says, for tests that go through names."""
    return str(request.config.getoption("--device"))


@pytest.fixture
def backend(request: pytest.FixtureRequest, device: str) -> Backend:
    """Every backend of the matrix, one after the other."""
    return backends_under_test.make(request.param, device)


@pytest.fixture
def float64_backend(request: pytest.FixtureRequest, device: str) -> Backend:
    """Every backend of the matrix whose device has float64."""
    return backends_under_test.make(request.param, device)
