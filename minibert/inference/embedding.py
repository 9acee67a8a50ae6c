"""Compute sentence embeddings: one vector for each text, at a cost proportional to the real tokens.

Texts are sorted by length, so the texts of a batch are about equally long. Linear layers skip the padding, and no
head is computed. The vectors come back in the order of the texts.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backends import Backend
from minibert.data.tokenizer import Tokenizer, pad_batch
from minibert.errors import InferenceError
from minibert.inference.batches import batches_by_length
from minibert.inference.finite import check_finite
from minibert.inference.loading import load_model
from minibert.inference.pooling import SentencePooling
from minibert.model import MiniBERT

BATCH_TOKENS = 4096
"""The default number of tokens in a batch, padding included. The matrix products reach their full speed with it; twice
as many tokens gain a few percent more and need twice the memory."""


class EmbeddingWarning(UserWarning):
    """Some texts were longer than the model reads, and were cut."""


class SentenceEmbedder:
    """Turns texts into vectors.

    Args:
        model: any BERT; its heads are not used.
        tokenizer: the model's tokenizer.
        pooling: how hidden states become a vector; the mean of all tokens if None.
        batch_tokens: the most tokens of a batch, padding included.

    Attributes:
        max_length: the most tokens that are read of a text, [CLS] and [SEP] included. The pooling sets it; if it does
            not, the tokenizer's files do. It never exceeds the model's `max_position_embeddings`.
        width: H, the length of a vector.

    Raises:
        InferenceError: `max_length` leaves no room for a text.
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
        precision: str = "float32",
        pooling: str | None = None,
        normalize: bool | None = None,
        batch_tokens: int | None = None,
    ) -> SentenceEmbedder:
        """Load an embedder from a folder of Mini-BERT, Hugging Face or sentence-transformers.

        Args:
            folder: a folder with the model and its tokenizer.
            device: where to compute.
            kernels: "auto" or "reference", as for `MiniBERT`.
            precision: as for `MiniBERT`.
            pooling: "mean" or "cls"; None to follow the folder's files.
            normalize: True for vectors of length 1; None to follow the folder's files.
            batch_tokens: as for the class; None for `BATCH_TOKENS`.

        Raises:
            TrainingError, InferenceError, DataError: the folder cannot be used; the message says why.
        """
        model, tokenizer = load_model(folder, device, kernels=kernels, precision=precision, heads=())
        stored = SentencePooling.read(folder)
        chosen = dataclasses.replace(
            stored,
            pooling=stored.pooling if pooling is None else pooling,
            normalize=stored.normalize if normalize is None else normalize,
        )
        return cls(model, tokenizer, chosen, batch_tokens=batch_tokens or BATCH_TOKENS)

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return one vector for each text.

        Args:
            texts: n texts; an empty text is embedded as [CLS] [SEP].

        Returns:
            (n, H) float32, in the order of the texts.

        Raises:
            InferenceError: a vector is not finite, because the weights are NaN or a number became too large.

        Warns:
            EmbeddingWarning: texts longer than `max_length` tokens were cut.
        """
        sequences = self._sequences(texts)
        vectors = np.empty((len(texts), self.width), dtype=np.float32)
        for chosen in batches_by_length([len(sequence) for sequence in sequences], self.batch_tokens):
            vectors[chosen] = self._vectors([sequences[index] for index in chosen])
        check_finite(vectors, "the vector", texts)
        return vectors

    def _sequences(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text: [CLS] prompt text [SEP], cut to `max_length`."""
        if self.pooling.prompt:
            texts = [self.pooling.prompt + text for text in texts]
        if self.pooling.lowercase:
            texts = [text.lower() for text in texts]
        cls_id, sep_id, room = self.tokenizer.cls_id, self.tokenizer.sep_id, self.max_length - 2
        encoded = self.tokenizer.encode_batch(texts)
        if too_long := sum(len(ids) > room for ids in encoded):
            warnings.warn(
                f"{too_long:,} of {len(texts):,} texts have more than {self.max_length} tokens; the tokens after that "
                "were not read",
                EmbeddingWarning,
                stacklevel=3,
            )
        return [[cls_id, *ids[:room], sep_id] for ids in encoded]

    def _vectors(self, sequences: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Return the vectors (B, H) of one batch."""
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
