"""Compare pretraining from a text to a trained model: Mini-BERT's command with transformers as people run it.

Each party runs in fresh processes. The time of a process is that from its start to its end: imports, vocabulary,
tokenizing, training, ten evaluations, ten checkpoints and the saved model. All parties have the same text, sizes,
number of steps, batch, learning rates, optimizer, dropout and share of predicted tokens. What they draw at random
(initial weights, order, masks) differs.

Mini-BERT holds out a part of the text by itself. transformers is given the same two parts as two files. All models,
and all checkpoints of transformers, are evaluated afterwards by the same code, which is not timed, in float32 and on
the same tokens of the held-out part with the same masks: those of Mini-BERT's own evaluations (15% of the tokens).
With other masks the loss would differ by as much as between good and bad trainings. Each party
trains a vocabulary of its own on the same text. The two differ in a few word pieces of thousands, so the tokens are
translated from one to the other by their names, and a piece that transformers' vocabulary lacks is not predicted.

If the losses at the end agree within `TOLERANCE`, the parties are compared by the times of the whole processes.
Otherwise they are compared by the times at which each reached the higher of their two losses.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backends.cpu.threads import set_threads
from benchmarks.comparison import OURS, Result, WorkerError, start_worker
from benchmarks.work import Work
from minibert.config import PRESETS, MiniBERTConfig
from minibert.data.batch_source import Batch
from minibert.data.corpus import Corpus, open_corpus, split_sentences
from minibert.data.token_file import TokenizedCorpus, TokenSplit
from minibert.data.tokenizer import Tokenizer
from minibert.model import MiniBERT
from minibert.training.evaluation import Evaluation, evaluate
from minibert.training.log import METRICS_FILE, read_history
from minibert.training.preparation import Data, prepare_data
from minibert.training.session import BETAS
from minibert.training.settings import Settings

PEERS = ("transformers", "transformers-bfloat16")
PRECISIONS = {OURS: "auto", "minibert-float32": "float32"}
"""Mini-BERT's parties, and the precision of each."""

TOLERANCE = 0.05
"""Two losses that differ by at most this many nats count as the same. A held-out part has some thousand predicted
tokens, and another seed changes the loss by a few hundredths."""

EVALUATIONS = 10
"""How often each party evaluates and saves in training; the number of steps must be a multiple of it."""

_EPSILON = 1e-6  # of Mini-BERT's AdamW
_LARGEST_MISSING = 0.01  # the share of the text whose tokens the other vocabulary may lack
_NOT_IN_BERT_CONFIG = ("labels", "problem_type", "classifier_dropout")

Curve = list[tuple[float, float]]
"""(seconds since the start of the process, loss in nats), in the order of the steps."""


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


def preset_of(work: Work) -> str:
    """Return the preset of `scripts/train.py` that has the layers and the hidden size of `work`.

    Raises:
        ValueError: there is none.
    """
    sizes = {}
    for preset in PRESETS:
        config = MiniBERTConfig.preset(preset)
        sizes[config.num_hidden_layers, config.hidden_size] = preset
    if (work.layers, work.hidden) not in sizes:
        known = ", ".join(f"L{layers},H{hidden}" for layers, hidden in sizes)
        raise ValueError(f"train.py has no model of L{work.layers},H{work.hidden}; choose one of {known}")
    return sizes[work.layers, work.hidden]


def settings_of(work: Work, text: Path, seed: int) -> Settings:
    """Return the settings of the run that `work` describes."""
    return Settings(
        corpus=(str(text),),
        steps=work.steps,
        seed=seed,
        preset=preset_of(work),
        vocab_size=work.vocabulary,
        dropout=work.dropout,
        seq_length=work.length,
        batch_size=work.batch,
        evaluate_every=work.steps // EVALUATIONS,
        checkpoint_every=work.steps // EVALUATIONS,
    )


def minibert_command(settings: Settings, output: Path, precision: str, threads: int) -> list[str]:
    """Return the command line of `scripts/train.py` for these settings."""
    options = {
        "--corpus": settings.corpus[0],
        "--output": output,
        "--precision": precision,
        "--threads": threads,
        "--steps": settings.steps,
        "--seed": settings.seed,
        "--preset": settings.preset,
        "--vocab-size": settings.vocab_size,
        "--dropout": settings.dropout,
        "--seq-length": settings.seq_length,
        "--batch-size": settings.batch_size,
        "--evaluate-every": settings.evaluate_every,
        "--checkpoint-every": settings.checkpoint_every,
    }
    return [str(word) for pair in options.items() for word in pair]


def transformers_task(settings: Settings, texts: Texts, output: Path, *, bfloat16: bool, threads: int) -> Result:
    """Return the task of the worker for transformers, ready for JSON: the same training as that of `settings`."""
    assert settings.steps is not None
    config = settings.model_config(settings.vocab_size).to_dict()
    return {
        "train": str(texts.train),
        "held_out": str(texts.held_out),
        "output": str(output),
        "config": {name: value for name, value in config.items() if name not in _NOT_IN_BERT_CONFIG},
        "vocab_size": settings.vocab_size,
        "seq_length": settings.seq_length,
        "batch_size": settings.batch_size,
        "steps": settings.steps,
        "learning_rate": settings.learning_rate,
        "warmup_steps": round(settings.warmup * settings.steps),
        "weight_decay": settings.weight_decay,
        "betas": BETAS,
        "epsilon": _EPSILON,
        "clip_norm": settings.clip_norm,
        "mask_probability": settings.mask_probability,
        "report_every": settings.report_every,
        "every": settings.evaluate_every,
        "seed": settings.seed,
        "threads": threads,
        "bfloat16": bfloat16,
    }


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


def run_party(
    party: str, settings: Settings, texts: Texts, data: Data, threads: int, peer_python: str, folder: Path
) -> Result:
    """Pretrain once in a fresh process, then evaluate what it saved.

    Args:
        party: one of `PRECISIONS` or `PEERS`.
        settings: how to train.
        texts: what to train on.
        data: what to evaluate on: the same text, as `write_texts` divided it.
        threads: how many threads compute.
        peer_python: the interpreter that has torch, transformers and accelerate.
        folder: a new or empty folder for everything that is written.

    Returns:
        "seconds" and "processor_seconds" of the whole process, "seconds_before_training", the "curve", the final
        "loss", the number of "predictions" that this is the mean of, and a "description" of what computed.

    Raises:
        WorkerError: the process failed.
    """
    folder.mkdir(exist_ok=True)
    output = folder / "output"
    if party in PRECISIONS:
        python, module = sys.executable, "train"
        words = minibert_command(settings, output, PRECISIONS[party], threads)
    else:
        python, module = peer_python, "benchmarks.worker_pretraining_transformers"
        bfloat16 = party.endswith("-bfloat16")
        words = [json.dumps(transformers_task(settings, texts, output, bfloat16=bfloat16, threads=threads))]
    with open(folder / "errors", "w+", encoding="utf-8") as errors:
        processor = processor_seconds()
        started, clock = time.time(), time.perf_counter()
        worker = start_worker(python, module, *words, stderr=errors.fileno())
        printed, _ = worker.communicate()
        seconds = time.perf_counter() - clock
        processor = processor_seconds() - processor
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:] or ["no message"]
    if worker.returncode:
        raise WorkerError(f"{party} failed: {last[0]}")
    tokenizer = Tokenizer.load(output)
    end = evaluate_model(output, tokenizer, data)
    if party in PRECISIONS:
        began, curve, description = read_minibert_log(output, end.loss)
    else:
        figures = json.loads(printed.strip().splitlines()[-1])
        began, description = figures["began"], figures["description"]
        curve = [
            (saved, evaluate_model(checkpoint, tokenizer, data).loss) for saved, checkpoint in list_checkpoints(output)
        ]
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "seconds_before_training": began - started,
        "curve": [(when - started, loss) for when, loss in curve],
        "loss": end.loss,
        "predictions": end.predictions,
        "description": description,
    }


def processor_seconds() -> float:
    """Return the processor time of all processes that this one started and that have ended, summed over threads."""
    used = os.times()
    return used.children_user + used.children_system


def read_minibert_log(output: Path, loss: float) -> tuple[float, Curve, str]:
    """Read the log of a finished run.

    The log has seconds of training. Its last line, the result, was written when the file was last changed, which
    tells when the training began.

    Args:
        output: the run's output folder.
        loss: the final loss as evaluated afterwards.

    Returns:
        The time at which the first step began, the curve with times, both in seconds since the epoch, and a
        description of what computed.

    Raises:
        WorkerError: the final loss is not that of the log, so the two were evaluated on different texts.
    """
    history = read_history(output / METRICS_FILE)
    run, result = history[0], history[-1]
    if abs(result["loss"] - loss) > TOLERANCE / 5:  # the log's was computed in the precision of the run
        raise WorkerError(f"evaluated again, the final loss is {loss:.4f}, but the log says {result['loss']:.4f}")
    began = (output / METRICS_FILE).stat().st_mtime - result["elapsed"]
    curve = [(began + line["elapsed"], line["loss"]) for line in history if line["kind"] == "evaluation"]
    return began, curve, f"{run['device']}, {run['precision']}"


def list_checkpoints(output: Path) -> list[tuple[float, Path]]:
    """Return (when the model was written, in seconds since the epoch; folder) for each checkpoint of a Trainer."""
    folders = sorted(output.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return [((folder / "model.safetensors").stat().st_mtime, folder) for folder in folders]


def seconds_to_loss(curve: Curve, loss: float) -> float:
    """Return the time at which a curve first reached a loss, on the straight line between two evaluations.

    The time of the first evaluation is returned if that has reached the loss already.

    Raises:
        ValueError: the curve never reached the loss.
    """
    before = None
    for seconds, value in curve:
        if value <= loss:
            if before is None or value == before[1]:
                return seconds
            share = (before[1] - loss) / (before[1] - value)
            return before[0] + share * (seconds - before[0])
        before = seconds, value
    raise ValueError(f"no evaluation reached a loss of {loss}")


def compare_runs(ours: Sequence[Result], theirs: Sequence[Result]) -> Result:
    """Compare the runs of a party with Mini-BERT's runs of the same rounds.

    Returns:
        "loss_difference": the mean final loss, theirs minus ours; "same_loss": True if that is within `TOLERANCE`;
        "ratios": their time divided by ours, round by round: of the whole processes if the loss is the same,
        otherwise to the higher of the two final losses.
    """
    difference = statistics.fmean(run["loss"] for run in theirs) - statistics.fmean(run["loss"] for run in ours)
    same = abs(difference) <= TOLERANCE
    ratios = []
    for our, their in zip(ours, theirs, strict=True):
        if same:
            ratios.append(their["seconds"] / our["seconds"])
        else:
            # the last evaluations of the curves, because the party with the higher loss has reached exactly that
            loss = max(our["curve"][-1][1], their["curve"][-1][1])
            ratios.append(seconds_to_loss(their["curve"], loss) / seconds_to_loss(our["curve"], loss))
    return {"loss_difference": difference, "same_loss": same, "ratios": ratios}


def compare_pretraining(
    work: Work,
    corpus: Corpus,
    peers: Sequence[str],
    rounds: int,
    peer_python: str,
    say: Callable[[str], None] = print,
) -> Result:
    """Pretrain with every party in turn, and compare the times.

    Before the first round every party takes a few steps that are not counted, so that files are in memory and
    kernels are compiled. The seed of a run is the number of its round.

    Args:
        work: the sizes, the number of steps (a multiple of `EVALUATIONS`), dropout and threads.
        corpus: the text.
        peers: which of `PEERS`.
        rounds: how many processes each party gets.
        peer_python: the interpreter that has torch, transformers and accelerate.
        say: is called with a line about every process.

    Returns:
        "name", "work", "text" (what it is and its number of characters), and for each of "parties" its "runs"
        (`run_party`), the medians of their times, and how it compares with Mini-BERT (`compare_runs`).

    Raises:
        WorkerError: a process failed.
        DataError: the text is too short.
    """
    parties = (*PRECISIONS, *peers)
    runs: dict[str, list[Result]] = {party: [] for party in parties}
    set_threads(work.threads)
    with tempfile.TemporaryDirectory() as scratch:
        texts, data = write_texts(corpus, settings_of(work, Path(), 0), Path(scratch))
        characters = sum(len(document.text) for document in corpus)

        def run(party: str, steps: int, seed: int) -> Result:
            settings = settings_of(dataclasses.replace(work, steps=steps), texts.whole, seed)
            with tempfile.TemporaryDirectory(dir=scratch) as folder:  # with it goes the cache of tokens
                return run_party(party, settings, texts, data, work.threads, peer_python, Path(folder))

        for party in parties:
            run(party, EVALUATIONS, 0)
        for number in range(rounds):
            for party in parties if number % 2 == 0 else reversed(parties):
                figures = run(party, work.steps, number)
                runs[party].append(figures)
                say(f"  round {number + 1}: {party} {figures['seconds']:.1f} s, loss {figures['loss']:.3f}")
    return {
        "name": work.name,
        "work": dataclasses.asdict(work),
        "text": {"description": corpus.description, "characters": characters},
        "tolerance": TOLERANCE,
        "parties": {
            party: {
                "seconds": statistics.median(run["seconds"] for run in runs[party]),
                "processor_seconds": statistics.median(run["processor_seconds"] for run in runs[party]),
                "seconds_before_training": statistics.median(run["seconds_before_training"] for run in runs[party]),
                "loss": statistics.fmean(run["loss"] for run in runs[party]),
                **compare_runs(runs[OURS], runs[party]),
                "runs": runs[party],
            }
            for party in parties
        },
    }
