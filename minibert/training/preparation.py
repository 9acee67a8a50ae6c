"""From the names of some texts to batches: vocabulary and tokens are made once and found again."""

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
"""Vocabularies and tokens, beside the output folders so that all runs there share them; may be deleted."""

_EVALUATION_TOKENS_PER_BATCH = 8192  # keeps the logits of an evaluation small, whatever the batch size of training


@dataclass(frozen=True)
class Data:
    """What a run trains on and is measured by."""

    tokenizer: Tokenizer
    tokenized: TokenizedCorpus
    source: BatchSource
    evaluation_sequences: Sequences

    def evaluation_batches(self) -> Iterator[Batch]:
        """The frozen batches of an evaluation."""
        return frozen_batches(self.evaluation_sequences, self.tokenizer)


def frozen_batches(sequences: Sequences, tokenizer: Tokenizer) -> Iterator[Batch]:
    """Batches whose masks follow from the text alone.

    They are drawn by BERT's own rule even when the training masks otherwise, so that runs can be compared.
    """
    batch_size = max(1, _EVALUATION_TOKENS_PER_BATCH // sequences.seq_length)
    return evaluation_batches(sequences, tokenizer, MaskingRule(), batch_size)


def prepare_data(
    settings: Settings, cache: Path, tokenizer: Tokenizer | None = None, progress: Progress | None = None
) -> Data:
    """Opens the corpus, makes or finds its vocabulary and its tokens.

    Args:
        settings: of the run.
        cache: where vocabularies and tokens are kept.
        tokenizer: of a run that is resumed; None makes one.
        progress: called with what is being done and how many tokens are done.

    Raises:
        DataError: the text cannot be read, or there is too little of it.
    """
    corpus = open_corpus(settings.corpus)
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
    """The vocabulary of a corpus, made when it is not in the cache.

    Raises:
        DataError: the text cannot be read, or makes no vocabulary.
    """
    identity = (corpus.fingerprint(), vocab_size, cased, tokenizers.__version__)
    folder = cache / f"vocabulary-{hashlib.sha256(repr(identity).encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        if progress is not None:
            progress("making a vocabulary", 0)
        made = train_tokenizer((document.text for document in corpus), vocab_size, lowercase=not cased)
        cache.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".making-vocabulary-", dir=cache))
        try:
            made.save(beside)
            if not folder.is_dir():  # another run may have been faster
                rename_folder(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    try:
        return Tokenizer.load(folder)
    except DataError as error:
        raise DataError(f"{error}; the cache is damaged: delete {folder} and start again") from error
