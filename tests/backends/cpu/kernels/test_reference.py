"""kernels="reference" runs the definitions and no compiled kernel; a twin makes the calls of its definition."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from backends.cpu.kernels import embedding
from minibert import MiniBERT, MiniBERTConfig, MiniBERTGradients

_REFERENCE_STEP = """
import sys
from minibert import AdamW, MiniBERT, MiniBERTConfig, MiniBERTGradients
config = MiniBERTConfig.preset("tiny", vocab_size=50, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
model = MiniBERT(config, kernels=sys.argv[1])
gradients = MiniBERTGradients(model)
ids = [[3, 1, 3, 9], [3, 7, 8, 0]]
arguments = {"prediction_positions": [1, 5], "unpad": True, "dropout_step": 1}
gradients.backward(model.forward(ids, [[1, 1, 1, 0], [1, 1, 1, 1]], **arguments)[1], [5, 6], [0, 1])
AdamW(model).step(gradients.gradients, 1e-3)
print("numba" in sys.modules)
"""


@pytest.mark.parametrize(("choice", "runs_numba"), [("reference", "False"), ("auto", "True")])
def test_no_compiled_kernel_runs_in_the_reference(choice: str, runs_numba: str):
    """A whole step, without padding and with the last layer pruned, does not even import Numba."""
    command = [sys.executable, "-c", _REFERENCE_STEP, choice]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == runs_numba


def test_the_twin_makes_one_scatter_add_for_every_table(monkeypatch: pytest.MonkeyPatch):
    calls, right = [], embedding.scatter_add

    def counted(target: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> None:
        calls.append((target.shape, ids.shape, rows.shape))
        right(target, ids, rows)

    monkeypatch.setattr(embedding, "scatter_add", counted)
    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=500))
    ids = np.random.default_rng(6).integers(0, 500, (5, 33))
    MiniBERTGradients(model).backward(model.forward(ids)[1], ids)
    assert calls == [((size, 128), (ids.size,), (ids.size, 128)) for size in (500, 512, 2)]
