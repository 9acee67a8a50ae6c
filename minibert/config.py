"""The configuration of a BERT: its sizes, its activation, its dropout, its labels.

The fields have the names of Hugging Face's `config.json`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minibert.errors import brief

SINGLE_LABEL = "single_label_classification"
PROBLEM_TYPES = (SINGLE_LABEL, "multi_label_classification", "regression")
"""Values of `problem_type`: the kind of loss that a classifier was trained with."""

ACTIVATIONS = ("gelu", "gelu_new", "relu")
"""Values of `hidden_act`: exact GELU (with erf) as in BERT, its tanh approximation, rectified linear."""

_PRESETS: dict[str, dict[str, int]] = {  # Turc et al. 2019 (arXiv:1908.08962), table 1; base: Devlin et al. 2018
    "tiny": {"num_hidden_layers": 2, "hidden_size": 128},
    "mini": {"num_hidden_layers": 4, "hidden_size": 256},
    "small": {"num_hidden_layers": 4, "hidden_size": 512},
    "medium": {"num_hidden_layers": 8, "hidden_size": 512},
    "base": {"num_hidden_layers": 12, "hidden_size": 768},
}
PRESETS = tuple(_PRESETS)


@dataclass(frozen=True)
class MiniBERTConfig:
    """The sizes and choices that define a BERT; the defaults are BERT-Mini's.

    Attributes:
        vocab_size: V, the number of token ids.
        hidden_size: H, the width of the hidden states; a multiple of `num_attention_heads`.
        num_hidden_layers: L, the number of encoder layers.
        num_attention_heads: A; each attention head has width D = H / A.
        intermediate_size: I, the width of the feed-forward layer.
        max_position_embeddings: the longest sequence, in tokens.
        type_vocab_size: the number of segments that `token_type_ids` can name.
        hidden_dropout_prob: dropout of the embeddings and of every sub-layer's output, in training.
        attention_probs_dropout_prob: dropout of the attention weights, in training.
        classifier_dropout: dropout of the pooled output before the classifier, in training; None for the value of
            `hidden_dropout_prob`.
        layer_norm_eps: added to the variance in layer normalisation.
        hidden_act: one of `ACTIVATIONS`.
        initializer_range: standard deviation of freshly drawn weights.
        pad_token_id: the id that fills up short sequences.
        labels: names of the classifier's C classes (Hugging Face's `id2label`); empty without a classifier.
        problem_type: one of `PROBLEM_TYPES`; None means a single label if there are several classes. The logits do
            not depend on it. Mini-BERT trains classifiers with single labels only.

    Raises:
        ValueError: a value that is not possible; the message names the field.
    """

    vocab_size: int = 30522
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    pad_token_id: int = 0
    classifier_dropout: float | None = None
    labels: tuple[str, ...] = ()
    problem_type: str | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), int(field.name != "pad_token_id")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if field.type == "int" and not (number and isinstance(value, int) and value >= least):
                raise ValueError(f"{field.name} must be an integer of at least {least}, not {brief(value)}")
            optional = field.type == "float | None" and value is None
            if field.type in ("float", "float | None") and not number and not optional:
                raise ValueError(f"{field.name} must be a number, not {brief(value)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({brief(self.hidden_size)}) must be divisible by num_attention_heads "
                f"({brief(self.num_attention_heads)}): every attention head gets an equal share of the hidden states"
            )
        if self.pad_token_id >= self.vocab_size:
            raise ValueError(
                f"pad_token_id ({brief(self.pad_token_id)}) must be below vocab_size ({brief(self.vocab_size)})"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if getattr(self, name) is not None and not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be at least 0 and below 1, not {brief(getattr(self, name))}")
        for name, largest in (("layer_norm_eps", 1.0), ("initializer_range", 100.0)):
            if not 0.0 < getattr(self, name) <= largest:
                raise ValueError(f"{name} must be above 0 and at most {largest:g}, not {brief(getattr(self, name))}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, not {brief(self.hidden_act)}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, not {brief(self.problem_type)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must all differ; got {brief(self.labels, 200)}")

    @property
    def head_size(self) -> int:
        """D = H / A, the width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def preset(cls, name: str, **changes: Any) -> MiniBERTConfig:
        """Return one of Google's published sizes, with some fields changed.

        Args:
            name: "tiny" (L2 H128), "mini" (L4 H256), "small" (L4 H512), "medium" (L8 H512), "base" (L12 H768).
            changes: fields to change, e.g. `vocab_size=8192`.

        Raises:
            ValueError: an unknown name, or a value that is not possible.
        """
        if name not in _PRESETS:
            raise ValueError(f"unknown preset {brief(name)}: choose one of {', '.join(PRESETS)}")
        sizes = _PRESETS[name]
        hidden_size = sizes["hidden_size"]  # in all of them, D = 64 and I = 4 H
        derived = {"num_attention_heads": hidden_size // 64, "intermediate_size": 4 * hidden_size}
        return cls(**{**sizes, **derived, **changes})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> MiniBERTConfig:
        """Make a config from the content of a `config.json`; fields that Mini-BERT lacks are ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in fields.items() if name in known}
        return cls(**{**values, "labels": tuple(values.get("labels", ()))})

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as values that JSON can hold."""
        return {**dataclasses.asdict(self), "labels": list(self.labels)}
