"""Hugging Face checkpoints in and out: `config.json` and `model.safetensors` of a BERT.

Read are the files that `transformers` and its users have written over the years: with or without the `bert.`
prefix, with `gamma` and `beta` of old checkpoints, in one file or in shards, in float16 or bfloat16, with any
of the heads missing. Written is what `BertForPreTraining.from_pretrained` loads. What cannot be computed
exactly is refused by name; pickles are refused altogether.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from backends import Backend
from minibert.config import MiniBERTConfig
from minibert.files import write_tensors, write_text
from minibert.model import MiniBERT
from minibert.parameters import CLASSIFICATION_HEADS, HEADS, PRETRAINING_HEADS, Layout, head_of, initialise
from minibert.tensor_files import WEIGHTS_FILE, PretrainedError, StoredTensors, read_json

__all__ = [
    "PretrainedError",
    "PretrainedWarning",
    "from_pretrained",
    "hugging_face_name",
    "read_config",
    "save_pretrained",
]

CONFIG_FILE = "config.json"

_ROOTS = {  # the first words of a name: ours -> theirs
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
_IN_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.layer_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output.layer_norm": "output.LayerNorm",
}
_HEADS = {  # for people
    "mlm": "masked-language-model head",
    "pooler": "pooler",
    "next_sentence": "next-sentence head",
    "classifier": "classifier",
}
_CLASSIFIER = "BertForSequenceClassification"
_BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids)$")  # constants that old versions of theirs stored
_DECODER_WEIGHT, _DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"


class PretrainedWarning(UserWarning):
    """Something in a checkpoint was left alone, or something was missing and drawn afresh."""


def hugging_face_name(name: str) -> str:
    """What Hugging Face's `BertForPreTraining` calls a parameter: `mlm.bias` -> `cls.predictions.bias`."""
    if name in _ROOTS:
        return _ROOTS[name]
    root, kind = name.rsplit(".", 1)
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", root):
        return f"bert.encoder.layer.{match[1]}.{_IN_LAYER[match[2]]}.{kind}"
    return f"{_ROOTS[root]}.{kind}"


def _canonical_name(stored: str) -> str:
    """The current name of a tensor that an older or bare checkpoint calls otherwise."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", stored)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    if re.match(r"(embeddings|encoder|pooler)\.", name):
        name = f"bert.{name}"
    return name


# --- reading -------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> tuple[MiniBERTConfig, tuple[str, ...]]:
    """The model's sizes, from `config.json`, with the labels of its classes if it is a classifier.

    Returns:
        The config, and the architectures that the file names.

    Raises:
        PretrainedError: no BERT, or one that Mini-BERT does not compute exactly.
    """
    path = folder / CONFIG_FILE
    fields = read_json(path)
    architectures = fields.get("architectures") or ()
    if fields.get("model_type", "bert") != "bert":
        raise PretrainedError(f"{path}: model_type is {fields['model_type']!r}; Mini-BERT is BERT and nothing else")
    for name, only in (
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("add_cross_attention", False),
    ):
        if fields.get(name, only) != only:
            raise PretrainedError(f"{path}: {name} is {fields[name]!r}; Mini-BERT computes {only!r} only")
    missing = [name for name in ("vocab_size", "hidden_size", "num_hidden_layers") if name not in fields]
    if missing:
        raise PretrainedError(f"{path}: {', '.join(missing)} is missing; this is no BERT's config")
    labels = _labels(path, fields) if _CLASSIFIER in architectures else ()
    try:
        config = MiniBERTConfig.from_dict({**_HUGGING_FACE_DEFAULTS, **fields, "labels": labels})
    except (TypeError, ValueError) as error:
        raise PretrainedError(f"{path}: {error}") from error
    return config, tuple(architectures)


def _labels(path: Path, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes, in the order of their numbers; LABEL_0, LABEL_1 where the file has none."""
    named = fields.get("id2label")
    if named is None:
        return tuple(f"LABEL_{number}" for number in range(int(fields.get("num_labels", 2))))
    if not isinstance(named, dict) or set(named) != {str(number) for number in range(len(named))}:
        raise PretrainedError(f"{path}: id2label must name the classes 0 to C - 1, not {named!r}")
    return tuple(str(named[str(number)]) for number in range(len(named)))


_HUGGING_FACE_DEFAULTS = {"num_attention_heads": 12, "intermediate_size": 3072}  # where they differ from ours


def from_pretrained(
    folder: str | os.PathLike[str],
    *,
    device: Backend | str = "cpu",
    dtype: str = "float32",
    kernels: str = "auto",
    heads: Iterable[str] | None = None,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> MiniBERT:
    """A model from a folder in Hugging Face's format.

    Args:
        folder: with `config.json` and `model.safetensors` (or its shards and their index).
        device: "cpu", "cuda" or "cuda:N", or a `Backend`.
        dtype: "float32" or "float64"; the stored weights are converted.
        kernels: see `MiniBERT`.
        heads: from `minibert.parameters.HEADS`, the heads to have; stored ones that are not among them are not
            read. None: pooler and classifier of a `BertForSequenceClassification`, else the pretraining heads.
        labels: the classes of a new classifier, which replaces a stored one unless that has the same labels.
        seed: of the heads that the folder lacks, and of dropout.

    Raises:
        PretrainedError: the folder is no BERT, is damaged, or contradicts itself; names file and tensor.

    Warns:
        PretrainedWarning: heads that the folder lacks are drawn afresh (a new classifier goes without saying);
            tensors that BERT lacks are left alone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PretrainedError(f"{folder} is not a folder")
    config, architectures = read_config(folder)
    tensors = StoredTensors(folder)
    stored = {_canonical_name(name): name for name in tensors}
    if _CLASSIFIER not in architectures or (labels is not None and tuple(labels) != config.labels):
        # of other labels, or of an architecture that calls something else a classifier
        unread = {name for name in stored if head_of(name) == "classifier"}
    else:
        unread = set()
    if labels is not None:
        config = dataclasses.replace(config, labels=tuple(labels))
    if heads is None:
        heads = CLASSIFICATION_HEADS if config.labels else PRETRAINING_HEADS
    try:
        layout = Layout.of(config, heads)
    except ValueError as error:
        raise PretrainedError(f"{folder}: {error}") from error
    names = {name: hugging_face_name(name) for name in layout.shapes}
    if names.get("mlm.bias") not in stored and _DECODER_BIAS in stored:
        names["mlm.bias"] = _DECODER_BIAS
    missing = {name for name in layout.shapes if names[name] not in stored or names[name] in unread}
    absent_heads = _absent_heads(layout.shapes, missing)
    if broken := sorted(name for name in missing if head_of(name) not in absent_heads):
        raise PretrainedError(f"{tensors.listing}: the tensor {names[broken[0]]} is missing ({len(broken)} in all)")

    model = MiniBERT(
        config, backend=device, dtype=dtype, seed=seed, kernels=kernels, initialised=False, heads=tuple(heads)
    )
    initialise(model.parameters, config, model.backend, seed, missing)
    for name, shape in layout.shapes.items():
        if name in missing:
            continue
        theirs = stored[names[name]]
        tensor = tensors[theirs]
        if tensor.shape != shape:
            raise PretrainedError(
                f"{tensors.file_of(theirs)}: the tensor {theirs} has the shape {tensor.shape}, but {CONFIG_FILE} "
                f"asks for {shape}"
            )
        model.parameters[name][...] = model.backend.asarray(tensor, dtype=model.dtype)
    if _DECODER_WEIGHT in stored and "mlm" in model.heads:
        _check_tied(tensors, stored)

    _report(folder, absent_heads, labels is not None, _unknown(config, stored, unread if labels is None else set()))
    model.absent_heads = absent_heads
    return model


def _unknown(config: MiniBERTConfig, stored: Mapping[str, str], unread: set[str]) -> list[str]:
    """The stored names of tensors that are no parameters of BERT, whichever heads were asked for."""
    labelled = config if config.labels else dataclasses.replace(config, labels=("any",))
    known = {hugging_face_name(name) for name in Layout.of(labelled, HEADS).shapes} - unread
    known |= {_DECODER_WEIGHT, _DECODER_BIAS}
    return sorted(name for theirs, name in stored.items() if theirs not in known)


def _absent_heads(names: Iterable[str], missing: set[str]) -> tuple[str, ...]:
    """The heads of which no parameter is stored; a head that is there in part is damage instead."""
    parameters: dict[str, list[str]] = {}
    for name in names:
        parameters.setdefault(head_of(name), []).append(name)
    return tuple(head for head in HEADS if head in parameters and missing.issuperset(parameters[head]))


def _check_tied(tensors: StoredTensors, stored: Mapping[str, str]) -> None:
    decoder = tensors[stored[_DECODER_WEIGHT]]
    embeddings = tensors[stored[hugging_face_name("token_embeddings")]]
    if decoder.shape != embeddings.shape or not bool((decoder == embeddings).all()):
        raise PretrainedError(
            f"{tensors.file_of(stored[_DECODER_WEIGHT])}: {_DECODER_WEIGHT} differs from the token embeddings; in "
            "BERT the two are one matrix, and Mini-BERT has no place for a second"
        )


def _report(folder: Path, absent_heads: tuple[str, ...], new_classifier: bool, unknown: list[str]) -> None:
    if drawn := [_HEADS[head] for head in absent_heads if head != "classifier" or not new_classifier]:
        warnings.warn(f"{folder} has no {' and '.join(drawn)}: drawn at random", PretrainedWarning, stacklevel=4)
    buffers = [name for name in unknown if _BUFFERS.search(name)]
    strange = [name for name in unknown if name not in buffers]
    left = [
        f"{what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (("unknown to BERT", strange), ("constants that BERT computes", buffers))
        if names
    ]
    if left:
        warnings.warn(f"{folder}: left alone, {'; '.join(left)}", PretrainedWarning, stacklevel=4)


# --- writing -------------------------------------------------------------------------------------------------


def _architecture(heads: tuple[str, ...]) -> str:
    """What transformers calls a BERT with these heads."""
    if "classifier" in heads:
        return _CLASSIFIER
    if "next_sentence" in heads:
        return "BertForPreTraining"
    return "BertForMaskedLM" if "mlm" in heads else "BertModel"


def save_pretrained(model: MiniBERT, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors` as Hugging Face's `transformers` reads them; creates the folder.

    The architecture that the config names follows from the model's heads: `BertForPreTraining` with all of the
    pretraining heads, `BertForSequenceClassification` with a classifier, and so on.

    Each file is written beside its place and renamed into it, so a crash leaves the old one whole. The
    tokenizer's files are saved by `minibert.data.Tokenizer.save`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = "float64" if model.dtype == model.backend.xp.float64 else "float32"
    sizes = model.config.to_dict()
    labels = sizes.pop("labels")
    fields = {
        "architectures": [_architecture(model.heads)],
        "model_type": "bert",
        **sizes,
        "position_embedding_type": "absolute",
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if "classifier" in model.heads:
        fields["id2label"] = {str(number): label for number, label in enumerate(labels)}
        fields["label2id"] = {label: number for number, label in enumerate(labels)}
        fields["problem_type"] = "single_label_classification"
    write_text(folder / CONFIG_FILE, json.dumps(fields, indent=2) + "\n")
    host = {hugging_face_name(name): model.backend.to_numpy(view) for name, view in model.parameters.items()}
    write_tensors(folder / WEIGHTS_FILE, host, {"format": "pt"})
