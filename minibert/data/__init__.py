"""Text -> batches of token ids, on the host: reading, tokenizing, packing, masking.

    corpus = open_corpus(["books/"])
    tokenizer = train_tokenizer((document.text for document in corpus), vocab_size=8192)
    tokenized = prepare_tokens(corpus, tokenizer, "runs/tokens")
    source, held_out = build_batch_source("mlm", tokenized, tokenizer, seq_length=128, batch_size=32, seed=0)
    batch = source.training_batch(0)

The files, in the order of the way the text takes: `corpus` (with `text_stream`, `stdlib_text`), `sentences`,
`tokenizer` and `vocabulary`, `token_file` (with `token_splitting`), `sequences`, `permutation`, `masking`,
`batch`, `batch_source`, `prefetch`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minibert.data.prefetch import prefetch  # a module and a function of one name: the function must win

if TYPE_CHECKING:
    from minibert.data.batch import Batch, pad_batch, unigram_cross_entropy
    from minibert.data.batch_source import (
        OBJECTIVES,
        BatchSource,
        build_batch_source,
        build_sequences,
        evaluation_batches,
    )
    from minibert.data.corpus import CORPUS_HELP, Corpus, Document, open_corpus
    from minibert.data.errors import DataError
    from minibert.data.masking import MaskingRule, mask_tokens
    from minibert.data.permutation import permute
    from minibert.data.sentences import split_sentences
    from minibert.data.sequences import Examples, PackedSequences, PairedSequences, Sequences
    from minibert.data.token_file import TokenizedCorpus, TokenSplit, prepare_tokens
    from minibert.data.tokenizer import Tokenizer
    from minibert.data.vocabulary import train_tokenizer

__all__ = [
    "CORPUS_HELP",
    "OBJECTIVES",
    "Batch",
    "BatchSource",
    "Corpus",
    "DataError",
    "Document",
    "Examples",
    "MaskingRule",
    "PackedSequences",
    "PairedSequences",
    "Sequences",
    "TokenSplit",
    "TokenizedCorpus",
    "Tokenizer",
    "build_batch_source",
    "build_sequences",
    "evaluation_batches",
    "mask_tokens",
    "open_corpus",
    "pad_batch",
    "permute",
    "prefetch",
    "prepare_tokens",
    "split_sentences",
    "train_tokenizer",
    "unigram_cross_entropy",
]

_NAMES_OF = {  # module -> what it offers
    "batch": ("Batch", "pad_batch", "unigram_cross_entropy"),
    "batch_source": ("OBJECTIVES", "BatchSource", "build_batch_source", "build_sequences", "evaluation_batches"),
    "corpus": ("CORPUS_HELP", "Corpus", "Document", "open_corpus"),
    "errors": ("DataError",),
    "masking": ("MaskingRule", "mask_tokens"),
    "permutation": ("permute",),
    "sentences": ("split_sentences",),
    "sequences": ("Examples", "PackedSequences", "PairedSequences", "Sequences"),
    "token_file": ("TokenizedCorpus", "TokenSplit", "prepare_tokens"),
    "tokenizer": ("Tokenizer",),
    "vocabulary": ("train_tokenizer",),
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a module when its first name is used: who only needs a tokenizer need not wait for the rest."""
    if name in _MODULE_OF:
        return getattr(import_module(f"minibert.data.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
