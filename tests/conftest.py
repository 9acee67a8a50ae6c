"""Options and fixtures of pytest: where the tests compute, and whether Numba is there.

pytest --device cpu             the default: NumPy and array_api_strict (tests/support/backends_under_test.py)
pytest --device cuda            the same tests on CuPy; stops at once if there is no GPU
pytest --device cuda-emulated   the same tests on an emulated CuPy, which needs no GPU (docs/cuda.md)
pytest --device torch           the same tests on PyTorch's arrays
pytest --without-numba          the tests as on a machine that has no Numba
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from backends import Backend, BackendError, get_backend
from tests.support import backends_under_test
from tests.support.emulated_cuda import modules as emulated_cuda
from tests.support.emulated_cuda.run import python_path

NUMBA_TESTS = Path(__file__).parent / "backends" / "cpu" / "kernels"
"""The tests of the kernels that Numba compiles. They import Numba, so `--without-numba` leaves the folder out."""

TORCH_TESTS = Path(__file__).parent / "backends" / "torch"
"""The tests that import PyTorch. They run wherever it is installed."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--without-numba", action="store_true", help="test as on a machine that has no Numba")
    parser.addoption(
        "--device", default="cpu", help="cpu (default), cuda, cuda:N, cuda-emulated or torch: where to compute"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cuda-emulated":
        emulated_cuda.install()
        os.environ["PYTHONPATH"] = python_path()  # so that processes which tests start get the emulated CuPy, too
        config.option.device = "cuda"  # the emulated CuPy takes CuPy's place; its descriptions say "EMULATED"
    if config.getoption("--without-numba"):
        sys.modules["numba"] = None  # type: ignore[assignment] # every later import of Numba fails
    device = config.getoption("--device")
    try:
        get_backend(device)
    except (BackendError, ValueError) as error:
        raise pytest.UsageError(f"--device {device}: {error}") from error


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out NUMBA_TESTS under `--without-numba`, and TORCH_TESTS where PyTorch is not installed."""
    if collection_path == NUMBA_TESTS and config.getoption("--without-numba"):
        return True
    return True if collection_path == TORCH_TESTS and importlib.util.find_spec("torch") is None else None


def pytest_report_header(config: pytest.Config) -> list[str]:
    backend = get_backend(config.getoption("--device"))
    lines = [f"device: {backend.description()}"]
    for precision, fast in (("bfloat16", backend.has_bfloat16()), ("int8", backend.has_int8())):
        how = "by the processor's instructions" if fast else "by the definitions, without instructions"
        lines.append(f"{precision} products: computed {how}")
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `backend` once for every backend under test.

    A test that takes `float64_backend` runs only on those whose device has float64.
    """
    device = metafunc.config.getoption("--device")
    for fixture in ("backend", "float64_backend"):
        if fixture in metafunc.fixturenames:
            names = backends_under_test.names(device)
            if fixture == "float64_backend":
                names = [name for name in names if not name.endswith(":no_float64")]
            metafunc.parametrize(fixture, names, indirect=True)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """The value of `--device`, for tests that need the name of the device."""
    return str(request.config.getoption("--device"))


@pytest.fixture
def backend(request: pytest.FixtureRequest, device: str) -> Backend:
    """Each backend under test, one after the other."""
    return backends_under_test.make(request.param, device)


@pytest.fixture
def float64_backend(request: pytest.FixtureRequest, device: str) -> Backend:
    """Each backend under test whose device has float64, one after the other."""
    return backends_under_test.make(request.param, device)
