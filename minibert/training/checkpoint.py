"""Checkpoints: everything needed to continue a run bit for bit, in safetensors and JSON, never pickle.

    checkpoints/step-00000200/tensors.safetensors   parameters and both moments, by name
    checkpoints/step-00000200/state.json            the step, the clock, the settings, and what they belong to

Random numbers come from counters, so there is no generator to save: the seed and the step are all of it. A
checkpoint is written beside its place, flushed to the disk and renamed, so one that has its name is whole
unless the disk failed; a checksum finds that out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minibert.errors import TrainingError
from minibert.files import rename_folder
from minibert.model import MiniBERT
from minibert.optimizer import AdamW
from minibert.parameters import NamedArrays

FORMAT = 1  # raised whenever files of an older version could be misread
KEPT = 2  # the newest, and one to fall back on

_TENSORS_FILE, _STATE_FILE = "tensors.safetensors", "state.json"
_PREFIX, _UNFINISHED = "step-", ".writing-"


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: optimizer steps done.
        elapsed: seconds of training so far, all sessions together.
        settings: `Settings.to_dict()`.
        tokenizer: fingerprint of the vocabulary.
        corpus: fingerprint of the tokenized text.
    """

    step: int
    elapsed: float
    settings: Mapping[str, Any]
    tokenizer: str
    corpus: str


def save_checkpoint(folder: Path, model: MiniBERT, optimizer: AdamW, progress: Progress) -> Path:
    """Writes a checkpoint and removes those that are no longer needed.

    Args:
        folder: the run's checkpoints; created.
        model: its parameters must be finite, which the caller has checked.
        optimizer: its moments are saved with the parameters.
        progress: goes into `state.json`.

    Returns:
        The folder of the checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_UNFINISHED}*"):  # of a killed run
        shutil.rmtree(leftover)
    beside = folder / f"{_UNFINISHED}{progress.step}"
    beside.mkdir()
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for group, arrays in _groups(model, optimizer).items():
        flat = model.backend.to_numpy(arrays.flat)  # one transfer
        for name, offset in arrays.layout.offsets.items():
            shape = arrays.layout.shapes[name]
            tensors[f"{group}/{name}"] = flat[offset : offset + int(np.prod(shape))].reshape(shape)
    save_file(tensors, beside / _TENSORS_FILE)
    state = {
        "format": FORMAT,
        "step": progress.step,
        "elapsed": progress.elapsed,
        "settings": dict(progress.settings),
        "model": model.config.to_dict(),
        "tokenizer": progress.tokenizer,
        "corpus": progress.corpus,
        "sha256": _checksum(beside / _TENSORS_FILE),
    }
    (beside / _STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    final = folder / f"{_PREFIX}{progress.step:08d}"
    if final.exists():  # of an attempt that was given up for an older checkpoint
        shutil.rmtree(final)
    rename_folder(beside, final)
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; names only, nothing is read."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def never_written(folder: Path) -> bool:
    """Whether a run's checkpoints are none, but for one that a killed run was about to write."""
    return not folder.exists() or (
        folder.is_dir() and all(path.name.startswith(_UNFINISHED) for path in folder.iterdir())
    )


def load_progress(folder: Path) -> tuple[Path, Progress]:
    """The newest checkpoint, after checking that all of it is there.

    Args:
        folder: the run's checkpoints.

    Returns:
        Its folder, for `restore`, and what it says.

    Raises:
        TrainingError: there is none, or the newest one is damaged. An older one is never taken silently; the
            message says which one could be.
    """
    found = checkpoints(folder)
    if not found:
        raise TrainingError(f"there is nothing to resume: {folder} holds no checkpoint")
    *older, newest = found
    try:
        return newest, _read_progress(newest)
    except TrainingError as error:
        for path in reversed(older):
            try:
                progress = _read_progress(path)
            except TrainingError:
                continue
            raise TrainingError(
                f"{error}. The checkpoint before it, of step {progress.step}, is whole: to continue from there, "
                f"move {newest} away and resume again"
            ) from error
        raise TrainingError(f"{error}. There is no other checkpoint to continue from") from error


def restore(path: Path, model: MiniBERT, optimizer: AdamW) -> None:
    """Puts the parameters, the moments and the step of a checkpoint into a model and its optimizer.

    Args:
        path: from `load_progress`.
        model: of the checkpoint's sizes and dtype.
        optimizer: of that model.

    Raises:
        TrainingError: the checkpoint is of another model.
    """
    state = _read_state(path)
    if state["model"] != model.config.to_dict():
        different = sorted(name for name, value in model.config.to_dict().items() if state["model"].get(name) != value)
        raise TrainingError(f"{path} is a checkpoint of another model: {', '.join(different)} differ")
    with safe_open(path / _TENSORS_FILE, framework="numpy") as file:
        for group, arrays in _groups(model, optimizer).items():
            for name, view in arrays.items():
                view[...] = model.backend.asarray(file.get_tensor(f"{group}/{name}"), dtype=model.dtype)
    optimizer.steps = int(state["step"])


def _groups(model: MiniBERT, optimizer: AdamW) -> dict[str, NamedArrays]:
    return {
        "parameters": model.parameters,
        "first_moment": optimizer.first_moment,
        "second_moment": optimizer.second_moment,
    }


def _read_state(path: Path) -> dict[str, Any]:
    file = path / _STATE_FILE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"the checkpoint {file} is damaged ({error})") from error
    if not isinstance(state, dict) or "format" not in state:
        raise TrainingError(f"the checkpoint {file} is damaged (it does not say which format it has)")
    if state["format"] != FORMAT:
        raise TrainingError(
            f"the checkpoint {file} has format {state['format']}, this version reads {FORMAT}; resume it with "
            "the version that wrote it"
        )
    return state


def _read_progress(path: Path) -> Progress:
    state = _read_state(path)
    tensors = path / _TENSORS_FILE
    try:
        whole = _checksum(tensors) == state["sha256"]
        with safe_open(tensors, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"the checkpoint {tensors} is damaged or cut short ({error})") from error
    if not whole:
        raise TrainingError(f"the checkpoint {tensors} is damaged: its content is not what was written (checksum)")
    return Progress(
        int(state["step"]), float(state["elapsed"]), state["settings"], str(state["tokenizer"]), str(state["corpus"])
    )


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
