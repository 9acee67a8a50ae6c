"""Mini-BERT is BERT, without PyTorch at hand: against what PyTorch computed once.

`tests/parity/record_reference.py` wrote the file; `make test-parity` makes the same comparison live.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import backends_under_test
import numpy as np
import pytest
from oracle import INPUTS, ODD_SIZES
from safetensors.numpy import load_file

from backends import Backend
from minibert import MiniBERT, MiniBERTGradients
from minibert.pretrained import hugging_face_name

REFERENCE = load_file(Path(__file__).parent / "data" / "reference.safetensors")
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}  # relative to the largest number of an array


def worst(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours.astype(np.float64) - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_outputs_and_gradients_are_pytorchs(activation: str, backend: Backend):
    batch = {name.removeprefix("batch."): array for name, array in REFERENCE.items() if name.startswith("batch.")}
    expected = {
        name.removeprefix(f"{activation}."): array
        for name, array in REFERENCE.items()
        if name.startswith(f"{activation}.")
    }
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
            assert worst(backend.to_numpy(array), expected[name]) < TOLERANCE[dtype], name

        theirs = {name.removeprefix("gradients."): g for name, g in expected.items() if name.startswith("gradients.")}
        largest = max(np.abs(gradient).max() for gradient in theirs.values())
        for name, gradient in gradients.gradients.items():
            difference = np.abs(backend.to_numpy(gradient) - theirs.pop(hugging_face_name(name))).max()
            assert difference < TOLERANCE[dtype] * largest, name
        assert not theirs
