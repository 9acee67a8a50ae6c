"""The doctor finds a healthy device healthy, finds each illness, and names a remedy."""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import pytest

from backends import cuda_diagnosis, get_backend
from backends.numpy_backend import NumpyBackend
from minibert.ops import DEFINITIONS
from minibert.training import doctor
from minibert.training.comparison import ComparingKernels, compare_twins


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
    with pytest.raises(doctor.CheckError, match=f"{name} is off by"):
        doctor.twins(backend)


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
    """Those of queries and keys are at most 3e-6 here; a floor of 1e-3 let them be wrong by 3%."""

    def wrong(backend, *arguments, **named):
        DEFINITIONS["attention_backward"](backend, *arguments, **named)
        for array in arguments:
            if isinstance(array, np.ndarray) and 0.0 < np.abs(array).max() < 5e-6:
                array *= 1.01

    backend = NumpyBackend()
    backend.twins = {"attention_backward": wrong}
    with pytest.raises(doctor.CheckError, match="attention_backward is off by"):
        doctor.twins(backend)


def test_other_masks_fail_the_check(monkeypatch: pytest.MonkeyPatch):
    backend = NumpyBackend()
    backend.twins = {"dropout_forward": lambda backend, x, dropout: x * (np.arange(x.size).reshape(x.shape) % 9 > 0)}
    with pytest.raises(doctor.CheckError, match="of 300000 elements differ"):
        doctor.masks(backend)


def test_another_loss_fails_the_check_and_the_command(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(doctor, "LOSS_TOLERANCE", -1.0)
    assert doctor.main(["--device", "cpu", "--quick"]) == 1
    output = capsys.readouterr().out
    assert "1 check(s) failed" in output
    assert "please report this table" in output


def test_a_machine_without_cuda_fails_with_a_remedy(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert doctor.main(["--device", "cuda"]) == 1
    assert "pip install '.[cuda12]'" in capsys.readouterr().out


def test_an_unknown_device_is_refused_in_one_line(capsys):
    with pytest.raises(SystemExit):
        doctor.main(["--device", "tpu"])
    assert "use 'cpu', 'cuda' or 'cuda:N'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("finding", "remedy"),
    [
        (cuda_diagnosis.one_cupy(["cupy-cuda12x 14.2.0", "cupy-cuda13x 14.2.0"]), "pip uninstall"),
        (cuda_diagnosis.driver_fits(12080, 13000), r"\.\[cuda12\]"),
        (cuda_diagnosis.capability_suffices("Quadro P4000", (6, 1), 12090), "Volta"),
        (cuda_diagnosis.capability_suffices("Tesla V100", (7, 0), 13000), r"\.\[cuda12\]"),
        (cuda_diagnosis.memory_suffices(100 << 20, 16 << 30), "nvidia-smi"),
    ],
    ids=["two CuPys", "old driver", "old GPU", "GPU that CUDA 13 gave up", "no memory"],
)
def test_each_illness_has_its_remedy(finding: cuda_diagnosis.Finding, remedy: str):
    assert not finding.passed
    assert re.search(remedy, finding.remedy)


def test_a_newer_driver_and_a_single_cupy_are_healthy():
    assert cuda_diagnosis.driver_fits(13000, 12090).passed
    assert cuda_diagnosis.one_cupy(["cupy-cuda12x 14.2.0"]).passed
    assert cuda_diagnosis.capability_suffices("Tesla V100", (7, 0), 12090).passed
    assert cuda_diagnosis.capability_suffices("RTX 2080", (7, 5), 13000).passed


def test_headers_that_are_missing_are_named():
    class Broken:
        float16 = np.float16

        def ones(self, shape, dtype):
            raise RuntimeError('catastrophic error: cannot open source file "cuda_fp16.h"')

    finding = cuda_diagnosis.headers_are_found(Broken())
    assert not finding.passed
    assert "cuda_fp16.h" in finding.detail
    assert "CUDA_PATH" in finding.remedy
    assert cuda_diagnosis.headers_are_found(np).passed


def test_a_compiler_that_fails_is_named():
    class Broken:
        def function(self, name, dtype):
            raise RuntimeError("libnvrtc.so.12 was not found")

    finding = cuda_diagnosis.kernels_compile(Broken())
    assert not finding.passed
    assert "libnvrtc" in finding.detail
