"""One flat array, named views into it, and the same fresh numbers on every device."""

from __future__ import annotations

import numpy as np

from backends import Backend
from minibert import MiniBERT, MiniBERTConfig
from minibert.parameters import Layout
from tests.support import backends_under_test
from tests.support.small_bert import CONFIG


def test_the_named_views_cover_the_flat_array_once():
    layout = Layout.of(MiniBERTConfig.preset("tiny"))
    end = 0
    for name, shape in layout.shapes.items():
        assert layout.offsets[name] == end
        end += int(np.prod(shape))
    assert end == layout.size


def test_bert_base_has_the_published_number_of_parameters():
    """110 million (Devlin et al. 2018); to the last one, `BertForPreTraining`'s 110,106,428."""
    assert Layout.of(MiniBERTConfig.preset("base")).size == 110_106_428


def test_weights_and_embeddings_decay_biases_and_layer_norms_do_not():
    layout = Layout.of(CONFIG)
    for name, offset in layout.offsets.items():
        assert (offset < layout.decayed_size) == (len(layout.shapes[name]) == 2), name


def test_writing_to_a_view_writes_to_the_flat_array_and_back(backend: Backend):
    parameters = MiniBERT(CONFIG, backend=backend, initialised=False).parameters
    parameters["layers.1.attention.key.weight"][...] = 3.0
    assert float(backend.xp.sum(parameters.flat)) == 3.0 * 12 * 12
    packed = parameters.packed("layers.1.attention", ("query", "key", "value"), "weight")
    assert packed.shape == (36, 12)
    packed[:12, :] = 1.0
    assert (backend.to_numpy(parameters["layers.1.attention.query.weight"]) == 1.0).all()
    parameters.flat[...] = 0.0
    assert float(backend.xp.sum(packed)) == 0.0


def test_every_device_starts_from_the_same_parameters(backend: Backend):
    expected = np.array(MiniBERT(CONFIG, dtype="float64", seed=7).parameters.flat)
    for dtype in backends_under_test.float_dtypes(backend):
        flat = backend.to_numpy(MiniBERT(CONFIG, backend=backend, dtype=dtype, seed=7).parameters.flat)
        np.testing.assert_array_equal(flat, expected.astype(dtype))


def test_fresh_weights_are_a_truncated_normal_and_differ_between_seeds():
    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=4000), dtype="float64")
    weights = model.parameters["token_embeddings"] / model.config.initializer_range
    assert np.abs(weights).max() <= 2.0
    assert abs(weights.mean()) < 4 * 0.88 / np.sqrt(weights.size)
    assert abs(weights.std() - 0.8796) < 0.005  # of a standard normal cut at 2
    assert (model.parameters["layers.0.output.layer_norm.weight"] == 1.0).all()
    assert (model.parameters["mlm.bias"] == 0.0).all()
    other = MiniBERT(model.config, dtype="float64", seed=1)
    assert (other.parameters["token_embeddings"] != model.parameters["token_embeddings"]).mean() > 0.999
