"""A classifier of texts: a BERT with the head, its tokenizer, and the way from texts to probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backends import Backend
from minibert.data.batch import pad_batch
from minibert.data.tokenizer import Tokenizer
from minibert.model import MiniBERT
from minibert.ops import stable_softmax
from minibert.parameters import CLASSIFICATION_HEADS
from minibert.tensor_files import read_json
from minibert.training.errors import TrainingError
from minibert.training.loading import load_model

BATCH_TOKENS = 2048  # of a batch to predict, padding included


@dataclass(frozen=True)
class EncodedText:
    """[CLS] text [SEP], or [CLS] text [SEP] pair [SEP]; token types are 1 from the pair on."""

    ids: list[int]
    token_types: list[int]


class TextClassifier:
    """Texts to probabilities of classes.

    Args:
        model: with the classifier head.
        tokenizer: of that model.
        max_length: tokens that are read of a text; as many as the model takes if None or more than that.
    """

    def __init__(self, model: MiniBERT, tokenizer: Tokenizer, max_length: int | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        longest = model.config.max_position_embeddings
        self.max_length = min(max_length or longest, longest)

    @classmethod
    def load(cls, folder: Path, device: Backend | str = "cpu", kernels: str = "auto") -> TextClassifier:
        """A fine-tuned classifier.

        Raises:
            TrainingError: the folder has no classifier of single labels, or cannot be used at all.
        """
        model, tokenizer = load_model(folder, device, kernels=kernels, heads=CLASSIFICATION_HEADS)
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
        """Ids and token types, cut to `max_length`: of a pair, the longer text loses tokens first."""
        cls_id, sep_id = self.tokenizer.cls_id, self.tokenizer.sep_id
        first = self.tokenizer.encode_batch(texts)
        if pairs is None:
            cut = [[cls_id, *ids[: self.max_length - 2], sep_id] for ids in first]
            return [EncodedText(ids, [0] * len(ids)) for ids in cut]
        encoded = []
        for a, b in zip(first, self.tokenizer.encode_batch(pairs), strict=True):
            room = self.max_length - 3
            of_b = min(len(b), max(room // 2, room - len(a)))
            of_a = min(len(a), room - of_b)
            ids = [cls_id, *a[:of_a], sep_id, *b[:of_b], sep_id]
            encoded.append(EncodedText(ids, [0] * (of_a + 2) + [1] * (of_b + 1)))
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
