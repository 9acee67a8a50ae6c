"""Products in bfloat16: every shape, layout and number of threads, against float64 products of rounded operands.

Where the processor lacks the instructions, the same products are computed by the definition; pytest's header says so.
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
from backends.cpu.kernels.bfloat16 import has_bfloat16
from backends.cpu.kernels.blas import multiply
from minibert.ops import round_to_bfloat16

BACKEND = get_backend("cpu").with_precision("bfloat16", "float32")
ALLOWED = 2e-6  # relative to the sum of the absolute products: float32 sums of at most some thousand terms

each_layout = pytest.mark.parametrize(
    ("transpose_a", "transpose_b"), [(False, False), (False, True), (True, False), (True, True)]
)


def product(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    transpose_a: bool = False,
    transpose_b: bool = False,
    accumulate: bool = False,
    bias: np.ndarray | None = None,
) -> None:
    """Write the product to c: by the instructions where the processor has them, otherwise by the definition."""
    if has_bfloat16():
        multiply(BACKEND, a, b, c, transpose_a=transpose_a, transpose_b=transpose_b, accumulate=accumulate, bias=bias)
        return
    a, b = round_to_bfloat16(a), round_to_bfloat16(b)
    y = (a.T if transpose_a else a) @ (b.T if transpose_b else b)
    c[...] = y + (c if accumulate else 0 if bias is None else bias)


def operands(m: int, n: int, k: int, transpose_a: bool, transpose_b: bool, padding: int = 0) -> tuple:
    """Return random A and B as they are stored; with padding they are views whose rows lie apart."""
    rng = np.random.default_rng(m * 10_000 + n * 100 + k)

    def stored(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns + padding), dtype=np.float32)[:, :columns]

    return stored(*((k, m) if transpose_a else (m, k))), stored(*((n, k) if transpose_b else (k, n)))


def error(a, b, c, transpose_a, transpose_b, start) -> float:
    """Return the largest error of c, relative to the sum of the absolute products."""
    if c.size == 0:
        return 0.0
    a, b = (round_to_bfloat16(x).astype(np.float64) for x in (a, b))
    a, b = a.T if transpose_a else a, b.T if transpose_b else b
    size = np.abs(a) @ np.abs(b) + np.abs(start)
    return float((np.abs(c - (a @ b + start)) / np.maximum(size, 1e-30)).max())


@each_layout
@pytest.mark.parametrize("start", ["nothing", "bias", "result"])
def test_products_of_all_small_sizes(transpose_a: bool, transpose_b: bool, start: str):
    """The sizes lie on both sides of tiles (14 rows, 32 columns), of packed steps (32) and of pairs (2)."""
    for m, n, k in itertools.product((0, 1, 13, 14, 15, 29), (0, 1, 16, 31, 33, 65), (0, 1, 2, 3, 31, 33, 66)):
        a, b = operands(m, n, k, transpose_a, transpose_b, padding=(m + n + k) % 2 * 3)
        rng = np.random.default_rng(k)
        around = np.full(m * n + 200, 7.0, dtype=np.float32)
        c = around[100 : 100 + m * n].reshape(m, n)
        c[...] = rng.standard_normal((m, n)) if start == "result" else np.nan
        bias = rng.standard_normal(n, dtype=np.float32) if start == "bias" else None
        base = c.astype(np.float64) if start == "result" else 0.0 if bias is None else bias.astype(np.float64)
        product(a, b, c, transpose_a, transpose_b, start == "result", bias)
        assert error(a, b, c, transpose_a, transpose_b, base) < ALLOWED, (m, n, k)
        assert (around[:100] == 7.0).all(), "memory before the result was written"
        assert (around[100 + m * n :] == 7.0).all(), "memory behind the result was written"


@each_layout
@pytest.mark.parametrize(("m", "n", "k"), [(257, 31, 1057), (15, 129, 1025), (460, 64, 255), (230, 300, 2080)])
def test_products_of_several_blocks(m: int, n: int, k: int, transpose_a: bool, transpose_b: bool):
    a, b = operands(m, n, k, transpose_a, transpose_b, padding=5)
    c = np.random.default_rng(0).standard_normal((m, n), dtype=np.float32)
    base = c.astype(np.float64)
    product(a, b, c, transpose_a, transpose_b, accumulate=True)
    assert error(a, b, c, transpose_a, transpose_b, base) < ALLOWED


def test_an_unrounded_product_is_noticed():
    a, b = operands(33, 37, 65, False, False)
    assert error(a, b, a @ b, False, False, 0.0) > 100 * ALLOWED


def test_one_element_at_a_time_finds_its_place():
    """A one in A and a number in B: every element of C shows which k was multiplied with which."""
    m, n, k = 17, 35, 67
    a = np.zeros((m, k), dtype=np.float32)
    b = np.arange(k * n, dtype=np.float32).reshape(k, n) % 251  # exact in bfloat16
    for i in range(m):
        a[i, (5 * i + 2) % k] = 1.0
    c = np.empty((m, n), dtype=np.float32)
    for transpose_a, transpose_b in itertools.product((False, True), repeat=2):
        stored_a = np.ascontiguousarray(a.T) if transpose_a else a
        stored_b = np.ascontiguousarray(b.T) if transpose_b else b
        product(stored_a, stored_b, c, transpose_a, transpose_b)
        np.testing.assert_array_equal(c, a @ b)


def test_infinities_and_nan_spread_as_in_the_definition():
    a, b = operands(40, 40, 50, False, False)
    a[3, 4], a[7, 8], b[5, 6], b[9, 10] = np.nan, 3.4e38, np.inf, -np.inf  # 3.4e38 is beyond bfloat16's range
    c = np.empty((40, 40), dtype=np.float32)
    product(a, b, c)
    expected = round_to_bfloat16(a) @ round_to_bfloat16(b)
    np.testing.assert_array_equal(np.isnan(c), np.isnan(expected))
    np.testing.assert_array_equal(np.isposinf(c), np.isposinf(expected))
    np.testing.assert_array_equal(np.isneginf(c), np.isneginf(expected))


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this process may use one core only")
@pytest.mark.parametrize(
    ("m", "n", "k", "transpose_a", "transpose_b"),
    [
        (256, 100, 1100, True, False),
        (100, 256, 700, True, False),
        (100, 777, 256, False, True),
        (33, 31, 64, False, False),
    ],
)
def test_any_number_of_threads_gives_the_same_bits(m: int, n: int, k: int, transpose_a: int, transpose_b: int):
    """Repeated, as a product that does not wait for the packing would be wrong only now and then."""
    a, b = operands(m, n, k, bool(transpose_a), bool(transpose_b))
    before = numba.get_num_threads()
    results = []
    try:
        for threads in (1, *[2, numba.config.NUMBA_NUM_THREADS] * 10):
            numba.set_num_threads(threads)
            results.append(np.full((m, n), np.nan, dtype=np.float32))
            product(a, b, results[-1], bool(transpose_a), bool(transpose_b))
    finally:
        numba.set_num_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_products_of_float64_are_refused():
    with pytest.raises(TypeError, match="bfloat16 products need float32 arrays, not float64"):
        multiply(BACKEND, np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2)))


def _run(script: str, tmp_path: Path, **environment: str) -> str:
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **environment}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


_ON_A_PROCESSOR_WITHOUT = """
import warnings
import numpy as np
from backends import get_backend
from backends.cpu.kernels.blas import multiply
from minibert import MiniBERT, MiniBERTConfig
from minibert.ops import PRODUCTS
config = MiniBERTConfig.preset("tiny", vocab_size=50)
automatic = MiniBERT(config, precision="auto")
automatic.encode([[1, 2, 3]])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    asked = [MiniBERT(config, precision="bfloat16") for _ in range(2)]
print(automatic.precision, asked[0].precision, len(caught), bool(set(PRODUCTS) & set(asked[0].kernels.twins)))
backend, x = asked[0].backend, np.ones((2, 2), dtype=np.float32)
try:
    multiply(backend, x, x, x.copy())
except TypeError as error:
    print("lacks avx512bf16" in str(error))
"""


def test_a_processor_without_the_instructions_gets_an_error_and_not_a_crash(tmp_path: Path):
    """Numba compiles for another processor than this one: LLVM would end the process at an unknown instruction."""
    output = _run(_ON_A_PROCESSOR_WITHOUT, tmp_path, NUMBA_CPU_NAME="skylake-avx512", NUMBA_CPU_FEATURES="+avx512f")
    assert output.splitlines() == ["float32 bfloat16 1 False", "True"]


_ONE_PRODUCT = """
import numpy as np
from backends import get_backend
from backends.cpu.kernels.blas import multiply
x = np.ones((2, 2), dtype=np.float32)
multiply(get_backend("cpu").with_precision("bfloat16", "float32"), x, x, x.copy())
"""


@pytest.mark.skipif(not has_bfloat16(), reason="nothing is compiled without the instructions")
def test_a_second_process_does_not_compile_again(tmp_path: Path):
    def compiled() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("bfloat16.*.nbc")}

    _run(_ONE_PRODUCT, tmp_path)
    first = compiled()
    assert any("_divided_product" in path.name for path in first)
    _run(_ONE_PRODUCT, tmp_path)
    assert compiled() == first
