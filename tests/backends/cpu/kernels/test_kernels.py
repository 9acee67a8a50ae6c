"""Properties of the Numba twins beyond their values: accuracy in ulp, bits, blocks, repeatability."""

from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
from numba import njit
from scipy import special

from backends import BackendError, get_backend
from backends.cpu import threads, twins
from backends.cpu.kernels import attention, jit
from backends.cpu.kernels.elementary import (
    exponential,
    gelu,
    gelu_and_derivative,
    gelu_new,
    gelu_new_and_derivative,
    normal_parts,
)
from backends.cpu.kernels.softmax import row_maximum
from minibert import MiniBERT, MiniBERTConfig, MiniBERTGradients
from minibert.commands import embed as embed_command
from minibert.commands import evaluate as evaluate_command
from minibert.commands import fill_mask as fill_mask_command
from minibert.commands import train as train_command
from minibert.kernels import Kernels
from minibert.ops import AttentionLayout, Dropout, dropout_mask, score_bound
from minibert.random_bits import Stream, derive_key
from minibert.rows import Rows
from tests.backends.cpu.test_buffers import Step

BACKEND = get_backend("cpu")
FAST, REFERENCE = Kernels(BACKEND), Kernels(BACKEND, "reference")


def mapped(function: Any) -> Any:
    """Return a compiled function of arrays, made from a compiled function of single elements."""

    @njit
    def over(x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    def call(x: np.ndarray) -> np.ndarray:
        y = np.empty_like(x)
        over(x, y)
        return y

    return call


def ulps(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the error in units in the last place of the expected values."""
    unit = np.spacing(np.abs(expected).astype(actual.dtype)).astype(np.float64)
    return np.abs(actual.astype(np.float64) - expected) / unit


# --- elementary functions --------------------------------------------------------------------------------------


def test_the_exponential_is_off_by_at_most_2_ulp():
    x = np.concatenate([np.linspace(-87.2, 88.7, 1_000_001), np.linspace(-1, 1, 100_001)]).astype(np.float32)
    assert ulps(mapped(njit(lambda x: exponential(x)))(x), np.exp(x.astype(np.float64))).max() <= 2.0


def test_the_exponential_of_special_values():
    x = np.array([0.0, -0.0, -np.inf, -100.0, -3e38, np.inf, 89.0, 3e38, np.nan], dtype=np.float32)
    expected = [1.0, 1.0, 0.0, 0.0, 0.0, np.inf, np.inf, np.inf, np.nan]
    np.testing.assert_array_equal(mapped(njit(lambda x: exponential(x)))(x), np.array(expected, dtype=np.float32))


@njit
def _cdf(u):
    return normal_parts(u)[0]


@njit
def _erf(x):
    return np.float32(2.0) * normal_parts(x * np.float32(1.4142135))[0] - np.float32(1.0)


def test_the_cumulative_normal_is_off_by_at_most_7_ulp_and_its_far_tail_by_20():
    """In the left tail u**2 / 2 is rounded before it is exponentiated: the error grows with u**2."""
    u = np.linspace(-8.0, 8.0, 1_000_001).astype(np.float32)
    error = ulps(mapped(_cdf)(u), special.ndtr(u.astype(np.float64)))
    assert error[u >= 1.0].max() <= 2.0
    assert error[u >= -2.0].max() <= 7.0
    assert error[u >= -4.0].max() <= 10.0
    assert error.max() <= 20.0


def test_the_error_function_behind_it_is_off_by_at_most_4_ulp_of_one():
    x = np.linspace(-6.0, 6.0, 1_000_001).astype(np.float32)
    error = np.abs(mapped(_erf)(x).astype(np.float64) - special.erf(x.astype(np.float64)))
    assert error.max() <= 4 * np.finfo(np.float32).eps


@njit
def gelu_derivative(u):
    return gelu_and_derivative(u)[1]


@njit
def gelu_new_derivative(u):
    return gelu_new_and_derivative(u)[1]


def tanh_argument(u: Any) -> Any:
    return np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)


def exact_gelu_new_derivative(u: Any) -> Any:
    s = special.expit(2 * tanh_argument(u))
    return s + 2 * u * s * special.expit(-2 * tanh_argument(u)) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * u**2)


@pytest.mark.parametrize(
    ("function", "exact"),
    [
        (gelu, lambda u: u * special.ndtr(u)),
        (gelu_derivative, lambda u: special.ndtr(u) + u * np.exp(-u * u / 2) / np.sqrt(2 * np.pi)),
        (gelu_new, lambda u: u * special.expit(2 * tanh_argument(u))),
        (gelu_new_derivative, exact_gelu_new_derivative),
    ],
    ids=["gelu", "derivative of gelu", "gelu_new", "derivative of gelu_new"],
)
def test_gelu_is_as_exact_as_the_dtype(function: Any, exact: Any):
    # u s (1 - s) loses digits where s nears 1
    float64_tolerance = 2e-14 if function is gelu_new_derivative else 1e-15
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, float64_tolerance)):
        u = np.linspace(-12.0, 12.0, 200_001).astype(dtype)
        np.testing.assert_allclose(mapped(function)(u), exact(u.astype(np.float64)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_maximum_of_a_row_is_found_through_its_bits(dtype: Any):
    maximum = njit(lambda x: row_maximum(x))
    rng = np.random.default_rng(0)
    for x in (rng.standard_normal(37), -np.abs(rng.standard_normal(100)), [-0.0, 0.0], [-np.inf], [1.0, np.inf]):
        x = np.array(x, dtype=dtype)
        assert maximum(x) == x.max()
    assert np.isnan(maximum(np.array([1.0, np.nan, np.inf], dtype=dtype)))


# --- random bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dropout_draws_the_masks_of_the_reference_bit_for_bit(dtype: str):
    numbers = np.random.default_rng(1).integers(0, 2**32, 300, dtype=np.uint32)
    dropout = Dropout(0.1, derive_key(5, Stream.DROPOUT, 3, 2, 1), numbers)
    expected = dropout_mask(BACKEND, dropout, 77, np.dtype(dtype))
    ones = np.ones((300, 77), dtype=dtype)
    np.testing.assert_array_equal(FAST.dropout_forward(ones, dropout), expected)
    zeros, bias = np.zeros(77, dtype=dtype), np.ones(77, dtype=dtype)
    _, total, _ = FAST.dropout_add_layer_norm_forward(np.zeros_like(ones), bias, 0 * ones, bias, zeros, 1e-5, dropout)
    np.testing.assert_array_equal(total, expected)


def test_attention_drops_the_weights_that_the_reference_drops():
    """With the unit matrix for values, the context is the weights."""
    length, attention_heads = 16, 3
    rows = Rows(4, length)
    layout = AttentionLayout(rows, rows, None, attention_heads)
    rng = np.random.default_rng(2)
    queries, keys = rng.standard_normal((2, 4 * length, attention_heads * length), dtype=np.float32)
    values = np.tile(np.eye(length, dtype=np.float32), (4, attention_heads))
    dropout = Dropout(0.4, derive_key(1, Stream.DROPOUT, 2), np.arange(2**32 - 64, 2**32, dtype=np.uint32))
    fast, _ = FAST.attention_forward(queries, keys, values, layout, dropout)
    reference, _ = REFERENCE.attention_forward(queries, keys, values, layout, dropout)
    np.testing.assert_array_equal(fast == 0.0, reference == 0.0)
    assert 0.3 < (fast == 0.0).mean() < 0.5


# --- attention in blocks ---------------------------------------------------------------------------------------


def _attend(kernels: Kernels, lengths: list[int], asked: list[int], dtype: str, dropped: bool) -> list[np.ndarray]:
    """Return context and gradients of sequences of these lengths, with the first `asked` positions as queries."""
    attention_heads, width, slots = 3, 21, max(lengths)
    rng = np.random.default_rng(3)
    positions = np.concatenate([b * slots + np.arange(length) for b, length in enumerate(lengths)])
    query_positions = np.concatenate([b * max(asked) + np.arange(number) for b, number in enumerate(asked)])
    keys_at = Rows.at(BACKEND, len(lengths), slots, positions)
    queries_at = Rows.at(BACKEND, len(lengths), max(asked), query_positions)
    real = np.arange(slots) < np.array(lengths)[:, None]
    real[0, 1] = False  # a key that has a row, but is masked
    mask = np.where(real, 0.0, -2.0 * score_bound(np, np.dtype(dtype)))[:, None, None, :].astype(dtype)
    layout = AttentionLayout(queries_at, keys_at, mask, attention_heads)
    packed = rng.standard_normal((len(positions), 2 * width)).astype(dtype)  # strided views, as in the model
    queries = rng.standard_normal((len(query_positions), width)).astype(dtype)
    numbers = np.arange(len(query_positions), dtype=np.uint32)
    dropout = Dropout(0.2, derive_key(1, Stream.DROPOUT, 2), numbers) if dropped else None
    keys, values = packed[:, :width], packed[:, width:]
    context, saved = kernels.attention_forward(queries, keys, values, layout, dropout)
    dcontext = rng.standard_normal(context.shape).astype(dtype)
    dqueries, dpacked = np.full_like(queries, np.nan), np.full_like(packed, np.nan)
    kernels.attention_backward(
        dcontext, queries, keys, values, saved, layout, dropout, dqueries, dpacked[:, :width], dpacked[:, width:]
    )
    return [context, dqueries, dpacked]


@pytest.mark.parametrize("dropped", [True, False])
@pytest.mark.parametrize("block", [1 << 16, 100], ids=["one block", "many blocks"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_attention_in_blocks_over_ragged_sequences(
    dtype: str, block: int, dropped: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "_BLOCK", block)
    lengths, asked = [37, 1, 18, 29], [37, 1, 5, 0]
    for fast, reference in zip(
        _attend(FAST, lengths, asked, dtype, dropped), _attend(REFERENCE, lengths, asked, dtype, dropped), strict=True
    ):
        tolerance = 100 * np.finfo(dtype).eps
        np.testing.assert_allclose(fast, reference, rtol=tolerance, atol=tolerance)


def test_attention_keeps_two_numbers_a_row_and_not_the_weights():
    rows = Rows(1, 512)
    layout = AttentionLayout(rows, rows, None, 2)
    x = np.random.default_rng(4).standard_normal((512, 128), dtype=np.float32)
    _, saved = FAST.attention_forward(x, x, x, layout, None)
    assert saved.size == 2 * 2 * 512
    _, weights = REFERENCE.attention_forward(x, x, x, layout, None)
    assert weights.size == 2 * 512 * 512


def test_attention_refuses_left_out_keys_without_a_mask():
    rows = Rows.at(BACKEND, 2, 3, np.array([0, 1, 3]))
    x = np.ones((3, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="lack the rows of some slots, so the layout needs a mask"):
        FAST.attention_forward(x, x, x, AttentionLayout(rows, rows, None, 1), None)


def test_infinite_and_nan_scores_are_treated_as_in_the_definition():
    rows = Rows(1, 3)
    layout = AttentionLayout(rows, rows, None, 1)
    keys = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=np.float32)
    values = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=np.float32)
    for entry in (np.inf, -np.inf, 3e38, np.nan):
        queries = np.array([[entry, 1.0], [1.0, 2.0], [0.0, 1.0]], dtype=np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            fast, _ = FAST.attention_forward(queries, keys, values, layout, None)
            reference, _ = REFERENCE.attention_forward(queries, keys, values, layout, None)
        np.testing.assert_allclose(fast, reference, rtol=1e-5)


# --- the whole model -------------------------------------------------------------------------------------------

CONFIG = MiniBERTConfig.preset("tiny", vocab_size=500, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
IDS = np.random.default_rng(6).integers(0, 500, (5, 33))


def gradient_bits(kernels: str = "auto", dtype: str = "float32") -> np.ndarray:
    model = MiniBERT(CONFIG, kernels=kernels, dtype=dtype)
    gradients = MiniBERTGradients(model)
    gradients.backward(model.forward(IDS, dropout_step=3)[1], np.where(IDS % 7 == 0, IDS, -100))
    return gradients.gradients.flat


def test_results_are_the_same_bits_from_run_to_run():
    np.testing.assert_array_equal(gradient_bits(), gradient_bits())


def test_the_model_with_twins_has_the_gradients_of_the_model_without():
    fast, reference = gradient_bits(dtype="float64"), gradient_bits("reference", "float64")
    np.testing.assert_allclose(fast, reference, rtol=1e-9, atol=1e-12)


def test_kernels_may_be_called_from_several_python_threads():
    """Numba's "workqueue" layer, the one without TBB, ends the process when two threads enter it at once."""
    expected = gradient_bits()
    results: list[np.ndarray] = []
    workers = [threading.Thread(target=lambda: results.append(gradient_bits())) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)
    assert len(results) == 4


# --- memory ---------------------------------------------------------------------------------------------------


def test_a_warm_training_step_allocates_no_large_array():
    step = Step()
    assert step.model.kernels.twins, "only the fast twins reuse memory"
    for _ in range(3):
        step()
    reserved = step.model.backend.pool.reserved
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    step()
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    hidden_states = int(step.mask.sum()) * step.model.config.hidden_size * 4
    assert peak < hidden_states, "a warm step allocated as much as one array of hidden states"
    assert step.model.backend.pool.reserved == reserved


# --- threads ---------------------------------------------------------------------------------------------------


def test_the_number_of_threads_is_set_for_kernels_and_blas_alike():
    import numba

    before = numba.get_num_threads()
    try:
        threads.set_threads(1)
        assert numba.get_num_threads() == 1
        assert threads.describe_threads().endswith(", 1 thread")
        np.testing.assert_allclose(gradient_bits(), gradient_bits("reference"), rtol=1e-3, atol=1e-6)
    finally:
        threads.set_threads(before)


def test_the_blas_that_kernels_call_has_one_thread():
    gradient_bits()
    held = [library for library in threads._blas_libraries() if threads._is_scipys(library)]
    assert all(library.num_threads == 1 for library in held)


def test_impossible_numbers_of_threads_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        threads.set_threads(0)
    with pytest.raises(ValueError, match="NUMBA_NUM_THREADS to allow more"):
        threads.set_threads(10_000)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pip install '\.\[fast\]'"):
        threads.set_threads(1)


# --- Numba is optional -----------------------------------------------------------------------------------------

_WITHOUT_NUMBA = """
import sys
sys.modules["numba"] = None
import numpy as np
from backends import get_backend
from minibert import MiniBERT, MiniBERTConfig, MiniBERTGradients
model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=50))
ids = [[1, 2, 3, 3], [4, 3, 2, 1]]
gradients = MiniBERTGradients(model)
gradients.backward(model.forward(ids, dropout_step=1)[1], ids)
reference = MiniBERT(model.config, kernels="reference")
expected = MiniBERTGradients(reference)
expected.backward(reference.forward(ids, dropout_step=1)[1], ids)
np.testing.assert_array_equal(gradients.gradients.flat, expected.gradients.flat)
print(model.kernels.twins, get_backend("cpu").description())
"""


def test_everything_works_without_numba():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _WITHOUT_NUMBA], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "('adamw_update',)" in done.stdout


def test_a_numba_that_cannot_be_used_is_reported(monkeypatch: pytest.MonkeyPatch):
    def broken(name: str) -> Any:
        raise ImportError("Numba needs another NumPy")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.warns(RuntimeWarning, match=r"cannot be used \(Numba needs another NumPy\)"):
        assert twins.numba_kernels.__wrapped__() is None


_ADD_A_ROW = """
import numpy as np
from backends.cpu.kernels.sums import add_row
total = np.zeros(3)
add_row(np.ones(3), total)
assert total.tolist() == [1.0, 1.0, 1.0]
print(sum(add_row.stats.cache_hits.values()), sum(add_row.stats.cache_misses.values()))
"""


def test_kernels_are_compiled_once_and_kept_on_disk(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    outputs = [
        subprocess.run([sys.executable, "-c", _ADD_A_ROW], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert outputs == [["0", "1"], ["1", "0"]]


def test_a_compiled_kernel_is_out_of_date_when_any_source_of_the_kernels_has_changed():
    from backends.cpu.kernels.sums import add_row

    assert len(jit._SOURCES) > 10
    assert add_row._cache._cache_file._source_stamp == jit._STAMP


def test_the_command_lines_set_the_threads(capsys: pytest.CaptureFixture[str]):
    import numba

    before = numba.get_num_threads()
    for command, needed in (
        (train_command, []),
        (evaluate_command, ["--model", "m"]),
        (embed_command, ["--model", "m"]),
        (fill_mask_command, ["--model", "m", "the [MASK]"]),
    ):
        build = command.build_parser
        try:
            given = vars(build().parse_args(["--threads", "1", *needed]))
            assert numba.get_num_threads() == 1
            assert "threads" not in given
        finally:
            threads.set_threads(before)
        with pytest.raises(SystemExit):
            build().parse_args(["--threads", "0"])
        assert "error: --threads: the number of threads must be at least 1, not 0" in capsys.readouterr().err
