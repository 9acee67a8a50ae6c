"""The doctor passes a healthy device, finds every fault that is planted, and names a remedy."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from backends import get_backend
from backends.cpu.backend import NumpyBackend
from backends.cuda import diagnosis
from minibert.commands import device_checks, doctor
from minibert.ops import DEFINITIONS
from minibert.twin_check import ComparingKernels, compare_twins

ROOT = Path(__file__).parents[2]


def test_the_device_at_hand_is_healthy(device: str, capsys: pytest.CaptureFixture[str]):
    assert doctor.main(["--device", device, "--quick"]) == 0
    output = capsys.readouterr().out
    assert "all checks passed" in output
    assert "FAIL" not in output


def test_every_twin_of_the_device_is_compared(device: str):
    backend = get_backend(device)
    errors = compare_twins(backend)
    assert set(errors) == set(backend.twins)
    assert not any(math.isnan(error) for error in errors.values()), errors


@pytest.mark.parametrize("name", ["bias_gelu_forward", "linear_backward", "attention_backward", "adamw_update"])
def test_a_wrong_twin_fails_the_check(name: str):
    def wrong(backend, *arguments, **named):
        result = DEFINITIONS[name](backend, *arguments, **named)
        array = arguments[-1] if name == "attention_backward" else arguments[0] if result is None else result
        array *= 1.01
        return result

    backend = NumpyBackend()
    backend.twins = {name: wrong}
    with pytest.raises(device_checks.CheckError, match=f"{name} is off by"):
        device_checks.check_twins(backend)


def test_a_wrong_product_in_int8_fails_the_check(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(NumpyBackend, "has_bfloat16", lambda self: False)
    monkeypatch.setattr(NumpyBackend, "has_int8", lambda self: True)
    backend = NumpyBackend()
    backend.twins = {"linear_forward": DEFINITIONS["linear_forward"]}
    found = device_checks.check_precisions(backend)
    assert found == "float32, int8 (the largest difference is 0.0e+00); bfloat16 only by the slow definitions"
    backend.twins = {"linear_forward": lambda backend, x, weight, bias: x @ weight.T + bias}  # not quantised
    with pytest.raises(device_checks.CheckError, match=r"linear_forward is off by .* in int8"):
        device_checks.check_precisions(backend)


def test_a_twin_that_was_never_called_does_not_pass_as_right(monkeypatch: pytest.MonkeyPatch):
    """Its error is NaN, and every comparison with NaN is false."""
    backend = NumpyBackend()
    backend.twins = {"linear_forward": DEFINITIONS["linear_forward"]}
    assert "1 twins" in device_checks.check_twins(backend)
    monkeypatch.setattr("minibert.twin_check._errors_of_a_step", lambda *_: {})
    with pytest.raises(device_checks.CheckError, match="linear_forward is off by nan"):
        device_checks.check_twins(backend)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("wanted", "found", "error"),
    [
        ([1.0, -INF], [1.0, -INF], 0.0),
        ([NAN, 4.0], [NAN, 5.0], 0.25),
        ([INF, INF], [NAN, NAN], INF),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([1.0, 2.0], [NAN, 2.0], INF),
        ([1.0, 2.0], [1.0], INF),
        ([], [], 0.0),
    ],
)
def test_nan_and_infinities_are_compared_apart(wanted: list[float], found: list[float], error: float):
    backend = NumpyBackend()
    definition, twin = np.array(wanted), np.array(found)
    kernels = ComparingKernels(backend)
    assert kernels._difference(definition, twin, 1e-9) == error


def test_a_wrong_gradient_does_not_hide_behind_its_smallness():
    """The gradients of queries and keys are at most 3e-6 here; a floor of 1e-3 would hide an error of 3%."""

    def wrong(backend, *arguments, **named):
        DEFINITIONS["attention_backward"](backend, *arguments, **named)
        for array in arguments:
            if isinstance(array, np.ndarray) and 0.0 < np.abs(array).max() < 5e-6:
                array *= 1.01

    backend = NumpyBackend()
    backend.twins = {"attention_backward": wrong}
    with pytest.raises(device_checks.CheckError, match="attention_backward is off by"):
        device_checks.check_twins(backend)


def test_other_masks_fail_the_check(monkeypatch: pytest.MonkeyPatch):
    backend = NumpyBackend()
    backend.twins = {"dropout_forward": lambda backend, x, dropout: x * (np.arange(x.size).reshape(x.shape) % 9 > 0)}
    with pytest.raises(device_checks.CheckError, match="of 300000 elements differ"):
        device_checks.check_dropout_masks(backend)


def test_another_loss_fails_the_check_and_the_command(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(device_checks, "LOSS_TOLERANCE", -1.0)
    assert doctor.main(["--device", "cpu", "--quick"]) == 1
    output = capsys.readouterr().out
    assert "1 check(s) failed" in output
    assert "please report this table" in output


def test_a_machine_without_cuda_fails_with_a_remedy(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert doctor.main(["--device", "cuda"]) == 1
    assert "pip install '.[cuda12]'" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--alive"]])
def test_a_machine_without_pytorch_fails_with_a_remedy(more: list[str], monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor.main(["--device", "torch", *more]) == 1
    assert "pip install '.[torch]'" in capsys.readouterr().out


def test_an_unknown_device_is_refused_in_one_line(capsys):
    assert doctor.main(["--device", "tpu"]) == 2
    assert "--device must be cpu, cuda or cuda:N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("finding", "remedy"),
    [
        (diagnosis.one_cupy(["cupy-cuda12x 14.2.0", "cupy-cuda13x 14.2.0"]), "pip uninstall"),
        (diagnosis.driver_fits(12080, 13000), r"pip uninstall cupy-cuda13x, then pip install .*\.\[cuda12\]"),
        (diagnosis.driver_fits(11080, 12090), "^update the driver to one that serves CUDA 12$"),
        (diagnosis.capability_suffices("Quadro P4000", (6, 1), 12090), "Volta"),
        (diagnosis.capability_suffices("Tesla V100", (7, 0), 13000), r"uninstall cupy-cuda13x.*\.\[cuda12\]"),
        (diagnosis.memory_suffices(100 << 20, 16 << 30), "nvidia-smi"),
    ],
    ids=["two CuPys", "old driver", "driver before all extras", "old GPU", "GPU that CUDA 13 gave up", "no memory"],
)
def test_each_illness_has_its_remedy(finding: diagnosis.Finding, remedy: str):
    assert not finding.passed
    assert re.search(remedy, finding.remedy)


def test_a_newer_driver_and_a_single_cupy_are_healthy():
    assert diagnosis.driver_fits(13000, 12090).passed
    assert diagnosis.one_cupy(["cupy-cuda12x 14.2.0"]).passed
    assert diagnosis.capability_suffices("Tesla V100", (7, 0), 12090).passed
    assert diagnosis.capability_suffices("RTX 2080", (7, 5), 13000).passed


def test_headers_that_are_missing_are_named():
    class Broken:
        float16 = np.float16

        def ones(self, shape, dtype):
            raise RuntimeError('catastrophic error: cannot open source file "cuda_fp16.h"')

    finding = diagnosis.headers_are_found(Broken(), 12090)
    assert not finding.passed
    assert "cuda_fp16.h" in finding.detail
    assert "CUDA_PATH" in finding.remedy
    assert diagnosis.headers_are_found(np, 12090).passed


def test_a_missing_folder_of_headers_is_not_taken_for_a_missing_compiler():
    """CuPy compiles nothing without CUDA's headers, not even a source that includes none."""
    message = "Failed to auto-detect CUDA root directory. Please specify `CUDA_PATH` environment variable"

    class WithoutHeaders:
        def function(self, name, dtype):
            raise RuntimeError(message)

    finding = diagnosis.kernels_compile(WithoutHeaders(), 12090)
    assert not finding.passed
    assert "CUDA root directory" in finding.detail
    assert "headers" in finding.remedy
    assert "unset CUDA_PATH" in finding.remedy


def test_the_absence_of_cupy_is_left_to_a_later_check():
    finding = diagnosis.one_cupy([])
    assert (finding.passed, finding.name) == (
        True,
        "no two CuPys are installed",
    )  # a later check finds out if there is one


@pytest.mark.parametrize(
    ("runtime", "remedy"),
    [
        (12090, "pip install -e '.[cuda12]'"),
        (13000, "pip install -e '.[cuda13]'"),
        (11080, "pip uninstall cupy-cuda11x, then pip install -e '.[cuda12]'"),
        (14000, "pip uninstall cupy-cuda14x, then pip install -e '.[cuda13]'"),
    ],
)
def test_a_remedy_never_installs_a_second_cupy(runtime: int, remedy: str):
    """The remedy names the extra of the installed CuPy, or uninstalls that CuPy first."""
    findings = diagnosis.kernels_compile(None, runtime), diagnosis.headers_are_found(None, runtime)
    for finding in findings:
        assert not finding.passed
        assert re.search(r"pip (un)?install.*?'\.\[cuda\d\d\]'", finding.remedy)[0] == remedy


def test_every_extra_that_a_remedy_may_name_exists_and_brings_nvidias_compiler():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for major in diagnosis.EXTRAS:
        (wheel,) = project["optional-dependencies"][f"cuda{major}"]
        name, oldest = wheel.split(">=")
        assert name == f"cupy-cuda{major}x[ctk]"
        assert int(oldest.split(".")[0]) >= 14  # earlier versions lack this extra, and pip only warns about that


class RuntimeOnly:
    """A CuPy that answers questions about the driver and the GPUs; everything that takes memory raises."""

    CUDARuntimeError = type("CUDARuntimeError", (RuntimeError,), {})

    def __init__(self, *, lost: bool = False) -> None:
        self.__version__, self.cuda, self.runtime, self.lost = "14.2.0", self, self, lost

    def driverGetVersion(self):  # noqa: N802
        return 12090

    def getDevice(self):  # noqa: N802
        return 0

    def getDeviceCount(self):  # noqa: N802
        return 2

    def getDeviceProperties(self, index):  # noqa: N802
        if self.lost:
            raise self.CUDARuntimeError("cudaErrorDeviceUninitialized")
        return {"name": f"GPU {index}".encode()}


@pytest.mark.parametrize(("device", "found"), [("cuda", "GPU 0 (cuda:0)"), ("cuda:1", "GPU 1 (cuda:1)")])
def test_asking_if_a_gpu_is_alive_takes_no_memory(device: str, found: str, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", RuntimeOnly())
    assert doctor.main(["--device", device, "--alive"]) == 0
    assert found in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cupy", "device", "remedy"),
    [
        (None, "cuda", "CuPy cannot be imported"),
        (RuntimeOnly(), "cuda:2", "numbered from 0 to 1"),
        (RuntimeOnly(lost=True), "cuda", "dmesg"),
    ],
    ids=["no CuPy", "no such GPU", "lost GPU"],
)
def test_a_gpu_that_does_not_answer_is_not_alive(cupy, device: str, remedy: str, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert doctor.main(["--device", device, "--alive"]) == 1
    assert remedy in capsys.readouterr().out


def test_the_device_at_hand_is_alive_and_an_unknown_one_refused(device: str, capsys):
    assert doctor.main(["--device", device, "--alive"]) == 0
    assert doctor.main(["--device", "cuda:x", "--alive"]) == 2
    assert "--device must be cpu, cuda or cuda:N" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["doctor.py", "verify_gpu.py"])
def test_outside_an_environment_a_script_says_what_to_install(script: str):
    command = [
        sys.executable,
        "-I",
        "-S",
        str(ROOT / "scripts" / script),
    ]  # -S: without the packages that pip installed
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: No module named ")
    assert "pip install -e ." in line


def test_a_compiler_that_fails_is_named():
    class Broken:
        def function(self, name, dtype):
            raise RuntimeError("libnvrtc.so.12 was not found")

    finding = diagnosis.kernels_compile(Broken(), 12090)
    assert not finding.passed
    assert "libnvrtc" in finding.detail
