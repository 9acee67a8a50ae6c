"""Fine-tuning: epochs over labelled texts, an evaluation after each, and the best epoch kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minibert.data.permutation import permute
from minibert.errors import NonFiniteError, TrainingError
from minibert.finetuning.labelled_texts import LabelledText
from minibert.finetuning.scores import Scores
from minibert.finetuning.text_classifier import EncodedText, TextClassifier
from minibert.gradients import MiniBERTGradients
from minibert.optimizer import AdamW, linear_schedule
from minibert.random_bits import Stream, derive_key


@dataclass(frozen=True)
class FineTuning:
    """How to fine-tune.

    Attributes:
        epochs: passes over the texts, at most.
        batch_size: texts of a step.
        learning_rate: at its highest, after the warm-up.
        warmup: share of the steps in which the learning rate rises.
        weight_decay: of AdamW.
        patience: epochs without a lower evaluation loss after which training stops; None: never early.
        seed: of the order and of dropout.

    Raises:
        TrainingError: a number outside its range.
    """

    epochs: int = 3
    batch_size: int = 16
    learning_rate: float = 5e-5
    warmup: float = 0.1
    weight_decay: float = 0.01
    patience: int | None = 2
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (0.0 < self.learning_rate < math.inf, "above 0 and finite"),
            "warmup": (0.0 <= self.warmup < 1.0, "at least 0 and below 1"),
            "weight_decay": (0.0 <= self.weight_decay < math.inf, "at least 0 and finite"),
            "patience": (self.patience is None or self.patience >= 1, "at least 1"),
            "seed": (0 <= self.seed < 2**64, "at least 0 and below 2^64"),
        }
        for name, (holds, wanted) in ranges.items():
            if not holds:
                raise TrainingError(f"--{name.replace('_', '-')} must be {wanted}, not {getattr(self, name)!r}")

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, that of the schedule in the middle of it: no step is without effect.

        Args:
            step: from 0.
            steps: of the whole training, if it does not stop early.
        """
        return self.learning_rate * linear_schedule((step + 0.5) / steps, self.warmup)


@dataclass(frozen=True)
class Epoch:
    """What came of one epoch: its number from 1, the mean training loss in nats, the evaluation."""

    number: int
    training_loss: float
    evaluation: Scores


@dataclass(frozen=True)
class Outcome:
    """How a fine-tuning ended.

    Attributes:
        best: the epoch with the lowest evaluation loss; None if it was interrupted before one was finished.
        finished: False if it was interrupted.
    """

    best: Epoch | None
    finished: bool


def finetune(
    classifier: TextClassifier,
    train: Sequence[LabelledText],
    evaluation: Sequence[LabelledText],
    settings: FineTuning,
    report: Callable[[Epoch], None] = lambda epoch: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Trains the classifier, in place; it ends with the parameters of its best epoch.

    Args:
        classifier: to train; dropout as its config says, drawn by the seed of its model.
        train: texts to train on.
        evaluation: texts that decide which epoch is the best, and when to stop.
        settings: how.
        report: called after every epoch.
        interrupted: asked before every step; True ends the training, and the epoch that was begun does not count.

    Returns:
        The best epoch, if one was finished, and whether all was done that was to be done. The parameters are those of
        that epoch, or those of the beginning.

    Raises:
        TrainingError: an evaluation label that no training text has.
        NonFiniteError: the loss became NaN or infinite.
    """
    model = classifier.model
    check_labels(classifier.labels, evaluation)
    encoded, classes = _prepared(classifier, train)
    held_out, held_out_classes = _prepared(classifier, evaluation)
    gradients = MiniBERTGradients(model)
    optimizer = AdamW(model, weight_decay=settings.weight_decay)
    steps_per_epoch = math.ceil(len(encoded) / settings.batch_size)
    best: Epoch | None = None
    best_parameters = model.backend.to_numpy(model.parameters.flat).copy()
    finished = True
    for number in range(1, settings.epochs + 1):
        order = permute(np.arange(len(encoded)), len(encoded), derive_key(settings.seed, Stream.ORDER, number))
        total: float = 0.0
        for start in range(0, len(encoded), settings.batch_size):
            if interrupted():
                finished = False
                break
            chosen = order[start : start + settings.batch_size]
            ids, mask, types = classifier.arrays([encoded[index] for index in chosen])
            _, cache = model.classify(ids, mask, types, dropout_step=optimizer.steps, unpad=True)
            loss = gradients.backward_classification(cache, classes[chosen])
            rate = settings.rate(optimizer.steps, steps_per_epoch * settings.epochs)
            optimizer.step(gradients.gradients, rate)
            total += float(loss) * len(chosen)
            if not math.isfinite(total):
                step = optimizer.steps
                raise NonFiniteError(f"the loss is {float(loss)} at step {step}; lower --learning-rate", step)
        if not finished:
            break
        scores = Scores.of(classifier.labels, classifier.probabilities(held_out), held_out_classes)
        if not math.isfinite(scores.loss):  # the last step may be the one that ruins the parameters
            step = optimizer.steps
            raise NonFiniteError(f"the evaluation loss is {scores.loss} after step {step}; lower --learning-rate", step)
        epoch = Epoch(number, total / len(encoded), scores)
        report(epoch)
        if best is None or scores.loss < best.evaluation.loss:
            best, best_parameters = epoch, model.backend.to_numpy(model.parameters.flat).copy()
        elif settings.patience is not None and number - best.number >= settings.patience:
            break
    model.parameters.flat[...] = model.backend.asarray(best_parameters)
    return Outcome(best, finished)


def check_labels(labels: Sequence[str], evaluation: Sequence[LabelledText]) -> None:
    """That the classifier knows every label it is evaluated on.

    Raises:
        TrainingError: it does not; names the label.
    """
    if unknown := sorted({example.label for example in evaluation} - set(labels)):
        raise TrainingError(f"the classifier does not know the label {unknown[0]!r}: no training text has it")


def _prepared(
    classifier: TextClassifier, examples: Sequence[LabelledText]
) -> tuple[list[EncodedText], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """The encoded texts, and the numbers of their classes (n,)."""
    number_of = {label: number for number, label in enumerate(classifier.labels)}
    pairs = None if examples[0].pair is None else [str(example.pair) for example in examples]
    encoded = classifier.encode([example.text for example in examples], pairs)
    return encoded, np.array([number_of[example.label] for example in examples], dtype=np.int64)
