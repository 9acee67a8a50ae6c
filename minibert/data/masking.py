"""The masked language model's task: which tokens are hidden, and what stands in their place.

Devlin et al., "BERT: Pre-training of deep bidirectional transformers for language understanding" (2019),
section 3.1 and appendix A.1: 15% of the tokens are predicted; of these 80% become [MASK], 10% a random
token and 10% stay, so that the model cannot know which of the tokens it sees are right. The number of
predictions in a sequence is exact, not drawn (Google's create_pretraining_data.py does the same).

Every draw is a function of the *number of the sequence* and the position in it (`minibert.random_bits`), so
a sequence is masked alike in whatever batch it comes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minibert.data.tokenizer import Tokenizer
from minibert.random_bits import Stream, derive_key, random_bits

_NEVER = np.iinfo(np.uint64).max  # a score that comes last in every order
_CHOICE, _ACTION, _REPLACEMENT = range(3)  # what a random word decides


@dataclass(frozen=True)
class MaskingRule:
    """How sequences are masked.

    Attributes:
        probability: the share of the tokens that is predicted, specials not counted; at least one is.
        mask_fraction: the share of the predicted tokens that becomes [MASK].
        random_fraction: the share of the predicted tokens that becomes a random token; the rest stays.
        whole_word: choose words instead of pieces, and predict all pieces of a chosen word ("whole word
            masking", added to Google's BERT in May 2019). As many words as fit into the number of
            predictions are taken; only if not even one fits is the number exceeded, by the shortest word.
        max_predictions: no more than this many in a sequence (Google's `max_predictions_per_seq`); None: any.

    Raises:
        ValueError: shares outside 0..1, or fewer than one prediction.
    """

    probability: float = 0.15
    mask_fraction: float = 0.8
    random_fraction: float = 0.1
    whole_word: bool = False
    max_predictions: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ValueError(f"the masking probability must lie between 0 and 1, such as 0.15; got {self.probability}")
        shares = (self.mask_fraction, self.random_fraction)
        # A hair above 1 is rounding, as when one share was computed from the other.
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(
                f"mask_fraction {self.mask_fraction} and random_fraction {self.random_fraction} are shares of the "
                f"predicted tokens: none negative, together at most 1"
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
    """Hides tokens of every sequence.

    Args:
        input_ids: (B, T); special tokens (padding among them) are never chosen.
        sequence_numbers: (B,) what each sequence is called in the data; decides its draws.
        rule: how many and what becomes of them.
        tokenizer: which ids are special, which continue a word, and where [MASK] is.
        seed: 0 to 2**64 - 1; another seed hides other tokens.
        epoch: which time the data are gone through; every time hides other tokens.
        stream: MASKING to train, EVALUATION for masks that have nothing to do with those of training.

    Returns:
        input_ids with some replaced, (B, T) int32, a new array;
        prediction_positions, (M,) int64: the flat index b * T + t of every chosen token, ascending;
        labels, (M,) int32: what stood there.
    """
    rows = np.asarray(sequence_numbers).astype(np.uint32)  # (B,)
    columns = input_ids.shape[1]  # T

    def bits(what: int) -> npt.NDArray[np.uint32]:
        return random_bits(rows, derive_key(seed, stream, epoch, what), columns)  # type: ignore[no-any-return]

    maskable = ~tokenizer.is_special[input_ids]  # (B, T)
    counts = _number_of_predictions(maskable.sum(axis=1), rule)  # (B,)
    if rule.whole_word:
        continues = tokenizer.is_continuation[input_ids]  # (B, T)
        chosen = _choose_words(bits(_CHOICE), maskable, continues, counts)
    else:
        chosen = _choose_tokens(bits(_CHOICE), maskable, counts)
    positions = np.flatnonzero(chosen)  # (M,)
    labels = input_ids.reshape(-1)[positions]  # (M,)

    action = bits(_ACTION).reshape(-1)[positions] / 2.0**32  # (M,) uniform in [0, 1)
    draws = bits(_REPLACEMENT).reshape(-1)[positions].astype(np.uint64)  # (M,)
    ordinary = tokenizer.ordinary_ids
    random_ids = ordinary[(draws * np.uint64(ordinary.size)) >> np.uint64(32)] if positions.size else labels
    replaced = np.where(action < rule.mask_fraction, np.int32(tokenizer.mask_id), random_ids)
    replaced = np.where(action < rule.mask_fraction + rule.random_fraction, replaced, labels)
    masked = np.array(input_ids, dtype=np.int32)
    masked.reshape(-1)[positions] = replaced
    return masked, positions.astype(np.int64), labels.astype(np.int32)


def _number_of_predictions(maskable: npt.NDArray[np.int64], rule: MaskingRule) -> npt.NDArray[np.int64]:
    """(B,) how many of so many maskable tokens are predicted: at least one if there is any."""
    counts = np.maximum(np.rint(maskable * rule.probability).astype(np.int64), 1)
    if rule.max_predictions is not None:
        counts = np.minimum(counts, rule.max_predictions)
    at_most: npt.NDArray[np.int64] = np.minimum(counts, maskable)
    return at_most


def _random_order(bits: npt.NDArray[np.uint32], candidates: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """(B, T) the columns of each row in random order, those that are no candidates last."""
    scores = np.where(candidates, bits.astype(np.uint64), _NEVER)
    order: npt.NDArray[np.int64] = np.argsort(scores, axis=1, kind="stable")  # stable: ties are the same everywhere
    return order


def _choose_tokens(
    bits: npt.NDArray[np.uint32], maskable: npt.NDArray[np.bool_], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """(B, T) exactly `counts` maskable tokens of each row, every such set equally likely."""
    ranks = np.arange(maskable.shape[1])
    chosen = np.zeros_like(maskable)
    np.put_along_axis(chosen, _random_order(bits, maskable), ranks[None, :] < counts[:, None], axis=1)
    return chosen


def _choose_words(
    bits: npt.NDArray[np.uint32],
    maskable: npt.NDArray[np.bool_],
    continues: npt.NDArray[np.bool_],
    counts: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """(B, T) whole words of each row, in random order, each if it still fits into what is left of `counts`."""
    after_maskable = np.concatenate((np.zeros_like(maskable[:, :1]), maskable[:, :-1]), axis=1)
    # A window may begin in the middle of a word: the rest of it counts as a word.
    begins = maskable & ~(continues & after_maskable)  # (B, T)
    firsts = np.flatnonzero(begins)  # (words,) flat places of the first pieces
    if not firsts.size:
        return np.zeros_like(maskable)
    word_of = np.cumsum(begins) - 1  # (B * T,) right for maskable tokens only
    lengths = np.zeros(maskable.shape, dtype=np.int64)  # (B, T) of the word that begins here
    lengths.reshape(-1)[firsts] = np.bincount(word_of[maskable.reshape(-1)])

    order = _random_order(bits, begins)  # (B, T) first pieces in random order
    left = counts.copy()  # (B,)
    taken = np.zeros_like(maskable)  # (B, T) at the first pieces
    rows = np.arange(maskable.shape[0])
    for rank in range(int(begins.sum(axis=1).max(initial=0))):
        column = order[:, rank]  # (B,)
        length = lengths[rows, column]
        fits = (length > 0) & (length <= left)
        taken[rows[fits], column[fits]] = True
        left -= np.where(fits, length, 0)
        if not left.any():
            break
    # No word at all fits: the shortest is taken, the first of them in the random order.
    without = np.flatnonzero((left == counts) & (counts > 0))
    if without.size:
        in_order = np.take_along_axis(lengths, order, axis=1)[without]
        shortest = np.argmin(np.where(in_order > 0, in_order, maskable.shape[1] + 1), axis=1)
        taken[without, order[without, shortest]] = True
    of_word: npt.NDArray[np.bool_] = taken.reshape(-1)[firsts[word_of]].reshape(maskable.shape)  # (B, T)
    return of_word & maskable
