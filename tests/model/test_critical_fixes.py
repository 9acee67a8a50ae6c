"""Guard the four critical fixes, each against a mistake that is easily made when BERT is written by hand.

`python scripts/verify_fixes.py` prints the same statements with what it measured.
tests/scripts/test_verify_fixes.py plants the mistakes, and the script must find each of them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends import Array, Backend, get_backend
from minibert import AdamW, GradientAccumulator, MiniBERT, MiniBERTConfig, MiniBERTGradients, stable_softmax
from minibert.data.tokenizer import Tokenizer, wordpiece
from minibert.finetuning.text_classifier import TextClassifier
from minibert.inference.fill_mask import fill_mask
from minibert.kernels import CHOICES, Kernels
from minibert.ops import AttentionLayout, attention_weights, score_bound
from minibert.parameters import CLASSIFICATION_HEADS
from minibert.rows import Rows
from tests.support import backends_under_test
from tests.support.checking import assert_close, tolerance

CONFIG = MiniBERTConfig(
    vocab_size=40,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=12,
)
IDS = np.random.default_rng(1).integers(1, CONFIG.vocab_size, (3, 8))
MASK = np.asarray([[1] * 8, [1] * 5 + [0] * 3, [1] * 2 + [0] * 6])
LABELS = np.where((np.arange(8) % 3 == 1) & (MASK == 1), IDS, -100)
INF = float("inf")
SCRIPTS = Path(__file__).parents[2] / "scripts"


def model_on(backend: Backend, kernels: str = "auto") -> tuple[MiniBERT, str]:
    """Return a small model in the most precise dtype of the device, and that dtype's name."""
    dtype = backends_under_test.float_dtypes(backend)[0]
    return MiniBERT(CONFIG, backend=backend, dtype=dtype, kernels=kernels), dtype


# --- 1: masked positions receive no attention --------------------------------------------------------------------


def test_masked_positions_receive_no_attention(backend: Backend):
    model, dtype = model_on(backend)
    _, cache = model.forward(IDS, MASK)
    assert len(cache.layers) == CONFIG.num_hidden_layers
    for layer in cache.layers:
        weights = backend.to_numpy(layer.attention_weights)  # (B, A, T, T)
        to_masked = np.broadcast_to((MASK == 0)[:, None, None, :], weights.shape)
        assert np.all(weights[to_masked] == 0.0)
        assert np.all(weights[~to_masked] > 0.0)
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=tolerance(dtype))


def test_tokens_under_the_mask_do_not_change_the_logits_of_the_others(backend: Backend):
    model, _ = model_on(backend)
    others = np.where(MASK == 1, IDS, (IDS + 7) % CONFIG.vocab_size)
    assert np.any(others != IDS)
    logits, others_logits = (backend.to_numpy(model.forward(ids, MASK)[0]) for ids in (IDS, others))
    np.testing.assert_array_equal(logits[MASK == 1], others_logits[MASK == 1])
    unmasked, others_unmasked = (backend.to_numpy(model.forward(ids)[0]) for ids in (IDS, others))
    assert np.abs(unmasked - others_unmasked)[MASK == 1].max() > 1e-5  # the mask is what makes them equal


def test_tokens_under_the_mask_get_no_gradient(backend: Backend):
    model, _ = model_on(backend)
    rare = CONFIG.vocab_size - 1
    ids = np.where(MASK == 1, IDS % rare, rare)  # one token occurs under the mask only
    gradients = MiniBERTGradients(model)
    gradients.backward(model.forward(ids, MASK)[1], np.where(LABELS >= 0, ids, -100))
    with_rare = np.array(backend.to_numpy(gradients.gradients["token_embeddings"]))
    elsewhere = np.where(MASK == 1, ids, 0)
    gradients.backward(model.forward(elsewhere, MASK)[1], np.where(LABELS >= 0, ids, -100))
    without = backend.to_numpy(gradients.gradients["token_embeddings"])
    np.testing.assert_array_equal(with_rare[rare], without[rare])  # what is left comes from the decoder


def test_the_embeddings_do_not_see_the_mask(backend: Backend):
    model, _ = model_on(backend)
    masked, unmasked = (model.forward(IDS, mask)[1].hidden_states[0] for mask in (MASK, None))
    np.testing.assert_array_equal(backend.to_numpy(masked), backend.to_numpy(unmasked))


# --- 2: the gradient of the token embeddings is one scatter-add ----------------------------------------------------


def loop_over_tokens(table: np.ndarray, ids: np.ndarray, dy: np.ndarray) -> None:
    """Add dy (B, T, H) to the rows ids (B, T) of the table (V, H), one row at a time."""
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            table[ids[b, t]] += dy[b, t]


@pytest.mark.parametrize("ids", [IDS, np.full_like(IDS, 3), np.arange(24).reshape(3, 8)], ids=["some", "same", "all"])
def test_the_scatter_add_equals_a_loop_over_tokens(ids: np.ndarray, backend: Backend):
    random = np.random.default_rng(2)
    dy, before = random.standard_normal((*ids.shape, 5)), random.standard_normal((CONFIG.vocab_size, 5))
    expected = before.copy()
    loop_over_tokens(expected, ids, dy)
    rows = ids.reshape(-1).astype(np.int32)
    for dtype in backends_under_test.float_dtypes(backend):
        dy_rows = backend.asarray(dy.reshape(-1, 5), dtype=backend.dtype(dtype))
        for choice in CHOICES:
            table = backend.xp.zeros(before.shape, dtype=backend.dtype(dtype), device=backend.device)
            table[...] = backend.asarray(before, dtype=backend.dtype(dtype))
            Kernels(backend, choice).embedding_backward(dy_rows, (backend.asarray(rows),), (table,))
            assert_close(backend, table, expected, dtype)


def test_the_token_embeddings_get_one_scatter_add(backend: Backend):
    """The definition calls `backend.scatter_add` once; tests/ops/test_twins.py compares the twins with it."""
    model, _ = model_on(backend, kernels="reference")
    gradients = MiniBERTGradients(model)
    scatter_add, rows = backend.scatter_add, []

    def counted(target: Array, indices: Array, values: Array, **options: bool) -> None:
        if target is gradients.gradients["token_embeddings"]:
            rows.append(indices.shape[0])
        scatter_add(target, indices, values, **options)

    backend.scatter_add = counted  # type: ignore[method-assign]
    gradients.backward(model.forward(IDS, MASK)[1], LABELS)
    assert rows == [IDS.size]


def test_the_scatter_add_is_timed_against_the_loops(device: str, record_property: Callable[[str, object], None]):
    """Both give the same sums. The times are only reported (`pytest -rP`): they depend on the machine and its load."""
    backend, random = get_backend(device), np.random.default_rng(3)
    kernels = Kernels(backend)
    batch, length, width, vocabulary = 32, 128, 256, 8192
    ids = np.minimum(random.zipf(1.2, (batch, length)) - 1, vocabulary - 1)  # few tokens often, as in text
    dy = random.standard_normal((batch, length, width)).astype(np.float32)
    rows, indices = backend.asarray(dy.reshape(-1, width)), backend.asarray(ids.reshape(-1).astype(np.int32))

    def vectorised() -> np.ndarray:
        table = backend.xp.zeros((vocabulary, width), dtype=backend.xp.float32, device=backend.device)
        kernels.embedding_backward(rows, (indices,), (table,))
        backend.synchronize()
        return table

    def looped() -> np.ndarray:
        table = np.zeros((vocabulary, width), dtype=np.float32)
        loop_over_tokens(table, ids, dy)
        return table

    def median(run: Callable[[], object]) -> float:
        times = []
        for _ in range(7):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    expected = looped()
    np.testing.assert_allclose(backend.to_numpy(vectorised()), expected, atol=1e-5 * np.abs(expected).max())
    loops, ours = median(looped), median(vectorised)
    record_property("nested_loops_over_scatter_add", loops / ours)
    print(
        f"{batch * length} rows of {width} into {vocabulary}: scatter-add on {backend.name} {1e3 * ours:.2f} ms, "
        f"nested loops over (b, t) on the host {1e3 * loops:.2f} ms, ratio {loops / ours:.1f}"
    )


# --- 3: extreme scores stay finite ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ((1e9, -1e9, 0.0), (1.0, 0.0, 0.0)),
        ((1e9, 1e9, -1e9), (0.5, 0.5, 0.0)),
        ((-1e9, -1e9, -INF), (0.5, 0.5, 0.0)),
        ((INF, 1e9, -INF), (1.0, 0.0, 0.0)),
        ((INF, INF, 0.0), (0.5, 0.5, 0.0)),
        ((-INF, 0.0, 0.0), (0.0, 0.5, 0.5)),
        ((-INF, -INF, -INF), (0.0, 0.0, 0.0)),
    ],
)
def test_extreme_scores_give_finite_weights(scores: tuple[float, ...], expected: tuple[float, ...], backend: Backend):
    for dtype in backends_under_test.float_dtypes(backend):
        x = backend.asarray(np.asarray([scores, scores]), dtype=backend.dtype(dtype))
        assert_close(backend, stable_softmax(x), [expected, expected], dtype)


@pytest.mark.parametrize("score", [1e9, -1e9, INF, -INF])
def test_no_score_outweighs_the_mask(score: float, backend: Backend):
    """With one head of size 1, the keys are the scores. The first key is masked, in the second sequence every key."""
    for name in backends_under_test.float_dtypes(backend):
        dtype = backend.dtype(name)
        masked = -2.0 * score_bound(backend.xp, dtype)
        mask = backend.asarray(np.asarray([[masked, 0.0, 0.0], [masked] * 3])[:, None, None, :], dtype=dtype)
        layout = AttentionLayout(Rows(2, 3), Rows(2, 3), mask, attention_heads=1)
        keys = backend.asarray(np.asarray([[score], [0.0], [0.0]] + [[score]] * 3), dtype=dtype)
        queries = backend.asarray(np.ones((6, 1)), dtype=dtype)
        weights = attention_weights(backend, queries, keys, layout)  # (2, 1, 3, 3)
        expected = np.broadcast_to(np.asarray([[[[0.0, 0.5, 0.5]]], [[[0.0, 0.0, 0.0]]]]), (2, 1, 3, 3))
        assert_close(backend, weights, expected, name)


def test_a_fully_masked_sequence_stays_finite_and_changes_nothing(backend: Backend):
    model, dtype = model_on(backend)
    gradients = MiniBERTGradients(model)
    gradients.backward(model.forward(IDS, MASK)[1], LABELS)
    expected = np.array(backend.to_numpy(gradients.gradients.flat))

    ids, mask = np.concatenate([IDS, IDS[:1]]), np.concatenate([MASK, np.zeros_like(MASK[:1])])
    logits, cache = model.forward(ids, mask)
    assert not np.any(backend.to_numpy(cache.layers[0].attention_weights)[3])
    assert np.all(np.isfinite(backend.to_numpy(logits)))
    gradients.backward(cache, np.concatenate([LABELS, np.full_like(LABELS[:1], -100)]))
    assert_close(backend, gradients.gradients.flat, expected, dtype)


def test_attention_loss_and_predictions_have_one_softmax(backend: Backend, monkeypatch: pytest.MonkeyPatch):
    """A `stable_softmax` that returns 0.25 shows in attention, in the gradient of the loss and in all probabilities.

    The body of the function is exchanged, so that every module that has imported it runs the other body.
    """

    def constant(x: Array, axis: int = -1) -> Array:
        return x * 0.0 + 0.25

    monkeypatch.setattr(stable_softmax, "__code__", constant.__code__)
    model, dtype = model_on(backend, kernels="reference")
    one_hot = np.eye(CONFIG.vocab_size)
    _, cache = model.forward(IDS)
    for layer in cache.layers:
        assert_close(backend, layer.attention_weights, np.full((3, 2, 8, 8), 0.25), dtype)

    x = backend.asarray(np.random.default_rng(4).standard_normal((8, 4)), dtype=model.dtype)
    layout = AttentionLayout(Rows(2, 4), Rows(2, 4), None, attention_heads=2)
    context, _ = model.kernels.attention_forward(x, x, x, layout, None)
    sums = np.asarray(backend.to_numpy(x)).reshape(2, 4, 4).sum(axis=1)  # of the values of each sequence
    assert_close(backend, context, np.repeat(0.25 * sums, 4, axis=0), dtype)

    logits = backend.asarray(np.zeros((3, CONFIG.vocab_size)), dtype=model.dtype)
    _, dlogits = model.kernels.cross_entropy_backward(logits, backend.asarray(np.arange(3, dtype=np.int32)), 1.0)
    assert_close(backend, dlogits, 0.25 - one_hot[:3], dtype)

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(CONFIG.vocab_size - 5))]
    tokenizer = Tokenizer(wordpiece({word: id_ for id_, word in enumerate(words)}))
    (candidates,) = fill_mask(model, tokenizer, "1 [MASK] 2")
    assert [candidate.probability for candidate in candidates] == [0.25] * 5

    config = replace(CONFIG, labels=("ham", "spam", "eggs"))
    classifier = TextClassifier(
        MiniBERT(config, backend=backend, dtype=dtype, heads=CLASSIFICATION_HEADS, kernels="reference"), tokenizer
    )
    assert np.all(classifier.probabilities(classifier.encode(["1 2", "3"])) == 0.25)


# --- 4: accumulation is exact and allocates nothing ----------------------------------------------------------------


def test_accumulating_whole_numbers_is_exact(backend: Backend):
    model, _ = model_on(backend)
    gradients, accumulator = MiniBERTGradients(model), GradientAccumulator(model)
    values = np.arange(gradients.gradients.flat.shape[0]) % 17 - 8
    gradients.gradients.flat[...] = backend.asarray(values, dtype=model.dtype)
    for weight in (5, 1, 3, 7):
        accumulator.add(gradients.gradients, weight=weight)
    np.testing.assert_array_equal(backend.to_numpy(accumulator.gradients.flat), 16 * values)
    accumulator.average()
    np.testing.assert_array_equal(backend.to_numpy(accumulator.gradients.flat), values)
    accumulator.reset()
    assert not np.any(backend.to_numpy(accumulator.gradients.flat))


def test_unequal_micro_batches_average_to_the_gradient_of_the_batch(backend: Backend):
    model, dtype = model_on(backend)
    gradients, accumulator = MiniBERTGradients(model), GradientAccumulator(model)
    gradients.backward(model.forward(IDS, MASK)[1], LABELS)
    whole = np.array(backend.to_numpy(gradients.gradients.flat))
    counts = [int((LABELS[part] >= 0).sum()) for part in (slice(0, 2), slice(2, 3))]
    assert len(set(counts)) == 2
    for part, count in zip((slice(0, 2), slice(2, 3)), counts, strict=True):
        gradients.backward(model.forward(IDS[part], MASK[part])[1], LABELS[part])
        accumulator.add(gradients.gradients, weight=count)
    accumulator.average()
    assert_close(backend, accumulator.gradients.flat, whole, dtype)


def test_warm_accumulation_allocates_nothing():
    """Views take a few hundred bytes; the gradients have 4 MB. On the host, tracemalloc counts every array."""
    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=4000), initialised=False)
    gradients, accumulator = MiniBERTGradients(model), GradientAccumulator(model)

    def calls() -> None:
        accumulator.add(gradients.gradients)
        accumulator.add(gradients.gradients, weight=3)
        accumulator.average()
        accumulator.reset()

    calls()
    arrays = [accumulator.gradients.flat, *accumulator.gradients.values()]
    places = [array.__array_interface__["data"][0] for array in arrays]
    tracemalloc.start()
    try:
        for _ in range(5):
            calls()
        current, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4096, f"{peak} bytes at the worst moment, {current} at the end"
    after = [accumulator.gradients.flat, *accumulator.gradients.values()]
    assert all(new is old for new, old in zip(after, arrays, strict=True))
    assert [array.__array_interface__["data"][0] for array in after] == places


# --- all four in a training step -----------------------------------------------------------------------------------


def test_a_training_step_with_a_mask_lowers_the_loss(backend: Backend):
    model, _ = model_on(backend)
    gradients, accumulator, optimizer = MiniBERTGradients(model), GradientAccumulator(model), AdamW(model)
    total = int((LABELS >= 0).sum())
    losses = []
    for step in range(3):
        accumulator.reset()
        loss = 0.0
        for part in (slice(0, 2), slice(2, 3)):
            _, cache = model.forward(IDS[part], MASK[part])
            loss += float(gradients.backward(cache, LABELS[part], total_predictions=total))
            accumulator.add(gradients.gradients)
        losses.append(loss)
        if step < 2:
            optimizer.step(accumulator.gradients, learning_rate=1e-3)
    assert losses[2] < losses[1] < losses[0]


# --- the scripts that check the same -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "last_line"),
    [("verify_fixes.py", "all checks passed"), ("simple_test.py", "loss")],
)
def test_a_script_finds_that_everything_works(script: str, last_line: str, device: str):
    command = [sys.executable, "-W", "error", str(SCRIPTS / script), "--device", device]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1].strip().startswith(last_line)
