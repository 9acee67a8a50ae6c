"""Divide a text for `benchmarks.pretraining`, and evaluate the models of all parties on the same held-out tokens.

Mini-BERT's command divides a text by itself. `write_texts` writes the same two parts as files for transformers.
`evaluate_model` translates the held-out tokens into the vocabulary of the model that it evaluates.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.comparison import WorkerError
from minibert.data.batch_source import Batch
from minibert.data.corpus import Corpus, open_corpus, split_sentences
from minibert.data.token_file import TokenizedCorpus, TokenSplit
from minibert.data.tokenizer import Tokenizer
from minibert.model import MiniBERT
from minibert.training.evaluation import Evaluation, evaluate
from minibert.training.preparation import Data, prepare_data
from minibert.training.settings import Settings

_LARGEST_MISSING = 0.01  # the share of the text whose tokens the other vocabulary may lack


@dataclasses.dataclass(frozen=True)
class Texts:
    """The same text in the files that the parties read: JSON lines, one document each.

    Attributes:
        whole: all of it, for Mini-BERT.
        train, held_out: the two parts of it, for transformers.
    """

    whole: Path
    train: Path
    held_out: Path


def write_texts(corpus: Corpus, settings: Settings, folder: Path) -> tuple[Texts, Data]:
    """Write a corpus as the files of `Texts`, divided as Mini-BERT's command divides it.

    Args:
        corpus: the text.
        settings: how the text will be tokenized; the division depends on the number of tokens.
        folder: where the files are written.

    Returns:
        The files, and the text as Mini-BERT's command will prepare it.
    """
    texts = Texts(*(folder / f"{name}.jsonl" for name in ("whole", "train", "held_out")))
    with open(texts.whole, "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": document.text}) + "\n" for document in corpus)
    whole = dataclasses.replace(settings, corpus=(str(texts.whole),))
    data = prepare_data(whole, folder / "cache")
    with open(texts.train, "w", encoding="utf-8") as train, open(texts.held_out, "w", encoding="utf-8") as held_out:
        for text, is_held_out in divide(open_corpus(whole.corpus), data.tokenizer, data.tokenized):
            (held_out if is_held_out else train).write(json.dumps({"text": text}) + "\n")
    return texts, data


def divide(corpus: Corpus, tokenizer: Tokenizer, tokenized: TokenizedCorpus) -> Iterator[tuple[str, bool]]:
    """Yield (text, True if it is held out) for each stretch of a document whose sentences are all in one split.

    The files of the splits hold tokens. A stretch of sentences is held out if its tokens are those of the next
    document of the evaluation split. So of two stretches with the same tokens, the other one may be held out, which
    changes no loss.

    Raises:
        WorkerError: the text is not the one that was tokenized.
    """
    held_out = _documents(tokenized.evaluation)
    following = next(held_out, None)
    for document in corpus:
        sentences = list(split_sentences(document.text))
        encoded = zip(sentences, tokenizer.encode_batch(sentences), strict=True)
        known = [(sentence, ids) for sentence, ids in encoded if ids]
        train: list[str] = []
        place = 0
        while place < len(known):
            here = known[place : place + len(following or ())]
            if following is None or [ids for _, ids in here] != following:
                train.append(known[place][0])
                place += 1
                continue
            if train:
                yield "\n".join(train), False
            yield "\n".join(sentence for sentence, _ in here), True
            train = []
            place += len(here)
            following = next(held_out, None)
        if train:
            yield "\n".join(train), False
    if following is not None:
        raise WorkerError(f"the held-out text is not in {corpus.description}, which has changed meanwhile")


def _documents(split: TokenSplit) -> Iterator[list[list[int]]]:
    """Yield the token ids of the sentences of each document, without the [SEP] at its end."""
    for start, stop in itertools.pairwise(split.document_offsets.tolist()):
        first, last = np.searchsorted(split.sentence_offsets, [start, stop])
        bounds = [*split.sentence_offsets[first:last].tolist(), stop - 1]
        yield [split.tokens[begin:end].tolist() for begin, end in itertools.pairwise(bounds)]


def translated(batch: Batch, ids: npt.NDArray[np.int64], unknown: int) -> Batch:
    """Return a batch in the ids of another vocabulary.

    Args:
        batch: the batch.
        ids: (V,) the id that each token has in the other vocabulary; -1 if it has none.
        unknown: the id there of [UNK]. It replaces tokens without an id, which are not predicted.
    """
    known = ids[batch.labels] >= 0
    inputs = ids[batch.input_ids]
    return dataclasses.replace(
        batch,
        input_ids=np.where(inputs >= 0, inputs, unknown).astype(np.int32),
        prediction_positions=batch.prediction_positions[known],
        labels=ids[batch.labels][known].astype(np.int32),
    )


def translation(ours: Tokenizer, theirs: Tokenizer, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the id that each of our tokens has in the other vocabulary, (V,) int64; -1 if it has none.

    Args:
        ours: the vocabulary to translate from.
        theirs: the vocabulary to translate to.
        counts: (V,) how often each of our tokens occurs in the text.

    Raises:
        WorkerError: the other vocabulary lacks tokens that make up more than 1% of the text.
    """
    known = {token: id_ for id_, token in enumerate(theirs.tokens())}
    ids = np.array([known.get(token, -1) for token in ours.tokens()])
    missing = counts[ids < 0].sum() / counts.sum()
    if missing > _LARGEST_MISSING:
        raise WorkerError(
            f"the vocabularies differ too much to compare losses: the other one lacks {missing:.1%} of the tokens"
        )
    return ids


def evaluate_model(folder: Path, tokenizer: Tokenizer, data: Data) -> Evaluation:
    """Return the figures of a model in Hugging Face's format on the held-out part of some data, computed in float32.

    Args:
        folder: the folder of the model.
        tokenizer: the model's vocabulary.
        data: the held-out part, in another vocabulary.

    Returns:
        The figures. The loss of the unigram baseline means nothing, because the counts are not translated.
    """
    ids = translation(data.tokenizer, tokenizer, data.tokenized.unigram_counts)
    batches = (translated(batch, ids, tokenizer.unk_id) for batch in data.evaluation_batches())
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    return evaluate(MiniBERT.from_pretrained(folder, heads=("mlm",)), batches, counts)
