"""Tokenized text -> training and evaluation batches.

A training batch is a pure function of the step: which sequences it has follows from a permutation of each
epoch (`permutation.py`), what is hidden from the number of the sequence and the epoch (`masking.py`). So
nothing has to be saved for an exact resume, and any step can be looked at without the ones before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from minibert.data.batch import Batch, join_batches
from minibert.data.masking import MaskingRule, mask_tokens
from minibert.data.permutation import permute
from minibert.data.sequences import PackedSequences, PairedSequences, Sequences
from minibert.data.token_file import TokenizedCorpus, TokenSplit
from minibert.data.tokenizer import Tokenizer
from minibert.errors import DataError
from minibert.random_bits import Stream, derive_key

OBJECTIVES = ("mlm", "mlm+nsp")

_EVALUATION_SEED = 0  # never the user's: every run on a corpus is measured by the same masks


class BatchSource:
    """The batches of a training run.

    Args:
        train_sequences: what to train on.
        rule: what is hidden in them.
        batch_size: B, sequences in a step, all micro-batches and machines together.
        seed: 0 to 2**64 - 1; decides the order, the masks and the pairs.
        tokenizer: the one the sequences were made with.

    Raises:
        DataError: fewer sequences than a batch holds.
        ValueError: a batch size below 1.
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
        """After how many steps every sequence has been seen once; seldom a whole number."""
        return len(self.train_sequences) / self.batch_size

    def training_batch(self, step: int) -> Batch:
        """The batch of a step (0, 1, 2, ...), always the same one.

        Epochs follow each other without a gap: a batch may hold the last sequences of one and the first of
        the next, and is always full.

        Raises:
            ValueError: a negative step.
        """
        if step < 0:
            raise ValueError(f"steps are counted from 0; got {step}")
        size = len(self.train_sequences)
        places = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        epochs = places // size
        return join_batches([self._part(epoch, places[epochs == epoch] % size) for epoch in np.unique(epochs).tolist()])

    def _part(self, epoch: int, places: npt.NDArray[np.int64]) -> Batch:
        """The sequences at some places of the order of one epoch."""
        order = derive_key(self.seed, Stream.ORDER, epoch)
        indices = permute(places, len(self.train_sequences), order)
        return _masked(self.train_sequences, indices, self.rule, self.tokenizer, self.seed, epoch, training=True)

    def evaluation_batches(
        self, sequences: Sequences, rule: MaskingRule, batch_size: int, limit: int | None = None
    ) -> Iterator[Batch]:
        """`evaluation_batches` with this source's tokenizer."""
        return evaluation_batches(sequences, self.tokenizer, rule, batch_size, limit)


def evaluation_batches(
    sequences: Sequences, tokenizer: Tokenizer, rule: MaskingRule, batch_size: int, limit: int | None = None
) -> Iterator[Batch]:
    """The batches of an evaluation, the same every time: order, masks and pairs depend on no seed.

    Neither do they depend on the batch size; the last batch may be smaller than the others.

    Args:
        sequences: what to evaluate on.
        tokenizer: the one they were made with.
        rule: what is hidden in them.
        batch_size: sequences in a batch.
        limit: at most so many *sequences*, spread evenly over the text; None: all.

    Raises:
        ValueError: a batch size or limit below 1.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"an evaluation needs sequences; got batch size {batch_size} and limit {limit}")
    size = len(sequences)
    count = size if limit is None else min(limit, size)
    for start in range(0, count, batch_size):
        places = np.arange(start, min(start + batch_size, count), dtype=np.int64)
        yield _masked(sequences, places * size // count, rule, tokenizer, _EVALUATION_SEED, 0, training=False)


def _masked(
    sequences: Sequences,
    indices: npt.NDArray[np.int64],
    rule: MaskingRule,
    tokenizer: Tokenizer,
    seed: int,
    epoch: int,
    training: bool,
) -> Batch:
    pairing = derive_key(seed, Stream.PAIRING if training else Stream.EVALUATION, epoch)
    examples = sequences.examples(indices, pairing)
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


def build_sequences(objective: str, split: TokenSplit, tokenizer: Tokenizer, seq_length: int) -> Sequences:
    """The sequences an objective trains on.

    Args:
        objective: "mlm" (packed text) or "mlm+nsp" (pairs).
        split: the text.
        tokenizer: the one it was tokenized with.
        seq_length: T.

    Raises:
        DataError: another objective, or too little text for one sequence.
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
    """Everything a training run takes its batches from.

    Args:
        objective: "mlm" or "mlm+nsp".
        tokenized: the text, from `prepare_tokens`.
        tokenizer: the one it was tokenized with.
        seq_length: T.
        batch_size: B, sequences in a step.
        seed: decides order, masks and pairs of training.
        rule: what is hidden; BERT's 15% and 80/10/10 by default.

    Returns:
        The source of training batches, and the sequences to evaluate on (for `evaluation_batches`).

    Raises:
        DataError: an unknown objective, or too little text in one of the splits; the message says which.
    """
    sequences = {}
    for name, split in (("training", tokenized.train), ("evaluation", tokenized.evaluation)):
        try:
            sequences[name] = build_sequences(objective, split, tokenizer, seq_length)
        except DataError as error:
            raise DataError(f"the {name} text: {error}") from error
    source = BatchSource(sequences["training"], rule or MaskingRule(), batch_size, seed, tokenizer)
    return source, sequences["evaluation"]
