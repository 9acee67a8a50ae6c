"""Save checkpoints when they are due, and go on training while a disk is full.

`checkpoint.py` writes one checkpoint and raises if that fails. A `CheckpointSaver` decides what follows from a failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from minibert.errors import SavingError
from minibert.model import MiniBERT
from minibert.optimizer import AdamW
from minibert.parameters import NamedArrays
from minibert.training.checkpoint import RunState, list_checkpoints, save_checkpoint

ATTEMPTS = 5
"""So many attempts to save may fail one after the other. Then the run ends."""

_SECONDS_BETWEEN_ATTEMPTS = 60.0  # at most, while the training goes on
_SECONDS_OF_WAITING = 10.0  # between two attempts, when the training cannot go on


class CheckpointSaver:
    """Saves the checkpoints of a run.

    If a checkpoint cannot be written and there is an older one, the training goes on. The saver tries again when the
    next checkpoint is due, or a minute later. Without an older checkpoint, and at the end of a run, it waits for some
    seconds and tries again.

    Args:
        folder: the run's folder of checkpoints.
        every: save a checkpoint every so many steps.
        message: shows a line of text to the user.
        saved_step: the step of the checkpoint that the run was resumed from; None for a new run.
    """

    def __init__(self, folder: Path, every: int, message: Callable[[str], None], saved_step: int | None = None) -> None:
        self._folder = folder
        self._every = every
        self._message = message
        self._saved_step = saved_step
        self._failures = 0
        self._tried = 0.0

    def is_due(self, step: int) -> bool:
        """Return True if a checkpoint should be saved after this step."""
        again = self._failures > 0 and time.monotonic() - self._tried >= _SECONDS_BETWEEN_ATTEMPTS
        return step % self._every == 0 or again

    def is_saved(self, step: int) -> bool:
        """Return True if there is a checkpoint of this step."""
        return step == self._saved_step

    def save(
        self,
        model: MiniBERT,
        optimizer: AdamW,
        state: RunState,
        *,
        best: NamedArrays | None = None,
        last: bool = False,
    ) -> None:
        """Write a checkpoint, or say why it was not written.

        Args:
            model: as for `save_checkpoint`.
            optimizer: as for `save_checkpoint`.
            state: as for `save_checkpoint`.
            best: as for `save_checkpoint`.
            last: True if no training follows. Then the checkpoint has been written when this method returns.

        Raises:
            SavingError: too many attempts failed.
        """
        if last:
            self._failures = 0  # the last checkpoint gets all attempts
        while (reason := self._try(model, optimizer, state, best)) is not None:
            kept = list_checkpoints(self._folder)
            failed = f"the checkpoint of step {state.step} cannot be written to {self._folder} ({reason})"
            if self._failures >= ATTEMPTS:
                raise SavingError(f"{failed}, {self._failures} times in a row. {_remedy(kept)}")
            if kept and not last:
                self._message(f"{failed}: going on and trying again; the last checkpoint is {kept[-1]}")
                return
            self._message(f"{failed}: trying again in {_SECONDS_OF_WAITING:g} s")
            time.sleep(_SECONDS_OF_WAITING)
        if self._failures:
            self._message(f"the checkpoint of step {state.step} was written")
        self._failures, self._saved_step = 0, state.step

    def _try(self, model: MiniBERT, optimizer: AdamW, state: RunState, best: NamedArrays | None) -> str | None:
        """Try to write a checkpoint; return None if it was written, otherwise the reason."""
        try:
            save_checkpoint(self._folder, model, optimizer, state, best)
        except OSError as error:
            self._failures += 1
            self._tried = time.monotonic()
            return error.strerror or str(error)
        return None


def _remedy(kept: list[Path]) -> str:
    """Say how to go on after the last attempt, with these checkpoints."""
    if not kept:
        return "There is no other checkpoint: make it possible to write there, and start again"
    return (
        f"The checkpoint before it is complete: {kept[-1]}. Make it possible to write there, and continue with --resume"
    )
