"""Sentence embeddings: one vector for each text, at a cost proportional to real tokens.

Texts are sorted by length, so that those of one batch are about equally long; padding gets no row in any linear
layer, and no head is computed. The results come back in the order of the texts.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backends import Backend
from minibert.data.tokenizer import Tokenizer, pad_batch
from minibert.errors import InferenceError
from minibert.inference.loading import load_model
from minibert.inference.pooling import SentencePooling
from minibert.model import MiniBERT

BATCH_TOKENS = 4096
"""Tokens of a batch, padding included, unless told otherwise: enough for the matrix products to reach their full
speed; twice as many gain a few percent more, and need twice the memory."""


class EmbeddingWarning(UserWarning):
    """Some texts were longer than the model reads."""


class SentenceEmbedder:
    """Texts to vectors.

    Args:
        model: any BERT; its heads are not used.
        tokenizer: of that model.
        pooling: how hidden states become a vector.
        batch_tokens: how many tokens are computed at once, padding included.

    Attributes:
        max_length: tokens that are read of a text, [CLS] and [SEP] included: as the pooling says, otherwise as the
            tokenizer's files say, and at most what the model takes.
        width: H, the length of a vector.

    Raises:
        InferenceError: the tokenizer's files leave no room for a text.
    """

    def __init__(
        self,
        model: MiniBERT,
        tokenizer: Tokenizer,
        pooling: SentencePooling | None = None,
        *,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.pooling = SentencePooling() if pooling is None else pooling
        self.batch_tokens = batch_tokens
        longest = model.config.max_position_embeddings
        self.max_length = min(self.pooling.max_length or tokenizer.model_max_length or longest, longest)
        if self.max_length < 3:
            raise InferenceError(f"a text needs at least 3 tokens, [CLS] and [SEP] included, not {self.max_length}")
        self.width = model.config.hidden_size

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: Backend | str = "cpu",
        kernels: str = "auto",
        pooling: str | None = None,
        normalize: bool | None = None,
        batch_tokens: int | None = None,
    ) -> SentenceEmbedder:
        """From a folder of Hugging Face, of sentence-transformers or of ours.

        Args:
            folder: with the model and its tokenizer.
            device: where to compute.
            kernels: see `MiniBERT`.
            pooling: "mean" or "cls"; None: as the folder says.
            normalize: to unit length; None: as the folder says.
            batch_tokens: see the class; None for `BATCH_TOKENS`.

        Raises:
            TrainingError, InferenceError, DataError: the folder cannot be used; the message says why.
        """
        model, tokenizer = load_model(folder, device, kernels=kernels, heads=())
        said = SentencePooling.read(folder)
        wanted = dataclasses.replace(
            said,
            pooling=said.pooling if pooling is None else pooling,
            normalize=said.normalize if normalize is None else normalize,
        )
        return cls(model, tokenizer, wanted, batch_tokens=batch_tokens or BATCH_TOKENS)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One vector for each text.

        Args:
            texts: n of them; an empty one is embedded as [CLS] [SEP].

        Returns:
            (n, H) float32, in the order of the texts.

        Raises:
            InferenceError: a vector is not finite, as the weights are NaN or the numbers became too large.

        Warns:
            EmbeddingWarning: texts longer than `max_length` tokens were cut.
        """
        sequences = self._sequences(texts)
        vectors = np.empty((len(texts), self.width), dtype=np.float32)
        for chosen in self._batches([len(sequence) for sequence in sequences]):
            vectors[chosen] = self._vectors([sequences[index] for index in chosen])
        if not (finite := np.isfinite(vectors).all(axis=1)).all():
            text = texts[int(np.argmin(finite))]
            raise InferenceError(f"the vector of {text[:40]!r} is not finite: these weights cannot be used")
        return vectors

    def _sequences(self, texts: Sequence[str]) -> list[list[int]]:
        """[CLS] prompt text [SEP], as ids."""
        if self.pooling.prompt:
            texts = [self.pooling.prompt + text for text in texts]
        if self.pooling.lowercase:
            texts = [text.lower() for text in texts]
        cls_id, sep_id, room = self.tokenizer.cls_id, self.tokenizer.sep_id, self.max_length - 2
        encoded = self.tokenizer.encode_batch(texts)
        if too_long := sum(len(ids) > room for ids in encoded):
            warnings.warn(
                f"{too_long:,} of {len(texts):,} texts have more than {self.max_length} tokens; the rest of them "
                "was not read",
                EmbeddingWarning,
                stacklevel=3,
            )
        return [[cls_id, *ids[:room], sep_id] for ids in encoded]

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of texts of about equal length, the longest first, so that memory runs out at once or never."""
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
            if batch and (len(batch) + 1) * lengths[batch[0]] > self.batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _vectors(self, sequences: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """(B, H) of one batch."""
        ids, mask = pad_batch(sequences, self.tokenizer.pad_id)
        backend = self.model.backend
        if self.pooling.pooling == "cls":
            vectors = backend.to_numpy(self.model.encode(ids, mask, first_only=True, unpad=True))
        else:
            hidden = self.model.encode(ids, mask, unpad=True)  # (B, T, H), zero at padding
            sums = backend.to_numpy(backend.xp.sum(hidden, axis=1))  # (B, H)
            vectors = sums / mask.sum(axis=1, keepdims=True, dtype=sums.dtype)
        if self.pooling.normalize:
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(lengths, np.finfo(vectors.dtype).tiny)
        return vectors
