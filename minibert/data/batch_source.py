"""Build the batches of training and evaluation from a tokenized corpus.

A training batch is a pure function of the step. Its sequences follow from the random order of each epoch
(`permutation.py`), and its hidden tokens from the numbers of the sequence and the epoch (`masking.py`). So an
exact resume needs no saved state, and any batch can be computed without those before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from minibert.data.masking import MaskingRule, mask_tokens
from minibert.data.permutation import permute
from minibert.data.sequences import PackedSequences, PairedSequences, Sequences
from minibert.data.token_file import TokenizedCorpus, TokenSplit
from minibert.data.tokenizer import Tokenizer
from minibert.errors import DataError
from minibert.random_bits import Stream, derive_key

OBJECTIVES = ("mlm", "mlm+nsp")

_EVALUATION_SEED = 0  # independent of the user's seed: every run on a corpus is measured with the same masks


@dataclass(frozen=True)
class Batch:
    """Some sequences and the tokens to predict in them, as NumPy arrays on the host.

    Attributes:
        input_ids: (B, T) int32, the token ids with some tokens hidden.
        attention_mask: (B, T) int32, 1 for a token and 0 for padding; None: there is no padding.
        token_type_ids: (B, T) int32, 0 for the first segment and 1 for the second; None: all are 0.
        prediction_positions: (M,) int64, the flat index b * T + t of every token to predict, ascending.
        labels: (M,) int32, the original ids of the tokens to predict.
        next_sentence_labels: (B,) int32, 0 if the second segment follows the first, 1 if it is from elsewhere
            (Hugging Face's convention); None: there is no next-sentence prediction.
        first_sequence: the number of the first sequence here within the whole step; it differs from 0 in
            micro-batches. Dropout draws by the number within the step, so splitting a batch changes nothing.
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
        """B, the number of sequences."""
        return int(self.input_ids.shape[0])

    @property
    def number_of_tokens(self) -> int:
        """N, the number of tokens without padding."""
        return self.input_ids.size if self.attention_mask is None else int(self.attention_mask.sum())

    @property
    def number_of_predictions(self) -> int:
        """M, the number of tokens to predict."""
        return self.labels.size

    def split(self, parts: int) -> list[Batch]:
        """Cut the batch into micro-batches of neighbouring sequences; the arrays are views where possible.

        Args:
            parts: the number of micro-batches. Their sizes differ by at most one sequence; the larger ones come
                first.

        Raises:
            ValueError: `parts` is below 1 or above the number of sequences.
        """
        count, length = self.input_ids.shape
        if not 1 <= parts <= count:
            raise ValueError(f"a batch of {count} sequences can be split into 1 to {count} parts, not {parts}")
        bounds = [count // parts * part + min(part, count % parts) for part in range(parts + 1)]
        return [self._slice(start, stop, length) for start, stop in pairwise(bounds)]

    def _slice(self, start: int, stop: int, length: int) -> Batch:
        """Return the sequences from `start` to `stop`, which have `length` tokens each."""
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


class BatchSource:
    """The batches of a training run.

    Args:
        train_sequences: the sequences to train on.
        rule: how many tokens are predicted, and what replaces them.
        batch_size: B, the number of sequences in a step, all micro-batches and machines together.
        seed: 0 to 2**64 - 1; decides the order, the masks and the next-sentence pairs.
        tokenizer: the tokenizer of the sequences.

    Raises:
        DataError: there are fewer sequences than a batch holds.
        ValueError: the batch size is below 1.
    """

    def __init__(
        self, train_sequences: Sequences, rule: MaskingRule, batch_size: int, seed: int, tokenizer: Tokenizer
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch has at least one sequence; got batch size {batch_size}")
        if len(train_sequences) < batch_size:
            raise DataError(
                f"the training text makes {len(train_sequences)} sequences of {train_sequences.seq_length} tokens, "
                f"fewer than one batch of {batch_size}; give more text, a smaller batch or shorter sequences"
            )
        self.train_sequences = train_sequences
        self.rule = rule
        self.batch_size = batch_size
        self.seed = seed
        self.tokenizer = tokenizer

    @property
    def steps_per_epoch(self) -> float:
        """The number of steps in which every sequence is seen once; seldom a whole number."""
        return len(self.train_sequences) / self.batch_size

    def training_batch(self, step: int) -> Batch:
        """Return the batch of a step (0, 1, 2, ...); the same step always gives the same batch.

        Every batch is full. Epochs follow each other without a gap, so a batch may hold the last sequences of
        one epoch and the first of the next.

        Raises:
            ValueError: the step is negative.
        """
        if step < 0:
            raise ValueError(f"steps are counted from 0; got {step}")
        size = len(self.train_sequences)
        positions = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        epochs = positions // size
        parts = [self._epoch_part(epoch, positions[epochs == epoch] % size) for epoch in np.unique(epochs).tolist()]
        return _join_batches(parts)

    def _epoch_part(self, epoch: int, positions: npt.NDArray[np.int64]) -> Batch:
        """Return the sequences at these positions of one epoch's random order."""
        order = derive_key(self.seed, Stream.ORDER, epoch)
        indices = permute(positions, len(self.train_sequences), order)
        return _make_batch(self.train_sequences, indices, self.rule, self.tokenizer, self.seed, epoch, training=True)


def evaluation_batches(
    sequences: Sequences, tokenizer: Tokenizer, rule: MaskingRule, batch_size: int, limit: int | None = None
) -> Iterator[Batch]:
    """Yield the batches of an evaluation. They are always the same: order, masks and pairs depend on no seed.

    They do not depend on the batch size either. The last batch may be smaller than the others.

    Args:
        sequences: the sequences to evaluate on.
        tokenizer: the tokenizer of the sequences.
        rule: how many tokens are predicted, and what replaces them.
        batch_size: the number of sequences in a batch.
        limit: the largest number of *sequences* to use, spread evenly over the text; None: all.

    Raises:
        ValueError: the batch size or the limit is below 1.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"the batch size and the limit must be at least 1; got {batch_size} and {limit}")
    size = len(sequences)
    count = size if limit is None else min(limit, size)
    for start in range(0, count, batch_size):
        positions = np.arange(start, min(start + batch_size, count), dtype=np.int64)
        yield _make_batch(sequences, positions * size // count, rule, tokenizer, _EVALUATION_SEED, 0, training=False)


def _make_batch(
    sequences: Sequences,
    indices: npt.NDArray[np.int64],
    rule: MaskingRule,
    tokenizer: Tokenizer,
    seed: int,
    epoch: int,
    training: bool,
) -> Batch:
    """Read the sequences with these numbers (B,), and hide tokens in them."""
    pairing = derive_key(seed, Stream.PAIRING if training else Stream.EVALUATION, epoch)
    examples = sequences.read_examples(indices, pairing)
    stream = Stream.MASKING if training else Stream.EVALUATION
    input_ids, positions, labels = mask_tokens(
        examples.input_ids, indices, rule, tokenizer, seed=seed, epoch=epoch, stream=stream
    )
    return Batch(
        input_ids=input_ids,
        attention_mask=examples.attention_mask,
        token_type_ids=examples.token_type_ids,
        prediction_positions=positions,
        labels=labels,
        next_sentence_labels=examples.next_sentence_labels,
    )


def _join_batches(batches: Sequence[Batch]) -> Batch:
    """Join batches of the same objective and sequence length into one whose first_sequence is 0."""
    if len(batches) == 1:
        return batches[0]
    length = batches[0].input_ids.shape[1]
    shifts = np.cumsum([0, *(batch.number_of_sequences for batch in batches[:-1])]) * length

    def join(name: str) -> npt.NDArray[np.int32] | None:
        arrays = [getattr(batch, name) for batch in batches]
        return None if arrays[0] is None else np.concatenate(arrays)

    positions = [batch.prediction_positions + shift for batch, shift in zip(batches, shifts, strict=True)]
    return Batch(
        input_ids=np.concatenate([batch.input_ids for batch in batches]),
        attention_mask=join("attention_mask"),
        token_type_ids=join("token_type_ids"),
        prediction_positions=np.concatenate(positions),
        labels=np.concatenate([batch.labels for batch in batches]),
        next_sentence_labels=join("next_sentence_labels"),
    )


def build_sequences(objective: str, split: TokenSplit, tokenizer: Tokenizer, seq_length: int) -> Sequences:
    """Return the sequences of a split for an objective.

    Args:
        objective: "mlm" (packed sequences) or "mlm+nsp" (next-sentence pairs).
        split: the text.
        tokenizer: the tokenizer of the split.
        seq_length: T.

    Raises:
        DataError: the objective is unknown, or the text is too short for one sequence.
    """
    if objective == "mlm":
        return PackedSequences(split, tokenizer, seq_length)
    if objective == "mlm+nsp":
        return PairedSequences(split, tokenizer, seq_length)
    raise DataError(f"there is no objective {objective!r}; choose one of {', '.join(OBJECTIVES)}")


def build_batch_source(
    objective: str,
    tokenized: TokenizedCorpus,
    tokenizer: Tokenizer,
    *,
    seq_length: int,
    batch_size: int,
    seed: int,
    rule: MaskingRule | None = None,
) -> tuple[BatchSource, Sequences]:
    """Return the source of training batches, and the sequences to evaluate on (for `evaluation_batches`).

    Args:
        objective: "mlm" or "mlm+nsp".
        tokenized: the text, from `prepare_tokens`.
        tokenizer: the tokenizer of the text.
        seq_length: T.
        batch_size: B, the number of sequences in a step.
        seed: decides order, masks and next-sentence pairs of training.
        rule: how many tokens are predicted, and what replaces them; None: BERT's 15% and 80/10/10.

    Raises:
        DataError: the objective is unknown, or one of the splits is too short; the message says which.
        ValueError: the batch size is below 1.
    """
    sequences = {}
    for name, split in (("training", tokenized.train), ("evaluation", tokenized.evaluation)):
        try:
            sequences[name] = build_sequences(objective, split, tokenizer, seq_length)
        except DataError as error:
            raise DataError(f"the {name} text: {error}") from error
    source = BatchSource(sequences["training"], rule or MaskingRule(), batch_size, seed, tokenizer)
    return source, sequences["evaluation"]
