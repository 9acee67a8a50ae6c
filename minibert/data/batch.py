"""What a training step is given: a `Batch`, and how to cut it into micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Batch:
    """Some sequences and what is to be predicted in them, as NumPy arrays on the host.

    Attributes:
        input_ids: (B, T) int32, with tokens hidden.
        attention_mask: (B, T) int32, 1 for a token and 0 for padding; None: there is no padding.
        token_type_ids: (B, T) int32, 0 for the first segment and 1 for the second; None: all 0.
        prediction_positions: (M,) int64, the flat index b * T + t of every token to predict, ascending.
        labels: (M,) int32, the tokens to predict.
        next_sentence_labels: (B,) int32, 0 where the second segment follows the first, 1 where it is from
            elsewhere (Hugging Face's convention); None: the model is not asked.
        first_sequence: the number, within the whole step, of the first sequence here; not 0 in micro-batches.
            Counters for dropout go by the number within the step, so a split changes nothing.
    """

    input_ids: npt.NDArray[np.int32]
    attention_mask: npt.NDArray[np.int32] | None
    token_type_ids: npt.NDArray[np.int32] | None
    prediction_positions: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    next_sentence_labels: npt.NDArray[np.int32] | None
    first_sequence: int = 0

    @property
    def number_of_sequences(self) -> int:
        """B."""
        return int(self.input_ids.shape[0])

    @property
    def number_of_tokens(self) -> int:
        """N, without padding."""
        return self.input_ids.size if self.attention_mask is None else int(self.attention_mask.sum())

    @property
    def number_of_predictions(self) -> int:
        """M."""
        return self.labels.size

    def split(self, parts: int) -> list[Batch]:
        """Cuts the batch into micro-batches of neighbouring sequences; the arrays are views where possible.

        Args:
            parts: how many; their sizes differ by at most one sequence, the larger ones first.

        Raises:
            ValueError: fewer than one part, or more parts than sequences.
        """
        count, length = self.input_ids.shape
        if not 1 <= parts <= count:
            raise ValueError(f"a batch of {count} sequences can be split into 1 to {count} parts, not {parts}")
        bounds = [count // parts * part + min(part, count % parts) for part in range(parts + 1)]
        return [self._between(start, stop, length) for start, stop in pairwise(bounds)]

    def _between(self, start: int, stop: int, length: int) -> Batch:
        first, last = np.searchsorted(self.prediction_positions, [start * length, stop * length])
        return Batch(
            input_ids=self.input_ids[start:stop],
            attention_mask=None if self.attention_mask is None else self.attention_mask[start:stop],
            token_type_ids=None if self.token_type_ids is None else self.token_type_ids[start:stop],
            prediction_positions=self.prediction_positions[first:last] - start * length,
            labels=self.labels[first:last],
            next_sentence_labels=None if self.next_sentence_labels is None else self.next_sentence_labels[start:stop],
            first_sequence=self.first_sequence + start,
        )


def join_batches(batches: Sequence[Batch]) -> Batch:
    """The sequences of several batches of one kind and length as one batch, which begins a step (first_sequence 0)."""
    if len(batches) == 1:
        return batches[0]
    length = batches[0].input_ids.shape[1]
    shifts = np.cumsum([0, *(batch.number_of_sequences for batch in batches[:-1])]) * length

    def joined(name: str) -> npt.NDArray[np.int32] | None:
        arrays = [getattr(batch, name) for batch in batches]
        return None if arrays[0] is None else np.concatenate(arrays)

    positions = [batch.prediction_positions + shift for batch, shift in zip(batches, shifts, strict=True)]
    return Batch(
        input_ids=np.concatenate([batch.input_ids for batch in batches]),
        attention_mask=joined("attention_mask"),
        token_type_ids=joined("token_type_ids"),
        prediction_positions=np.concatenate(positions),
        labels=np.concatenate([batch.labels for batch in batches]),
        next_sentence_labels=joined("next_sentence_labels"),
    )


def pad_batch(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Puts sequences of different lengths into one array.

    Args:
        sequences: B lists of ids.
        pad_id: fills the shorter ones at the end.

    Returns:
        input_ids, (B, T) int32, T the length of the longest;
        attention_mask, (B, T) int32, 1 for a token and 0 for padding.
    """
    length = max(map(len, sequences), default=0)
    ids = np.full((len(sequences), length), pad_id, dtype=np.int32)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return ids, mask


def unigram_cross_entropy(counts: npt.NDArray[np.int64], labels: npt.NDArray[np.int32]) -> float:
    """What a model that knows only how frequent each token is would score: the figure BERT must beat.

    Args:
        counts: (V,) how often each token occurs in the training text; one is added to each, so that a token
            never seen has a probability too.
        labels: (M,) the tokens to predict, M at least 1.

    Returns:
        The mean of -log(probability of the label), in nats.

    Raises:
        ValueError: no labels.
    """
    if not np.size(labels):
        raise ValueError("the cross-entropy of no labels is not defined")
    smoothed = np.asarray(counts, dtype=np.float64) + 1
    return float(np.log(smoothed.sum()) - np.log(smoothed[labels]).mean())
