"""Numba's kernels refuse more than the twins of every device do (for those, see tests/backends/test_guards.py).

The host reads the values of ids, labels and places before a compiled kernel looks anything up by them, and the products
by address have checks of their own.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from backends import get_backend
from backends.cpu.backend import NumpyBackend
from backends.cpu.kernels import TWINS
from backends.cpu.kernels.blas import multiply
from minibert.kernels import Kernels
from minibert.ops import AttentionLayout, Dropout
from minibert.rows import Rows
from tests.support.misfits import Call, GuardedNumpyBackend, recorded_calls

BACKEND = get_backend("cpu")
KERNELS = Kernels(BACKEND)
IDS = np.array([0, 3, 1], dtype=np.int32)


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
def test_a_product_of_matrices_that_do_not_match_is_refused(x, weight, bias, error, message):
    with pytest.raises(error, match=message):
        multiply(BACKEND, x, weight, ones(6, 4), transpose_b=True, bias=bias)


def test_a_product_is_only_written_to_a_contiguous_matrix_of_its_shape():
    wide = ones(6, 8)
    with pytest.raises(ValueError, match="must be contiguous"):
        multiply(BACKEND, ones(6, 4), ones(4, 3), wide[:, :3], accumulate=True)
    assert (wide == 1).all()
    with pytest.raises(ValueError, match="do not fit"):
        multiply(BACKEND, ones(6, 4), ones(4, 3), ones(5, 3), accumulate=True)
    with pytest.raises(TypeError, match="float32, float64"):
        multiply(BACKEND, ones(6, 4), ones(6, 3), ones(4, 3, dtype="float64"), transpose_a=True)


def test_a_gradient_is_only_added_to_a_contiguous_array_of_its_shape():
    wide = ones(6, 8)
    with pytest.raises(ValueError, match="add_to must be contiguous"):
        KERNELS.linear_backward_input(ones(6, 4), ones(4, 3), add_to=wide[:, :3])
    assert (wide == 1).all()


@pytest.mark.parametrize(
    ("queries", "keys", "values", "error", "message"),
    [
        (ones(6, 8), ones(6, 8), ones(6, 4), ValueError, r"values has the shape \(6, 4\), but .* ask for \(6, 8\)"),
        (ones(6, 8), ones(6, 6), ones(6, 6), ValueError, r"keys has the shape \(6, 6\), but .* ask for \(6, 8\)"),
        (ones(6, 7), ones(6, 7), ones(6, 7), ValueError, "7 columns cannot be shared by 2 attention heads"),
        (ones(5, 8), ones(6, 8), ones(6, 8), ValueError, "the queries have 5 rows, but the layout has 6"),
        (ones(6, 8), ones(7, 8), ones(7, 8), ValueError, "the keys have 7 rows, but the layout has 6"),
        (ones(6, 8), ones(6, 8, dtype="float64"), ones(6, 8), TypeError, "keys is float64 beside float32"),
    ],
)
def test_an_attention_of_arrays_that_do_not_match_is_refused(queries, keys, values, error, message):
    rows = Rows(2, 3)
    with pytest.raises(error, match=message):
        KERNELS.attention_forward(queries, keys, values, AttentionLayout(rows, rows, None, 2), None)


def test_a_label_without_a_logit_is_refused():
    labels = np.asarray([0, 5], dtype=np.int32)
    for arguments in ((KERNELS.cross_entropy_forward, ()), (KERNELS.cross_entropy_backward, (1.0,))):
        function, rest = arguments
        with pytest.raises(IndexError, match="the label 5 has no logit; there are 5 in each row"):
            function(ones(2, 5), labels, *rest)
        with pytest.raises(ValueError, match=r"labels has the shape \(2,\), but the other arrays ask for \(3,\)"):
            function(ones(3, 9), labels, *rest)


def _attention_call(case: str, operation: str) -> Call:
    (call,) = [call for call in recorded_calls(get_backend("cpu")) if (call.case, call.operation) == (case, operation)]
    return call


_FAR_AWAY = """
import numpy as np
from backends import get_backend
from minibert.kernels import Kernels
backend, table, ids = get_backend("cpu"), np.ones((4, 5), np.float32), np.array([0, {wrong}], np.int32)
for call in (
    lambda: Kernels(backend).embedding_forward((table,), (ids,)),
    lambda: Kernels(backend).embedding_backward(np.ones((2, 5), np.float32), (ids,), (table,)),
):
    try:
        call()
    except IndexError as error:
        print(error)
"""


@pytest.mark.parametrize("wrong", [-(2**31), 2**31 - 1])
def test_an_id_far_outside_its_table_is_an_error_and_not_the_end_of_the_process(wrong: int):
    done = subprocess.run(
        [sys.executable, "-c", _FAR_AWAY.format(wrong=wrong)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"[1] is {wrong}, but the table has 4 rows") == 2


@pytest.mark.parametrize("wrong", [4, 9, -1])
def test_an_id_outside_its_table_is_refused(wrong: int):
    backend = GuardedNumpyBackend()
    table, dy = backend.asarray(np.ones((4, 5), np.float32)), backend.asarray(np.ones((3, 5), np.float32))
    ids = backend.asarray(np.where(IDS == 3, np.int32(wrong), IDS))
    message = rf"\[1\] is {wrong}, but the table has 4 rows, from 0 to 3"
    for call in (
        lambda: TWINS["embedding_forward"](backend, (table, table), (IDS, ids)),
        lambda: TWINS["embedding_backward"](backend, dy, (IDS, ids), (table, table)),
        lambda: backend.scatter_add(table, ids, dy),
    ):
        with pytest.raises(IndexError, match=message):
            call()
    backend.assert_nothing_was_written_beside_an_array()


def test_a_gradient_that_may_not_be_written_to_is_refused():
    """BLAS would write to its address without an error."""
    arguments = _attention_call("attention:plain", "attention_backward").arguments
    arguments[-1].flags.writeable = False
    with pytest.raises(ValueError, match="must be writeable arrays"):
        TWINS["attention_backward"](NumpyBackend(), *arguments)


def test_queries_and_keys_of_different_numbers_of_sequences_are_refused():
    arguments = _attention_call("attention:pruned", "attention_forward").arguments
    layout = arguments[3]
    more = dataclasses.replace(layout, queries=dataclasses.replace(layout.queries, sequences=4))
    with pytest.raises(ValueError, match="the queries have 4 sequences, but the keys have 3"):
        TWINS["attention_forward"](NumpyBackend(), *arguments[:3], more, None)
    for slots in ([0, 1, 3, 2], [0, 1, 2, 9], [-1, 0, 1, 2]):
        places = dataclasses.replace(layout.queries, slot_of_row=np.array(slots, dtype=np.int32))
        with pytest.raises(ValueError, match="slot_of_row of the queries must increase, and lie between 0 and 8"):
            TWINS["attention_forward"](
                NumpyBackend(), *arguments[:3], dataclasses.replace(layout, queries=places), None
            )


def test_row_numbers_that_are_not_uint32_are_refused():
    x, numbers = np.ones((3, 4), np.float32), np.arange(3, dtype=np.int64)
    with pytest.raises(TypeError, match="row_numbers of dropout must be uint32, not int64"):
        TWINS["dropout_forward"](NumpyBackend(), x, Dropout(0.5, (1, 2), numbers))


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
