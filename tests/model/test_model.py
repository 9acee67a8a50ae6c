"""What the forward pass promises, whatever is pruned, left out or split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import minibert
from backends import Backend, get_backend
from minibert import MiniBERT, MiniBERTConfig, MiniBERTGradients
from minibert.ops import Dropout, dropout_mask
from minibert.parameters import CLASSIFICATION_HEADS
from tests.support import backends_under_test
from tests.support.checking import assert_close
from tests.support.small_bert import ATTENTION_MASK, CONFIG, INPUT_IDS, POSITIONS, batch_arguments, small_bert

REAL = ATTENTION_MASK.astype(bool)


def host_logits(model: MiniBERT, **arguments) -> np.ndarray:
    return np.array(model.backend.to_numpy(model.forward(**arguments)[0]))


def test_logits_and_cache_have_the_shapes_of_the_paper(backend: Backend):
    model = small_bert(backend, "float32")
    logits, cache = model.forward(**batch_arguments(pruned=False))
    assert logits.shape == (4, 7, CONFIG.vocab_size)
    assert [state.shape for state in cache.hidden_states] == [(4, 7, 12)] * 3
    assert [layer.attention_weights.shape for layer in cache.layers] == [(4, 3, 7, 7)] * 2
    assert cache.layers[1].feed_forward.intermediate_input.shape == (4 * 7, 20)
    assert cache.pooled_output.shape == (4, 12)
    assert cache.next_sentence_logits.shape == (4, 2)


def test_every_backend_computes_the_same_model(backend: Backend):
    expected, expected_cache = small_bert("cpu", "float64").forward(**batch_arguments(pruned=False))
    for dtype in backends_under_test.float_dtypes(backend):
        logits, cache = small_bert(backend, dtype).forward(**batch_arguments(pruned=False))
        assert_close(backend, logits, expected, dtype)
        assert_close(backend, cache.layers[1].attention_weights, expected_cache.layers[1].attention_weights, dtype)
        assert_close(backend, cache.next_sentence_logits, expected_cache.next_sentence_logits, dtype)


def test_lists_and_arrays_of_the_backend_are_accepted_as_ids(backend: Backend):
    model = small_bert(backend, "float32")
    expected = host_logits(model, input_ids=INPUT_IDS)
    np.testing.assert_array_equal(host_logits(model, input_ids=INPUT_IDS.tolist()), expected)
    np.testing.assert_array_equal(host_logits(model, input_ids=backend.asarray(INPUT_IDS)), expected)


def test_attention_weights_sum_to_one_and_masked_keys_get_none(backend: Backend):
    _, cache = small_bert(backend, "float32").forward(**batch_arguments(pruned=False))
    for layer in cache.layers:
        weights = backend.to_numpy(layer.attention_weights)
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-5)
        assert (weights.transpose(0, 3, 1, 2)[~REAL] == 0.0).all()


@pytest.mark.parametrize("unpad", [False, True])
def test_attention_weights_show_at_their_positions_and_zeros_elsewhere(backend: Backend, unpad: bool):
    """Whatever is left out: padding, or the queries of the pruned last layer."""
    model = small_bert(backend, "float32")
    _, full = model.forward(**batch_arguments(pruned=False))
    _, cache = model.forward(**batch_arguments(pruned=True), unpad=unpad, next_sentence=False)
    computed = [REAL if unpad else np.ones_like(REAL), np.isin(np.arange(REAL.size).reshape(REAL.shape), POSITIONS)]
    for layer, full_layer, queries in zip(cache.layers, full.layers, computed, strict=True):
        expected = backend.to_numpy(full_layer.attention_weights) * queries[:, None, :, None]
        assert_close(backend, layer.attention_weights, expected, "float32")


def test_what_stands_at_a_masked_position_does_not_matter(backend: Backend):
    model = small_bert(backend, "float32")
    changed = np.where(REAL, INPUT_IDS, (INPUT_IDS + 1) % CONFIG.vocab_size)
    one = host_logits(model, input_ids=INPUT_IDS, attention_mask=ATTENTION_MASK)
    other = host_logits(model, input_ids=changed, attention_mask=ATTENTION_MASK)
    np.testing.assert_array_equal(one[REAL], other[REAL])
    assert (one[~REAL] != other[~REAL]).any()


def test_a_sequence_without_any_token_stays_finite(backend: Backend):
    model = small_bert(backend, "float32")
    logits, cache = model.forward([[1, 2, 3], [4, 5, 6]], [[1, 1, 0], [0, 0, 0]])
    assert np.isfinite(backend.to_numpy(logits)).all()
    assert (backend.to_numpy(cache.layers[0].attention_weights)[1] == 0.0).all()


@pytest.mark.parametrize("unpad", [False, True])
@pytest.mark.parametrize("next_sentence", [False, True])
def test_predicting_at_chosen_positions_gives_the_same_logits(backend: Backend, unpad: bool, next_sentence: bool):
    model = small_bert(backend, "float32")
    full, full_cache = model.forward(**batch_arguments(pruned=False), dropout_step=3)
    logits, cache = model.forward(
        **batch_arguments(pruned=True), dropout_step=3, unpad=unpad, next_sentence=next_sentence
    )
    expected = backend.to_numpy(full).reshape(-1, CONFIG.vocab_size)[POSITIONS]
    assert_close(backend, logits, expected, "float32")
    if next_sentence:
        expected = backend.to_numpy(full_cache.next_sentence_logits)
        assert_close(backend, cache.next_sentence_logits, expected, "float32")
    else:
        assert cache.next_sentence_logits is None


def test_the_last_layer_computes_the_predicted_positions_only():
    _, cache = small_bert().forward(**batch_arguments(pruned=True), next_sentence=False)
    assert cache.layers[0].attention.queries.shape[0] == INPUT_IDS.size
    assert cache.layers[1].attention.queries.shape[0] == len(POSITIONS)
    assert cache.layers[1].attention.keys.shape[0] == INPUT_IDS.size
    assert cache.layers[1].feed_forward.intermediate_input.shape[0] == len(POSITIONS)
    states = cache.hidden_states[-1].reshape(-1, CONFIG.hidden_size)
    assert (states[POSITIONS] != 0.0).all()
    assert np.count_nonzero(states.any(axis=1)) == len(POSITIONS)  # what was not computed shows as zeros


def test_leaving_out_padding_changes_no_real_position(backend: Backend):
    model = small_bert(backend, "float32")
    padded, padded_cache = model.forward(**batch_arguments(pruned=False), dropout_step=1)
    logits, cache = model.forward(**batch_arguments(pruned=False), dropout_step=1, unpad=True)
    assert cache.hidden_rows[0].shape[0] == REAL.sum()
    assert_close(backend, logits, np.where(REAL[..., None], backend.to_numpy(padded), 0.0), "float32")
    expected = np.where(REAL[..., None], backend.to_numpy(padded_cache.hidden_states[1]), 0.0)
    assert_close(backend, cache.hidden_states[1], expected, "float32")


def test_dropout_drops_the_same_elements_on_every_backend_and_in_every_split(backend: Backend):
    expected = host_logits(small_bert("cpu", "float32"), **batch_arguments(pruned=False), dropout_step=9)
    model = small_bert(backend, "float32")
    arguments = batch_arguments(pruned=False)
    whole, _ = model.forward(**arguments, dropout_step=9)
    assert_close(backend, whole, expected, "float32")
    for start, stop in ((0, 1), (1, 4)):
        part = {name: value[start:stop] for name, value in arguments.items()}
        logits, _ = model.forward(**part, dropout_step=9, first_sequence=start)
        assert_close(backend, logits, expected[start:stop], "float32")


def test_dropout_differs_between_steps_seeds_and_is_off_by_default():
    model, arguments = small_bert(), batch_arguments(pruned=False)
    evaluated = host_logits(model, **arguments)
    np.testing.assert_array_equal(host_logits(model, **arguments), evaluated)
    first, second = (host_logits(model, **arguments, dropout_step=step) for step in (1, 2))
    np.testing.assert_array_equal(host_logits(model, **arguments, dropout_step=1), first)
    assert (first != second).all()
    assert (first != evaluated).all()
    model.seed = 1
    assert (host_logits(model, **arguments, dropout_step=1) != first).all()


def test_every_layer_and_every_site_has_a_dropout_mask_of_its_own():
    """One mask everywhere would be as random as all others, and would always drop the same features."""
    model = MiniBERT(replace(CONFIG, labels=("no", "yes")), heads=CLASSIFICATION_HEADS)
    drawn = []
    for step in (3, 4):
        _, cache = model.classify(**batch_arguments(pruned=False), dropout_step=step)
        drawn += [cache.embeddings.dropout, cache.classifier.dropout]
        for layer in cache.layers:
            attention, feed_forward = layer.attention, layer.feed_forward
            drawn += [attention.weights_dropout, attention.output_dropout, feed_forward.output_dropout]
    assert len({dropout.key for dropout in drawn}) == len(drawn) == 2 * (2 + 3 * CONFIG.num_hidden_layers)
    rows = drawn[0].row_numbers
    masks = {
        dropout_mask(model.backend, Dropout(0.5, dropout.key, rows), 64, model.dtype).tobytes() for dropout in drawn
    }
    assert len(masks) == len(drawn)


def test_dropout_is_unbiased_and_drops_its_share():
    """Over many draws the mean of the mask is 1 and the share of zeros is p, to four standard deviations."""
    backend = get_backend("cpu")
    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=10, hidden_dropout_prob=0.25))
    _, cache = model.forward(np.zeros((16, 128), dtype=int), dropout_step=0)
    dropout = cache.layers[0].feed_forward.output_dropout
    ones = np.ones((16 * 128, 128), dtype=np.float32)
    dropped = model.kernels.dropout_forward(ones, dropout)
    share = float((dropped == 0.0).mean())
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / dropped.size)
    assert set(np.unique(dropped)) == {np.float32(0.0), np.float32(1 / 0.75)}
    per_column = (dropped == 0.0).mean(axis=0)
    assert np.abs(per_column - 0.25).max() < 6 * np.sqrt(0.25 * 0.75 / dropped.shape[0])
    assert backend.name == "cpu"


def test_the_example_of_the_docstring_works():
    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=100))
    logits, cache = model.forward([[5, 6, 7]], [[1, 1, 0]])
    loss = MiniBERTGradients(model).backward(cache, [[-100, 6, -100]])
    assert logits.shape == (1, 3, 100)
    assert 3.0 < float(loss) < 6.0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_ids": [[1, 23]]}, ValueError, r"input_ids\[0, 1\] is 23, but the vocabulary has 23 entries"),
        ({"input_ids": [[1, -1]]}, ValueError, r"input_ids\[0, 1\] is -1"),
        ({"input_ids": [1, 2]}, ValueError, r"shape \(batch, sequence length\).* wrap a single sequence as \[ids\]"),
        ({"input_ids": [[]]}, ValueError, "both at least 1, not"),
        ({"input_ids": [[1.0]]}, TypeError, "input_ids must be integers, not float64"),
        ({"input_ids": [[True, False]]}, TypeError, "input_ids must be integers, not bool"),
        ({"input_ids": [[1, 2], [3]]}, ValueError, "input_ids must be a full rectangle .* padding id"),
        ({"input_ids": [[1] * 10]}, ValueError, "10 tokens long, .* max_position_embeddings = 9"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, ValueError, r"attention_mask has the shape \(1, 1\)"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 2]]}, ValueError, "only 1 .* and 0"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0, 2]]}, ValueError, r"token_type_ids\[0, 1\] is 2"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0]]}, ValueError, "token_type_ids has the shape"),
        ({"input_ids": [[1, 2]], "first_sequence": -1}, ValueError, "first_sequence counts .* from 0; got -1"),
        ({"input_ids": [[1, 2]], "dropout_step": -1}, ValueError, "dropout_step is the number of a training step"),
        ({"input_ids": [[1, 2]], "prediction_positions": [2]}, ValueError, r"prediction_positions\[0\] is 2"),
        ({"input_ids": [[1, 2]], "prediction_positions": [1, 0]}, ValueError, "must increase"),
        ({"input_ids": [[1, 2]], "prediction_positions": [[1]]}, ValueError, "one list of flat positions"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused_before_anything_is_computed(arguments, error, message, backend):
    with pytest.raises(error, match=message):
        small_bert(backend, "float32").forward(**arguments)


def test_a_dtype_that_the_device_lacks_is_named(backend: Backend):
    for dtype in {"float32", "float64"} - set(backends_under_test.float_dtypes(backend)):
        with pytest.raises(ValueError, match=f"has no {dtype}"):
            MiniBERT(CONFIG, backend=backend, dtype=dtype)
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'float64', not 'int32'"):
        MiniBERT(CONFIG, backend=backend, dtype="int32")


def test_the_repr_of_a_model_says_its_sizes_parameters_device_and_precision():
    model = small_bert("cpu", "float64", kernels="reference", precision="bfloat16")
    number = sum(view.size for view in model.parameters.values())
    text = repr(model)
    for part in ("2 layers", "hidden size 12", "3 attention heads", "intermediate size 20", "vocabulary 23"):
        assert part in text
    for part in (f"{number:,} parameters in float64", "mlm, pooler", "device cpu", "bfloat16", "kernels reference"):
        assert part in text
    assert "heads: none" in repr(small_bert("cpu", "float32", heads=()))


def test_dir_lists_the_public_names_before_they_are_imported():
    listed = [name for name in dir(minibert) if not name.startswith("_")]
    assert listed == sorted(minibert.__all__)
    assert all(getattr(minibert, name) is not None for name in listed)
