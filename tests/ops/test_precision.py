"""Rounding to bfloat16 gives the bits of round-to-nearest-even, and products round their operands and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from backends import Backend, get_backend
from backends.cpu.backend import NumpyBackend
from minibert.kernels import Kernels
from minibert.ops import LINEAR, PRODUCTS, AttentionLayout, Dropout, round_to_bfloat16
from minibert.random_bits import Stream, derive_key
from minibert.rows import Rows
from tests.support import backends_under_test
from tests.support.checking import assert_close
from tests.support.op_cases import CASES, Case, run

SMALLEST_NORMAL = float(np.finfo(np.float32).smallest_normal)
LARGEST = (2 - 2**-7) * 2.0**127  # of bfloat16
HALFWAY_TO_OVERFLOW = (2 - 2**-8) * 2.0**127  # a tie between the largest bfloat16 and 2**128, which has the even bits


def rounded_bits(x: np.ndarray) -> np.ndarray:
    """Round float32 numbers to bfloat16 by arithmetic on their bits; NaN stays NaN."""
    bits = x.view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return np.where(np.isnan(x), x, bits.astype(np.uint32).view(np.float32))


def numbers_of_every_kind() -> np.ndarray:
    """Return normal numbers with every exponent, ties and their neighbours, infinities, zeros and NaN."""
    rng = np.random.default_rng(0)
    any_bits = rng.integers(0, 2**32, 50_000, dtype=np.uint32)
    upper = rng.integers(0, 2**16, 20_000, dtype=np.uint32) << 16
    near_ties = np.concatenate([upper | low for low in (0x7FFF, 0x8000, 0x8001, 0x0000, 0x0001, 0xFFFF)])
    near_the_largest = np.arange(0x7F7F0000, 0x7F800000, 7, dtype=np.uint32)
    bits = np.concatenate([any_bits, near_ties, near_the_largest, near_the_largest | 0x80000000]).astype(np.uint32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, SMALLEST_NORMAL, LARGEST], dtype=np.float32)
    numbers = np.concatenate([bits.view(np.float32), special])
    subnormal = (np.abs(numbers) < SMALLEST_NORMAL) & (numbers != 0)
    signalling = np.isnan(numbers)  # one quiet NaN takes the place of all others, which are not to be computed with
    return np.where(signalling, np.float32(np.nan), numbers)[~subnormal]


def test_rounding_equals_arithmetic_on_the_bits(backend: Backend):
    x = numbers_of_every_kind()
    rounded = round_to_bfloat16(backend.asarray(x, dtype=backend.dtype("float32")))
    assert rounded.dtype == backend.dtype("float32")
    found, expected = np.asarray(backend.to_numpy(rounded)), rounded_bits(x)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), nan)
    np.testing.assert_array_equal(found[~nan].view(np.uint32), expected[~nan].view(np.uint32))


def test_every_significand_is_rounded_to_nearest_even():
    x = (np.arange(2**23, dtype=np.uint32) | np.uint32(0x3F800000)).view(np.float32)
    np.testing.assert_array_equal(round_to_bfloat16(x), rounded_bits(x))
    np.testing.assert_array_equal(round_to_bfloat16(-x), -rounded_bits(x))


def test_float64_numbers_are_rounded_once(float64_backend: Backend):
    """Rounding to float32 first would move a number just beside a tie onto the tie."""
    x = numbers_of_every_kind().astype(np.float64)
    tie = 1.0 + 2.0**-8
    beside = [tie, tie - 2.0**-50, tie + 2.0**-50, -tie - 2.0**-50]
    largest = [HALFWAY_TO_OVERFLOW, np.nextafter(HALFWAY_TO_OVERFLOW, 0.0), 1e300, -1e300, np.finfo(np.float64).max]
    x = np.concatenate([x, beside, largest])
    ends = [1.0, 1.0, 1.0 + 2.0**-7, -1.0 - 2.0**-7, np.inf, LARGEST, np.inf, -np.inf, np.inf]
    expected = np.concatenate([rounded_bits(numbers_of_every_kind()).astype(np.float64), ends])
    backend = float64_backend
    found = backend.to_numpy(round_to_bfloat16(backend.asarray(x, dtype=backend.dtype("float64"))))
    np.testing.assert_array_equal(found, expected)


def test_subnormal_numbers_keep_eight_bits_of_their_own():
    x = np.arange(1, 2**16, dtype=np.uint32).view(np.float32)
    rounded = round_to_bfloat16(x).astype(np.float64)
    assert (np.abs(rounded - x) <= 2.0**-8 * x.astype(np.float64)).all()
    np.testing.assert_array_equal(rounded[:255], x[:255])


def test_the_input_is_not_changed_and_may_be_empty(backend: Backend):
    host = np.array([[1.001, 3e38], [-np.inf, 1e-3]], dtype=np.float32)
    x = backend.asarray(host.copy(), dtype=backend.dtype("float32"))
    round_to_bfloat16(x)
    np.testing.assert_array_equal(backend.to_numpy(x), host)
    assert round_to_bfloat16(x[:0, :]).shape == (0, 2)


# --- the operations -------------------------------------------------------------------------------------------


def _linear_arrays(backend: Backend, dtype: str) -> list:
    rng = np.random.default_rng(3)
    shapes = ((37, 21), (37, 19), (21, 19), (21,), (37, 19))  # dy, x, weight, bias, add_to
    hosts = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]  # exact in both dtypes
    return [backend.xp.asarray(backend.asarray(host, dtype=backend.dtype(dtype)), copy=True) for host in hosts]


def _linear_results(backend: Backend, kernels: Kernels, dtype: str) -> dict:
    dy, x, weight, bias, add_to = _linear_arrays(backend, dtype)
    dweight, dbias = backend.xp.zeros_like(weight), backend.xp.zeros_like(bias)
    y = kernels.linear_forward(x, weight, bias)
    dx = kernels.linear_backward(dy, x, weight, dweight, dbias, add_to)
    return {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}


def _expected_linear_results() -> dict[str, np.ndarray]:
    """The same in float64 arithmetic, on operands that were rounded by their bits."""
    dy, x, weight, bias, add_to = _linear_arrays(get_backend("cpu"), "float32")
    rounded = [rounded_bits(a).astype(np.float64) for a in (dy, x, weight)]
    return {
        "y": rounded[1] @ rounded[2].T + bias,
        "dx": add_to + rounded[0] @ rounded[2],
        "dweight": rounded[0].T @ rounded[1],
        "dbias": dy.sum(axis=0, dtype=np.float64),
    }


@pytest.mark.parametrize("choice", ["reference", "auto"])
def test_linear_layers_multiply_rounded_operands_and_round_nothing_else(choice: str, backend: Backend):
    expected = _expected_linear_results()
    for dtype in backends_under_test.float_dtypes(backend):
        rounding = backend.with_precision("bfloat16", dtype)
        for name, array in _linear_results(rounding, Kernels(rounding, choice), dtype).items():
            assert_close(backend, array, expected[name], dtype)


def test_a_product_without_rounding_is_noticed(backend: Backend):
    y = _linear_results(backend, Kernels(backend, "reference"), "float32")["y"]
    with pytest.raises(AssertionError):
        assert_close(backend, y, _expected_linear_results()["y"], "float32")


ATTENTION = [case for case in CASES if case.name.startswith("attention")]


@pytest.mark.parametrize("choice", ["reference", "auto"])
@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.name)
def test_attention_rounds_once_what_it_multiplies(choice: str, case: Case, backend: Backend):
    """Within one rounding: attention rounds its own weights, and a float32 error can move one of them across a tie."""
    exact = get_backend("cpu").with_precision("bfloat16", "float64")
    rounding = backend.with_precision("bfloat16", "float32")
    expected, actual = (
        run(case, Kernels(exact), exact, "float64"),
        run(case, Kernels(rounding, choice), rounding, "float32"),
    )
    for wanted, found in [(expected[0], actual[0]), *((expected[1][name], actual[1][name]) for name in expected[1])]:
        assert found.dtype == backend.dtype("float32")
        assert np.abs(backend.to_numpy(found) - wanted).max() <= 2.0**-8 * np.abs(wanted).max()


def test_attention_of_many_keys_is_the_attention_of_rounded_operands():
    """Over many numbers the few that cross a tie hardly count: a product without rounding would be ten times as far."""
    rng = np.random.default_rng(5)
    batch, length, attention_heads, width = 2, 300, 2, 64  # several blocks of query rows
    q, k, v, dy = (rng.standard_normal((batch * length, attention_heads * width)).astype(np.float32) for _ in range(4))

    def attention(precision: str, dtype: str, choice: str) -> list[np.ndarray]:
        backend = get_backend("cpu").with_precision(precision, dtype)
        rows = Rows.at(backend, batch, length, np.arange(batch * length))
        layout, kernels = AttentionLayout(rows, rows, None, attention_heads), Kernels(backend, choice)
        inputs = [x.astype(dtype) for x in (q, k, v)]
        dropout = Dropout(0.1, derive_key(0, Stream.DROPOUT, 1), np.arange(batch * length, dtype=np.uint32))
        context, saved = kernels.attention_forward(*inputs, layout, dropout)
        gradients = [np.empty_like(x) for x in inputs]
        kernels.attention_backward(dy.astype(dtype), *inputs, saved, layout, dropout, *gradients)
        return [context, *gradients]

    expected = attention("bfloat16", "float64", "reference")
    found, unrounded = attention("bfloat16", "float32", "auto"), attention("float32", "float32", "auto")
    for wanted, near, far in zip(expected, found, unrounded, strict=True):
        distances = [np.linalg.norm(x - wanted) / np.linalg.norm(wanted) for x in (near, far)]
        assert distances[0] < 2e-4 < 2e-3 < distances[1], distances


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_operations_without_matrix_products_do_not_depend_on_the_precision(precision: str, backend: Backend):
    rounding = backend.with_precision(precision, "float32")
    for case in CASES:
        if not set(case.operations) & set(PRODUCTS):
            expected, actual = (run(case, Kernels(b), b, "float32") for b in (backend, rounding))
            np.testing.assert_array_equal(backend.to_numpy(actual[0]), backend.to_numpy(expected[0]))
            for name, gradient in actual[1].items():
                np.testing.assert_array_equal(backend.to_numpy(gradient), backend.to_numpy(expected[1][name]))


# --- the choice -----------------------------------------------------------------------------------------------


def test_a_backend_in_another_precision_shares_everything_but_the_precision(backend: Backend):
    rounding = backend.with_precision("bfloat16", "float32")
    assert (backend.precision, rounding.precision) == ("float32", "bfloat16")
    assert type(rounding) is type(backend)
    assert (rounding.device, rounding.xp, rounding.name) == (backend.device, backend.xp, backend.name)
    assert backend.with_precision("float32", "float32") is backend
    assert rounding.with_precision("bfloat16", "float32") is rounding
    assert rounding.with_precision("float32", "float32").precision == "float32"
    if isinstance(backend, NumpyBackend):
        assert rounding.pool is backend.pool


def test_auto_is_bfloat16_exactly_where_it_is_fast(backend: Backend):
    fast = backend.has_bfloat16()
    assert backend.with_precision("auto", "float32").precision == ("bfloat16" if fast else "float32")
    assert backend.with_precision("auto", "float64").precision == "float32"
    assert backend.with_precision("auto", "float32").twins_have_precision


def test_twins_that_cannot_round_give_way_to_the_definitions(monkeypatch: pytest.MonkeyPatch):
    backend = NumpyBackend()
    for precision, lacking in (("bfloat16", PRODUCTS), ("int8", LINEAR)):
        in_float64 = Kernels(backend.with_precision(precision, "float64"))
        monkeypatch.setattr(NumpyBackend, f"has_{precision}", lambda self: False)
        slow = Kernels(backend.with_precision(precision, "float32"))
        for kernels in (in_float64, slow):
            assert set(kernels.twins) == set(Kernels(backend).twins) - set(lacking)
    assert backend.with_precision("auto", "float32") is backend


def test_an_unknown_precision_is_refused(backend: Backend):
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, int8, auto, not 'half'"):
        backend.with_precision("half", "float32")
