"""Read a BERT from a folder in Hugging Face's format, and write one.

Reading accepts the files that `transformers` and its users have written over the years: tensors with and without
the prefix `bert.`, the old names `gamma` and `beta`, one file or several shards, float16 and bfloat16, and folders
that lack some heads. A model that Mini-BERT cannot compute exactly is refused, and the error names the reason.
Pickled weights are never loaded.

This module knows the names and makes the checks. `MiniBERT.from_pretrained` puts the model together from a
`PretrainedModel`, and `MiniBERT.save_pretrained` calls `write_pretrained`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends import Array, Backend
from minibert.checksums import CHECKSUMS_FILE
from minibert.config import MiniBERTConfig
from minibert.errors import NoClassifierError, PretrainedError, brief
from minibert.files import write_tensors_and_text
from minibert.huggingface.config_file import CLASSIFIER, CONFIG_FILE, ConfigFile, config_fields
from minibert.huggingface.tensor_files import WEIGHTS_FILE, StoredTensors, checksums_of, shards_of
from minibert.huggingface.tensor_names import (
    DECODER_BIAS,
    DECODER_WEIGHT,
    current_name,
    hugging_face_name,
    is_constant,
    layer_number,
)
from minibert.parameters import (
    CLASSIFICATION_HEADS,
    HEADS,
    PRETRAINING_HEADS,
    Layout,
    NamedArrays,
    Shape,
    head_of,
    initialise,
)

__all__ = [
    "PretrainedModel",
    "PretrainedWarning",
    "hugging_face_name",
    "write_pretrained",
]

_HEADS_FOR_PEOPLE = {
    "mlm": "masked-language-model head",
    "pooler": "pooler",
    "next_sentence": "next-sentence head",
    "classifier": "classifier",
}


class PretrainedWarning(UserWarning):
    """A tensor in a folder was not used, or a missing head was drawn at random."""


# --- reading -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PretrainedModel:
    """A BERT in a folder: config and names are read and checked, the tensors are not copied yet.

    The weights are copied only once, from the mapped file into the arrays of the model. The caller makes the model
    between reading and copying.

    Attributes:
        config: the sizes, and the classes of the classifier.
        heads: the heads of the model, from `minibert.parameters.HEADS`.
        absent_heads: the heads that the folder lacks; `copy_into` draws them at random.
        tensors: the stored tensors, by their stored names.
        sources: the name of a parameter -> the stored name of its tensor. Absent heads have none.
        messages: what the user should know about tensors that are missing or not used.
    """

    config: MiniBERTConfig
    heads: tuple[str, ...]
    absent_heads: tuple[str, ...]
    tensors: StoredTensors
    sources: Mapping[str, str]
    messages: tuple[str, ...]

    @classmethod
    def read(
        cls,
        folder: str | os.PathLike[str],
        heads: Iterable[str] | None = None,
        labels: Sequence[str] | None = None,
    ) -> PretrainedModel:
        """Read the config of a folder and find the tensor of every parameter.

        Everything is compared with the headers of the weights first. So sizes in a config that are not those of the
        weights neither take memory nor time.

        Args:
            folder: a folder with `config.json` and `model.safetensors` (or its shards and their index).
            heads: the heads to have; None: pooler and classifier of a `BertForSequenceClassification`, otherwise
                the pretraining heads.
            labels: the classes of a new classifier, which replaces a stored one with other labels.

        Raises:
            NoClassifierError: a classifier without labels is asked for, and the folder has none.
            PretrainedError: the folder holds no BERT, is damaged, or contradicts itself. The message names file and
                tensor.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise PretrainedError(
                f"{folder} is not a folder; nothing is downloaded: give the path of a checkpoint folder"
            )
        file = ConfigFile.read(folder)
        tensors = StoredTensors(folder)
        stored = _stored_names(tensors)
        _check_layers(file.config, tensors, stored)

        config, use_classifier = _config_with_classes(file, tensors, stored, labels)
        chosen = _chosen_heads(folder, config, heads)
        shapes = _shapes(folder, config, chosen)
        sources = _sources(shapes, stored, use_classifier)
        absent_heads = _absent_heads(shapes, sources)
        _check_complete(tensors, shapes, sources, absent_heads)
        for name, source in sources.items():
            _check_shape(tensors, source, shapes[name])

        random_heads = [head for head in absent_heads if head != "classifier" or labels is None]
        unknown = _unknown_tensors(config, stored, knows_classifier=use_classifier or labels is not None)
        messages = tuple(_messages(folder, random_heads, unknown))
        return cls(config, chosen, absent_heads, tensors, sources, messages)

    def copy_into(self, parameters: NamedArrays, backend: Backend, seed: int) -> None:
        """Copy the stored tensors into a model's parameters, and draw those of absent heads at random.

        Args:
            parameters: the parameters of a model with this config and these heads, all zero. The tensors are converted
                to their dtype.
            backend: where the parameters live.
            seed: decides the parameters that are drawn.

        Raises:
            PretrainedError: a tensor has a dtype that no weights have, contradicts another tensor, or holds NaN or
                infinities. The message names file and tensor.
        """
        initialise(parameters, self.config, backend, seed, names=parameters.keys() - self.sources.keys())
        for name, source in self.sources.items():
            view = parameters[name]
            view[...] = backend.asarray(self.tensors[source], dtype=view.dtype)
        if "mlm" in self.heads:
            self._check_decoder()
        self._check_finite(parameters, backend)

    def warn(self, stacklevel: int) -> None:
        """Issue the messages as warnings.

        Args:
            stacklevel: the value that `warnings.warn` would need in the place where this method is called.

        Warns:
            PretrainedWarning: one for each message.
        """
        for message in self.messages:
            warnings.warn(message, PretrainedWarning, stacklevel=stacklevel + 1)

    def _check_decoder(self) -> None:
        """Refuse a decoder that is not tied: its weight must equal the token embeddings, and it has one bias."""
        stored = {current_name(name): name for name in self.tensors}
        for second, first in (
            (DECODER_WEIGHT, hugging_face_name("token_embeddings")),
            (DECODER_BIAS, hugging_face_name("mlm.bias")),
        ):
            if second not in stored or first not in stored:
                continue
            if not _same(self.tensors[stored[second]], self.tensors[stored[first]]):
                raise PretrainedError(
                    f"{self.tensors.file_of(stored[second])}: {second} differs from {first}; in BERT the two are the "
                    "same array, and Mini-BERT has no place for a second one"
                )

    def _check_finite(self, parameters: NamedArrays, backend: Backend) -> None:
        xp = backend.xp
        if bool(xp.isfinite(xp.sum(parameters.flat))):  # one pass; NaN and infinity survive a sum
            return
        for name, source in self.sources.items():
            if not bool(xp.all(xp.isfinite(parameters[name]))):
                raise PretrainedError(
                    f"{self.tensors.file_of(source)}: the tensor {_shown(source)} has numbers that are NaN or "
                    "infinite; the model was saved after its training had failed, or the file is damaged"
                )


def _stored_names(tensors: StoredTensors) -> dict[str, str]:
    """Return a mapping from the current name of each tensor to its stored name.

    Raises:
        PretrainedError: one parameter is stored under two names, with different values.
    """
    stored: dict[str, str] = {}
    for name in tensors:
        first = stored.setdefault(current_name(name), name)
        if first != name and not _same(tensors[first], tensors[name]):
            raise PretrainedError(
                f"{tensors.file_of(name)}: {_shown(first)} and {_shown(name)} are two names of one parameter, but "
                "their values differ; remove the wrong one"
            )
    return stored


def _shown(name: str) -> str:
    """Return the name of a tensor for a message."""
    return brief(name, 120, quoted=False)


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _check_shape(tensors: StoredTensors, source: str, wanted: Shape) -> None:
    found = tensors.shape(source)
    if found != wanted:
        raise PretrainedError(
            f"{tensors.file_of(source)}: the tensor {_shown(source)} has the shape {brief(found)}, but {CONFIG_FILE} "
            f"asks for {brief(wanted)}; one of the two files belongs to another model"
        )


def _check_layers(config: MiniBERTConfig, tensors: StoredTensors, stored: Mapping[str, str]) -> None:
    """Refuse tensors of layers that the config does not have, and a config with more layers than are stored.

    Raises:
        PretrainedError: there is such a tensor or such a layer; the message names it.
    """
    layers = set()
    for current, name in stored.items():
        number = layer_number(current)
        if number is None:
            continue
        layers.add(number)
        if number >= config.num_hidden_layers:
            raise PretrainedError(
                f"{tensors.file_of(name)}: the tensor {_shown(name)} belongs to layer {number}, counted from 0, but "
                f"{CONFIG_FILE} says num_hidden_layers = {config.num_hidden_layers}; one of the two files belongs to "
                "another model"
            )
    if len(layers) < config.num_hidden_layers:
        absent = next(number for number in range(config.num_hidden_layers) if number not in layers)
        raise PretrainedError(
            f"{tensors.listing}: the tensor {hugging_face_name(f'layers.{absent}.attention.query.weight')} is missing, "
            f"like all of its layer, but {CONFIG_FILE} says num_hidden_layers = {brief(config.num_hidden_layers)}; the "
            "file is incomplete, or one of the two files belongs to another model"
        )


def _config_with_classes(
    file: ConfigFile, tensors: StoredTensors, stored: Mapping[str, str], labels: Sequence[str] | None
) -> tuple[MiniBERTConfig, bool]:
    """Return the config with the classes of the model, and True if the stored classifier has exactly these classes."""
    has_classifier = _has_sequence_classifier(file.architectures, stored)
    config = file.with_classes(_stored_classes(tensors, stored)) if has_classifier else file.config
    if labels is None or tuple(labels) == config.labels:
        return config, has_classifier
    return dataclasses.replace(config, labels=tuple(labels), problem_type=None), False


def _stored_classes(tensors: StoredTensors, stored: Mapping[str, str]) -> int | None:
    """Return the number of classes C of the stored classifier, whose weight is (C, H); None if none is stored."""
    name = stored.get(hugging_face_name("classifier.weight"))
    shape = () if name is None else tensors.shape(name)
    return shape[0] if len(shape) == 2 else None


def _has_sequence_classifier(architectures: Sequence[str], stored: Collection[str]) -> bool:
    """Return True if the stored classifier classifies whole sequences.

    Token classifiers use the same tensor names, so the architecture decides. If the config names no architecture, the
    pooler decides: a token classifier has none.
    """
    if architectures:
        return any(name.endswith(CLASSIFIER) for name in architectures)
    return all(hugging_face_name(name) in stored for name in ("classifier.weight", "classifier.bias", "pooler.weight"))


def _chosen_heads(folder: Path, config: MiniBERTConfig, heads: Iterable[str] | None) -> tuple[str, ...]:
    """Return the heads that are asked for, or those that the folder suggests.

    Raises:
        NoClassifierError: a classifier is asked for, but its classes are not known.
    """
    if heads is None:
        return CLASSIFICATION_HEADS if config.labels else PRETRAINING_HEADS
    chosen = tuple(heads)
    if "classifier" in chosen and not config.labels:
        raise NoClassifierError(
            f"{folder} has no classifier, and a classifier needs the names of its classes: give labels for a new one"
        )
    return chosen


def _shapes(folder: Path, config: MiniBERTConfig, heads: tuple[str, ...]) -> Mapping[str, Shape]:
    """Return the names and shapes of the model's parameters.

    Raises:
        PretrainedError: the heads do not go together.
    """
    try:
        return Layout.of(config, heads).shapes
    except ValueError as error:
        raise PretrainedError(f"{folder}: {error}") from error


def _sources(names: Iterable[str], stored: Mapping[str, str], use_classifier: bool) -> dict[str, str]:
    """Return parameter name -> stored name, for all parameters that are stored and used."""
    sources = {}
    for name in names:
        current = hugging_face_name(name)
        if name == "mlm.bias" and current not in stored:
            current = DECODER_BIAS
        if current in stored and (use_classifier or head_of(name) != "classifier"):
            sources[name] = stored[current]
    return sources


def _absent_heads(names: Iterable[str], sources: Collection[str]) -> tuple[str, ...]:
    """Return the heads without any stored parameter. A head that is stored in part means a damaged folder."""
    wanted = {head_of(name) for name in names}
    found = {head_of(name) for name in sources}
    return tuple(head for head in HEADS if head in wanted - found)


def _check_complete(
    tensors: StoredTensors, names: Iterable[str], sources: Collection[str], absent_heads: Collection[str]
) -> None:
    """Refuse a folder that lacks a parameter of the encoder, or a part of a head.

    Raises:
        PretrainedError: a tensor is missing; the message names the first one.
    """
    missing = sorted(name for name in names if name not in sources and head_of(name) not in absent_heads)
    if missing:
        raise PretrainedError(
            f"{tensors.listing}: the tensor {hugging_face_name(missing[0])} is missing ({len(missing)} in all); the "
            f"file is incomplete, or {CONFIG_FILE} belongs to another model"
        )


def _unknown_tensors(config: MiniBERTConfig, stored: Mapping[str, str], *, knows_classifier: bool) -> list[str]:
    """Return the stored names of tensors that belong neither to the encoder nor to any head that BERT can have."""
    with_classes = config if config.labels else dataclasses.replace(config, labels=("any",))
    names = [
        name for name in Layout.of(with_classes, HEADS).shapes if knows_classifier or head_of(name) != "classifier"
    ]
    known = {hugging_face_name(name) for name in names} | {DECODER_WEIGHT, DECODER_BIAS}
    return sorted(name for current, name in stored.items() if current not in known)


def _messages(folder: Path, random_heads: Sequence[str], unknown: Sequence[str]) -> Iterable[str]:
    """Yield a message about heads that are drawn at random, and one about tensors that are not used."""
    if random_heads:
        heads = " and no ".join(_HEADS_FOR_PEOPLE[head] for head in random_heads)
        yield f"{folder} has no {heads}: the missing parameters are drawn at random"
    groups = {
        "tensors that BERT does not have": [name for name in unknown if not is_constant(name)],
        "constants that BERT computes": [name for name in unknown if is_constant(name)],
    }
    ignored = [
        f"ignored {kind}: {', '.join(map(_shown, names[:3]))}{', ...' if len(names) > 3 else ''}"
        for kind, names in groups.items()
        if names
    ]
    if ignored:
        yield f"{folder}: {'; '.join(ignored)}"


# --- writing -------------------------------------------------------------------------------------------------


def write_pretrained(
    folder: str | os.PathLike[str],
    config: MiniBERTConfig,
    heads: tuple[str, ...],
    parameters: Mapping[str, Array],
    dtype: str,
) -> None:
    """Write `config.json` and `model.safetensors` as Hugging Face's `transformers` reads them; create the folder.

    The architecture in the config follows from the heads: `BertForPreTraining` with all pretraining heads,
    `BertForSequenceClassification` with a classifier, and so on.

    Both files are first written under temporary names, and renamed when both are on the disk. So a full disk or a crash
    leaves the old model whole. Then the shards of an old model and their index are removed. The tokenizer has files of
    its own, which `minibert.data.Tokenizer.save` writes.

    If `config.json` changes, the folder has no `config.json` between the two renames. A crash at that moment leaves a
    folder that Mini-BERT refuses, never new weights beside old labels.

    Args:
        folder: where to write.
        config: the model's config.
        heads: the model's heads.
        parameters: Mini-BERT's name -> array on the host.
        dtype: "float32" or "float64", the dtype of the arrays.

    Raises:
        OSError: the files cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config_fields(config, heads, dtype), indent=2) + "\n"
    tensors = {hugging_face_name(name): array for name, array in parameters.items()}
    (folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # they belong to the old files
    metadata = {"format": "pt", **checksums_of(tensors)}
    write_tensors_and_text(folder / WEIGHTS_FILE, tensors, metadata, folder / CONFIG_FILE, text)
    for stale in shards_of(folder):
        stale.unlink(missing_ok=True)
