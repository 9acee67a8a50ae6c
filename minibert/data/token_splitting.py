"""Divide a tokenized corpus into a train split and an evaluation split. A helper of `token_file.py`.

The text alone decides what is held out for evaluation. The unit is a document or, if documents are long, a
stretch of one. Every unit has a fixed random number; the units with the smallest numbers are held out until
they make up the wanted share of tokens. Stretches are so short that at least about `_UNITS` of them are held
out. So a single book can be split as well as a million small documents, and the evaluation never depends on
one text alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minibert.data.tokenizer import Tokenizer
from minibert.errors import DataError
from minibert.random_bits import Stream, derive_key, random_bits

# One sentence of the corpus: the number of its document, the number of tokens before it in that document, and
# its own number of tokens.
SENTENCE_RECORD = np.dtype([("document", "<i8"), ("position", "<i8"), ("length", "<i4")])

_UNITS = 8  # the held-out text comes from at least about this many places
_CHUNK_SENTENCES = 1 << 14
_BUCKETS = 1 << 16  # units are ordered by 16 bits of their random number, in a histogram of fixed size

# An evaluation should have at least this many tokens. A small corpus gives up to a fifth of itself to reach that.
_WANTED_TOKENS, _LARGEST_SHARE = 4096, 0.2


def split_tokens(
    tokens: npt.NDArray[Any],
    sentences: npt.NDArray[np.void],
    folder: Path,
    tokenizer: Tokenizer,
    evaluation_fraction: float,
    report_tokens: Callable[[int], None],
) -> dict[str, dict[str, int]]:
    """Write the files `train.*` and `evaluation.*` of a tokenized corpus; `TokenSplit` describes their content.

    The evaluation split gets `evaluation_fraction` of the tokens. If that is less than 4,096, it gets more: up to
    a fifth of the corpus, but no more than 4,096 tokens.

    Args:
        tokens: (N,) token ids of the whole corpus, without separators.
        sentences: (S,) SENTENCE_RECORD, in the order of the tokens.
        folder: where the files are written.
        tokenizer: its [SEP] is put after every document; its special tokens are left out of the counts.
        evaluation_fraction: between 0 and 1.
        report_tokens: called with the number of tokens divided so far.

    Returns:
        For "train" and "evaluation": the numbers of "tokens", "documents" and "sentences".

    Raises:
        DataError: no text would be left to train on.
    """
    wanted = max(evaluation_fraction * tokens.size, min(_WANTED_TOKENS, _LARGEST_SHARE * tokens.size))
    stretch = max(1, int(wanted / _UNITS))
    per_bucket = np.zeros(_BUCKETS, dtype=np.int64)
    for chunk in _read_chunks(sentences):
        np.add.at(per_bucket, _draw_buckets(chunk, stretch), chunk["length"])
    threshold = int(np.searchsorted(np.cumsum(per_bucket), wanted)) + 1  # units in the buckets below it are held out
    if not per_bucket[threshold:].any():
        raise DataError(
            f"a corpus of {len(sentences)} sentence(s) and {tokens.size} tokens cannot be divided into text to "
            f"train on and text to evaluate on (evaluation fraction {evaluation_fraction}): give more text"
        )
    train = _SplitWriter(folder, "train", tokenizer, tokens.dtype)
    evaluation = _SplitWriter(folder, "evaluation", tokenizer, tokens.dtype)
    start, last_document, last_held_out = 0, -1, False
    for chunk in _read_chunks(sentences):
        stop = start + int(chunk["length"].sum())
        here = tokens[start:stop]
        held_out = _draw_buckets(chunk, stretch) < threshold
        # A document of a split is a run of sentences that are neighbours in the text.
        document_before = np.concatenate(([last_document], chunk["document"][:-1]))
        held_out_before = np.concatenate(([last_held_out], held_out[:-1]))
        begins = (chunk["document"] != document_before) | (held_out != held_out_before)
        token_held_out = np.repeat(held_out, chunk["length"])
        train.write(here[~token_held_out], chunk["length"][~held_out], begins[~held_out])
        evaluation.write(here[token_held_out], chunk["length"][held_out], begins[held_out])
        start, last_document, last_held_out = stop, int(chunk["document"][-1]), bool(held_out[-1])
        report_tokens(stop)
    counts = train.counts
    counts[tokenizer.special_ids] = 0
    (folder / "train.counts").write_bytes(counts.tobytes())
    return {"train": train.finish(), "evaluation": evaluation.finish()}


def _read_chunks(sentences: npt.NDArray[np.void]) -> Iterator[npt.NDArray[np.void]]:
    """Yield the records in chunks that fit into memory."""
    for start in range(0, len(sentences), _CHUNK_SENTENCES):
        yield np.array(sentences[start : start + _CHUNK_SENTENCES])


def _draw_buckets(sentences: npt.NDArray[np.void], stretch: int) -> npt.NDArray[np.uint32]:
    """Return the upper 16 bits of the random number of each sentence's unit: (n,)."""
    documents = (sentences["document"] & 0xFFFFFFFF).astype(np.uint32)
    stretches = (sentences["position"] // stretch & 0xFFFFFFFF).astype(np.uint32)
    document_bits = random_bits(documents, derive_key(0, Stream.SPLIT, 0, 0))
    return random_bits(document_bits + stretches, derive_key(0, Stream.SPLIT, 0, 1)) >> 16  # type: ignore[no-any-return]


class _SplitWriter:
    """Append sentences to the files of one split."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
        self._folder, self._name = folder, name
        self._separator = np.asarray([tokenizer.sep_id], dtype=dtype)
        self._tokens = self._documents = self._sentences = 0
        self.counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)

    def write(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int32], begins: npt.NDArray[np.bool_]) -> None:
        """Append n sentences.

        Args:
            tokens: (sum of lengths,) the token ids of all n sentences.
            lengths: (n,) the number of tokens in each sentence.
            begins: (n,) True if the sentence is the first of a document; the document before is then closed
                with [SEP].
        """
        if not lengths.size:
            return
        closes = begins.astype(np.int64)
        if not self._documents:
            closes[0] = 0
        starts = np.cumsum(lengths, dtype=np.int64) - lengths
        self._append("tokens", np.insert(tokens, starts[closes == 1], self._separator))
        offsets = self._tokens + starts + np.cumsum(closes)
        self._append("sentences", offsets)
        self._append("documents", offsets[begins])
        self._tokens += tokens.size + int(closes.sum())
        self._documents += int(begins.sum())
        self._sentences += lengths.size
        self.counts += np.bincount(tokens, minlength=self.counts.size)

    def finish(self) -> dict[str, int]:
        """Close the last document; return the numbers of tokens, documents and sentences written."""
        self._append("tokens", self._separator)
        self._tokens += 1
        for what in ("documents", "sentences"):
            self._append(what, np.asarray([self._tokens], dtype=np.int64))
        return {"tokens": self._tokens, "documents": self._documents, "sentences": self._sentences}

    def _append(self, what: str, array: npt.NDArray[Any]) -> None:
        with open(self._folder / f"{self._name}.{what}", "ab") as file:
            file.write(np.ascontiguousarray(array).data)
