"""The oracle: the same BERT in PyTorch, by Hugging Face's transformers, loaded from a folder that we wrote."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from minibert import MiniBERT, MiniBERTConfig

SHAPES = {
    "plain": MiniBERTConfig(
        vocab_size=101,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=16,
    ),
    "odd sizes": MiniBERTConfig(
        vocab_size=25,
        hidden_size=21,
        num_hidden_layers=3,
        num_attention_heads=7,
        intermediate_size=11,
        max_position_embeddings=13,
        type_vocab_size=3,
        layer_norm_eps=1e-5,
        hidden_act="gelu_new",
    ),
    "one head, relu": MiniBERTConfig(
        vocab_size=600,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=64,
        max_position_embeddings=40,
        hidden_act="relu",
        pad_token_id=3,
    ),
}


@pytest.fixture(autouse=True)
def _deterministic_torch() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def config(request: pytest.FixtureRequest) -> MiniBERTConfig:
    return request.param


def fresh_model(config: MiniBERTConfig, dtype: str) -> MiniBERT:
    """Random parameters everywhere, large enough that nothing is nearly linear."""
    model = MiniBERT(config, dtype=dtype)
    rng = np.random.default_rng(1)
    for name, view in model.parameters.items():
        centre = 1.0 if name.endswith("layer_norm.weight") else 0.0
        view[...] = centre + 0.2 * rng.standard_normal(view.shape)
    return model


def in_transformers(model: MiniBERT, folder: Path, kind: str = "BertForPreTraining") -> Any:
    """The same model in transformers, through the files; any warning of theirs is an error."""
    model.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs, info = getattr(transformers, kind).from_pretrained(
            folder, attn_implementation="eager", output_loading_info=True, dtype=torch.float64
        )
    assert not any(info.values()), info  # nothing missing, unexpected, mismatched
    dtype = torch.float64 if model.dtype == np.float64 else torch.float32
    return theirs.to(dtype).eval()


def batch(config: MiniBERTConfig) -> dict[str, np.ndarray]:
    """Ids, padding of several lengths, segments, labels and next-sentence labels."""
    rng = np.random.default_rng(2)
    size, length = 5, config.max_position_embeddings - 2
    lengths = rng.integers(length // 2, length + 1, size)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(0, config.vocab_size, (size, length))
    # PyTorch's `padding_idx` leaves the looked-up padding out of the gradient; Google's BERT does not, nor do we.
    # That shows only where padding is attended to, so it does not occur among the real tokens here.
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
    }
