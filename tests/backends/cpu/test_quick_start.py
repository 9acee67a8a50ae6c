"""Commands that people type often start fast: they import nothing heavy, and compute the same numbers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends import get_backend
from backends.cpu.quick_start import QuickStartNumpyBackend
from minibert import MiniBERT
from minibert.data.tokenizer import Tokenizer, build_wordpiece
from tests.support.small_bert import ATTENTION_MASK, CONFIG, INPUT_IDS, small_bert


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_error_function_of_the_standard_library_is_scipys(dtype: str):
    x = np.linspace(-6.0, 6.0, 4001, dtype=dtype).reshape(-1, 1)
    quick = QuickStartNumpyBackend().erf(x)
    assert quick.dtype == x.dtype
    assert quick.shape == x.shape
    np.testing.assert_allclose(quick, get_backend("cpu").erf(x), rtol=2 * np.finfo(dtype).eps)


def test_the_quick_start_backend_computes_the_same_bert():
    expected = small_bert().encode(INPUT_IDS, ATTENTION_MASK)
    quick = small_bert(QuickStartNumpyBackend())
    assert quick.kernels.twins == ()
    np.testing.assert_allclose(quick.encode(INPUT_IDS, ATTENTION_MASK), expected, rtol=1e-12, atol=1e-12)


def test_filling_a_mask_needs_neither_scipy_nor_rich(tmp_path: Path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]
    MiniBERT(replace(CONFIG, vocab_size=len(words)), heads=("mlm",)).save_pretrained(tmp_path)
    Tokenizer(build_wordpiece({word: id_ for id_, word in enumerate(words)})).save(tmp_path)
    code = (
        "import sys; from minibert.commands.fill_mask import main; "
        f"main(['--model', {str(tmp_path)!r}, '--top', '2', 'the [MASK]']); "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'scipy', 'rich', 'numba', 'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["Candidates", f"  {'token':<{max(5, len(lines[2].split()[0]))}}  probability"]
    assert all(line.endswith("%") for line in lines[2:4])
    assert lines[-1] == "[]"
