"""`minibert/reference.py`, the BERT to read in one sitting, computes what the library computes, in float64."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from minibert import AdamW, MiniBERT, MiniBERTGradients, reference
from minibert.cache import Cache
from minibert.ops import dropout_mask
from tests.support.checking import GRADIENT_TOLERANCE, gradient_error
from tests.support.small_bert import (
    ATTENTION_MASK,
    CONFIG,
    INPUT_IDS,
    LABELS,
    NEXT_SENTENCE_LABELS,
    TOKEN_TYPE_IDS,
    small_bert,
)

SIZES = reference.Sizes(
    vocabulary=CONFIG.vocab_size,
    positions=CONFIG.max_position_embeddings,
    hidden=CONFIG.hidden_size,
    layers=CONFIG.num_hidden_layers,
    heads=CONFIG.num_attention_heads,
    intermediate=CONFIG.intermediate_size,
)
BATCH = reference.Batch(INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS, LABELS, NEXT_SENTENCE_LABELS)
TOLERANCE = 1e-12


def library_model() -> MiniBERT:
    """Return a model that computes with the definitions and with Numba's twins off: plain NumPy, float64."""
    return small_bert(kernels="reference", seed=3)


def parameters_of(model: MiniBERT) -> reference.Parameters:
    return {name: view.copy() for name, view in model.parameters.items()}


def library_forward(model: MiniBERT, step: int | None = None) -> tuple[np.ndarray, Cache]:
    return model.forward(INPUT_IDS, ATTENTION_MASK, TOKEN_TYPE_IDS, dropout_step=step)


def masks_of(model: MiniBERT, cache: Cache) -> list[np.ndarray]:
    """Return the library's dropout masks of one forward pass, in the order in which the reference draws them."""
    hidden = CONFIG.hidden_size

    def mask(dropout, columns):
        return dropout_mask(model.backend, dropout, columns, model.dtype)

    masks = [mask(cache.embeddings.dropout, hidden)]
    for layer in cache.layers:
        attention, (batch, length) = layer.attention, INPUT_IDS.shape
        heads = CONFIG.num_attention_heads
        numbers = attention.weights_dropout.row_numbers[:, None] * heads + np.arange(heads, dtype=np.uint32)  # (N, A)
        numbers = numbers.reshape(batch, length, heads).transpose(0, 2, 1).reshape(-1)  # (B A T,)
        rows = type(attention.weights_dropout)(
            attention.weights_dropout.probability, attention.weights_dropout.key, numbers
        )
        masks.append(mask(rows, length).reshape(batch, heads, length, length))
        masks += [mask(attention.output_dropout, hidden), mask(layer.feed_forward.output_dropout, hidden)]
    return masks


def assert_same(actual: dict[str, np.ndarray], expected, what: str) -> None:
    """Compare array by array, relative to the largest entry of all."""
    assert set(actual) == set(expected)
    largest = max(float(np.abs(array).max()) for array in expected.values())
    for name, array in actual.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=TOLERANCE * largest, err_msg=f"{what} of {name}")


def test_the_logits_are_the_librarys():
    model = library_model()
    logits, cache = library_forward(model)
    ours, next_sentence, _ = reference.forward(parameters_of(model), SIZES, BATCH)
    np.testing.assert_allclose(ours.reshape(logits.shape), logits, rtol=0, atol=TOLERANCE * np.abs(logits).max())
    np.testing.assert_allclose(next_sentence, cache.next_sentence_logits, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("step", [None, 7], ids=["without dropout", "with the library's dropout masks"])
def test_loss_and_every_gradient_are_the_librarys(step: int | None):
    model, gradients = library_model(), None
    gradients = MiniBERTGradients(model)
    _, cache = library_forward(model, step)
    loss = float(gradients.backward(cache, LABELS, NEXT_SENTENCE_LABELS))
    masks = iter(masks_of(model, cache)) if step is not None else None
    drop = reference.no_dropout if masks is None else lambda shape: next(masks)
    our_loss, d = reference.backward(parameters_of(model), SIZES, BATCH, drop)
    assert our_loss == pytest.approx(loss, rel=TOLERANCE)
    assert_same(d, gradients.gradients, "gradient")


def test_twenty_steps_of_adamw_end_at_the_librarys_parameters():
    model = library_model()
    p = parameters_of(model)
    gradients, optimizer = MiniBERTGradients(model), AdamW(model)
    first, second = ({name: np.zeros_like(array) for name, array in p.items()} for _ in range(2))
    for step in range(1, 21):
        loss = float(gradients.backward(library_forward(model)[1], LABELS, NEXT_SENTENCE_LABELS))
        optimizer.step(gradients.gradients, 1e-3)
        our_loss, d = reference.backward(p, SIZES, BATCH)
        reference.adamw_step(p, d, first, second, step, 1e-3)
        assert our_loss == pytest.approx(loss, rel=TOLERANCE)
    assert_same(p, model.parameters, "value after twenty steps")


def test_the_gradients_agree_with_central_differences_with_dropout():
    p = parameters_of(library_model())

    def drop() -> reference.Dropout:
        return reference.dropout(np.random.default_rng(1), 0.2)  # the same masks every time

    _, d = reference.backward(p, SIZES, BATCH, drop())
    error = gradient_error(
        lambda point: reference.backward(point, SIZES, BATCH, drop())[0], p, d, np.random.default_rng(2)
    )
    assert error < GRADIENT_TOLERANCE


def test_fresh_parameters_have_the_librarys_names_and_shapes():
    p = reference.initialise(SIZES, np.random.default_rng(0))
    assert {name: array.shape for name, array in p.items()} == dict(library_model().parameters.layout.shapes)


def test_training_lowers_the_loss(capsys: pytest.CaptureFixture[str]):
    random = np.random.default_rng(0)
    p = reference.initialise(SIZES, random)
    before, _ = reference.backward(p, SIZES, BATCH)
    reference.train(p, SIZES, lambda step: BATCH, 50, 3e-3, reference.dropout(random, 0.1))
    after, _ = reference.backward(p, SIZES, BATCH)
    assert after < before - 1.0
    assert capsys.readouterr().out.startswith("step   50  loss ")


def test_masking_hides_some_tokens_and_never_a_special_one():
    ids = np.tile(np.arange(20), (500, 1))  # 0 and 1 are special
    batch = reference.mask_tokens(ids, np.random.default_rng(0), mask_id=1, specials=2, vocabulary=20)
    chosen = batch.labels >= 0
    assert chosen[:, 2:].mean() == pytest.approx(0.15, abs=0.02)
    assert not chosen[:, :2].any()
    assert (batch.labels[chosen] == ids[chosen]).all()
    assert (batch.input_ids[~chosen] == ids[~chosen]).all()
    assert (batch.input_ids[chosen] == 1).mean() == pytest.approx(0.8, abs=0.05)


def test_it_can_be_read_in_one_sitting_and_uses_nothing_of_the_library():
    source = Path(reference.__file__).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 400
    modules = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not [name for name in modules if name.startswith(("minibert", "backends"))]
