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
from minibert.options import BELOW_ONE, NOT_NEGATIVE, POSITIVE, SEED, at_least, check_options, option
from minibert.random_bits import Stream, derive_key

_TRAINING = "the training"  # the heading of these options in --help


@dataclass(frozen=True)
class FineTuning:
    """How to fine-tune. Every field is an option of `scripts/finetune.py`, declared here.

    Raises:
        TrainingError: a value is not accepted; the message names the option.
    """

    epochs: int = option(
        3, "train for at most N passes over the texts", metavar="N", check=at_least(1), group=_TRAINING
    )
    batch_size: int = option(
        16, "number of texts in an optimizer step", metavar="N", check=at_least(1), group=_TRAINING
    )
    learning_rate: float = option(
        5e-5,
        "highest learning rate, reached at the end of the warm-up",
        metavar="R",
        check=POSITIVE,
        group=_TRAINING,
    )
    warmup: float = option(
        0.1,
        "share of the steps during which the learning rate rises; it falls afterwards",
        metavar="S",
        check=BELOW_ONE,
        group=_TRAINING,
    )
    weight_decay: float = option(
        0.01,
        "weight decay of AdamW; it does not apply to biases and layer norms",
        metavar="W",
        check=NOT_NEGATIVE,
        group=_TRAINING,
    )
    patience: int | None = option(  # None: never stop early
        2,
        "stop after N epochs in a row without a lower evaluation loss",
        metavar="N",
        check=at_least(1),
        group=_TRAINING,
    )
    seed: int = option(
        0,
        "seed of all random numbers: the classifier's initial parameters, the order of the texts, dropout, and which "
        "texts are held out",
        metavar="N",
        check=SEED,
        group=_TRAINING,
    )

    def __post_init__(self) -> None:
        check_options(self)

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step.

        The schedule is read at the middle of the step, so that neither the first nor the last step has the rate 0.

        Args:
            step: number of the step, from 0.
            steps: number of steps in the whole training, if it does not stop early.
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
