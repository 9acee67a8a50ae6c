"""The sequences a model is given, cut out of a tokenized corpus: packed for masked language modelling, in
pairs for next-sentence prediction. Nothing is hidden in them yet; `masking.py` does that.

Both are numbered from 0 to `len() - 1` and cut out on demand, so they take no memory of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from minibert.data.token_file import TokenSplit
from minibert.data.tokenizer import Tokenizer
from minibert.errors import DataError
from minibert.random_bits import Key, random_bits


@dataclass(frozen=True)
class Examples:
    """Sequences before masking; the fields are those of `Batch`."""

    input_ids: npt.NDArray[np.int32]
    attention_mask: npt.NDArray[np.int32] | None = None
    token_type_ids: npt.NDArray[np.int32] | None = None
    next_sentence_labels: npt.NDArray[np.int32] | None = None


class Sequences(Protocol):
    """What a batch is made of."""

    seq_length: int

    def __len__(self) -> int:
        """How many sequences there are."""

    def examples(self, indices: npt.NDArray[np.int64], key: Key) -> Examples:
        """The sequences of these numbers (B,); the key decides whatever is random about them."""


class PackedSequences:
    """Text without padding: `[CLS] stretch of text [SEP]`, every sequence full.

    The documents stand one after the other, each followed by [SEP] (as in RoBERTa's FULL-SENTENCES: Liu et
    al. 2019, section 4.2), and are cut every T - 2 tokens. So no work is spent on padding, short documents
    share a sequence, and [SEP] tells the model where one ends. What is left at the very end, less than a
    sequence, is not used.

    Args:
        split: the text.
        tokenizer: knows [CLS] and [SEP].
        seq_length: T, at least 3.

    Raises:
        DataError: too short a sequence, or too little text for one.
    """

    def __init__(self, split: TokenSplit, tokenizer: Tokenizer, seq_length: int) -> None:
        if seq_length < 3:
            raise DataError(f"a sequence holds [CLS], text and [SEP]: at least 3 tokens, not {seq_length}")
        self.seq_length = seq_length
        self._tokens = split.tokens
        self._text_length = seq_length - 2
        self._cls_id, self._sep_id = tokenizer.cls_id, tokenizer.sep_id
        if not len(self):
            raise DataError(
                f"{split.number_of_tokens} tokens of text are not enough for one sequence of {seq_length}; "
                f"give more text or shorter sequences"
            )

    def __len__(self) -> int:
        return self._tokens.size // self._text_length

    def rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """(B, T) the sequences with these numbers (B,)."""
        ids = np.empty((len(indices), self.seq_length), dtype=np.int32)
        ids[:, 0] = self._cls_id
        ids[:, -1] = self._sep_id
        starts = np.asarray(indices, dtype=np.int64) * self._text_length
        ids[:, 1:-1] = self._tokens[starts[:, None] + np.arange(self._text_length)]  # (B, T - 2)
        return ids

    def examples(self, indices: npt.NDArray[np.int64], key: Key) -> Examples:
        """The sequences with these numbers; nothing about them is random."""
        return Examples(self.rows(indices))


class PairedSequences:
    """Pairs of segments: `[CLS] A [SEP] B [SEP]` and padding, for next-sentence prediction (Devlin et al. 2019).

    Pair number i begins with the sentence at token i * (T - 3) of the text. From there to the end of the
    document, or of the sequence, the text is cut in two after one of its sentences, drawn at random. In half
    of the pairs B is what follows A (label 0); in the others it is a stretch that begins with a random
    sentence of another document, all tokens being equally likely (label 1). In a few pairs the sequence is
    shorter on purpose, so that the model meets other lengths than T.

    Other than in Google's create_pretraining_data.py the pairs are drawn anew in every epoch, and a text that
    has only one sentence left begins earlier; if its document is a single sentence it is cut within it, where
    Google makes such pairs random ones and thereby spoils the balance of the labels.

    Args:
        split: the text.
        tokenizer: knows the special tokens.
        seq_length: T, at least 5.
        short_probability: the share of pairs with a random shorter length (Google's `short_seq_prob`).

    Raises:
        DataError: too short a sequence, too little text, or a single document, which has no other to draw from.
    """

    def __init__(
        self, split: TokenSplit, tokenizer: Tokenizer, seq_length: int, short_probability: float = 0.1
    ) -> None:
        if seq_length < 5:
            raise DataError(
                f"a pair holds [CLS] A [SEP] B [SEP]: at least 5 tokens, not {seq_length}; give a longer sequence"
            )
        if split.number_of_documents < 2:
            raise DataError(
                "next-sentence prediction takes its wrong pairs from another document, and the text is a single "
                "one; separate documents by blank lines, or train without next-sentence prediction"
            )
        self.seq_length = seq_length
        self._split = split
        self._short_probability = short_probability
        self._text_length = seq_length - 3
        self._tokenizer = tokenizer
        if not len(self):
            raise DataError(
                f"{split.number_of_tokens} tokens of text are not enough for one sequence of {seq_length}; "
                f"give more text or shorter sequences"
            )

    def __len__(self) -> int:
        return self._split.number_of_tokens // self._text_length

    def examples(self, indices: npt.NDArray[np.int64], key: Key) -> Examples:
        """The pairs with these numbers (B,), drawn by `key`."""
        split, tokenizer = self._split, self._tokenizer
        bits = random_bits(np.asarray(indices).astype(np.uint32), key, 6)  # (B, 6)
        uniform = bits / 2.0**32  # (B, 6) in [0, 1)
        shorter = 2 + np.floor(uniform[:, 1] * (self._text_length - 1)).astype(np.int64)  # 2 .. T - 3
        budget = np.where(uniform[:, 0] < self._short_probability, shorter, self._text_length)  # (B,)

        anchors = np.asarray(indices, dtype=np.int64) * self._text_length
        document, sentence = self._place(anchors)
        document_start = split.document_offsets[document]
        document_end = split.document_offsets[document + 1] - 1  # without its [SEP]
        start = split.sentence_offsets[sentence]
        # The last sentence of a document has none after it: begin with the one before, if there is one.
        is_last = split.sentence_offsets[sentence + 1] > document_end
        start = np.where(is_last & (start > document_start), split.sentence_offsets[sentence - 1], start)
        end = np.minimum(document_end, start + budget)

        # A token of all the others, as if the document at hand were not there.
        document_length = document_end + 1 - document_start
        fine = (uniform[:, 4] + uniform[:, 5] / 2.0**32) * (split.number_of_tokens - document_length)
        other = np.minimum(fine.astype(np.int64), split.number_of_tokens - document_length - 1)
        other += np.where(other >= document_start, document_length, 0)
        other_document, other_sentence = self._place(other)
        other_start = split.sentence_offsets[other_sentence]
        other_end = split.document_offsets[other_document + 1] - 1

        cut = self._cut(start, end, uniform[:, 3])
        is_random = (uniform[:, 2] < 0.5) | (cut == end)  # nothing follows a document of one token
        a_length = cut - start
        b_start = np.where(is_random, other_start, cut)
        b_end = np.where(is_random, np.minimum(other_start + budget - a_length, other_end), end)

        columns = np.arange(self.seq_length)  # (T,)
        first_sep = (a_length + 1)[:, None]  # (B, 1) the column of the [SEP] after A
        last_sep = first_sep + (b_end - b_start + 1)[:, None]  # (B, 1) of the one after B
        token_types = (columns > first_sep) & (columns <= last_sep)  # (B, T)
        place = np.where(token_types, (b_start[:, None] - first_sep), start[:, None]) + columns - 1  # (B, T)
        # Columns that hold no text may point outside the text; they are overwritten.
        ids = split.tokens[np.clip(place, 0, split.number_of_tokens - 1)].astype(np.int32)
        ids[:, 0] = tokenizer.cls_id
        ids[(columns == first_sep) | (columns == last_sep)] = tokenizer.sep_id
        ids[columns > last_sep] = tokenizer.pad_id
        mask = (columns <= last_sep).astype(np.int32)
        return Examples(ids, mask, token_types.astype(np.int32), is_random.astype(np.int32))

    def _place(self, tokens: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The numbers of the documents and sentences some tokens belong to; a binary search in the mapped files."""
        document = np.searchsorted(self._split.document_offsets, tokens, side="right") - 1
        sentence = np.searchsorted(self._split.sentence_offsets, tokens, side="right") - 1
        return document, sentence

    def _cut(
        self, start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], uniform: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """(B,) where A ends and B begins: after a random sentence, or within the only one; `end` if it is one token."""
        offsets = self._split.sentence_offsets
        first = np.searchsorted(offsets, start, side="right")
        inside = np.searchsorted(offsets, end, side="left") - first  # (B,) sentences that begin between the two
        at_sentence = offsets[np.minimum(first + (uniform * inside).astype(np.int64), offsets.size - 1)]
        within = start + np.maximum(1, (uniform * (end - start)).astype(np.int64))
        return np.where(inside > 0, at_sentence, within)
