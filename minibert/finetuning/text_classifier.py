"""Classify texts: a BERT with a classifier and its tokenizer, from texts to probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backends import Backend
from minibert.data.tokenizer import Tokenizer, pad_batch
from minibert.errors import NoClassifierError, TrainingError, brief
from minibert.huggingface.tensor_files import read_json
from minibert.inference.batches import batches_by_length
from minibert.inference.loading import load_model
from minibert.model import MiniBERT
from minibert.ops import stable_softmax
from minibert.parameters import CLASSIFICATION_HEADS

BATCH_TOKENS = 2048  # the most tokens of a batch in prediction, padding included


class ClassificationWarning(UserWarning):
    """Some texts were longer than the classifier reads, and were cut."""


@dataclass(frozen=True)
class EncodedText:
    """A text as tokens: [CLS] text [SEP], or [CLS] text [SEP] pair [SEP].

    Attributes:
        ids: the token ids.
        token_types: 1 for the tokens of the pair and its [SEP], otherwise 0.
    """

    ids: list[int]
    token_types: list[int]


def _kept_tokens(a: int, b: int, room: int) -> tuple[int, int]:
    """Return how many tokens are kept of two texts with a and b tokens, so that both fit into the room.

    The longer text loses tokens first. An odd token goes to the longer text, or to the second of equally long texts.
    """
    if a > b:
        return _kept_tokens(b, a, room)[::-1]
    of_a = min(a, room // 2)
    return of_a, min(b, room - of_a)


class TextClassifier:
    """Turns texts into probabilities of classes.

    Args:
        model: a BERT with a classifier.
        tokenizer: the model's tokenizer.
        max_length: the most tokens that are read of a text or of a pair, special tokens included; None for the limit in
            the tokenizer's files. It never exceeds the model's `max_position_embeddings`.

    Raises:
        TrainingError: `max_length` leaves no room for a text.
    """

    def __init__(self, model: MiniBERT, tokenizer: Tokenizer, max_length: int | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        longest = model.config.max_position_embeddings
        self.max_length = min(max_length or tokenizer.model_max_length or longest, longest)
        if self.max_length < 4:
            raise TrainingError(
                f"a classifier must read at least 4 tokens, special tokens included, not {self.max_length}"
            )

    @classmethod
    def load(
        cls, folder: Path, device: Backend | str = "cpu", kernels: str = "auto", precision: str = "float32"
    ) -> TextClassifier:
        """Load a fine-tuned classifier.

        Args:
            folder: a folder in Hugging Face's format, with a model and its tokenizer.
            device: where to compute.
            kernels: "auto" or "reference", as for `MiniBERT`.
            precision: as for `MiniBERT`.

        Raises:
            TrainingError: the folder cannot be loaded, or its model has no classifier that predicts one label a text.
        """
        try:
            model, tokenizer = load_model(
                folder, device, kernels=kernels, precision=precision, heads=CLASSIFICATION_HEADS
            )
        except TrainingError as error:
            if not isinstance(error.__cause__, NoClassifierError):
                raise
            raise TrainingError(
                f"the model in {folder} has no classifier; train one from it with scripts/finetune.py"
            ) from error
        if model.absent_heads:  # the config promises a classifier, but the weights are missing
            raise TrainingError(
                f"the weights in {folder} lack the {' and the '.join(model.absent_heads)}, and random weights predict "
                "nothing: download the whole folder, or train a classifier from it with scripts/finetune.py"
            )
        kind = read_json(folder / "config.json").get("problem_type")
        if kind not in (None, "single_label_classification") or len(model.config.labels) < 2:
            raise TrainingError(
                f"the model in {folder} does not predict one label out of several (problem_type {brief(kind)}, "
                f"{len(model.config.labels)} labels); Mini-BERT has no other classifiers"
            )
        return cls(model, tokenizer)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the C classes."""
        return self.model.config.labels

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[EncodedText]:
        """Tokenize texts and cut them to `max_length` as `transformers` does: the longer text of a pair loses tokens.

        Args:
            texts: n texts.
            pairs: n second texts; an empty one means a single text, as in `transformers`.

        Raises:
            DataError: a text is not Unicode.

        Warns:
            ClassificationWarning: texts were cut.
        """
        cls_id, sep_id = self.tokenizer.cls_id, self.tokenizer.sep_id
        seconds = [""] * len(texts) if pairs is None else pairs
        encoded, too_long = [], 0
        for a, b, pair in zip(
            self.tokenizer.encode_batch(texts), self.tokenizer.encode_batch(seconds), seconds, strict=True
        ):
            of_a, of_b = _kept_tokens(len(a), len(b), self.max_length - (3 if pair else 2))
            too_long += of_a + of_b < len(a) + len(b)
            ids = [cls_id, *a[:of_a], sep_id]
            second = [*b[:of_b], sep_id] if pair else []
            encoded.append(EncodedText(ids + second, [0] * len(ids) + [1] * len(second)))
        if too_long:
            warnings.warn(
                f"{too_long:,} of {len(texts):,} texts have more than {self.max_length} tokens; the tokens after that "
                "were not read",
                ClassificationWarning,
                stacklevel=2,
            )
        return encoded

    def arrays(self, encoded: Sequence[EncodedText]) -> tuple[npt.NDArray[np.int32], ...]:
        """Return input_ids, attention_mask and token_type_ids, each (B, T), of B texts."""
        ids, mask = pad_batch([each.ids for each in encoded], self.tokenizer.pad_id)
        types, _ = pad_batch([each.token_types for each in encoded], 0)
        return ids, mask, types

    def probabilities(self, encoded: Sequence[EncodedText]) -> npt.NDArray[np.float64]:
        """Return the probabilities (n, C) of n texts, in their order."""
        result = np.empty((len(encoded), len(self.labels)), dtype=np.float64)
        for chosen in batches_by_length([len(each.ids) for each in encoded], BATCH_TOKENS):
            ids, mask, types = self.arrays([encoded[index] for index in chosen])
            logits, _ = self.model.classify(ids, mask, types, unpad=True, for_backward=False)
            result[chosen] = self.model.backend.to_numpy(stable_softmax(logits))
        return result
