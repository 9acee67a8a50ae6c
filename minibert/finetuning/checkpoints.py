"""Save a fine-tuning after every epoch, so that it can go on after a crash.

The checkpoints are those of pretraining (`minibert/training/checkpoint.py`), with the parameters of the best epoch and
the scores of all epochs. They are deleted when the classifier is saved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minibert.errors import TrainingError
from minibert.finetuning.labelled_texts import LabelledText
from minibert.finetuning.scores import Epoch, Scores
from minibert.model import MiniBERT
from minibert.optimizer import AdamW
from minibert.options import flag, shown
from minibert.parameters import NamedArrays
from minibert.training.checkpoint import RunState, find_newest, list_checkpoints, restore
from minibert.training.saver import CheckpointSaver

CHECKPOINTS_FOLDER = "finetuning-checkpoints"  # in the output folder

_MAY_CHANGE = ("patience",)


class EpochCheckpoints:
    """The checkpoints of a fine-tuning.

    Args:
        output: the output folder of the fine-tuning.
        settings: a `FineTuning`.
        tokenizer: the fingerprint of the vocabulary.
        texts: the texts to train on and to evaluate on, in their order.
        message: shows a line of text to the user.
    """

    def __init__(
        self,
        output: Path,
        settings: Any,
        tokenizer: str,
        texts: Sequence[LabelledText],
        message: Callable[[str], None],
    ) -> None:
        self._folder = output / CHECKPOINTS_FOLDER
        self._settings = dataclasses.asdict(settings)
        self._tokenizer = tokenizer
        self._texts = hashlib.sha256(repr([dataclasses.astuple(text) for text in texts]).encode()).hexdigest()
        self._message = message
        self._saver = CheckpointSaver(self._folder, 1, message)

    def save(self, model: MiniBERT, optimizer: AdamW, best: NamedArrays, epochs: Sequence[Epoch]) -> None:
        """Save the state after an epoch.

        Args:
            model: the model after the epoch.
            optimizer: its optimizer.
            best: the parameters after the best epoch.
            epochs: all epochs so far.

        Raises:
            SavingError: too many attempts failed.
        """
        written = [
            {"number": each.number, "training_loss": each.training_loss, "scores": each.evaluation.to_dict()}
            for each in epochs
        ]
        settings = {"finetuning": self._settings, "labels": list(model.config.labels), "epochs": written}
        state = RunState(optimizer.steps, 0.0, settings, self._tokenizer, self._texts)
        self._saver.save(model, optimizer, state, best=best)

    def restore(self, model: MiniBERT, optimizer: AdamW, best: NamedArrays) -> list[Epoch]:
        """Load the state after the last epoch that was saved.

        Args:
            model: gets the parameters.
            optimizer: gets its moments and the number of steps.
            best: gets the parameters after the best epoch.

        Returns:
            All epochs so far; none if nothing was saved.

        Raises:
            TrainingError: all checkpoints are damaged, or they belong to another fine-tuning.
        """
        if not list_checkpoints(self._folder):
            return []
        found = find_newest(self._folder)
        for _, damage in found.damaged:
            self._message(f"{damage}: going on from the checkpoint before it")
        self._check(found.state)
        restore(found.path, model, optimizer, best)
        self._message(f"going on after epoch {len(found.state.settings['epochs'])}")
        labels = tuple(found.state.settings["labels"])
        return [
            Epoch(
                each["number"],
                each["training_loss"],
                Scores(labels, np.array(each["scores"]["confusion"], dtype=np.int64), each["scores"]["loss"]),
            )
            for each in found.state.settings["epochs"]
        ]

    def delete(self) -> None:
        """Delete all checkpoints."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _check(self, state: RunState) -> None:
        """Refuse a checkpoint of another fine-tuning.

        Raises:
            TrainingError: the settings, the texts or the vocabulary differ.
        """
        before = state.settings.get("finetuning")
        if not isinstance(before, dict):
            raise TrainingError(f"{self._folder} holds checkpoints that are not those of a fine-tuning")
        different = [
            f"{flag(name)} is {shown(before.get(name))} in this fine-tuning, not {shown(value)}"
            for name, value in self._settings.items()
            if name not in _MAY_CHANGE and before.get(name) != value
        ]
        if state.corpus != self._texts:
            different.append("the labelled texts have changed")
        if state.tokenizer != self._tokenizer:
            different.append("the vocabulary has changed")
        if different:
            raise TrainingError(
                f"cannot resume: {'; '.join(different)}. Give the same options and files, or a new --output"
            )


def has_checkpoint(output: Path) -> bool:
    """Return True if a fine-tuning in this folder was saved after an epoch and has not finished."""
    return bool(list_checkpoints(output / CHECKPOINTS_FOLDER))
