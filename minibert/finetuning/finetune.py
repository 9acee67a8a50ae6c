"""Fine-tune a classifier: train for some epochs, evaluate after each, and keep the best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minibert.data.permutation import permute
from minibert.errors import NonFiniteError, TrainingError, brief
from minibert.finetuning.checkpoints import EpochCheckpoints
from minibert.finetuning.labelled_texts import LabelledText
from minibert.finetuning.scores import Epoch, Scores
from minibert.finetuning.text_classifier import EncodedText, TextClassifier
from minibert.gradients import MiniBERTGradients
from minibert.optimizer import AdamW, linear_schedule
from minibert.options import BELOW_ONE, NOT_NEGATIVE, POSITIVE, SEED, at_least, check_options, option
from minibert.parameters import NamedArrays
from minibert.random_bits import Stream, derive_key

_TRAINING = "the training"  # the heading of these options in --help


@dataclass(frozen=True)
class FineTuning:
    """The settings of a fine-tuning. Every field is an option of `scripts/finetune.py`, declared here.

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
class FineTuningResult:
    """The result of a fine-tuning.

    Attributes:
        best: the epoch with the lowest evaluation loss; None if the first epoch was interrupted.
        finished: False if the training was interrupted.
    """

    best: Epoch | None
    finished: bool


@dataclass(frozen=True)
class _EncodedTexts:
    """The tokens of n labelled texts, and their classes.

    Attributes:
        texts: n texts.
        classes: (n,) the numbers of their classes.
    """

    texts: list[EncodedText]
    classes: npt.NDArray[np.int64]


def finetune(
    classifier: TextClassifier,
    train: Sequence[LabelledText],
    evaluation: Sequence[LabelledText],
    settings: FineTuning,
    report: Callable[[Epoch], None] = lambda epoch: None,
    interrupted: Callable[[], bool] = lambda: False,
    checkpoints: EpochCheckpoints | None = None,
) -> FineTuningResult:
    """Train the classifier in place, and leave it with the parameters of its best epoch.

    A training that goes on from a checkpoint has the same bits as one that was never interrupted.

    Args:
        classifier: the classifier to train. Its config has the dropout probabilities; the seed of its model decides the
            dropout masks.
        train: the texts to train on.
        evaluation: the texts that decide which epoch is the best, and when to stop.
        settings: how to train.
        report: called after every epoch.
        interrupted: called before every step. If it returns True, the training ends and the current epoch does not
            count.
        checkpoints: saves every epoch, and holds the epochs that were trained before a crash; None saves nothing.

    Returns:
        The best epoch, and whether the training was interrupted. Without a finished epoch, the parameters stay as they
        were at the beginning.

    Raises:
        TrainingError: an evaluation text has a label that no training text has.
        NonFiniteError: the loss became NaN or infinite.
    """
    check_labels(classifier.labels, evaluation)
    training_texts, evaluation_texts = _encode(classifier, train), _encode(classifier, evaluation)
    model = classifier.model
    gradients, optimizer = MiniBERTGradients(model), AdamW(model, weight_decay=settings.weight_decay)
    best_parameters = NamedArrays.zeros_like(model.parameters)
    epochs = [] if checkpoints is None else checkpoints.restore(model, optimizer, best_parameters)
    if not epochs:
        best_parameters.flat[...] = model.parameters.flat
    finished = True
    while len(epochs) < settings.epochs and not _out_of_patience(epochs, settings.patience):
        number = len(epochs) + 1
        training_loss = _train_epoch(classifier, training_texts, settings, number, gradients, optimizer, interrupted)
        if training_loss is None:
            finished = False
            break
        epochs.append(Epoch(number, training_loss, _evaluate(classifier, evaluation_texts, optimizer.steps)))
        report(epochs[-1])
        if _best(epochs) is epochs[-1]:
            best_parameters.flat[...] = model.parameters.flat
        if checkpoints is not None:
            checkpoints.save(model, optimizer, best_parameters, epochs)
    model.parameters.flat[...] = best_parameters.flat
    return FineTuningResult(_best(epochs), finished)


def _best(epochs: Sequence[Epoch]) -> Epoch | None:
    """Return the epoch with the lowest evaluation loss, the first of equals; None without epochs."""
    return min(epochs, key=lambda epoch: epoch.evaluation.loss, default=None)


def _out_of_patience(epochs: Sequence[Epoch], patience: int | None) -> bool:
    """Return True if so many epochs followed the best one."""
    best = _best(epochs)
    return best is not None and patience is not None and len(epochs) - best.number >= patience


def check_labels(labels: Sequence[str], evaluation: Sequence[LabelledText]) -> None:
    """Refuse evaluation texts with a label that the classifier does not know.

    Raises:
        TrainingError: an evaluation text has such a label; the message names it.
    """
    if unknown := sorted({example.label for example in evaluation} - set(labels)):
        raise TrainingError(f"the classifier does not know the label {brief(unknown[0])}: no training text has it")


def _encode(classifier: TextClassifier, examples: Sequence[LabelledText]) -> _EncodedTexts:
    number_of = {label: number for number, label in enumerate(classifier.labels)}
    pairs = None if examples[0].pair is None else [str(example.pair) for example in examples]
    texts = classifier.encode([example.text for example in examples], pairs)
    return _EncodedTexts(texts, np.array([number_of[example.label] for example in examples], dtype=np.int64))


def _train_epoch(
    classifier: TextClassifier,
    training: _EncodedTexts,
    settings: FineTuning,
    number: int,
    gradients: MiniBERTGradients,
    optimizer: AdamW,
    interrupted: Callable[[], bool],
) -> float | None:
    """Train on every text once, in an order that depends on the seed and the number of the epoch.

    Returns:
        The mean loss in nats; None if the epoch was interrupted.

    Raises:
        NonFiniteError: the loss became NaN or infinite.
    """
    texts, count = training.texts, len(training.texts)
    order = permute(np.arange(count), count, derive_key(settings.seed, Stream.ORDER, number))
    steps = settings.epochs * math.ceil(count / settings.batch_size)  # of all epochs
    total = 0.0
    for start in range(0, count, settings.batch_size):
        if interrupted():
            return None
        chosen = order[start : start + settings.batch_size]
        ids, mask, types = classifier.arrays([texts[index] for index in chosen])
        _, cache = classifier.model.classify(ids, mask, types, dropout_step=optimizer.steps, unpad=True)
        loss = gradients.backward_classification(cache, training.classes[chosen])
        optimizer.step(gradients.gradients, settings.rate(optimizer.steps, steps))
        total += float(loss) * len(chosen)
        if not math.isfinite(total):
            step = optimizer.steps
            raise NonFiniteError(f"the loss is {float(loss)} at step {step}; lower --learning-rate", step)
    return total / count


def _evaluate(classifier: TextClassifier, held_out: _EncodedTexts, step: int) -> Scores:
    """Return the scores on the evaluation texts.

    Raises:
        NonFiniteError: the loss is NaN or infinite, because the last step ruined the parameters.
    """
    scores = Scores.of(classifier.labels, classifier.probabilities(held_out.texts), held_out.classes)
    if not math.isfinite(scores.loss):
        raise NonFiniteError(f"the evaluation loss is {scores.loss} after step {step}; lower --learning-rate", step)
    return scores
