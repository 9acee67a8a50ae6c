"""Prepare the data of a run: text, vocabulary, tokens, batches.

Vocabularies and tokens are kept in a cache folder, so that later runs on the same text find them.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from minibert.data.batch_source import Batch, BatchSource, build_batch_source, evaluation_batches
from minibert.data.corpus import Corpus, open_corpus
from minibert.data.masking import MaskingRule
from minibert.data.sequences import Sequences
from minibert.data.token_file import Progress, TokenizedCorpus, prepare_tokens
from minibert.data.tokenizer import Tokenizer
from minibert.data.vocabulary import train_tokenizer
from minibert.errors import DataError
from minibert.files import rename_folder
from minibert.training.settings import Settings

CACHE_FOLDER = ".minibert-cache"
"""The name of the cache folder. It lies beside the output folders, so that all runs there share it, and may be
deleted."""

_CHARACTERS_BETWEEN_REPORTS = 1 << 28  # a few seconds of reading
_EVALUATION_TOKENS_PER_BATCH = 8192  # keeps the logits of an evaluation small, whatever the training's batch size


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
        tokenizer: the vocabulary.
        tokenized: the tokens of the training text and of the evaluation text.
        source: the training batches.
        evaluation_sequences: the sequences to evaluate on.
    """

    tokenizer: Tokenizer
    tokenized: TokenizedCorpus
    source: BatchSource
    evaluation_sequences: Sequences

    def evaluation_batches(self) -> Iterator[Batch]:
        """Return the batches of an evaluation, the same ones every time."""
        return frozen_batches(self.evaluation_sequences, self.tokenizer)


def frozen_batches(sequences: Sequences, tokenizer: Tokenizer) -> Iterator[Batch]:
    """Return evaluation batches whose masks depend on the text alone.

    The masks follow BERT's own rule (15% of the tokens) even if the training masks differently, so that runs can be
    compared.
    """
    batch_size = max(1, _EVALUATION_TOKENS_PER_BATCH // sequences.seq_length)
    return evaluation_batches(sequences, tokenizer, MaskingRule(), batch_size)


def prepare_data(
    settings: Settings, cache: Path, tokenizer: Tokenizer | None = None, progress: Progress | None = None
) -> Data:
    """Open the corpus, make its vocabulary and its tokens or find them in the cache, and build the batches.

    Args:
        settings: the settings of the run.
        cache: the cache folder; created if needed.
        tokenizer: the vocabulary of a run that is resumed; None makes one or finds it in the cache.
        progress: called with the name of the current work and the number of tokens done.

    Raises:
        DataError: the text cannot be read, or it is too short.
    """
    corpus = open_corpus(settings.corpus, encoding=settings.encoding, skip_damaged=settings.skip_damaged)
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
    return Data(tokenizer, tokenized, source, evaluation_sequences)


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
        DataError: the text cannot be read, it makes no vocabulary, or the cached vocabulary is damaged.
    """
    identity = (corpus.fingerprint(), vocab_size, cased, tokenizers.__version__)
    folder = cache / f"vocabulary-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        made = train_tokenizer(_texts(corpus, progress), vocab_size, lowercase=not cased)
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".making-vocabulary-", dir=cache))
        try:
            made.save(temporary)
            if not folder.is_dir():  # another run may have made it meanwhile
                rename_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    try:
        return Tokenizer.load(folder)
    except DataError as error:
        raise DataError(f"{error}; the cache is damaged: delete {folder} and start again") from error


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
