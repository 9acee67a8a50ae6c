"""Arguments that compiled kernels refuse: kernels read and write by address, so all arrays must fit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from backends import get_backend
from backends.cpu.kernels import TWINS
from minibert.kernels import Kernels
from minibert.ops import AttentionLayout
from minibert.rows import Rows
from tests.support.op_cases import CASES, run

KERNELS = Kernels(get_backend("cpu"))


def ones(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.ones(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "error", "message"),
    [
        (
            ones(6, 3),
            ones(4, 3, dtype="float64"),
            None,
            TypeError,
            "all be float32 or all float64, not float32, float64",
        ),
        (ones(6, 3), ones(4, 3), ones(4, dtype="float64"), TypeError, "not float32, float64"),
        (ones(6, 3, dtype="float16"), ones(4, 3, dtype="float16"), None, TypeError, "not float16"),
        (ones(6, 3), ones(4, 2), None, ValueError, r"\(6, 3\) times \(2, 4\) into \(6, 4\)"),
        (ones(6, 3), ones(4, 3), ones(3), ValueError, r"bias \(3,\)"),
    ],
)
def test_a_product_of_arrays_that_do_not_fit_is_refused(x, weight, bias, error, message):
    with pytest.raises(error, match=message):
        KERNELS.linear_forward(x, weight, bias)


def test_a_gradient_is_only_added_to_a_contiguous_array_of_its_shape():
    wide = ones(6, 8)
    with pytest.raises(ValueError, match="must be contiguous"):
        KERNELS.linear_backward_input(ones(6, 4), ones(4, 3), add_to=wide[:, :3])
    assert (wide == 1).all()
    with pytest.raises(ValueError, match="do not fit"):
        KERNELS.linear_backward_input(ones(6, 4), ones(4, 3), add_to=ones(5, 3))
    with pytest.raises(TypeError, match="float32, float64"):
        KERNELS.linear_backward_weight(ones(6, 4), ones(6, 3), ones(4, 3, dtype="float64"))


@pytest.mark.parametrize(
    ("queries", "keys", "values", "error", "message"),
    [
        (ones(6, 8), ones(6, 8), ones(6, 4), ValueError, "do not fit an attention with 2 attention heads"),
        (ones(6, 8), ones(6, 6), ones(6, 6), ValueError, "do not fit an attention with 2 attention heads"),
        (ones(6, 7), ones(6, 7), ones(6, 7), ValueError, "do not fit an attention with 2 attention heads"),
        (ones(5, 8), ones(6, 8), ones(6, 8), ValueError, "5 rows of queries, but the layout has 6"),
        (ones(6, 8), ones(7, 8), ones(7, 8), ValueError, "7 rows of keys, but the layout has 6"),
        (ones(6, 8), ones(6, 8, dtype="float64"), ones(6, 8), TypeError, "float32, float64"),
    ],
)
def test_an_attention_of_arrays_that_do_not_fit_is_refused(queries, keys, values, error, message):
    rows = Rows(2, 3)
    with pytest.raises(error, match=message):
        KERNELS.attention_forward(queries, keys, values, AttentionLayout(rows, rows, None, 2), None)


def test_a_label_without_a_logit_is_refused():
    labels = np.asarray([0, 5], dtype=np.int32)
    for arguments in ((KERNELS.cross_entropy_forward, ()), (KERNELS.cross_entropy_backward, (1.0,))):
        function, rest = arguments
        with pytest.raises(IndexError, match="the label 5 has no logit: there are 5"):
            function(ones(2, 5), labels, *rest)
        with pytest.raises(ValueError, match=r"need 3 labels, not \(2,\)"):
            function(ones(3, 9), labels, *rest)


def test_every_twin_is_reached_by_a_case():
    """The comparison with the definitions, `tests/ops/test_twins.py`, then leaves no twin out."""
    called: set[str] = set()

    class Tracing(Kernels):
        def bind(self, definition):
            function = super().bind(definition)

            def traced(*arguments, **named):
                called.add(definition.__name__)
                return function(*arguments, **named)

            return traced

    kernels = Tracing(get_backend("cpu"))
    for case in CASES:
        run(case, kernels, get_backend("cpu"), "float64")
    assert set(TWINS) - called == {"adamw_update", "squared_norm"}  # which have their own tests in that file


_NO_CACHE = """
import warnings
from numba.core import caching
caching.CacheImpl._locator_classes = []
from backends import get_backend
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    twins = get_backend("cpu").twins
assert list(twins) == ["adamw_update"], twins
print(*(str(warning.message) for warning in caught))
"""


def test_without_a_place_for_compiled_code_a_warning_says_what_to_do_and_numpy_goes_on():
    done = subprocess.run([sys.executable, "-c", _NO_CACHE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be used (cannot cache function" in done.stdout
    assert "set NUMBA_CACHE_DIR" in done.stdout
