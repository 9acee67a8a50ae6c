"""The classifier on BERT's pooled output, its gradient, and the encoder alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from backends import Backend, get_backend
from minibert import AdamW, GradientAccumulator, MiniBERT, MiniBERTGradients
from minibert.parameters import CLASSIFICATION_HEADS, HEADS
from tests.support import backends_under_test
from tests.support.checking import GRADIENT_TOLERANCE, assert_close, assert_gradients_close, gradient_error, tolerance
from tests.support.small_bert import ATTENTION_MASK, CONFIG, INPUT_IDS, TOKEN_TYPE_IDS, small_bert

BATCH = {"input_ids": INPUT_IDS, "attention_mask": ATTENTION_MASK, "token_type_ids": TOKEN_TYPE_IDS}
CLASS_LABELS = np.array([2, 0, -100, 1])  # the third sequence is left out


def classifier(backend: Backend | str = "cpu", dtype: str = "float64", **arguments: Any) -> MiniBERT:
    config = replace(CONFIG, labels=("news", "sport", "weather"))
    arguments = {"heads": CLASSIFICATION_HEADS, **arguments}
    model = MiniBERT(config, backend=backend, dtype=dtype, **arguments)
    rng = np.random.default_rng(8)
    for name, view in model.parameters.items():
        centre = 1.0 if name.endswith("layer_norm.weight") else 0.0
        view[...] = model.backend.asarray(centre + 0.3 * rng.standard_normal(view.shape), dtype=model.dtype)
    return model


def loss_and_gradients(model: MiniBERT, **arguments: Any) -> tuple[float, dict[str, np.ndarray]]:
    _, cache = model.classify(**BATCH, dropout_step=4, **arguments)
    gradients = MiniBERTGradients(model)
    gradients.gradients.flat[...] = 7.0  # what an earlier backward left
    loss = gradients.backward_classification(cache, CLASS_LABELS)
    return float(loss), {name: np.array(model.backend.to_numpy(g)) for name, g in gradients.gradients.items()}


def classifier_gradient_error(model: MiniBERT, seed: int, **arguments: Any) -> float:
    start = {name: np.array(model.backend.to_numpy(p)) for name, p in model.parameters.items()}
    _, gradients = loss_and_gradients(model, **arguments)

    def loss(parameters: dict[str, np.ndarray]) -> float:
        for name, value in parameters.items():
            model.parameters[name][...] = model.backend.asarray(value, dtype=model.dtype)
        return loss_and_gradients(model, **arguments)[0]

    return gradient_error(loss, start, gradients, np.random.default_rng(seed))


@pytest.mark.parametrize("unpad", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_classifiers_gradient_agrees_with_central_differences(seed: int, unpad: bool, float64_backend: Backend):
    assert classifier_gradient_error(classifier(float64_backend), seed, unpad=unpad) < GRADIENT_TOLERANCE


def test_heads_that_no_loss_depends_on_have_no_gradient():
    model = classifier(heads=HEADS)
    _, gradients = loss_and_gradients(model)
    unused = {name for name in gradients if name.startswith(("mlm", "next_sentence"))}
    assert len(unused) == 7
    for name, gradient in gradients.items():
        assert (gradient == 0.0).all() == (name in unused), name
    assert classifier_gradient_error(model, 0) < GRADIENT_TOLERANCE


def test_pretraining_gives_a_classifier_no_gradient():
    model = classifier(heads=HEADS)
    gradients = MiniBERTGradients(model)
    gradients.gradients.flat[...] = 7.0
    gradients.backward(model.forward(**BATCH)[1], INPUT_IDS, [0, 1, 0, 1])
    for name, gradient in gradients.gradients.items():
        assert (gradient == 0.0).all() == name.startswith("classifier"), name


def _forgets_dropout(model: MiniBERT) -> None:
    model.kernels.dropout_backward = lambda dy, dropout: dy


def _forgets_tanh(model: MiniBERT) -> None:
    right = model.kernels.linear_backward

    def linear_backward(dy: Any, x: Any, weight: Any, dweight: Any, dbias: Any = None, **options: Any) -> Any:
        return right(
            dy * 1.01 if weight is model.parameters["pooler.weight"] else dy, x, weight, dweight, dbias, **options
        )

    model.kernels.linear_backward = linear_backward


@pytest.mark.parametrize("mistake", [_forgets_dropout, _forgets_tanh])
def test_a_mistake_in_the_classifiers_gradient_is_found_out(mistake):
    model = classifier(get_backend("cpu"))
    mistake(model)
    assert classifier_gradient_error(model, 0) > 100 * GRADIENT_TOLERANCE


def test_every_backend_computes_the_same_logits_loss_and_gradients(backend: Backend):
    expected_logits, _ = classifier().classify(**BATCH)
    expected_loss, expected = loss_and_gradients(classifier())
    for dtype in backends_under_test.float_dtypes(backend):
        model = classifier(backend, dtype)
        assert_close(backend, model.classify(**BATCH)[0], expected_logits, dtype)
        loss, gradients = loss_and_gradients(model)
        assert loss == pytest.approx(expected_loss, rel=tolerance(dtype))
        assert_gradients_close(get_backend("cpu"), gradients, expected, dtype)


def test_the_logits_read_the_pooled_output_of_the_whole_model():
    model = classifier(heads=HEADS)
    pooled = model.forward(**BATCH)[1].pooled_output
    expected = pooled @ model.parameters["classifier.weight"].T + model.parameters["classifier.bias"]
    for arguments in ({}, {"unpad": True}, {"for_backward": False}):
        np.testing.assert_allclose(model.classify(**BATCH, **arguments)[0], expected, rtol=1e-12)


def test_micro_batches_draw_the_same_dropout_and_add_up(backend: Backend):
    for dtype in backends_under_test.float_dtypes(backend):
        expected_loss, expected = loss_and_gradients(classifier())
        model = classifier(backend, dtype)
        gradients, accumulator, total = MiniBERTGradients(model), GradientAccumulator(model), 0.0
        for start, stop in pairwise((0, 1, 4)):
            part = {name: array[start:stop] for name, array in BATCH.items()}
            _, cache = model.classify(**part, dropout_step=4, first_sequence=start)
            total += float(gradients.backward_classification(cache, CLASS_LABELS[start:stop], total_sequences=3))
            accumulator.add(gradients.gradients)
        assert total == pytest.approx(expected_loss, rel=tolerance(dtype))
        assert_gradients_close(backend, accumulator.gradients, expected, dtype)


def test_dropout_of_the_pooled_output_follows_the_config():
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = classifier()
    without = model.classify(**BATCH)[0]
    object.__setattr__(model, "config", replace(model.config, **quiet))
    np.testing.assert_array_equal(model.classify(**BATCH, dropout_step=1)[0], without)
    object.__setattr__(model, "config", replace(model.config, classifier_dropout=0.5))
    _, cache = model.classify(**BATCH, dropout_step=1)
    dropped = cache.classifier.x == 0.0
    assert 0 < dropped.sum() < dropped.size
    np.testing.assert_allclose(cache.classifier.x[~dropped], 2.0 * cache.pooled_output[~dropped])


def test_a_classifier_learns():
    model = classifier(dtype="float32")
    gradients, optimizer = MiniBERTGradients(model), AdamW(model)
    losses = []
    for _ in range(30):
        _, cache = model.classify(**BATCH)
        losses.append(float(gradients.backward_classification(cache, CLASS_LABELS)))
        optimizer.step(gradients.gradients, 1e-2)
    assert losses[-1] < 0.1 * losses[0]


# --- the encoder alone -----------------------------------------------------------------------------------------


def test_the_encoder_alone_gives_the_hidden_states_of_the_whole_model(backend: Backend):
    expected = small_bert().forward(**BATCH)[1].hidden_states[-1]
    for dtype in backends_under_test.float_dtypes(backend):
        model = small_bert(backend, dtype)
        assert_close(backend, model.encode(**BATCH), expected, dtype)
        assert_close(backend, model.encode(**BATCH, first_only=True), expected[:, 0, :], dtype)
        real = np.where(ATTENTION_MASK[:, :, None] == 1, expected, 0.0)
        assert_close(backend, model.encode(**BATCH, unpad=True), real, dtype)


def test_a_model_without_heads_has_their_parameters_neither():
    bare, whole = MiniBERT(CONFIG, heads=()), small_bert()
    assert {name for name in whole.parameters if name not in bare.parameters} == {
        name for name in whole.parameters if name.startswith(("mlm", "pooler", "next_sentence"))
    }
    for name, view in bare.parameters.items():
        view[...] = whole.parameters[name]
    np.testing.assert_allclose(bare.encode(**BATCH), whole.encode(**BATCH), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "labels", "message"),
    [
        (("crystal",), (), "unknown heads crystal: choose from mlm, pooler, next_sentence, classifier"),
        (("classifier",), ("a",), "add the head pooler"),
        (("pooler", "classifier"), (), "a classifier needs the names of its classes"),
        ((), ("a", "a"), "labels must all differ"),
    ],
)
def test_heads_that_do_not_go_together_are_refused(heads, labels, message):
    with pytest.raises(ValueError, match=message):
        MiniBERT(replace(CONFIG, labels=labels), heads=heads)


def test_what_a_model_lacks_is_named():
    with pytest.raises(ValueError, match=r"lacks the head classifier; its heads are: mlm, pooler, next_sentence"):
        small_bert().classify(**BATCH)
    with pytest.raises(ValueError, match=r"lacks the head mlm; its heads are: none"):
        MiniBERT(CONFIG, heads=()).forward(**BATCH)
    model = classifier()
    with pytest.raises(ValueError, match="lacks the head mlm"):
        model.forward(**BATCH)
    model = classifier(heads=HEADS)
    gradients = MiniBERTGradients(model)
    for cache in (model.classify(**BATCH, for_backward=False)[1], model.forward(**BATCH)[1]):
        with pytest.raises(ValueError, match=r"needs the cache of MiniBERT\.classify"):
            gradients.backward_classification(cache, CLASS_LABELS)
    with pytest.raises(ValueError, match=r"needs the cache of MiniBERT\.forward"):
        gradients.backward(model.classify(**BATCH)[1], CLASS_LABELS)
    with pytest.raises(ValueError, match="labels contains 3, but labels must be below 3"):
        gradients.backward_classification(model.classify(**BATCH)[1], [3, 0, 0, 0])
