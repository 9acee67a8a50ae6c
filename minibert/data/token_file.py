"""Tokenize a corpus once into memory-mapped files, in two splits: train and evaluation.

The folder `tokens-<fingerprint>` holds the token ids of each split, one after the other, and the offsets at
which documents and sentences begin. If the folder does not exist yet, it is written in two passes with
bounded memory: this file tokenizes the whole corpus, then `token_splitting.py` divides it. The files are
written to a temporary folder beside it, which is renamed at the end, so a killed run leaves no unfinished
folder of that name. Any change of the text or the tokenizer changes the fingerprint and so the folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minibert.checksums import CHECKSUMS_FILE, find_damage, write_checksums
from minibert.data.corpus import Corpus, split_sentences
from minibert.data.token_splitting import SENTENCE_RECORD, split_tokens
from minibert.data.tokenizer import Tokenizer
from minibert.errors import CacheWarning, DataError
from minibert.files import folder_in_the_making, rename_folder

Progress = Callable[[str, int], None]
"""A callback `(stage, tokens_done)` that reports progress while data are prepared.

`stage` says what is being done ("tokenizing", "splitting", ...); `tokens_done` counts the tokens that this
stage has finished. The callback is called now and then, with a growing count within a stage.
"""

_FORMAT = 2  # increase it whenever the files, the sentence rule or the splitting rule change
_BATCH_SENTENCES, _BATCH_CHARACTERS = 2048, 1 << 20
_DESCRIPTION_FILE = "description.json"
_EVALUATION_FRACTION = 0.02


class _DamagedError(DataError):
    """A file of tokens is damaged; the message names it."""


@dataclass(frozen=True)
class TokenSplit:
    """One split of a tokenized corpus, as read-only memory maps.

    Attributes:
        tokens: (N,) uint16 or uint32, the token ids; every document is followed by one [SEP].
        document_offsets: (D + 1,) int64; document d with its [SEP] is `tokens[offsets[d]:offsets[d + 1]]`.
        sentence_offsets: (S + 1,) int64; sentence s is `tokens[offsets[s]:offsets[s + 1]]`. The first sentence
            of a document begins where the document begins, and the [SEP] after a document belongs to its last
            sentence. No sentence is empty.
    """

    tokens: npt.NDArray[np.unsignedinteger[Any]]
    document_offsets: npt.NDArray[np.int64]
    sentence_offsets: npt.NDArray[np.int64]

    @property
    def number_of_tokens(self) -> int:
        """N, the number of tokens including one [SEP] for every document."""
        return self.tokens.size

    @property
    def number_of_documents(self) -> int:
        """D, the number of documents."""
        return self.document_offsets.size - 1


@dataclass(frozen=True)
class TokenizedCorpus:
    """Both splits of a corpus.

    Attributes:
        train: the text that the model learns from.
        evaluation: the held-out text, which the model never sees in training.
        unigram_counts: (V,) int64, how often every token occurs in the training split. Special tokens are never
            predicted, so their count is 0.
        fingerprint: 64 hexadecimal digits that identify text, tokenizer and split together.
        folder: the folder of the files.
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
    evaluation_fraction: float = _EVALUATION_FRACTION,
    progress: Progress | None = None,
) -> TokenizedCorpus:
    """Tokenize a corpus into a folder, or open the files of an earlier call.

    Args:
        corpus: the text.
        tokenizer: turns the text into token ids.
        folder: holds the tokens of any number of corpora and tokenizers. It can be deleted; the tokens are then
            made again.
        evaluation_fraction: the share of tokens held out, see `split_tokens`. The split depends on the text
            alone, never on a seed, so that all runs on one corpus are evaluated on the same text.
        progress: called with the stage ("tokenizing", then "splitting") and the number of its tokens done.

    Raises:
        DataError: the text cannot be read, changes while it is read, or is too short to be split; the fraction is
            outside (0, 1); or the files cannot be written.

    Warns:
        CacheWarning: the files of an earlier call are damaged. The text is tokenized again.
    """
    if not 0 < evaluation_fraction < 1:
        raise DataError(f"the evaluation fraction must lie between 0 and 1, such as 0.02; got {evaluation_fraction}")
    folder = Path(folder)
    status = corpus.status()
    fingerprint = _fingerprint(_FORMAT, corpus.fingerprint(folder), tokenizer, evaluation_fraction)
    final = folder / f"tokens-{fingerprint[:16]}"
    if final.is_dir():
        try:
            return _open_tokens(final, tokenizer.vocab_size)
        except _DamagedError as error:
            warnings.warn(f"{error}: the text is tokenized again", CacheWarning, stacklevel=2)
            shutil.rmtree(final)
    if not final.is_dir():
        try:
            with folder_in_the_making(folder, "tokens") as beside:
                description = _tokenize(corpus, tokenizer, beside, evaluation_fraction, progress or _ignore_progress)
                description |= {"fingerprint": fingerprint, "text": corpus.description}
                (beside / _DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
                write_checksums(beside, sorted(path.name for path in beside.iterdir()))
                corpus.check_unchanged(status)
                _rename(beside, final)
        except OSError as error:
            raise DataError(
                f"the tokens of {corpus.description} cannot be written to {folder}: {error.strerror or error}; make it "
                "possible to write there, or name another folder for the cache"
            ) from error
    return _open_tokens(final, tokenizer.vocab_size)


def is_text_of(corpus: Corpus, tokenizer: Tokenizer, folder: Path, fingerprint: str) -> bool:
    """Return True if a corpus and a tokenizer have this fingerprint, without tokenizing anything.

    Args:
        corpus: the text.
        tokenizer: the tokenizer.
        folder: as for `prepare_tokens`; remembers the content of files.
        fingerprint: a `TokenizedCorpus.fingerprint`, of this version or an earlier one.
    """
    by_content = _fingerprint(_FORMAT, corpus.fingerprint(folder), tokenizer, _EVALUATION_FRACTION)
    return fingerprint in (by_content, _fingerprint(1, corpus.fingerprint_of_names(), tokenizer, _EVALUATION_FRACTION))


def _fingerprint(version: int, of_text: str, tokenizer: Tokenizer, evaluation_fraction: float) -> str:
    identity = (version, of_text, tokenizer.fingerprint(), float(evaluation_fraction))
    return hashlib.sha256(repr(identity).encode()).hexdigest()


def _open_tokens(folder: Path, vocab_size: int) -> TokenizedCorpus:
    """Map the files of a finished folder into memory.

    Raises:
        _DamagedError: a file is missing or its content has changed, for example by a disk failure or an incomplete
            copy.
    """

    def damage(name: str, why: object) -> DataError:
        return _DamagedError(f"{folder / name} is damaged ({why})")

    if (found_damage := find_damage(folder, required=True)) is not None:
        raise _DamagedError(found_damage)

    def map_file(name: str, dtype: str, size: int) -> Any:
        try:
            found = np.memmap(folder / name, dtype=dtype, mode="r")
        except (OSError, ValueError) as error:  # the file is missing or empty, or ends within an element
            raise damage(name, error) from error
        if found.size != size:
            raise damage(name, f"it holds {found.size} numbers instead of {size}")
        return found

    def map_split(name: str) -> TokenSplit:
        tokens, documents, sentences = (sizes[name][what] for what in ("tokens", "documents", "sentences"))
        found = TokenSplit(
            map_file(f"{name}.tokens", dtype, tokens),
            map_file(f"{name}.documents", "int64", documents + 1),
            map_file(f"{name}.sentences", "int64", sentences + 1),
        )
        for what, offsets in (("documents", found.document_offsets), ("sentences", found.sentence_offsets)):
            if offsets[-1] != tokens:
                raise damage(f"{name}.{what}", f"it ends at token {offsets[-1]} of {tokens}")
        return found

    try:
        description = json.loads((folder / _DESCRIPTION_FILE).read_text(encoding="utf-8"))
        dtype, fingerprint = str(description["dtype"]), str(description["fingerprint"])
        parts = ("tokens", "documents", "sentences")
        sizes = {name: {what: int(description[name][what]) for what in parts} for name in ("train", "evaluation")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damage(_DESCRIPTION_FILE, f"{type(error).__name__}: {error}") from error
    counts = np.array(map_file("train.counts", "int64", vocab_size))
    return TokenizedCorpus(map_split("train"), map_split("evaluation"), counts, fingerprint, folder)


def _tokenize(
    corpus: Corpus, tokenizer: Tokenizer, folder: Path, evaluation_fraction: float, progress: Progress
) -> dict[str, Any]:
    """Write all files into `folder`; return the dtype of the tokens and the sizes of the splits."""
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    total = 0
    whole_tokens, whole_sentences = folder / "whole.tokens", folder / "whole.sentences"
    with open(whole_tokens, "wb") as token_file, open(whole_sentences, "wb") as sentence_file:
        for tokens, sentences in _encode_corpus(corpus, tokenizer, dtype):
            token_file.write(tokens.data)  # `tofile` would not say why it failed
            sentence_file.write(sentences.data)
            total += tokens.size
            progress("tokenizing", total)
    if not total:
        raise DataError(f"the tokenizer finds no token in {corpus.description}; give a text with words")
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


def _encode_corpus(
    corpus: Corpus, tokenizer: Tokenizer, dtype: np.dtype[Any]
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.void]]]:
    """Yield batches of sentences: their token ids (n,), and one SENTENCE_RECORD for each sentence with tokens."""
    position_document, position = -1, 0  # the current document, and the number of its tokens so far
    for numbers, texts in _read_sentences(corpus):
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


def _read_sentences(corpus: Corpus) -> Iterator[tuple[list[int], list[str]]]:
    """Yield (document numbers, sentences), in batches large enough to keep the tokenizer's threads busy."""
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
    """Rename the finished folder, unless another process has just put the same content there."""
    try:
        rename_folder(beside, final)
    except OSError:
        if not (final / CHECKSUMS_FILE).is_file():
            raise


def _ignore_progress(stage: str, tokens: int) -> None:
    """Ignore progress; used if the caller gives no callback."""
