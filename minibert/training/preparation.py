"""Prepare the data of a run: text, vocabulary, tokens, batches.

Vocabularies and tokens are kept in a cache folder, so that later runs on the same text find them.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from minibert.checksums import find_damage, write_checksums
from minibert.data.batch_source import Batch, BatchSource, build_batch_source, evaluation_batches
from minibert.data.corpus import Corpus, open_corpus
from minibert.data.masking import MaskingRule
from minibert.data.sequences import Sequences
from minibert.data.token_file import Progress, TokenizedCorpus, prepare_tokens
from minibert.data.tokenizer import Tokenizer
from minibert.data.vocabulary import train_tokenizer
from minibert.errors import CacheWarning, DataError
from minibert.files import folder_in_the_making, rename_folder
from minibert.training.settings import Settings

CACHE_FOLDER = ".minibert-cache"
"""The name of the cache folder. It lies beside the output folders, so that all runs there share it, and may be
deleted."""

_CHARACTERS_BETWEEN_REPORTS = 1 << 28  # a few seconds of reading
_EVALUATION_TOKENS_PER_BATCH = 1024  # an evaluation needs less memory than a small step of training


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
        corpus: the text.
        corpus_bytes: the size of its files.
        tokenizer: the vocabulary.
        tokenized: the tokens of the training text and of the evaluation text.
        source: the training batches.
        evaluation_sequences: the held-out text as sequences.
        evaluation_tokens: the largest number of held-out tokens to evaluate on.
    """

    corpus: Corpus
    corpus_bytes: int
    tokenizer: Tokenizer
    tokenized: TokenizedCorpus
    source: BatchSource
    evaluation_sequences: Sequences
    evaluation_tokens: int

    def evaluation_batches(self) -> Iterator[Batch]:
        """Return the batches of an evaluation, the same ones every time."""
        return frozen_batches(self.evaluation_sequences, self.tokenizer, self.evaluation_tokens)

    def evaluated_sequences(self) -> int:
        """Return the number of sequences in an evaluation."""
        return evaluated_sequences(self.evaluation_sequences, self.evaluation_tokens)


def frozen_batches(sequences: Sequences, tokenizer: Tokenizer, tokens: int) -> Iterator[Batch]:
    """Return evaluation batches whose masks depend on the text alone.

    The masks follow BERT's own rule (15% of the tokens) even if the training masks differently, so that runs can be
    compared.

    Args:
        sequences: the held-out text.
        tokenizer: its tokenizer.
        tokens: the largest number of tokens to evaluate on. They are spread evenly over the text.
    """
    batch_size = max(1, _EVALUATION_TOKENS_PER_BATCH // sequences.seq_length)
    return evaluation_batches(
        sequences, tokenizer, MaskingRule(), batch_size, limit=evaluated_sequences(sequences, tokens)
    )


def evaluated_sequences(sequences: Sequences, tokens: int) -> int:
    """Return how many sequences `frozen_batches` has: all of them, or as many as the tokens allow, at least one."""
    return min(len(sequences), max(1, tokens // sequences.seq_length))


def corpus_of(settings: Settings) -> Corpus:
    """Open the text of a run.

    Raises:
        DataError: the text cannot be read.
    """
    return open_corpus(settings.corpus, encoding=settings.encoding, skip_damaged=settings.skip_damaged)


def prepare_data(
    settings: Settings,
    cache: Path,
    tokenizer: Tokenizer | None = None,
    progress: Progress | None = None,
    corpus: Corpus | None = None,
) -> Data:
    """Open the corpus, make its vocabulary and its tokens or find them in the cache, and build the batches.

    Args:
        settings: the settings of the run.
        cache: the cache folder; created if needed.
        tokenizer: the vocabulary of a run that is resumed; None makes one or finds it in the cache.
        progress: called with the name of the current work and the number of tokens done.
        corpus: from `corpus_of`, if it is open already.

    Raises:
        DataError: the text cannot be read, changes while it is read, or is too short.
    """
    corpus = corpus_of(settings) if corpus is None else corpus
    if tokenizer is None:
        tokenizer = cached_tokenizer(corpus, settings.vocab_size, settings.cased, cache, progress)
    tokenized = prepare_tokens(corpus, tokenizer, cache, progress=progress)
    source, evaluation_sequences = build_batch_source(
        settings.objective,
        tokenized,
        tokenizer,
        seq_length=settings.seq_length,
        batch_size=settings.batch_size,
        seed=settings.seed,
        rule=settings.masking_rule(),
    )
    data = Data(
        corpus,
        corpus.number_of_bytes(),
        tokenizer,
        tokenized,
        source,
        evaluation_sequences,
        settings.evaluation_tokens,
    )
    _check_predictable(data)
    return data


def _check_predictable(data: Data) -> None:
    """Refuse a text without a token to predict, before the training instead of at its first evaluation.

    Raises:
        DataError: the training text or the evaluation text has no such token.
    """
    if not data.tokenized.unigram_counts.any():
        unknown = data.tokenizer.special_tokens["unk_token"]
        raise DataError(
            f"the vocabulary knows no word of {data.corpus.description}: every token is {unknown}, and nothing can be "
            "predicted; give a text in words with spaces between them (a word has at most 100 characters)"
        )
    if not any(batch.labels.size for batch in data.evaluation_batches()):
        raise DataError(
            f"the held-out part of {data.corpus.description} is too short: it has no token to predict; give more text"
        )


def cached_tokenizer(
    corpus: Corpus, vocab_size: int, cased: bool, cache: Path, progress: Progress | None = None
) -> Tokenizer:
    """Return the vocabulary of a corpus from the cache; make it first if it is not there.

    Args:
        corpus: the text.
        vocab_size: V; a small corpus may get fewer tokens.
        cased: True distinguishes upper and lower case.
        cache: the cache folder; created if needed.
        progress: called with the name of the current work, which says how much text is read, and 0.

    Raises:
        DataError: the text cannot be read, changes while it is read, or makes no vocabulary.

    Warns:
        CacheWarning: the vocabulary in the cache is damaged. It is made again.
    """
    status = corpus.status()
    identity = (corpus.fingerprint(cache), vocab_size, cased, tokenizers.__version__)
    folder = cache / f"vocabulary-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}"
    if folder.is_dir():
        if (damage := find_damage(folder, required=True)) is None:
            return Tokenizer.load(folder)
        warnings.warn(f"{damage}: the vocabulary is made again", CacheWarning, stacklevel=2)
        shutil.rmtree(folder)
    made = train_tokenizer(_texts(corpus, progress), vocab_size, lowercase=not cased)
    with folder_in_the_making(cache, "vocabulary") as beside:
        made.save(beside)
        write_checksums(beside, sorted(path.name for path in beside.iterdir()))
        corpus.check_unchanged(status)
        if not folder.is_dir():  # another run may have made it meanwhile
            rename_folder(beside, folder)
    return Tokenizer.load(folder)


def _texts(corpus: Corpus, progress: Progress | None) -> Iterator[str]:
    """Yield the documents of a corpus; say now and then how much was read."""
    if progress is not None:
        progress("making a vocabulary", 0)
    characters, next_report = 0, _CHARACTERS_BETWEEN_REPORTS
    for document in corpus:
        yield document.text
        characters += len(document.text)
        if progress is not None and characters >= next_report:
            progress(f"making a vocabulary, {characters:,} characters read", 0)
            next_report = characters + _CHARACTERS_BETWEEN_REPORTS
