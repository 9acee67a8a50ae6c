"""Translate names: what Mini-BERT calls a parameter, and what Hugging Face's `transformers` calls its tensor."""

from __future__ import annotations

import re

DECODER_WEIGHT, DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"
"""Second names of the token embeddings and of `mlm.bias`: BERT's decoder shares both (they are tied)."""

_ROOTS = {  # Mini-BERT's name -> Hugging Face's, without ".weight" and ".bias"
    "token_embeddings": "bert.embeddings.word_embeddings.weight",
    "position_embeddings": "bert.embeddings.position_embeddings.weight",
    "token_type_embeddings": "bert.embeddings.token_type_embeddings.weight",
    "embeddings.layer_norm": "bert.embeddings.LayerNorm",
    "mlm.dense": "cls.predictions.transform.dense",
    "mlm.layer_norm": "cls.predictions.transform.LayerNorm",
    "mlm.bias": "cls.predictions.bias",
    "pooler": "bert.pooler.dense",
    "next_sentence": "cls.seq_relationship",
    "classifier": "classifier",
}
_ROOTS_IN_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.layer_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output.layer_norm": "output.LayerNorm",
}
_CONSTANTS = re.compile(r"(^|\.)(position_ids|token_type_ids)$")


def hugging_face_name(name: str) -> str:
    """Return the name of a parameter in Hugging Face's `BertForPreTraining`: `mlm.bias` -> `cls.predictions.bias`."""
    if name in _ROOTS:
        return _ROOTS[name]
    root, kind = name.rsplit(".", 1)
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", root):
        return f"bert.encoder.layer.{match[1]}.{_ROOTS_IN_LAYER[match[2]]}.{kind}"
    return f"{_ROOTS[root]}.{kind}"


def current_name(stored: str) -> str:
    """Return the name that `transformers` uses today for a tensor.

    Old checkpoints call a layer norm's weight gamma and its bias beta; a bare encoder has no prefix `bert.`.
    """
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", stored)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    if re.match(r"(embeddings|encoder|pooler)\.", name):
        name = f"bert.{name}"
    return name


def layer_number(name: str) -> int | None:
    """Return the number of the encoder layer, from 0, that a tensor belongs to; None outside the layers.

    A number of more than nine digits, which Python may refuse to read, becomes 10**9.
    """
    match = re.match(r"bert\.encoder\.layer\.0*([0-9]+)\.", name)
    if match is None:
        return None
    return int(match[1]) if len(match[1]) < 10 else 10**9


def is_constant(name: str) -> bool:
    """Return True for the names of constants that old versions of `transformers` stored, such as position ids."""
    return _CONSTANTS.search(name) is not None
