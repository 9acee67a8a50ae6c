"""Hide tokens for masked language modelling, and compute the baseline that a model must beat.

Devlin et al., "BERT: Pre-training of deep bidirectional transformers for language understanding" (2019),
section 3.1 and appendix A.1: 15% of the tokens are predicted. Of these, 80% become [MASK], 10% a random
token and 10% stay as they are, so that the model cannot know which of the tokens that it sees are right. The
number of predictions in a sequence is fixed, not drawn (Google's create_pretraining_data.py does the same).

Every random draw is a function of the *number of the sequence* and the position in it
(`minibert.random_bits`), so a sequence is masked in the same way in every batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minibert.data.tokenizer import Tokenizer
from minibert.random_bits import Stream, derive_key, random_bits

_NEVER = np.iinfo(np.uint64).max  # a score that is sorted last in every order
_CHOICE, _ACTION, _REPLACEMENT = range(3)  # what random bits are drawn for: a part of the key


@dataclass(frozen=True)
class MaskingRule:
    """The share of tokens to predict, and what replaces them.

    Attributes:
        probability: the share of the tokens that is predicted, special tokens not counted. At least one token of
            a sequence is predicted.
        mask_fraction: the share of the predicted tokens that becomes [MASK].
        random_fraction: the share of the predicted tokens that becomes a random token. The rest stays.
        whole_word: choose words instead of word pieces, and predict all pieces of a chosen word ("whole word
            masking", added to Google's BERT in May 2019). Words are taken in random order if they still fit into
            the number of predictions. If not a single word fits, the shortest word is predicted, although it
            exceeds the number.
        max_predictions: the largest number of predictions in a sequence (Google's `max_predictions_per_seq`);
            None: no limit.

    Raises:
        ValueError: a share is outside 0 to 1, the shares add up to more than 1, or `max_predictions` is below 1.
    """

    probability: float = 0.15
    mask_fraction: float = 0.8
    random_fraction: float = 0.1
    whole_word: bool = False
    max_predictions: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"the masking probability must be above 0 and at most 1; got {self.probability}")
        shares = (self.mask_fraction, self.random_fraction)
        # A sum slightly above 1 is rounding, for example if one share was computed from the other.
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(
                f"mask_fraction {self.mask_fraction} and random_fraction {self.random_fraction} are shares of the "
                f"predicted tokens: neither may be negative, and together they may be at most 1"
            )
        if self.max_predictions is not None and self.max_predictions < 1:
            raise ValueError(f"max_predictions must be at least 1; got {self.max_predictions}")


def mask_tokens(
    input_ids: npt.NDArray[np.int32],
    sequence_numbers: npt.NDArray[np.int64],
    rule: MaskingRule,
    tokenizer: Tokenizer,
    *,
    seed: int,
    epoch: int = 0,
    stream: Stream = Stream.MASKING,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Hide tokens of every sequence.

    Args:
        input_ids: (B, T) token ids; special tokens, and so padding, are never chosen.
        sequence_numbers: (B,) the number of each sequence in the data; it decides the sequence's random draws.
        rule: how many tokens are predicted, and what replaces them.
        tokenizer: knows the ids of special tokens, of word pieces that continue a word, and of [MASK].
        seed: 0 to 2**64 - 1; another seed hides other tokens.
        epoch: the number of the pass through the data; every epoch hides other tokens.
        stream: MASKING for training; EVALUATION for masks that are independent of those of training.

    Returns:
        input_ids, (B, T) int32, a new array with the hidden tokens replaced;
        prediction_positions, (M,) int64: the flat index b * T + t of every chosen token, ascending;
        labels, (M,) int32: the original ids at these positions.
    """
    rows = np.asarray(sequence_numbers).astype(np.uint32)  # (B,)
    columns = input_ids.shape[1]  # T

    def draw_bits(decision: int) -> npt.NDArray[np.uint32]:
        return random_bits(rows, derive_key(seed, stream, epoch, decision), columns)  # type: ignore[no-any-return]

    maskable = ~tokenizer.is_special[input_ids]  # (B, T)
    counts = _count_predictions(maskable.sum(axis=1), rule)  # (B,)
    if rule.whole_word:
        continues = tokenizer.is_continuation[input_ids]  # (B, T)
        chosen = _choose_words(draw_bits(_CHOICE), maskable, continues, counts)
    else:
        chosen = _choose_tokens(draw_bits(_CHOICE), maskable, counts)
    positions = np.flatnonzero(chosen)  # (M,)
    labels = input_ids.reshape(-1)[positions]  # (M,)

    action = draw_bits(_ACTION).reshape(-1)[positions] / 2.0**32  # (M,) uniform in [0, 1)
    draws = draw_bits(_REPLACEMENT).reshape(-1)[positions].astype(np.uint64)  # (M,)
    ordinary = tokenizer.ordinary_ids
    random_ids = ordinary[(draws * np.uint64(ordinary.size)) >> np.uint64(32)] if positions.size else labels
    replaced = np.where(action < rule.mask_fraction, np.int32(tokenizer.mask_id), random_ids)
    replaced = np.where(action < rule.mask_fraction + rule.random_fraction, replaced, labels)
    masked = np.array(input_ids, dtype=np.int32)
    masked.reshape(-1)[positions] = replaced
    return masked, positions.astype(np.int64), labels.astype(np.int32)


def _count_predictions(maskable: npt.NDArray[np.int64], rule: MaskingRule) -> npt.NDArray[np.int64]:
    """Return the numbers of predictions (B,), given the numbers of maskable tokens (B,); at least 1 if there is any."""
    counts = np.maximum(np.rint(maskable * rule.probability).astype(np.int64), 1)
    if rule.max_predictions is not None:
        counts = np.minimum(counts, rule.max_predictions)
    at_most: npt.NDArray[np.int64] = np.minimum(counts, maskable)
    return at_most


def _draw_order(bits: npt.NDArray[np.uint32], candidates: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the columns of each row, (B, T): candidates first, in random order, then all others."""
    scores = np.where(candidates, bits.astype(np.uint64), _NEVER)
    # A stable sort orders equal scores alike on every machine.
    order: npt.NDArray[np.int64] = np.argsort(scores, axis=1, kind="stable")
    return order


def _choose_tokens(
    bits: npt.NDArray[np.uint32], maskable: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return a mask (B, T), True for exactly `counts` maskable tokens of each row; every such set is equally likely."""
    ranks = np.arange(maskable.shape[1])
    chosen = np.zeros_like(maskable)
    np.put_along_axis(chosen, _draw_order(bits, maskable), ranks[None, :] < counts[:, None], axis=1)
    return chosen


def _choose_words(
    bits: npt.NDArray[np.uint32],
    maskable: npt.NDArray[np.bool_],
    continues: npt.NDArray[np.bool_],
    counts: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Return a mask (B, T), True for all pieces of the chosen words of each row.

    Words are considered in random order. A word is chosen if it still fits into the row's remaining number of
    predictions, which begins at `counts` (B,).
    """
    after_maskable = np.concatenate((np.zeros_like(maskable[:, :1]), maskable[:, :-1]), axis=1)
    # A sequence may begin in the middle of a word; the rest of this word counts as a word.
    begins = maskable & ~(continues & after_maskable)  # (B, T)
    firsts = np.flatnonzero(begins)  # (words,) flat positions of the first pieces
    if not firsts.size:
        return np.zeros_like(maskable)
    word_of = np.cumsum(begins) - 1  # (B * T,) the word of each token; valid for maskable tokens only
    lengths = np.zeros(maskable.shape, dtype=np.int64)  # (B, T) the length of the word that begins here
    lengths.reshape(-1)[firsts] = np.bincount(word_of[maskable.reshape(-1)])

    order = _draw_order(bits, begins)  # (B, T) first pieces in random order
    left = counts.copy()  # (B,) predictions left
    taken = np.zeros_like(maskable)  # (B, T) True at the first piece of a chosen word
    rows = np.arange(maskable.shape[0])
    for rank in range(int(begins.sum(axis=1).max(initial=0))):
        column = order[:, rank]  # (B,)
        length = lengths[rows, column]
        fits = (length > 0) & (length <= left)
        taken[rows[fits], column[fits]] = True
        left -= np.where(fits, length, 0)
        if not left.any():
            break
    # If no word fits, the shortest word is taken; among equally short words, the first in the random order.
    without = np.flatnonzero((left == counts) & (counts > 0))
    if without.size:
        in_order = np.take_along_axis(lengths, order, axis=1)[without]
        shortest = np.argmin(np.where(in_order > 0, in_order, maskable.shape[1] + 1), axis=1)
        taken[without, order[without, shortest]] = True
    of_word: npt.NDArray[np.bool_] = taken.reshape(-1)[firsts[word_of]].reshape(maskable.shape)  # (B, T)
    return of_word & maskable


def unigram_cross_entropy(counts: npt.NDArray[np.int64], labels: npt.NDArray[np.int32]) -> float:
    """Return the loss of a model that knows only how frequent each token is: the baseline that BERT must beat.

    Args:
        counts: (V,) how often each token occurs in the training text. One is added to each count, so that a token
            that never occurs has a probability, too.
        labels: (M,) the tokens to predict, M at least 1.

    Returns:
        The mean of -log(probability of the label), in nats.

    Raises:
        ValueError: there are no labels.
    """
    if not np.size(labels):
        raise ValueError("the cross-entropy of no labels is not defined; give at least one label")
    smoothed = np.asarray(counts, dtype=np.float64) + 1
    return float(np.log(smoothed.sum()) - np.log(smoothed[labels]).mean())
