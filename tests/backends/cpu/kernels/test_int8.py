"""Products in int8: every shape, layout and number of threads has the bits of the definition.

Where the processor lacks the instructions, the definition takes the twin's place; pytest's header says so.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from backends import get_backend
from backends.base import LONGEST_INT8_ROW
from backends.cpu.kernels.blas import multiply
from backends.cpu.kernels.int8 import has_int8
from minibert.ops import linear_forward

BACKEND = get_backend("cpu").with_precision("int8", "float32")


def product(x: np.ndarray, weight: np.ndarray, y: np.ndarray, bias: np.ndarray | None = None) -> None:
    """Write x @ weight.T + bias to y: by the instructions where the processor has them, otherwise by the definition."""
    if has_int8():
        multiply(BACKEND, x, weight, y, transpose_b=True, bias=bias)
    else:
        y[...] = linear_forward(BACKEND, x, weight, bias)


def operands(m: int, n: int, k: int, padding: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return random x (m, k) and weight (n, k) whose rows have different ranges; with padding they are views."""
    rng = np.random.default_rng(m * 10_000 + n * 100 + k)

    def stored(rows: int) -> np.ndarray:
        numbers = rng.standard_normal((rows, k + padding)) + rng.standard_normal((rows, 1))
        return (numbers * 10.0 ** rng.uniform(-3, 3, (rows, 1))).astype(np.float32)[:, :k]

    return stored(m), stored(n)


@pytest.mark.parametrize("biased", [False, True])
def test_products_of_all_small_sizes(biased: bool):
    """The sizes lie on both sides of tiles (14 rows, 32 columns), vectors (16), quads (4) and steps (64)."""
    for m, n, k in itertools.product(
        (0, 1, 13, 14, 15, 29), (0, 1, 16, 17, 31, 33, 65), (0, 1, 3, 5, 16, 63, 64, 66, 130)
    ):
        x, weight = operands(m, n, k, padding=(m + n + k) % 2 * 3)
        bias = np.random.default_rng(k).standard_normal(n, dtype=np.float32) if biased else None
        around = np.full(m * n + 200, 7.0, dtype=np.float32)
        y = around[100 : 100 + m * n].reshape(m, n)
        y[...] = np.nan
        product(x, weight, y, bias)
        np.testing.assert_array_equal(y, linear_forward(BACKEND, x, weight, bias), str((m, n, k)))
        assert (around[:100] == 7.0).all(), "memory before the result was written"
        assert (around[100 + m * n :] == 7.0).all(), "memory behind the result was written"


@pytest.mark.parametrize(("m", "n", "k"), [(500, 31, 513), (15, 129, 1025), (300, 64, 1536), (5, 3, 20_000)])
def test_products_of_several_blocks(m: int, n: int, k: int):
    x, weight = operands(m, n, k, padding=5)
    y = np.empty((m, n), dtype=np.float32)
    product(x, weight, y)
    np.testing.assert_array_equal(y, linear_forward(BACKEND, x, weight))


def test_the_longest_sums_are_exact_and_longer_ones_are_refused():
    for sign in (1.0, -1.0):  # of the inputs: bytes of 255, or lowest numbers of -255
        x = np.full((2, LONGEST_INT8_ROW), sign, dtype=np.float32)
        y = np.empty((2, 2), dtype=np.float32)
        product(x, np.abs(x), y)
        np.testing.assert_array_equal(y, linear_forward(BACKEND, x, np.abs(x)))
        np.testing.assert_allclose(y, sign * LONGEST_INT8_ROW, rtol=1e-6)
    x = np.ones((2, LONGEST_INT8_ROW + 1), dtype=np.float32)
    with pytest.raises(ValueError, match="int8 products sum over at most 66,311 numbers, not 66,312"):
        product(x, x, y)


def test_views_of_every_kind_are_read_as_they_are():
    x, weight = operands(40, 50, 70)
    expected = linear_forward(BACKEND, x, weight)
    for seen_x in (
        np.asfortranarray(x),
        np.repeat(x, 2, axis=0)[::2],
        np.repeat(x, 2, axis=1)[:, ::2],
        x[::-1].copy()[::-1],
    ):
        y = np.empty((40, 50), dtype=np.float32)
        product(seen_x, np.asfortranarray(weight), y)
        np.testing.assert_array_equal(y, expected)


def test_numbers_of_every_size():
    """The largest, subnormal ones, zeros, and both ends of a range halfway between whole numbers."""
    x, weight = operands(30, 40, 80)
    x[0], x[1], x[2, :3], x[3], weight[5], weight[6] = 0.0, 1e-45, 3.4e38, 1e-37, 0.0, -1e-40
    x[4] = np.where(np.arange(80) % 2, 127.5, -127.5)
    weight[7:10] *= 1e30
    y = np.empty((30, 40), dtype=np.float32)
    product(x, weight, y)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y, linear_forward(BACKEND, x, weight))


def test_nan_and_infinities_are_found_in_every_place():
    x, weight = operands(70, 70, 70)
    for wrong in (np.nan, np.inf, -np.inf):
        for place in range(70):
            changed = x.copy()
            changed[place, place] = wrong
            y = np.empty((70, 70), dtype=np.float32)
            product(changed, weight, y)
            np.testing.assert_array_equal(np.flatnonzero(np.isnan(y).all(axis=1)), [place])
            assert np.isnan(y).sum() == 70
            product(weight, changed, y)
            np.testing.assert_array_equal(np.flatnonzero(np.isnan(y).all(axis=0)), [place])
            assert np.isnan(y).sum() == 70


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this process may use one core only")
@pytest.mark.parametrize(("m", "n", "k"), [(256, 100, 1100), (100, 777, 256), (33, 31, 64), (1, 300, 64)])
def test_any_number_of_threads_gives_the_same_bits(m: int, n: int, k: int):
    """Repeated, as a product that does not wait for the packing would be wrong only now and then."""
    x, weight = operands(m, n, k)
    expected = linear_forward(BACKEND, x, weight)
    before = numba.get_num_threads()
    try:
        for threads in (1, *[2, numba.config.NUMBA_NUM_THREADS] * 10):
            numba.set_num_threads(threads)
            y = np.full((m, n), np.nan, dtype=np.float32)
            product(x, weight, y)
            np.testing.assert_array_equal(y, expected)
    finally:
        numba.set_num_threads(before)


def test_products_of_float64_are_refused():
    with pytest.raises(TypeError, match="int8 products need float32 arrays, not float64"):
        multiply(BACKEND, np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)), transpose_b=True)


@pytest.mark.parametrize("arguments", [{}, {"transpose_a": True}, {"transpose_b": True, "accumulate": True}])
def test_products_other_than_those_of_a_forward_pass_are_refused(arguments: dict[str, bool]):
    x = np.ones((2, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="int8 is a precision for inference"):
        multiply(BACKEND, x, x, x.copy(), **arguments)


def _run(script: str, tmp_path: Path, **environment: str) -> str:
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_ON_A_PROCESSOR_WITHOUT = """
import warnings
import numpy as np
from numba.core.errors import TypingError
from backends import get_backend
from backends.cpu.kernels.blas import multiply
from minibert import MiniBERT, MiniBERTConfig
from minibert.ops import LINEAR
config = MiniBERTConfig.preset("tiny", vocab_size=50)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    asked = [MiniBERT(config, precision="int8") for _ in range(2)]
print(asked[0].precision, len(caught), bool(set(LINEAR) & set(asked[0].kernels.twins)))
backend, x = asked[0].backend, np.ones((2, 2), dtype=np.float32)
try:
    multiply(backend, x, x, x.copy(), transpose_b=True)
except TypingError as error:
    print("lacks avx512vnni" in str(error))
"""


def test_a_processor_without_the_instructions_gets_an_error_and_not_a_crash(tmp_path: Path):
    """Numba compiles for another processor than this one: LLVM would end the process at an unknown instruction."""
    output = _run(_ON_A_PROCESSOR_WITHOUT, tmp_path, NUMBA_CPU_NAME="skylake-avx512", NUMBA_CPU_FEATURES="+avx512f")
    assert output.splitlines() == ["int8 1 False", "True"]


_ONE_PRODUCT = """
import numpy as np
from backends import get_backend
from backends.cpu.kernels.blas import multiply
x = np.ones((2, 2), dtype=np.float32)
multiply(get_backend("cpu").with_precision("int8", "float32"), x, x, x.copy(), transpose_b=True)
"""


@pytest.mark.skipif(not has_int8(), reason="nothing is compiled without the instructions")
def test_a_second_process_does_not_compile_again(tmp_path: Path):
    def compiled() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("int8.*.nbc")}

    _run(_ONE_PRODUCT, tmp_path)
    first = compiled()
    assert any("_divided_product" in path.name for path in first)
    _run(_ONE_PRODUCT, tmp_path)
    assert compiled() == first
