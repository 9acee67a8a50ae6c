"""The config accepts every BERT and nothing else."""

from __future__ import annotations

import pytest

from minibert import MiniBERTConfig
from minibert.config import PRESETS


def test_the_presets_have_googles_published_sizes():
    published = {"tiny": (2, 128, 2), "mini": (4, 256, 4), "small": (4, 512, 8), "medium": (8, 512, 8)}
    published["base"] = (12, 768, 12)
    assert set(PRESETS) == set(published)
    for name, (layers, hidden, heads) in published.items():
        config = MiniBERTConfig.preset(name)
        assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (layers, hidden, heads)
        assert config.intermediate_size == 4 * hidden


def test_the_default_is_bert_mini():
    assert MiniBERTConfig() == MiniBERTConfig.preset("mini")


def test_a_config_survives_json_and_ignores_fields_it_does_not_have():
    config = MiniBERTConfig(vocab_size=100, hidden_act="relu")
    assert MiniBERTConfig.from_dict({**config.to_dict(), "torch_dtype": "float32"}) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 130, "num_attention_heads": 4}, r"hidden_size \(130\) must be divisible"),
        ({"vocab_size": 0}, "vocab_size must be an integer of at least 1, not 0"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers must be an integer of at least 1"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be an integer of at least 1, not True"),
        ({"pad_token_id": -1}, "pad_token_id must be an integer of at least 0, not -1"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps must be a number, not '1e-12'"),
        ({"problem_type": "guess"}, "problem_type must be one of"),
        ({"hidden_act": "swish"}, "hidden_act must be one of gelu, gelu_new, relu, not 'swish'"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob must be at least 0 and below 1"),
        ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob must be"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps must be above 0 and at most 1"),
        ({"pad_token_id": 40000}, "pad_token_id"),
    ],
)
def test_sizes_that_make_no_bert_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        MiniBERTConfig(**changes)


def test_an_unknown_preset_is_answered_with_the_choice():
    with pytest.raises(ValueError, match="unknown preset 'huge': choose one of tiny, mini, small, medium, base"):
        MiniBERTConfig.preset("huge")
