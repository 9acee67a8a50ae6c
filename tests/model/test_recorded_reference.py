"""Mini-BERT's outputs and gradients equal those that PyTorch computed once, so no PyTorch is needed here.

`tests/parity/record_reference.py` wrote the recording. `make test-parity` compares with PyTorch itself.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from backends import Backend
from minibert import MiniBERT, MiniBERTGradients
from minibert.huggingface.pretrained import hugging_face_name
from minibert.parameters import CLASSIFICATION_HEADS
from tests.support import backends_under_test
from tests.support.oracle import INPUTS, LABELS, ODD_SIZES

REFERENCE = load_file(Path(__file__).parents[1] / "recordings" / "reference.safetensors")
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}  # relative to the largest number of an array


def largest_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference, relative to PyTorch's largest number."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours.astype(np.float64) - theirs).max() / np.abs(theirs).max())


def recorded(prefix: str) -> dict[str, np.ndarray]:
    """Return the recorded arrays whose names begin with the prefix, without it."""
    return {name.removeprefix(f"{prefix}."): a for name, a in REFERENCE.items() if name.startswith(f"{prefix}.")}


def assert_gradients(gradients: MiniBERTGradients, expected: dict[str, np.ndarray], dtype: str) -> None:
    """Assert that there are the same gradients, and that all differences are small beside the largest gradient."""
    theirs = {name.removeprefix("gradients."): g for name, g in expected.items() if name.startswith("gradients.")}
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    to_numpy = gradients.model.backend.to_numpy
    for name, gradient in gradients.gradients.items():
        difference = np.abs(to_numpy(gradient) - theirs.pop(hugging_face_name(name))).max()
        assert difference < TOLERANCE[dtype] * largest, name
    assert not theirs


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_outputs_and_gradients_are_pytorchs(activation: str, backend: Backend):
    batch, expected = recorded("batch"), recorded(activation)
    for dtype in backends_under_test.float_dtypes(backend):
        model = MiniBERT(replace(ODD_SIZES, hidden_act=activation), backend=backend, dtype=dtype, initialised=False)
        model.parameters.flat[...] = backend.asarray(REFERENCE["parameters"], dtype=model.dtype)
        logits, cache = model.forward(**{name: batch[name] for name in INPUTS})
        gradients = MiniBERTGradients(model)
        loss = gradients.backward(cache, batch["labels"], batch["next_sentence_labels"])
        ours = {
            "loss": loss,
            "logits": logits,
            "next_sentence_logits": cache.next_sentence_logits,
            "hidden_states": backend.xp.stack(cache.hidden_states),
            "attention_weights": backend.xp.stack([layer.attention_weights for layer in cache.layers]),
        }
        for name, array in ours.items():
            assert largest_error(backend.to_numpy(array), expected[name]) < TOLERANCE[dtype], name

        assert_gradients(gradients, expected, dtype)


def test_a_classifiers_outputs_and_gradients_are_pytorchs(backend: Backend):
    batch, expected = recorded("batch"), recorded("classifier")
    for dtype in backends_under_test.float_dtypes(backend):
        config = replace(ODD_SIZES, labels=LABELS)
        model = MiniBERT(config, backend=backend, dtype=dtype, initialised=False, heads=CLASSIFICATION_HEADS)
        model.parameters.flat[...] = backend.asarray(expected["parameters"], dtype=model.dtype)
        logits, cache = model.classify(**{name: batch[name] for name in INPUTS})
        gradients = MiniBERTGradients(model)
        loss = gradients.backward_classification(cache, batch["class_labels"])
        assert largest_error(backend.to_numpy(logits), expected["logits"]) < TOLERANCE[dtype]
        assert largest_error(backend.to_numpy(loss), expected["loss"]) < TOLERANCE[dtype]
        assert_gradients(gradients, expected, dtype)
