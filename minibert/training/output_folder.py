"""Find out what state an output folder is in.

Starting a run, resuming one, loading a model and fine-tuning all depend on what is in the folder. All of them ask
`folder_state`, and each turns the answer into its own message.
"""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

from minibert.huggingface.config_file import CONFIG_FILE
from minibert.training.checkpoint import CHECKPOINTS_FOLDER, has_only_unfinished_checkpoints, list_checkpoints
from minibert.training.log import METRICS_FILE, is_in_use, read_run_history


class FolderState(Enum):
    """The state of an output folder.

    Attributes:
        NEW: the folder does not exist, or it is empty.
        BEGUN: a run ended here before its first checkpoint. A new run may take its place.
        BEGUN_OR_RUNNING: as BEGUN, but the run may still be going on: this system or disk has no locks.
        RESUMABLE: a run with a checkpoint and without a model.
        FINISHED: a run that saved its model or recorded its result. It can be resumed, for more steps, unless its
            checkpoints were deleted.
        IN_USE: another process is training here. There may be checkpoints and the model of an earlier session.
        FOREIGN: anything else, such as a folder from Hugging Face, a fine-tuned model, other files, or a file that is
            no folder.
    """

    NEW = "new"
    BEGUN = "begun without a checkpoint"
    BEGUN_OR_RUNNING = "begun without a checkpoint, and perhaps running"
    RESUMABLE = "resumable"
    FINISHED = "finished"
    IN_USE = "in use"
    FOREIGN = "somebody else's"


_LEFTOVER = re.compile(
    r"\.(config\.json|model\.safetensors|vocab\.txt|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|checksums\.json)\.[a-z0-9_]{8}"  # written by `minibert.files`
    r"|\.tmp[A-Za-z0-9]{6}"  # written by the library safetensors
)
"""Temporary names of files that a run writes to its folder."""


def remove_leftovers(folder: Path) -> None:
    """Remove the files that a killed run left half written. The caller holds the lock of the run's log.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name) and path.is_file():
            path.unlink()


def folder_state(folder: Path, *, own_log_open: bool = False) -> FolderState:
    """Return the state of an output folder. Nothing is changed.

    Args:
        folder: the output folder; it need not exist.
        own_log_open: True if this process has the log of this folder open. Then IN_USE is not returned, and a folder
            that holds only the log, still empty, counts as NEW.

    Raises:
        OSError: the folder cannot be read.
    """
    if not folder.exists():
        return FolderState.NEW
    if not folder.is_dir():
        return FolderState.FOREIGN
    names = {path.name for path in folder.iterdir()}
    log = folder / METRICS_FILE
    log_is_empty = METRICS_FILE in names and log.stat().st_size == 0
    if not names or (own_log_open and log_is_empty and names == {METRICS_FILE}):
        return FolderState.NEW

    in_use = is_in_use(log)  # by this process or another; None: this system cannot tell
    if in_use and not own_log_open:
        return FolderState.IN_USE

    has_model = CONFIG_FILE in names
    if list_checkpoints(folder / CHECKPOINTS_FOLDER):
        return FolderState.FINISHED if has_model else FolderState.RESUMABLE

    history = read_run_history(folder)
    if history is None or (log_is_empty and names != {METRICS_FILE}):
        return FolderState.FOREIGN
    kinds = {line["kind"] for line in history}
    if "result" in kinds:
        return FolderState.FINISHED
    if has_model or "resumed" in kinds or not has_only_unfinished_checkpoints(folder / CHECKPOINTS_FOLDER):
        return FolderState.FOREIGN
    return FolderState.BEGUN if in_use is not None else FolderState.BEGUN_OR_RUNNING
