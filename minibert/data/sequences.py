"""The sequences a model is given, cut out of a tokenized corpus: packed for masked language modelling, in
pairs for next-sentence prediction. Nothing is hidden in them yet; `masking.py` does that.

Both are numbered from 0 to `len() - 1` and cut out on demand, so they take no memory of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from minibert.data.errors import DataError
from minibert.data.token_file import TokenSplit
from minibert.data.tokenizer import Tokenizer
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
        count = len(indices)
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

        ids = np.full((count, self.seq_length), tokenizer.pad_id, dtype=np.int32)
        attention_mask, token_types = np.zeros_like(ids), np.zeros_like(ids)
        labels = (uniform[:, 2] < 0.5).astype(np.int32)
        for row in range(count):
            cut = self._cut(int(start[row]), int(end[row]), int(sentence[row]), float(uniform[row, 3]))
            a = split.tokens[start[row] : cut]
            b = split.tokens[cut : end[row]]
            if not b.size:
                labels[row] = 1  # a document of one token, which nothing follows
            if labels[row]:
                room = int(budget[row]) - a.size
                b = split.tokens[other_start[row] : min(other_start[row] + room, other_end[row])]
            second, stop = a.size + 2, a.size + b.size + 3
            ids[row, 0] = tokenizer.cls_id
            ids[row, 1 : second - 1] = a
            ids[row, second - 1] = tokenizer.sep_id
            ids[row, second : stop - 1] = b
            ids[row, stop - 1] = tokenizer.sep_id
            token_types[row, second:stop] = 1
            attention_mask[row, :stop] = 1
        return Examples(ids, attention_mask, token_types, labels)

    def _place(self, tokens: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The numbers of the documents and sentences some tokens belong to; a binary search in the mapped files."""
        document = np.searchsorted(self._split.document_offsets, tokens, side="right") - 1
        sentence = np.searchsorted(self._split.sentence_offsets, tokens, side="right") - 1
        return document, sentence

    def _cut(self, start: int, end: int, sentence: int, uniform: float) -> int:
        """Where A ends and B begins: after a random sentence, or within the only one; `end` if there is one token."""
        last = sentence + self._text_length + 1  # every sentence has a token, so no more of them fit
        boundaries = self._split.sentence_offsets[max(sentence - 1, 0) : last]
        inside = boundaries[(boundaries > start) & (boundaries < end)]
        if inside.size:
            return int(inside[int(uniform * inside.size)])
        return start + max(1, int(uniform * (end - start)))
