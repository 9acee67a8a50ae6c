"""The shapes of BERT that are compared with PyTorch."""

from __future__ import annotations

import pytest
import torch
import transformers
from oracle import ODD_SIZES

from minibert import MiniBERTConfig

SHAPES = {
    "plain": MiniBERTConfig(
        vocab_size=101,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        max_position_embeddings=16,
    ),
    "odd sizes": ODD_SIZES,
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
