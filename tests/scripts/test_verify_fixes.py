"""scripts/verify_fixes.py finds every one of the four mistakes, planted one at a time, and names the right fix."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backends import Array, Backend
from backends.cpu.backend import NumpyBackend
from minibert import GradientAccumulator, MiniBERT, stable_softmax
from minibert.ops import attention, cross_entropy
from minibert.ops.embedding import embedding_backward

SCRIPT = Path(__file__).parents[2] / "scripts" / "verify_fixes.py"
MASK, SCATTER, SOFTMAX, ACCUMULATOR = "check_mask", "check_scatter_add", "check_softmax", "check_accumulator"


@pytest.fixture
def definitions(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """NumPy without twins, so that the definitions, which the mistakes are planted in, compute."""
    monkeypatch.setattr(NumpyBackend, "twins", {})
    return NumpyBackend()


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(SCRIPT), run_name="verify_fixes"))


def softmax_of_its_own(x: Array, axis: int = -1) -> Array:
    """Compute the right weights, but not with `stable_softmax`."""
    y = np.exp(np.clip(x, -1e300, 1e300) - np.max(x, axis=axis, keepdims=True))
    return y / np.sum(y, axis=axis, keepdims=True)


def overflowing_softmax(x: Array, axis: int = -1) -> Array:
    xp = array_namespace(x)  # noqa: F821 # runs as the body of stable_softmax, whose module has the name
    y = xp.exp(x)
    return y / xp.sum(y, axis=axis, keepdims=True)


def one_scatter_add_for_each_token(backend: Backend, dy: Array, ids: tuple[Array, ...], dtables: Any) -> None:
    for rows, dtable in zip(ids, dtables, strict=True):
        for n in range(dy.shape[0]):
            backend.scatter_add(dtable, rows[n : n + 1], dy[n : n + 1, :])


def scatter_that_loses_duplicates(self: Backend, target: Array, indices: Array, rows: Array, **_: bool) -> None:
    target[indices] += rows


def hide_tokens_before_the_embeddings(planted: pytest.MonkeyPatch) -> None:
    forward = MiniBERT.forward

    def masked(self: MiniBERT, input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        hidden = input_ids if attention_mask is None else input_ids * attention_mask
        return forward(self, hidden, attention_mask, **options)

    planted.setattr(MiniBERT, "forward", masked)


def forget_the_mask(planted: pytest.MonkeyPatch) -> None:
    forward = MiniBERT.forward
    planted.setattr(MiniBERT, "forward", lambda self, ids, mask=None, **options: forward(self, ids, **options))


def mask_too_weakly(planted: pytest.MonkeyPatch) -> None:
    planted.setattr(attention, "stable_softmax", lambda x: stable_softmax(np.maximum(x, -10.0)))


def mask_after_the_softmax(planted: pytest.MonkeyPatch) -> None:
    def masked(x: Array) -> Array:
        real = x > -1e30
        return stable_softmax(np.where(real, x, 0.0)) * real  # a masked key still takes part in the sum

    planted.setattr(attention, "stable_softmax", masked)


def count_weights_for_nothing(planted: pytest.MonkeyPatch) -> None:
    add = GradientAccumulator.add
    planted.setattr(GradientAccumulator, "add", lambda self, gradients, weight=1.0: add(self, gradients, 1.0))


def allocate_when_adding(planted: pytest.MonkeyPatch) -> None:
    def add(self: GradientAccumulator, gradients: Any, weight: float = 1.0) -> None:
        self.gradients.flat[...] = self.gradients.flat + weight * gradients.flat
        self.total_weight += weight

    planted.setattr(GradientAccumulator, "add", add)


MISTAKES: dict[str, tuple[str, str, Callable[[pytest.MonkeyPatch], None]]] = {
    "the mask is forgotten": (MASK, "masked keys get", forget_the_mask),
    "the mask is too weak": (MASK, "masked keys get", mask_too_weakly),
    "the mask comes after the softmax": (MASK, "masked keys get", mask_after_the_softmax),
    "the mask reaches the embeddings": (MASK, "the embeddings are the same", hide_tokens_before_the_embeddings),
    "tokens are added one by one": (
        SCATTER,
        "a backward pass makes one scatter-add",
        lambda planted: planted.setattr(embedding_backward, "__code__", one_scatter_add_for_each_token.__code__),
    ),
    "duplicates are lost": (
        SCATTER,
        "it equals the loop over tokens, ids all the same",
        lambda planted: planted.setattr(NumpyBackend, "scatter_add", scatter_that_loses_duplicates),
    ),
    "the softmax overflows": (
        SOFTMAX,
        "scores of ±1e9 and ±inf",
        lambda planted: planted.setattr(stable_softmax, "__code__", overflowing_softmax.__code__),
    ),
    "attention has a softmax of its own": (
        SOFTMAX,
        "attention and cross-entropy have no softmax of their own",
        lambda planted: planted.setattr(attention, "stable_softmax", softmax_of_its_own),
    ),
    "cross-entropy has a softmax of its own": (
        SOFTMAX,
        "attention and cross-entropy have no softmax of their own",
        lambda planted: planted.setattr(cross_entropy, "stable_softmax", softmax_of_its_own),
    ),
    "weights are ignored": (ACCUMULATOR, "weighted sums and averages", count_weights_for_nothing),
    "adding allocates": (ACCUMULATOR, "add, average and reset work in place", allocate_when_adding),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(
    mistake: str, definitions: Backend, script: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    fix, statement, plant = MISTAKES[mistake]

    def passed() -> bool | None:
        checks = getattr(script, fix)(definitions, 0)
        return next(check.passed for check in checks if check.statement.startswith(statement))

    assert passed() is True
    plant(monkeypatch)
    assert passed() is False


def test_a_failed_check_is_in_the_table_and_in_the_exit_status(
    script: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    script.FIXES.clear()
    script.FIXES["a fix"] = lambda backend, seed: iter([script.Check("it holds", "nothing", False)])
    assert script.main() == 1
    output = capsys.readouterr().out
    assert "FAIL" in output
    assert "1 check(s) failed" in output
