"""Read sequences of T tokens from a tokenized corpus; `masking.py` hides tokens in them afterwards.

`PackedSequences` are for masked language modelling alone; `PairedSequences` also for next-sentence prediction.
Both number their sequences from 0 to `len() - 1` and read them on demand, so they take no memory of their own.
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
    """Sequences before masking; the fields have the shapes and meanings of those in `Batch`."""

    input_ids: npt.NDArray[np.int32]
    attention_mask: npt.NDArray[np.int32] | None = None
    token_type_ids: npt.NDArray[np.int32] | None = None
    next_sentence_labels: npt.NDArray[np.int32] | None = None


class Sequences(Protocol):
    """The numbered sequences of a split, from which batches are made.

    Attributes:
        seq_length: T, the number of tokens in each sequence.
    """

    seq_length: int

    def __len__(self) -> int:
        """Return the number of sequences."""

    def read_examples(self, indices: npt.NDArray[np.int64], key: Key) -> Examples:
        """Return the sequences with these numbers (B,); the key decides all random choices."""


class PackedSequences:
    """Packed sequences without padding: `[CLS] T - 2 tokens of text [SEP]`.

    The documents follow each other, each with a [SEP] at its end (as in RoBERTa's FULL-SENTENCES: Liu et al.
    2019, section 4.2), and the text is cut every T - 2 tokens. So no work is spent on padding, short documents
    share a sequence, and [SEP] tells the model where a document ends. The last tokens of the text, fewer than
    T - 2, are not used.

    Args:
        split: the text.
        tokenizer: knows the ids of [CLS] and [SEP].
        seq_length: T, at least 3.

    Raises:
        DataError: `seq_length` is below 3, or the text is too short for one sequence.
    """

    def __init__(self, split: TokenSplit, tokenizer: Tokenizer, seq_length: int) -> None:
        if seq_length < 3:
            raise DataError(
                f"a sequence holds [CLS], text and [SEP]: at least 3 tokens, not {seq_length}; give a longer sequence"
            )
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

    def read_rows(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Return the input_ids (B, T) of the sequences with these numbers (B,)."""
        ids = np.empty((len(indices), self.seq_length), dtype=np.int32)
        ids[:, 0] = self._cls_id
        ids[:, -1] = self._sep_id
        starts = np.asarray(indices, dtype=np.int64) * self._text_length
        ids[:, 1:-1] = self._tokens[starts[:, None] + np.arange(self._text_length)]  # (B, T - 2)
        return ids

    def read_examples(self, indices: npt.NDArray[np.int64], key: Key) -> Examples:
        """Return the sequences with these numbers (B,); nothing about them is random."""
        return Examples(self.read_rows(indices))


class PairedSequences:
    """Next-sentence pairs: `[CLS] A [SEP] B [SEP]` and padding (Devlin et al. 2019, section 3.1, task 2).

    Pair number i begins with the sentence that holds token i * (T - 3) of the text. The text from there to the
    end of the document, or to the end of the sequence, is cut in two after a random one of its sentences. The
    first part is A. In half of the pairs, B is the second part (label 0). In the other half, B is a stretch that
    begins with a random sentence of another document; each token of the other documents is equally likely to
    choose its sentence (label 1). A few pairs are shorter on purpose, so that the model sees other lengths than T.

    Two things differ from Google's create_pretraining_data.py. The pairs are drawn anew in every epoch. And if
    only the last sentence of a document is left, the pair begins one sentence earlier; a document of a single
    sentence is cut within this sentence. Google makes such pairs random, which spoils the balance of the labels.

    Args:
        split: the text.
        tokenizer: knows the ids of the special tokens.
        seq_length: T, at least 5.
        short_probability: the share of pairs with a random shorter length (Google's `short_seq_prob`).

    Raises:
        DataError: `seq_length` is below 5, the text is too short for one sequence, or there is only one document
            and so no other to draw from.
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

    def read_examples(self, indices: npt.NDArray[np.int64], key: Key) -> Examples:
        """Return the pairs with these numbers (B,); the key decides all random choices."""
        split, tokenizer = self._split, self._tokenizer
        bits = random_bits(np.asarray(indices).astype(np.uint32), key, 6)  # (B, 6)
        # The columns decide: 0 if the pair is shorter, 1 its shorter length, 2 if B is random, 3 where A ends, 4 and 5
        # where a random B begins (two words, for texts of more than 2**32 tokens).
        uniform = bits / 2.0**32  # (B, 6) in [0, 1)
        shorter = 2 + np.floor(uniform[:, 1] * (self._text_length - 1)).astype(np.int64)  # 2 .. T - 3
        budget = np.where(uniform[:, 0] < self._short_probability, shorter, self._text_length)  # (B,)

        anchors = np.asarray(indices, dtype=np.int64) * self._text_length
        document, sentence = self._locate(anchors)
        document_start = split.document_offsets[document]
        document_end = split.document_offsets[document + 1] - 1  # without its [SEP]
        start = split.sentence_offsets[sentence]
        # Nothing follows the last sentence of a document, so begin with the sentence before it, if there is one.
        is_last = split.sentence_offsets[sentence + 1] > document_end
        start = np.where(is_last & (start > document_start), split.sentence_offsets[sentence - 1], start)
        end = np.minimum(document_end, start + budget)

        # Draw a token of the other documents: draw from the text without this document, then skip the document.
        document_length = document_end + 1 - document_start
        fine = (uniform[:, 4] + uniform[:, 5] / 2.0**32) * (split.number_of_tokens - document_length)
        other = np.minimum(fine.astype(np.int64), split.number_of_tokens - document_length - 1)
        other += np.where(other >= document_start, document_length, 0)
        other_document, other_sentence = self._locate(other)
        other_start = split.sentence_offsets[other_sentence]
        other_end = split.document_offsets[other_document + 1] - 1

        cut = self._draw_cut(start, end, uniform[:, 3])
        is_random = (uniform[:, 2] < 0.5) | (cut == end)  # nothing follows a document of one token
        a_length = cut - start
        b_start = np.where(is_random, other_start, cut)
        b_end = np.where(is_random, np.minimum(other_start + budget - a_length, other_end), end)

        columns = np.arange(self.seq_length)  # (T,)
        first_sep = (a_length + 1)[:, None]  # (B, 1) the column of the [SEP] after A
        last_sep = first_sep + (b_end - b_start + 1)[:, None]  # (B, 1) the column of the [SEP] after B
        token_types = (columns > first_sep) & (columns <= last_sep)  # (B, T)
        place = np.where(token_types, (b_start[:, None] - first_sep), start[:, None]) + columns - 1  # (B, T)
        # The columns of special tokens and padding may point outside the text; they are overwritten below.
        ids = split.tokens[np.clip(place, 0, split.number_of_tokens - 1)].astype(np.int32)
        ids[:, 0] = tokenizer.cls_id
        ids[(columns == first_sep) | (columns == last_sep)] = tokenizer.sep_id
        ids[columns > last_sep] = tokenizer.pad_id
        mask = (columns <= last_sep).astype(np.int32)
        return Examples(ids, mask, token_types.astype(np.int32), is_random.astype(np.int32))

    def _locate(self, tokens: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the numbers of the documents and sentences that hold these tokens, by binary search."""
        document = np.searchsorted(self._split.document_offsets, tokens, side="right") - 1
        sentence = np.searchsorted(self._split.sentence_offsets, tokens, side="right") - 1
        return document, sentence

    def _draw_cut(
        self, start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], uniform: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """Return (B,) offsets where A ends: after a random sentence, or within the sentence if there is only one.

        A stretch of a single token cannot be cut; then the offset is `end`.
        """
        offsets = self._split.sentence_offsets
        first = np.searchsorted(offsets, start, side="right")
        inside = np.searchsorted(offsets, end, side="left") - first  # (B,) sentences that begin between start and end
        at_sentence = offsets[np.minimum(first + (uniform * inside).astype(np.int64), offsets.size - 1)]
        within = start + np.maximum(1, (uniform * (end - start)).astype(np.int64))
        return np.where(inside > 0, at_sentence, within)
