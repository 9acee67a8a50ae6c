"""A twin computes what its definition computes: the same values, dtype, shape and device, under the same name."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends import Backend
from backends.cpu.backend import NumpyBackend
from minibert import MiniBERT, MiniBERTConfig
from minibert.kernels import Kernels
from minibert.ops import DEFINITIONS
from tests.support import backends_under_test
from tests.support.checking import assert_close
from tests.support.op_cases import CASES, run

ROOT = Path(__file__).parents[2]
SIGNATURES_FILE = Path(__file__).parent / "twin_signatures.py"
SIGNATURES = SIGNATURES_FILE.read_text(encoding="utf-8")


def test_a_twin_has_the_name_and_arguments_of_its_definition(backend: Backend):
    assert set(backend.twins) <= set(DEFINITIONS)
    for name, twin in backend.twins.items():
        assert list(inspect.signature(twin).parameters) == list(inspect.signature(DEFINITIONS[name]).parameters)


def test_the_type_checker_sees_every_twin_beside_its_definition(backend: Backend):
    """`make lint` reads twin_signatures.py; a twin that is missing there would not be checked."""
    for name, twin in backend.twins.items():
        module = {"cuda": "cuda", "kernels": "numba", "cpu": "numpy"}[twin.__module__.split(".")[-2]]
        pattern = rf"Definition\(ops\.{name}\)\.has_twins\([^)]*\b{module}\w*\.{name}\b"
        assert re.search(pattern, SIGNATURES), f"{name} of {backend.name} is not in {SIGNATURES_FILE.name}"


WRONG_SIGNATURES = {
    "one_parameter_less": "backend: Any, x: Any, weight: Any",
    "another_order": "backend: Any, weight: Any, x: Any, bias: Any = None",
    "another_name": "backend: Any, x: Any, weights: Any, bias: Any = None",
    "no_default": "backend: Any, x: Any, weight: Any, bias: Any",
}


def test_a_twin_with_another_signature_fails_the_type_check(tmp_path: Path):
    path = tmp_path / "planted.py"
    functions = {"right": "backend: Any, x: Any, weight: Any, bias: Any = None", **WRONG_SIGNATURES}
    lines = [
        SIGNATURES[: SIGNATURES.index("Definition(ops.")],
        "from typing import Any",
        *(f"def {name}({parameters}) -> Any: return None" for name, parameters in functions.items()),
        *(f"Definition(ops.linear_forward).has_twins({name})" for name in functions),
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    refused = {int(number) for number in re.findall(r"planted.py:(\d+): error: Argument 1", done.stdout)}
    last = len(path.read_text(encoding="utf-8").splitlines())
    assert refused == set(range(last - len(WRONG_SIGNATURES) + 1, last + 1)), done.stdout + done.stderr


def test_every_twin_computes_what_its_definition_computes(backend: Backend):
    """Run all twins of this backend, each in the cases that use it."""
    for case in CASES:
        if set(case.operations) & set(backend.twins):
            for dtype in backends_under_test.float_dtypes(backend):
                expected, expected_gradients = run(case, Kernels(backend, "reference"), backend, dtype)
                y, gradients = run(case, Kernels(backend, "auto"), backend, dtype)
                pairs = {"y": (expected, y)} | {name: (expected_gradients[name], gradients[name]) for name in gradients}
                for name, (wanted, found) in pairs.items():
                    try:
                        assert_close(backend, found, backend.to_numpy(wanted), dtype)
                    except AssertionError as error:
                        raise AssertionError(f"{case.name}, {dtype}, {name}: {error}") from error


@pytest.mark.parametrize("choice", ["reference", "auto"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_an_activation_shows_a_nan(activation: str, choice: str, backend: Backend):
    """Place a NaN among enough numbers for vector instructions. NaN > 0 is false: a ReLU could turn NaN into zero."""
    kernels = Kernels(backend, choice)
    for dtype in backends_under_test.float_dtypes(backend):
        values = np.linspace(-3, 3, 37)[None, :].repeat(2, axis=0)
        values[1, 20] = np.nan
        x, zeros = (backend.asarray(a, dtype=backend.dtype(dtype)) for a in (values, np.zeros(37)))
        dbias = backend.xp.zeros_like(zeros)
        y = getattr(kernels, f"bias_{activation}_forward")(x, zeros)
        dx, y_again = getattr(kernels, f"bias_{activation}_backward")(backend.xp.ones_like(x), x, zeros, dbias)
        for found in (y, y_again):
            np.testing.assert_array_equal(np.isnan(backend.to_numpy(found)), np.isnan(values))
        assert np.isnan(backend.to_numpy(dx)[1, 20]) == (
            activation != "relu"
        )  # whose derivative at NaN is 1, as in PyTorch


@pytest.mark.parametrize("size", [1, 1000, 100_003])
def test_the_adamw_twin_takes_the_same_steps(size: int, backend: Backend):
    """AdamW works in place and has no gradient, so it is not in CASES. The sizes lie around the blocks of the twins."""
    rng = np.random.default_rng(size)
    start = rng.standard_normal((2, size))
    for dtype in backends_under_test.float_dtypes(backend):
        results = []
        for choice in ("reference", "auto"):
            xp, kernels = backend.xp, Kernels(backend, choice)
            target = backend.dtype(dtype)
            parameters = xp.asarray(backend.asarray(start[0], dtype=target), copy=True)
            gradients = backend.asarray(start[1], dtype=target)
            moments = [xp.zeros_like(parameters), xp.zeros_like(parameters)]
            scale = xp.asarray(0.7, dtype=target, device=backend.device)
            for step in (1, 2, 3):
                kernels.adamw_update(parameters, gradients, *moments, scale, 0.01, 0.9, 0.999, 1e-6, 0.1, step)
            results.append((parameters, *moments))
        for expected, actual in zip(*results, strict=True):
            assert_close(backend, actual, backend.to_numpy(expected), dtype)


@pytest.mark.parametrize("size", [0, 1, 1000, 100_003])
def test_the_squared_norm_is_the_sum_of_squares(size: int, backend: Backend):
    host = np.random.default_rng(size).standard_normal(size)
    for dtype in backends_under_test.float_dtypes(backend):
        for choice in ("reference", "auto"):
            x = backend.asarray(host, dtype=backend.dtype(dtype))
            assert_close(backend, Kernels(backend, choice).squared_norm(x), np.square(host).sum(), dtype)


@pytest.mark.parametrize("weight", [1.0, 0.0, 0.3])
@pytest.mark.parametrize("size", [0, 1, (1 << 18) + 3])
def test_add_scaled_adds_the_product_to_every_element(size: int, weight: float, backend: Backend):
    """The largest size is more than one block of the definition, and not a multiple of it."""
    start, values = np.random.default_rng(size).standard_normal((2, size))
    for dtype in backends_under_test.float_dtypes(backend):
        for choice in ("reference", "auto"):
            on_device = [backend.asarray(host, dtype=backend.dtype(dtype)) for host in (start, values)]
            total = backend.xp.asarray(on_device[0], copy=True)
            Kernels(backend, choice).add_scaled(total, on_device[1], weight)
            assert_close(backend, total, start + weight * values, dtype)


class _TwinnedBackend(NumpyBackend):
    """NumPy with the given twins."""

    def __init__(self, twins: Mapping[str, Any]) -> None:
        self.twins = twins


def test_the_model_uses_a_twin_unless_kernels_is_reference():
    calls = []

    def traced(backend: Backend, *arguments: Any) -> Any:
        calls.append(backend)
        return DEFINITIONS["linear_forward"](backend, *arguments)

    backend = _TwinnedBackend({"linear_forward": traced})
    config = MiniBERTConfig.preset("tiny", vocab_size=30)
    model = MiniBERT(config, backend=backend)
    logits, _ = model.forward([[1, 2, 3]])
    assert calls
    assert set(calls) == {backend}
    assert model.kernels.twins == ("linear_forward",)

    calls.clear()
    reference = MiniBERT(config, backend=backend, kernels="reference")
    np.testing.assert_array_equal(reference.forward([[1, 2, 3]])[0], logits)
    assert not calls
    assert reference.kernels.twins == ()


def test_a_wrong_twin_is_noticed():
    def wrong(backend: Backend, x: Any, bias: Any) -> Any:
        return 1.001 * DEFINITIONS["bias_gelu_forward"](backend, x, bias)

    with pytest.raises(AssertionError):
        test_every_twin_computes_what_its_definition_computes(_TwinnedBackend({"bias_gelu_forward": wrong}))


def test_a_twin_without_a_definition_is_refused():
    with pytest.raises(ValueError, match=r"twins of operations that minibert.ops lacks: \['bias_gulu'\]"):
        Kernels(_TwinnedBackend({"bias_gulu": print}))


def test_an_unknown_choice_of_kernels_is_refused():
    with pytest.raises(ValueError, match="kernels must be one of auto, reference, not 'fast'"):
        MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=30), kernels="fast")
