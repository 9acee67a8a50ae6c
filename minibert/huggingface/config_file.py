"""Read and write Hugging Face's `config.json` of a BERT.

Fields that change what a BERT computes are used, or refused by name. Null means the default, as in `transformers`.
All other fields are ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibert.config import SINGLE_LABEL, MiniBERTConfig
from minibert.errors import PretrainedError, brief
from minibert.files import before_save
from minibert.huggingface.tensor_files import read_json

CONFIG_FILE = "config.json"
CLASSIFIER = "BertForSequenceClassification"

_DEFAULTS = {"num_attention_heads": 12, "intermediate_size": 3072}  # where transformers' defaults differ
_MOST_NAMELESS = 1000  # classes without names of a classifier that is not stored
_ONLY_VALUES = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
_OTHER_NAMES = {"gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_new"}  # other names of the same activations


@dataclass(frozen=True)
class ConfigFile:
    """The content of a `config.json`, checked.

    Attributes:
        path: where the file lies.
        fields: the fields of the file that are not null.
        config: the sizes, without the names of classes.
        architectures: the Python classes of `transformers` that the file names.
    """

    path: Path
    fields: Mapping[str, Any]
    config: MiniBERTConfig
    architectures: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> ConfigFile:
        """Read the `config.json` of a folder.

        Raises:
            PretrainedError: the file is missing or damaged, does not describe a BERT, or describes a BERT that
                Mini-BERT cannot compute exactly.
        """
        path = folder / CONFIG_FILE
        if not path.exists() and before_save(path).exists():
            raise PretrainedError(
                f"{folder} has no {CONFIG_FILE}, because saving a model into it was interrupted; its weights may be "
                f"the old ones or the new ones, so save the model again ({before_save(path).name} is the old config)"
            )
        fields = {name: value for name, value in read_json(path).items() if value is not None}
        architectures = fields.get("architectures", [])
        if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
            raise PretrainedError(f"{path}: architectures must be a list of names, not {brief(architectures)}")
        if fields.get("model_type", "bert") != "bert":
            raise PretrainedError(
                f"{path}: model_type is {brief(fields['model_type'])}; Mini-BERT reads BERT models only"
            )
        for name, only in _ONLY_VALUES.items():
            if fields.get(name, only) != only:
                raise PretrainedError(f"{path}: {name} is {brief(fields[name])}; Mini-BERT computes {only!r} only")
        missing = [name for name in ("vocab_size", "hidden_size", "num_hidden_layers") if name not in fields]
        if missing:
            raise PretrainedError(f"{path}: {', '.join(missing)} is missing; this is not the config of a BERT")
        sizes = {**_DEFAULTS, **fields, "labels": (), "problem_type": None}
        activation = sizes.get("hidden_act")
        if isinstance(activation, str):
            sizes["hidden_act"] = _OTHER_NAMES.get(activation, activation)
        try:
            config = MiniBERTConfig.from_dict(sizes)
        except (TypeError, ValueError) as error:
            raise PretrainedError(f"{path}: {error}") from error
        return cls(path, fields, config, tuple(architectures))

    def with_classes(self, stored: int | None) -> MiniBERTConfig:
        """Return the config with the names of the classes, in the order of their numbers.

        Classes that the file does not name are called LABEL_0, LABEL_1, ..., as in `transformers`.

        Args:
            stored: the number of classes that the stored classifier has; None if none is stored.

        Raises:
            PretrainedError: the classes are not numbered from 0 to C - 1, are far more than the stored classifier
                has, or a field about them has a wrong value.
        """
        named = self.fields.get("id2label")
        if named is None:
            count = self.fields.get("num_labels", 2)
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise PretrainedError(f"{self.path}: num_labels must be an integer of at least 1, not {brief(count)}")
            if count > _MOST_NAMELESS and count != stored:
                has = "no classifier is stored" if stored is None else f"the stored classifier has {stored:,} classes"
                raise PretrainedError(f"{self.path}: num_labels is {brief(count)}, but {has}")
            labels = tuple(f"LABEL_{number}" for number in range(count))
        elif not isinstance(named, dict) or set(named) != {str(number) for number in range(len(named))}:
            raise PretrainedError(f"{self.path}: id2label must number the classes 0, 1, 2, ..., not {brief(named)}")
        else:
            labels = tuple(str(named[str(number)]) for number in range(len(named)))
        try:
            return dataclasses.replace(self.config, labels=labels, problem_type=self.fields.get("problem_type"))
        except ValueError as error:
            raise PretrainedError(f"{self.path}: {error}") from error


def config_fields(config: MiniBERTConfig, heads: tuple[str, ...], dtype: str) -> dict[str, Any]:
    """Return the content of `config.json` for a model with these heads whose parameters are stored as `dtype`."""
    sizes = config.to_dict()
    labels, problem_type = sizes.pop("labels"), sizes.pop("problem_type")
    fields = {
        "architectures": [_architecture(heads)],
        "model_type": "bert",
        **sizes,
        "position_embedding_type": "absolute",
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if "classifier" in heads:
        fields["id2label"] = {str(number): label for number, label in enumerate(labels)}
        fields["label2id"] = {label: number for number, label in enumerate(labels)}
        if problem_type is None and len(labels) > 1:
            problem_type = SINGLE_LABEL
        if problem_type is not None:
            fields["problem_type"] = problem_type
    return fields


def _architecture(heads: tuple[str, ...]) -> str:
    """Return the name of the class of `transformers` that has these heads."""
    if "classifier" in heads:
        return CLASSIFIER
    if "next_sentence" in heads:
        return "BertForPreTraining" if "mlm" in heads else "BertForNextSentencePrediction"
    return "BertForMaskedLM" if "mlm" in heads else "BertModel"
