"""A corpus tokenized once into memory-mapped files, in two splits: one to train on, one to evaluate on.

A folder `tokens-<fingerprint>` holds, for each split, the ids of all its tokens one after the other and the
offsets at which documents and sentences begin. It is made when it is not there, in two passes with bounded
memory (`token_splitting.py` is the second), beside its final place and renamed at the end; so a killed run
leaves nothing half made, and any change of the text or the tokenizer leads to another folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minibert.data.corpus import Corpus
from minibert.data.sentences import split_sentences
from minibert.data.token_splitting import SENTENCE_RECORD, split_tokens
from minibert.data.tokenizer import Tokenizer
from minibert.errors import DataError
from minibert.files import rename_folder

Progress = Callable[[str, int], None]

_FORMAT = 1  # to be raised whenever the files, the sentence rule or the splitting rule change
_BATCH_SENTENCES, _BATCH_CHARACTERS = 2048, 1 << 20
_ABANDONED_SECONDS = 24 * 3600
_DESCRIPTION_FILE = "description.json"


@dataclass(frozen=True)
class TokenSplit:
    """One part of a tokenized corpus, as read-only memory maps.

    Attributes:
        tokens: (N,) uint16 or uint32; every document is followed by one [SEP].
        document_offsets: (D + 1,) int64: document d with its [SEP] is `tokens[offsets[d]:offsets[d + 1]]`.
        sentence_offsets: (S + 1,) int64, likewise; a document begins with a sentence, and the [SEP] after a
            document counts to its last sentence. No sentence is empty.
    """

    tokens: npt.NDArray[np.unsignedinteger[Any]]
    document_offsets: npt.NDArray[np.int64]
    sentence_offsets: npt.NDArray[np.int64]

    @property
    def number_of_tokens(self) -> int:
        """N, including one [SEP] for every document."""
        return self.tokens.size

    @property
    def number_of_documents(self) -> int:
        """D."""
        return self.document_offsets.size - 1


@dataclass(frozen=True)
class TokenizedCorpus:
    """Both splits of a corpus.

    Attributes:
        train: what the model learns from.
        evaluation: what it never sees in training.
        unigram_counts: (V,) int64, how often every token occurs in the training split; special tokens, which
            are never predicted, count as 0.
        fingerprint: 64 hexadecimal digits for text, tokenizer and split together.
        folder: where the files are.
    """

    train: TokenSplit
    evaluation: TokenSplit
    unigram_counts: npt.NDArray[np.int64]
    fingerprint: str
    folder: Path


def prepare_tokens(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    evaluation_fraction: float = 0.02,
    progress: Progress | None = None,
) -> TokenizedCorpus:
    """Tokenizes a corpus into a folder, or finds that this was done before.

    Args:
        corpus: the text.
        tokenizer: its vocabulary decides the ids.
        folder: keeps the tokens of any number of corpora and tokenizers; deleting it costs only time.
        evaluation_fraction: the share of tokens held out, see `split_tokens`. The split depends on the text
            alone, never on a seed, so that all runs on one corpus are evaluated on the same text.
        progress: called now and then with what is being done ("tokenizing", "splitting") and the number of
            tokens dealt with so far.

    Raises:
        DataError: text that cannot be read or is too little to be split, or a fraction outside (0, 1).
    """
    if not 0 < evaluation_fraction < 1:
        raise DataError(f"the evaluation fraction must lie between 0 and 1, such as 0.02; got {evaluation_fraction}")
    identity = (_FORMAT, corpus.fingerprint(), tokenizer.fingerprint(), float(evaluation_fraction))
    fingerprint = hashlib.sha256(repr(identity).encode()).hexdigest()
    folder = Path(folder)
    final = folder / f"tokens-{fingerprint[:16]}"
    if not (final / _DESCRIPTION_FILE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        beside = Path(tempfile.mkdtemp(prefix=".making-tokens-", dir=folder))
        try:
            description = _tokenize(corpus, tokenizer, beside, evaluation_fraction, progress or _quiet)
            description |= {"fingerprint": fingerprint, "text": corpus.description}
            (beside / _DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
            _rename(beside, final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return _open(final, tokenizer.vocab_size)


def _open(folder: Path, vocab_size: int) -> TokenizedCorpus:
    """Maps the files of a finished folder.

    Raises:
        DataError: a file is not what was written, as a disk that failed or a copy cut short may leave it.
    """

    def damaged(name: str, why: object) -> DataError:
        return DataError(f"{folder / name} is damaged ({why}); delete {folder} and start again")

    def mapped(name: str, dtype: str, size: int) -> Any:
        try:
            found = np.memmap(folder / name, dtype=dtype, mode="r")
        except (OSError, ValueError) as error:  # it is not there, or empty, or ends within an element
            raise damaged(name, error) from error
        if found.size != size:
            raise damaged(name, f"it holds {found.size} numbers instead of {size}")
        return found

    def split(name: str) -> TokenSplit:
        tokens, documents, sentences = (sizes[name][what] for what in ("tokens", "documents", "sentences"))
        found = TokenSplit(
            mapped(f"{name}.tokens", dtype, tokens),
            mapped(f"{name}.documents", "int64", documents + 1),
            mapped(f"{name}.sentences", "int64", sentences + 1),
        )
        for what, offsets in (("documents", found.document_offsets), ("sentences", found.sentence_offsets)):
            if offsets[-1] != tokens:
                raise damaged(f"{name}.{what}", f"it ends at token {offsets[-1]} of {tokens}")
        return found

    try:
        description = json.loads((folder / _DESCRIPTION_FILE).read_text(encoding="utf-8"))
        dtype, fingerprint = str(description["dtype"]), str(description["fingerprint"])
        parts = ("tokens", "documents", "sentences")
        sizes = {name: {what: int(description[name][what]) for what in parts} for name in ("train", "evaluation")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(_DESCRIPTION_FILE, f"{type(error).__name__}: {error}") from error
    counts = np.array(mapped("train.counts", "int64", vocab_size))
    return TokenizedCorpus(split("train"), split("evaluation"), counts, fingerprint, folder)


def _tokenize(
    corpus: Corpus, tokenizer: Tokenizer, folder: Path, evaluation_fraction: float, progress: Progress
) -> dict[str, Any]:
    """Writes all files into `folder`; returns their dtype and sizes."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    total = 0
    whole_tokens, whole_sentences = folder / "whole.tokens", folder / "whole.sentences"
    with open(whole_tokens, "wb") as token_file, open(whole_sentences, "wb") as sentence_file:
        for tokens, sentences in _encoded(corpus, tokenizer, dtype):
            tokens.tofile(token_file)
            sentences.tofile(sentence_file)
            total += tokens.size
            progress("tokenizing", total)
    if not total:
        raise DataError(f"there is not a single token in {corpus.description}")
    sizes = split_tokens(
        np.memmap(whole_tokens, dtype=dtype, mode="r"),
        np.memmap(whole_sentences, dtype=SENTENCE_RECORD, mode="r"),
        folder,
        tokenizer,
        evaluation_fraction,
        lambda done: progress("splitting", done),
    )
    whole_tokens.unlink()
    whole_sentences.unlink()
    return {"dtype": dtype.name, **sizes}


def _encoded(
    corpus: Corpus, tokenizer: Tokenizer, dtype: np.dtype[Any]
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.void]]]:
    """The corpus in batches: all tokens (n,), and one SENTENCE_RECORD for every sentence that has tokens."""
    position_document, position = -1, 0  # of the sentence at hand: its document, and the tokens before it there
    for numbers, texts in _sentence_batches(corpus):
        encoded = tokenizer.encode_batch(texts)
        records = []
        for document, ids in zip(numbers, encoded, strict=True):
            if document != position_document:
                position_document, position = document, 0
            if ids:
                records.append((document, position, len(ids)))
                position += len(ids)
        tokens = np.fromiter(chain.from_iterable(encoded), dtype=dtype, count=sum(map(len, encoded)))
        yield tokens, np.array(records, dtype=SENTENCE_RECORD)


def _sentence_batches(corpus: Corpus) -> Iterator[tuple[list[int], list[str]]]:
    """Sentences with the numbers of their documents, enough at a time to keep the tokenizer's threads busy."""
    numbers: list[int] = []
    texts: list[str] = []
    characters = 0
    for number, document in enumerate(corpus):
        for sentence in split_sentences(document.text):
            numbers.append(number)
            texts.append(sentence)
            characters += len(sentence)
            if len(texts) == _BATCH_SENTENCES or characters > _BATCH_CHARACTERS:
                yield numbers, texts
                numbers, texts, characters = [], [], 0
    if texts:
        yield numbers, texts


def _rename(beside: Path, final: Path) -> None:
    """Puts the finished folder into place, unless another process has just done so with the same content."""
    try:
        rename_folder(beside, final)
    except OSError:
        if not (final / _DESCRIPTION_FILE).is_file():
            raise


def _remove_abandoned(folder: Path) -> None:
    """Removes what killed runs left behind; a run that is still writing has touched its files recently."""
    for leftover in folder.glob(".making-tokens-*"):
        try:
            last_change = max(path.stat().st_mtime for path in (leftover, *leftover.iterdir()))
        except OSError:  # it is being removed or renamed at this moment
            continue
        if time.time() - last_change > _ABANDONED_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)


def _quiet(stage: str, tokens: int) -> None:
    """The progress callback of a caller who wants none."""
