"""Compare pretraining from a text to a trained model: Mini-BERT's command with transformers as people run it.

Each party runs in fresh processes. The time of a process is that from its start to its end: imports, vocabulary,
tokenizing, training, ten evaluations, ten checkpoints and the saved model. All parties have the same text, sizes,
number of steps, batch, learning rates, optimizer, dropout and share of predicted tokens. What they draw at random
(initial weights, order, masks) differs. Checkpoints of transformers hold the model only, which saves transformers
0.4 s at most in a run of L4 H256. Mini-BERT's checkpoints hold the optimizer's state, too, so that a run can resume.

Mini-BERT holds out a part of the text by itself. transformers is given the same two parts as two files. All models,
and all checkpoints of transformers, are evaluated afterwards by the same code, which is not timed, in float32 and on
the same tokens of the held-out part with the same masks: those of Mini-BERT's own evaluations (15% of the tokens).
With other masks the loss of the same model differs by up to 0.05 nats. Each party trains a vocabulary
of its own on the same text. The two differ in a few word pieces of thousands, so the tokens are translated from one
to the other by their names, and a piece that transformers' vocabulary lacks is not predicted.

If the losses at the end agree within `TOLERANCE`, the parties are compared by the times of the whole processes.
Otherwise they are compared by the times at which each reached the higher of their two losses.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from backends.cpu.threads import set_threads
from benchmarks.comparison import OURS, Result, WorkerError, start_worker
from benchmarks.held_out import Texts, evaluate_model, write_texts
from benchmarks.work import Work
from minibert.config import PRESETS, MiniBERTConfig
from minibert.data.corpus import Corpus
from minibert.data.tokenizer import Tokenizer
from minibert.training.log import METRICS_FILE, read_history
from minibert.training.preparation import Data
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
_NOT_IN_BERT_CONFIG = ("labels", "problem_type", "classifier_dropout")

Curve = list[tuple[float, float]]
"""(seconds since the start of the process, loss in nats), in the order of the steps."""


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
        worker = start_worker(python, module, *words, stderr=errors.fileno(), threads=threads)
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
