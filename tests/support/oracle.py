"""The models and the batch for the comparisons with PyTorch, both the recorded and the live comparison."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from minibert import MiniBERT, MiniBERTConfig
from minibert.parameters import CLASSIFICATION_HEADS

ODD_SIZES = MiniBERTConfig(
    vocab_size=25,
    hidden_size=21,
    num_hidden_layers=3,
    num_attention_heads=7,
    intermediate_size=11,
    max_position_embeddings=13,
    type_vocab_size=3,
    layer_norm_eps=1e-5,
    hidden_act="gelu_new",
)
LABELS = ("ham", "spam", "eggs")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def fresh_model(config: MiniBERTConfig, dtype: str) -> MiniBERT:
    """Return a model with random parameters, so large that no part of the model is nearly linear."""
    model = MiniBERT(config, dtype=dtype)
    _draw(model)
    return model


def _draw(model: MiniBERT) -> None:
    rng = np.random.default_rng(1)
    for name, view in model.parameters.items():
        centre = 1.0 if name.endswith("layer_norm.weight") else 0.0
        view[...] = centre + 0.2 * rng.standard_normal(view.shape)


def fresh_classifier(config: MiniBERTConfig, dtype: str) -> MiniBERT:
    """Return such a model with a classifier of three classes instead of the pretraining heads."""
    model = MiniBERT(replace(config, labels=LABELS), dtype=dtype, heads=CLASSIFICATION_HEADS)
    _draw(model)
    return model


def batch(config: MiniBERTConfig) -> dict[str, np.ndarray]:
    """Return a batch: ids, masks for several lengths, segments, and labels for all three heads."""
    rng = np.random.default_rng(2)
    size, length = 5, config.max_position_embeddings - 2
    lengths = rng.integers(length // 2, length + 1, size)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(0, config.vocab_size, (size, length))
    # PyTorch's `padding_idx` gives the embedding of [PAD] no gradient. Google's BERT and Mini-BERT do give it one. This
    # shows only if [PAD] is attended to, so [PAD] does not occur among the real tokens here.
    ids[ids == config.pad_token_id] += 1
    ids[mask == 0] = config.pad_token_id
    labels = np.where((rng.random((size, length)) < 0.3) & (mask == 1), ids, -100)
    labels[0, 0] = ids[0, 0]  # at least one
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, config.type_vocab_size, (size, length)),
        "labels": labels,
        "next_sentence_labels": rng.integers(0, 2, size),
        "class_labels": rng.integers(0, len(LABELS), size),
    }
