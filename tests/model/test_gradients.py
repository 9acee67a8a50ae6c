"""The gradient of the whole model: against central differences, over any split, and able to fail."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from backends import Backend, get_backend
from minibert import GradientAccumulator, MiniBERT, MiniBERTGradients
from tests.support import backends_under_test
from tests.support.checking import GRADIENT_TOLERANCE, assert_gradients_close, gradient_error, tolerance
from tests.support.small_bert import (
    ATTENTION_MASK,
    CONFIG,
    INPUT_IDS,
    LABELS,
    NEXT_SENTENCE_LABELS,
    TOKEN_TYPE_IDS,
    batch_arguments,
    batch_labels,
    small_bert,
)

VARIANTS = {
    "every position": {"pruned": False},
    "every position, no padding": {"pruned": False, "unpad": True},
    "predicted positions": {"pruned": True},
    "predicted positions, no padding": {"pruned": True, "unpad": True},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def loss_and_gradients(model: MiniBERT, pruned: bool, nsp: bool = True, **arguments: Any) -> tuple[float, Any]:
    """The loss of the small batch with dropout, and its gradients by name on the host."""
    _, cache = model.forward(**batch_arguments(pruned), next_sentence=nsp, dropout_step=4, **arguments)
    gradients = MiniBERTGradients(model)
    loss = gradients.backward(cache, batch_labels(pruned), NEXT_SENTENCE_LABELS if nsp else None)
    return float(loss), {name: model.backend.to_numpy(g) for name, g in gradients.gradients.items()}


def model_gradient_error(model: MiniBERT, seed: int, **variant: Any) -> float:
    """The error of the model's gradients along a random direction of all parameters."""
    start = {name: np.array(model.backend.to_numpy(p)) for name, p in model.parameters.items()}
    _, gradients = loss_and_gradients(model, **variant)

    def loss(parameters: dict[str, np.ndarray]) -> float:
        for name, value in parameters.items():
            model.parameters[name][...] = model.backend.asarray(value, dtype=model.dtype)
        return loss_and_gradients(model, **variant)[0]

    try:
        return gradient_error(loss, start, gradients, np.random.default_rng(seed))
    finally:
        loss(start)


@each_variant
@pytest.mark.parametrize("seed", range(3))
def test_the_models_gradient_agrees_with_central_differences(variant, seed: int, float64_backend: Backend):
    assert model_gradient_error(small_bert(float64_backend), seed, **variant) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_other_activations_too(activation: str):
    model = small_bert()
    object.__setattr__(model, "config", CONFIG.from_dict({**CONFIG.to_dict(), "hidden_act": activation}))
    assert model_gradient_error(model, 0, pruned=True) < GRADIENT_TOLERANCE


def test_every_single_parameter_agrees_with_central_differences():
    """Exhaustively: no parameter's gradient is wrong, missing, or left over from an earlier backward."""
    model, step = small_bert(), 1e-5
    _, gradients = loss_and_gradients(model, pruned=True)
    flat = model.parameters.flat
    analytic = np.concatenate([gradients[name].reshape(-1) for name in model.parameters])
    for index in range(flat.size):
        original = flat[index]
        losses = []
        for offset in (step, -step):
            flat[index] = original + offset
            _, cache = model.forward(**batch_arguments(pruned=True), dropout_step=4)
            losses.append(_loss_only(model, cache))
        flat[index] = original
        numeric = (losses[0] - losses[1]) / (2 * step)
        assert analytic[index] == pytest.approx(numeric, rel=1e-5, abs=1e-8), index


def _loss_only(model: MiniBERT, cache: Any) -> float:
    """The loss by the forward operations alone, without the backward pass."""
    predictions = model.kernels.cross_entropy_forward(cache.head.logits, batch_labels(pruned=True)).sum()
    labels = NEXT_SENTENCE_LABELS
    sequences = model.kernels.cross_entropy_forward(cache.next_sentence_logits, labels).sum()
    return float(predictions / len(batch_labels(pruned=True)) + sequences / (labels >= 0).sum())


@each_variant
def test_every_backend_and_variant_computes_the_same_gradients(variant, backend: Backend):
    expected_loss, expected = loss_and_gradients(small_bert(), pruned=False)
    for dtype in backends_under_test.float_dtypes(backend):
        loss, gradients = loss_and_gradients(small_bert(backend, dtype), **variant)
        assert loss == pytest.approx(expected_loss, rel=tolerance(dtype))
        assert_gradients_close(get_backend("cpu"), gradients, expected, dtype)


@pytest.mark.parametrize("boundaries", [(0, 1, 4), (0, 3, 4), (0, 1, 2, 3, 4)])
def test_micro_batches_with_unequal_predictions_add_up_to_the_batchs_gradient(boundaries, backend: Backend):
    """Sequences predict 3, 1, 0 and 2 tokens; the totals are passed, and the gradients simply add up."""
    for dtype in backends_under_test.float_dtypes(backend):
        model = small_bert(backend, dtype)
        gradients, accumulator = MiniBERTGradients(model), GradientAccumulator(model)
        expected_loss, expected = loss_and_gradients(small_bert(), pruned=False)
        total = 0.0
        for start, stop in pairwise(boundaries):
            part = slice(start, stop)
            _, cache = model.forward(
                INPUT_IDS[part], ATTENTION_MASK[part], TOKEN_TYPE_IDS[part], dropout_step=4, first_sequence=start
            )
            total += float(
                gradients.backward(
                    cache,
                    LABELS[part],
                    NEXT_SENTENCE_LABELS[part],
                    total_predictions=int((LABELS >= 0).sum()),
                    total_sequences=int((NEXT_SENTENCE_LABELS >= 0).sum()),
                )
            )
            accumulator.add(gradients.gradients)
        assert total == pytest.approx(expected_loss, rel=tolerance(dtype))
        assert_gradients_close(backend, accumulator.gradients, expected, dtype)


def test_mean_gradients_weighted_by_their_predictions_average_to_the_batchs_gradient(backend: Backend):
    for dtype in backends_under_test.float_dtypes(backend):
        model = small_bert(backend, dtype)
        gradients, accumulator = MiniBERTGradients(model), GradientAccumulator(model)
        for sequence in range(4):
            part = slice(sequence, sequence + 1)
            _, cache = model.forward(INPUT_IDS[part], ATTENTION_MASK[part], TOKEN_TYPE_IDS[part])
            gradients.backward(cache, LABELS[part])
            accumulator.add(gradients.gradients, weight=int((LABELS[part] >= 0).sum()))
        assert accumulator.total_weight == 6
        accumulator.average()
        whole = small_bert()
        expected = MiniBERTGradients(whole)
        _, cache = whole.forward(**batch_arguments(pruned=False))
        expected.backward(cache, LABELS)
        assert_gradients_close(backend, accumulator.gradients, expected.gradients, dtype)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_batch_without_predictions_has_no_loss_and_no_gradient(pruned: bool, backend: Backend):
    model = small_bert(backend, "float32")
    gradients = MiniBERTGradients(model)
    gradients.gradients.flat[...] = 7.0  # what an earlier backward left
    positions = {"prediction_positions": np.zeros(0, dtype=int)} if pruned else {}
    labels = np.zeros(0, dtype=int) if pruned else np.full_like(LABELS, -100)
    _, cache = model.forward(INPUT_IDS, ATTENTION_MASK, next_sentence=False, **positions)
    assert float(gradients.backward(cache, labels)) == 0.0
    assert (backend.to_numpy(gradients.gradients.flat) == 0.0).all()


def test_empty_lists_ask_for_no_prediction():
    model = small_bert()
    gradients = MiniBERTGradients(model)
    for empty in ([], ()):
        _, cache = model.forward(INPUT_IDS, next_sentence=False, prediction_positions=empty)
        assert float(gradients.backward(cache, empty)) == 0.0
    _, cache = model.forward(INPUT_IDS)
    with pytest.raises(ValueError, match=r"labels must have the shape .*, not \(0,\)"):
        gradients.backward(cache, [])
    for empty in ([], [[]]):
        with pytest.raises(ValueError, match="input_ids must have the shape"):
            model.forward(empty)


def test_any_negative_label_is_ignored_and_none_wraps_around():
    for ignored in (-1, -(2**40), np.iinfo(np.int64).min):
        model = small_bert()
        _, cache = model.forward(INPUT_IDS)
        gradients = MiniBERTGradients(model)
        labels = np.where(LABELS >= 0, LABELS, -100).astype(np.int64)
        expected = float(gradients.backward(cache, labels))
        assert float(gradients.backward(cache, np.where(labels >= 0, labels, ignored))) == expected
        with pytest.raises(ValueError, match="the loss is divided by total_predictions, 0 or more, not by -5"):
            gradients.backward(cache, labels, total_predictions=-5)


def test_without_next_sentence_labels_the_pooler_has_no_gradient():
    _, gradients = loss_and_gradients(small_bert(), pruned=True, nsp=False)
    for name in ("pooler.weight", "pooler.bias", "next_sentence.weight", "next_sentence.bias"):
        assert (gradients[name] == 0.0).all()
    assert model_gradient_error(small_bert(), 0, pruned=True, nsp=False) < GRADIENT_TOLERANCE


def test_the_two_losses_are_reported_apart(backend: Backend):
    model = small_bert(backend, "float32")
    gradients = MiniBERTGradients(model)
    _, cache = model.forward(**batch_arguments(pruned=True))
    loss = gradients.backward(cache, batch_labels(pruned=True), NEXT_SENTENCE_LABELS)
    parts = float(gradients.masked_language_model_loss), float(gradients.next_sentence_loss)
    assert float(loss) == pytest.approx(sum(parts))
    assert min(parts) > 0.0


# --- negative controls: what the first versions of this model got wrong must be found out -------------------


def _drops_duplicates(backend: Backend) -> None:
    def scatter_add(target: Any, indices: Any, rows: Any, *, deterministic: bool = False) -> None:
        target[indices] += rows

    backend.scatter_add = scatter_add  # type: ignore[method-assign]


def _forgets_the_tied_decoder(model: MiniBERT) -> None:
    right = model.kernels.linear_backward

    def linear_backward(dy: Any, x: Any, weight: Any, dweight: Any, dbias: Any = None, **options: Any) -> Any:
        dx = right(dy, x, weight, dweight, dbias, **options)
        if weight.shape == (CONFIG.vocab_size, CONFIG.hidden_size):
            dweight[...] = 0.0
        return dx

    model.kernels.linear_backward = linear_backward


def _forgets_the_mask_in_the_backward_pass(model: MiniBERT) -> None:
    right = model.kernels.attention_backward

    def attention_backward(dcontext: Any, q: Any, k: Any, v: Any, saved: Any, layout: Any, *rest: Any) -> None:
        unmasked = type(layout)(layout.queries, layout.keys, None, layout.attention_heads)
        _, weights = model.kernels.attention_forward(q, k, v, unmasked, None)
        right(dcontext, q, k, v, weights, unmasked, *rest)

    model.kernels.attention_backward = attention_backward


def _forgets_the_pruned_rows(model: MiniBERT) -> None:
    right = model.backend.scatter_add

    def scatter_add(target: Any, indices: Any, rows: Any, *, deterministic: bool = False) -> None:
        if target.shape[0] != INPUT_IDS.size:  # the input of the last layer
            right(target, indices, rows)

    model.backend.scatter_add = scatter_add  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "mistake",
    [
        lambda model: _drops_duplicates(model.backend),
        _forgets_the_tied_decoder,
        _forgets_the_mask_in_the_backward_pass,
        _forgets_the_pruned_rows,
    ],
    ids=["a dropped duplicate", "no tied gradient", "a wrong mask", "no gradient through pruned queries"],
)
def test_a_mistake_in_the_backward_pass_is_found_out(mistake):
    model = small_bert(get_backend("cpu"), kernels="reference")
    mistake(model)
    # a random direction of all 3,185 parameters sees little of a mistake in a few of them
    assert model_gradient_error(model, 0, pruned=True) > 100 * GRADIENT_TOLERANCE


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        (LABELS[:2], {}, r"labels must have the shape \(4, 7\), not \(2, 7\)"),
        (np.where(LABELS >= 0, 23, -100), {}, "labels contains 23, but labels must be below 23"),
        (LABELS, {"prediction_positions": [1, 3]}, r"labels must have the shape \(2,\)"),
        (np.where(ATTENTION_MASK, LABELS, 1), {"unpad": True}, "a prediction at padding"),
    ],
)
def test_labels_that_do_not_fit_the_batch_are_refused(labels, arguments, message):
    model = small_bert()
    _, cache = model.forward(INPUT_IDS, ATTENTION_MASK, **arguments)
    with pytest.raises(ValueError, match=message):
        MiniBERTGradients(model).backward(cache, labels)


def test_next_sentence_labels_need_their_logits():
    model = small_bert()
    _, cache = model.forward(INPUT_IDS, next_sentence=False)
    with pytest.raises(ValueError, match="next_sentence=False"):
        MiniBERTGradients(model).backward(cache, LABELS, NEXT_SENTENCE_LABELS)


def test_the_cache_of_another_model_is_refused():
    _, cache = small_bert().forward(INPUT_IDS)
    with pytest.raises(ValueError, match="another model's forward pass"):
        MiniBERTGradients(small_bert()).backward(cache, LABELS)
