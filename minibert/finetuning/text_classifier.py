"""A classifier of texts: a BERT with the head, its tokenizer, and the way from texts to probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backends import Backend
from minibert.data.tokenizer import Tokenizer, pad_batch
from minibert.errors import NoClassifierError, TrainingError
from minibert.huggingface.tensor_files import read_json
from minibert.inference.loading import load_model
from minibert.model import MiniBERT
from minibert.ops import stable_softmax
from minibert.parameters import CLASSIFICATION_HEADS

BATCH_TOKENS = 2048  # of a batch to predict, padding included


class ClassificationWarning(UserWarning):
    """Some texts were longer than the classifier reads."""


@dataclass(frozen=True)
class EncodedText:
    """[CLS] text [SEP], or [CLS] text [SEP] pair [SEP]; token types are 1 from the pair on."""

    ids: list[int]
    token_types: list[int]


def _kept(a: int, b: int, room: int) -> tuple[int, int]:
    """How many tokens of either text stay: the longer one, the second of equals, has the odd one of the room."""
    if a > b:
        return _kept(b, a, room)[::-1]
    of_a = min(a, room // 2)
    return of_a, min(b, room - of_a)


class TextClassifier:
    """Texts to probabilities of classes.

    Args:
        model: with the classifier head.
        tokenizer: of that model.
        max_length: tokens that are read of a text, or of a pair, special ones included; None: as many as the
            tokenizer's files say. In any case at most what the model takes.
    """

    def __init__(self, model: MiniBERT, tokenizer: Tokenizer, max_length: int | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        longest = model.config.max_position_embeddings
        self.max_length = min(max_length or tokenizer.model_max_length or longest, longest)
        if self.max_length < 4:
            raise TrainingError(f"a classifier reads at least 4 tokens, special ones included, not {self.max_length}")

    @classmethod
    def load(cls, folder: Path, device: Backend | str = "cpu", kernels: str = "auto") -> TextClassifier:
        """A fine-tuned classifier.

        Raises:
            TrainingError: the folder has no classifier of single labels, or cannot be used at all.
        """
        try:
            model, tokenizer = load_model(folder, device, kernels=kernels, heads=CLASSIFICATION_HEADS)
        except TrainingError as error:
            if not isinstance(error.__cause__, NoClassifierError):
                raise
            raise TrainingError(
                f"the model in {folder} has no classifier; make one from it with scripts/finetune.py"
            ) from error
        if model.absent_heads:  # the config speaks of a classifier
            raise TrainingError(
                f"the weights in {folder} lack the {' and the '.join(model.absent_heads)}, and a random one predicts "
                "nothing: fetch the whole folder, or make a classifier from it with scripts/finetune.py"
            )
        kind = read_json(folder / "config.json").get("problem_type")
        if kind not in (None, "single_label_classification") or len(model.config.labels) < 2:
            raise TrainingError(
                f"the model in {folder} is no classifier of single labels (problem_type {kind!r}, "
                f"{len(model.config.labels)} labels)"
            )
        return cls(model, tokenizer)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the C classes."""
        return self.model.config.labels

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[EncodedText]:
        """Ids and token types, cut to `max_length` as transformers cuts: of a pair, the longer text loses tokens.

        Args:
            texts: n of them.
            pairs: n second texts; an empty one is none, as in Hugging Face.

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
            of_a, of_b = _kept(len(a), len(b), self.max_length - (3 if pair else 2))
            too_long += of_a + of_b < len(a) + len(b)
            ids = [cls_id, *a[:of_a], sep_id]
            second = [*b[:of_b], sep_id] if pair else []
            encoded.append(EncodedText(ids + second, [0] * len(ids) + [1] * len(second)))
        if too_long:
            warnings.warn(
                f"{too_long:,} of {len(texts):,} texts have more than {self.max_length} tokens; the rest of them "
                "was not read",
                ClassificationWarning,
                stacklevel=2,
            )
        return encoded

    def arrays(self, encoded: Sequence[EncodedText]) -> tuple[npt.NDArray[np.int32], ...]:
        """input_ids, attention_mask and token_type_ids, each (B, T)."""
        ids, mask = pad_batch([each.ids for each in encoded], self.tokenizer.pad_id)
        types, _ = pad_batch([each.token_types for each in encoded], 0)
        return ids, mask, types

    def probabilities(self, encoded: Sequence[EncodedText]) -> npt.NDArray[np.float64]:
        """(n, C), in the order of the texts; computed sorted by length."""
        result = np.empty((len(encoded), len(self.labels)), dtype=np.float64)
        for chosen in self._batches([len(each.ids) for each in encoded]):
            ids, mask, types = self.arrays([encoded[index] for index in chosen])
            logits, _ = self.model.classify(ids, mask, types, unpad=True, for_backward=False)
            result[chosen] = self.model.backend.to_numpy(stable_softmax(logits))
        return result

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            if batch and (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch
