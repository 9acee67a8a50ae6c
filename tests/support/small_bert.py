"""A BERT so small that every number can be checked, and a batch that has every special case."""

from __future__ import annotations

from typing import Any

import numpy as np

from backends import Backend
from minibert import MiniBERT, MiniBERTConfig

CONFIG = MiniBERTConfig(
    vocab_size=23,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    max_position_embeddings=9,
    initializer_range=0.3,  # so large that no part of the model is nearly linear
)

_RNG = np.random.default_rng(5)
INPUT_IDS = _RNG.integers(0, CONFIG.vocab_size, (4, 7))
INPUT_IDS[0, :3] = INPUT_IDS[1, 4]  # duplicates, whose gradients must add up
ATTENTION_MASK = np.array(
    [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0, 0],  # padding at the end
        [1, 1, 0, 1, 1, 1, 0],  # padding in the middle, too
        [1, 1, 1, 0, 0, 0, 0],
    ]
)
TOKEN_TYPE_IDS = np.array([[0, 0, 0, 0, 1, 1, 1]] * 4)
LABELS = np.full((4, 7), -100)
LABELS[0, [1, 3, 6]] = [4, 9, 4]
LABELS[1, 0] = 7
LABELS[3, [1, 2]] = [0, 22]  # sequence 2 predicts nothing
NEXT_SENTENCE_LABELS = np.array([0, 1, -100, 1])
POSITIONS = np.flatnonzero(LABELS.reshape(-1) >= 0)


def small_bert(backend: Backend | str = "cpu", dtype: str = "float64", **arguments: Any) -> MiniBERT:
    """Return a model with fresh parameters.

    Biases are not 0 and the weights of layer norms are not 1, since errors in them could go unnoticed then.
    """
    model = MiniBERT(CONFIG, backend=backend, dtype=dtype, **arguments)
    rng = np.random.default_rng(6)
    for name, view in model.parameters.items():
        if view.ndim == 1:
            centre = 1.0 if name.endswith("layer_norm.weight") else 0.0
            view[...] = model.backend.asarray(centre + 0.3 * rng.standard_normal(view.shape), dtype=model.dtype)
    return model


def batch_arguments(pruned: bool) -> dict[str, Any]:
    """Return the arguments of `MiniBERT.forward`; if pruned, it predicts at the labelled positions only."""
    arguments: dict[str, Any] = {
        "input_ids": INPUT_IDS,
        "attention_mask": ATTENTION_MASK,
        "token_type_ids": TOKEN_TYPE_IDS,
    }
    return {**arguments, "prediction_positions": POSITIONS} if pruned else arguments


def batch_labels(pruned: bool) -> np.ndarray:
    """Return the labels for `batch_arguments`."""
    return LABELS.reshape(-1)[POSITIONS] if pruned else LABELS
