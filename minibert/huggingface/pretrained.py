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

from backends import Array, Backend
from minibert.config import MiniBERTConfig
from minibert.errors import NoClassifierError, PretrainedError
from minibert.files import write_tensors_and_text
from minibert.huggingface.config_file import CLASSIFIER, CONFIG_FILE, ConfigFile, config_fields
from minibert.huggingface.tensor_files import WEIGHTS_FILE, StoredTensors, shards_of
from minibert.model import MiniBERT
from minibert.parameters import CLASSIFICATION_HEADS, HEADS, PRETRAINING_HEADS, Layout, head_of, initialise

__all__ = [
    "PretrainedWarning",
    "from_pretrained",
    "hugging_face_name",
    "save_pretrained",
]

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
        NoClassifierError: a classifier is asked for without labels, and the folder has none.
        PretrainedError: the folder is no BERT, is damaged, or contradicts itself; names file and tensor.

    Warns:
        PretrainedWarning: heads that the folder lacks are drawn afresh (a new classifier goes without saying);
            tensors that BERT lacks are left alone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PretrainedError(f"{folder} is not a folder; nothing is downloaded: give the path of a checkpoint folder")
    file = ConfigFile.read(folder)
    tensors = StoredTensors(folder)
    stored = _stored_names(tensors)
    _check_layers(file.config, tensors, stored)
    classifies = _classifies(file.architectures, stored)
    config = file.of_classifier() if classifies else file.config
    if not classifies or (labels is not None and tuple(labels) != config.labels):
        # of other labels, or of an architecture that calls something else a classifier
        unread = {name for name in stored if head_of(name) == "classifier"}
    else:
        unread = set()
    if labels is not None and tuple(labels) != config.labels:
        config = dataclasses.replace(config, labels=tuple(labels), problem_type=None)
    if heads is None:
        heads = CLASSIFICATION_HEADS if config.labels else PRETRAINING_HEADS
    heads = tuple(heads)
    if "classifier" in heads and not config.labels:
        raise NoClassifierError(f"{folder} has none, and a classifier needs the names of its classes: give labels")
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
        raise PretrainedError(
            f"{tensors.listing}: the tensor {names[broken[0]]} is missing ({len(broken)} in all); the file is "
            f"incomplete, or {CONFIG_FILE} is another model's"
        )

    model = MiniBERT(config, backend=device, dtype=dtype, seed=seed, kernels=kernels, initialised=False, heads=heads)
    initialise(model.parameters, config, model.backend, seed, missing)
    for name, shape in layout.shapes.items():
        if name in missing:
            continue
        theirs = stored[names[name]]
        tensor = tensors[theirs]
        if tensor.shape != shape:
            raise PretrainedError(
                f"{tensors.file_of(theirs)}: the tensor {theirs} has the shape {tensor.shape}, but {CONFIG_FILE} "
                f"asks for {shape}; one of the two files is another model's"
            )
        model.parameters[name][...] = model.backend.asarray(tensor, dtype=model.dtype)
    if "mlm" in model.heads:
        _check_decoder(tensors, stored)
    _check_finite(model, tensors, {name: stored[names[name]] for name in names if name not in missing})

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


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _stored_names(tensors: StoredTensors) -> dict[str, str]:
    """Current name -> the name that the tensor is stored under.

    Raises:
        PretrainedError: one parameter is stored under two names, with different values.
    """
    stored: dict[str, str] = {}
    for name in tensors:
        first = stored.setdefault(_canonical_name(name), name)
        if first != name and not _same(tensors[first], tensors[name]):
            raise PretrainedError(
                f"{tensors.file_of(name)}: {first} and {name} are two names of one parameter, but their values differ; "
                "leave out the one that is not meant"
            )
    return stored


def _classifies(architectures: tuple[str, ...], stored: Mapping[str, str]) -> bool:
    """Whether the stored classifier is one of whole sequences, on the pooler; others call theirs so, too."""
    if architectures:
        return any(name.endswith(CLASSIFIER) for name in architectures)
    return {"classifier.weight", "classifier.bias", hugging_face_name("pooler.weight")} <= set(stored)


def _check_layers(config: MiniBERTConfig, tensors: StoredTensors, stored: Mapping[str, str]) -> None:
    for theirs, name in stored.items():
        match = re.match(r"bert\.encoder\.layer\.(\d+)\.", theirs)
        if match and int(match[1]) >= config.num_hidden_layers:
            raise PretrainedError(
                f"{tensors.file_of(name)}: the tensor {name} belongs to layer {match[1]}, counted from 0, but "
                f"{CONFIG_FILE} says num_hidden_layers = {config.num_hidden_layers}; one of the two files is another "
                "model's"
            )


def _check_decoder(tensors: StoredTensors, stored: Mapping[str, str]) -> None:
    """What may be stored twice must be the same: BERT's decoder is the token embeddings, with one bias."""
    for second, first in (
        (_DECODER_WEIGHT, hugging_face_name("token_embeddings")),
        (_DECODER_BIAS, hugging_face_name("mlm.bias")),
    ):
        if second in stored and first in stored and not _same(tensors[stored[second]], tensors[stored[first]]):
            raise PretrainedError(
                f"{tensors.file_of(stored[second])}: {second} differs from {first}; in BERT the two are one, and "
                "Mini-BERT has no place for a second"
            )


def _check_finite(model: MiniBERT, tensors: StoredTensors, names: Mapping[str, str]) -> None:
    xp = model.backend.xp
    if bool(xp.isfinite(xp.sum(model.parameters.flat))):  # one pass; NaN and infinity survive a sum
        return
    for name, theirs in names.items():
        if not bool(xp.all(xp.isfinite(model.parameters[name]))):
            raise PretrainedError(
                f"{tensors.file_of(theirs)}: the tensor {theirs} has numbers that are NaN or infinite: the model was "
                "saved after its training had failed, or the file is damaged"
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


def save_pretrained(model: MiniBERT, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors` as Hugging Face's `transformers` reads them; creates the folder.

    The architecture that the config names follows from the model's heads: `BertForPreTraining` with all of the
    pretraining heads, `BertForSequenceClassification` with a classifier, and so on.

    Both files are written beside their places and renamed into them when both are on the disk, so a full disk or
    a crash leaves the old model whole. Shards of an old model and their index are removed then. The tokenizer's
    files are saved by `minibert.data.Tokenizer.save`.

    Where `config.json` changes, it is not there between the two renames; a crash just then leaves a folder that is
    refused, never old labels on new weights.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = "float64" if model.dtype == model.backend.xp.float64 else "float32"
    fields = config_fields(model.config, model.heads, dtype)
    text = json.dumps(fields, indent=2) + "\n"
    host = {hugging_face_name(name): model.backend.to_numpy(view) for name, view in model.parameters.items()}
    write_tensors_and_text(folder / WEIGHTS_FILE, host, {"format": "pt"}, folder / CONFIG_FILE, text)
    for stale in shards_of(folder):
        stale.unlink(missing_ok=True)
