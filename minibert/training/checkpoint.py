"""Write and read checkpoints: everything that is needed to continue a run bit for bit.

    checkpoints/step-00000200/tensors.safetensors   parameters and both moments of AdamW, by name
    checkpoints/step-00000200/state.json            the `RunState`, the model's config, and checksums of both files

There is no random generator to save: random numbers follow from the seed and the step. Nothing is pickled.

A checkpoint is written under a temporary name, flushed to the disk and then renamed. So a checkpoint under its final
name is complete unless the disk failed. The checksums find that out, and the checkpoint before it is used.
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

from minibert.errors import TrainingError
from minibert.files import rename_folder, save_tensors
from minibert.model import MiniBERT
from minibert.optimizer import AdamW
from minibert.parameters import NamedArrays

CHECKPOINTS_FOLDER = "checkpoints"  # in the output folder
FORMAT = 1  # raised whenever files of an older version could be misread
KEPT = 2  # the newest checkpoint, and one to fall back on

_TENSORS_FILE, _STATE_FILE = "tensors.safetensors", "state.json"
_PREFIX, _UNFINISHED, _SET_ASIDE = "step-", ".writing-", "damaged-"
_CHECKSUM = "state_sha256"  # the field of state.json with the checksum of all others
_FIELDS = {"format", "step", "elapsed", "settings", "model", "tokenizer", "corpus", "sha256"}
_NEW_FIELDS = {"corpus_bytes"}  # which checkpoints of earlier versions lack


class _DamagedError(TrainingError):
    """A checkpoint is damaged; the message names the file."""


@dataclass(frozen=True)
class RunState:
    """The state of a run at a checkpoint, apart from its tensors.

    Attributes:
        step: optimizer steps taken.
        elapsed: seconds of training so far, all sessions together.
        settings: from `Settings.to_dict`.
        tokenizer: fingerprint of the vocabulary.
        corpus: fingerprint of the tokenized text.
        corpus_bytes: size of the text's files; None in checkpoints of earlier versions.
    """

    step: int
    elapsed: float
    settings: Mapping[str, Any]
    tokenizer: str
    corpus: str
    corpus_bytes: int | None = None


def save_checkpoint(
    folder: Path, model: MiniBERT, optimizer: AdamW, state: RunState, best: NamedArrays | None = None
) -> Path:
    """Write a checkpoint, then delete all but the newest `KEPT`.

    Args:
        folder: the run's folder of checkpoints; created if needed.
        model: the model. The caller has checked that its parameters are finite.
        optimizer: the model's optimizer; its moments are saved as well.
        state: goes into `state.json`.
        best: the best parameters so far, if they are to be saved as well.

    Returns:
        The folder of the new checkpoint.

    Raises:
        OSError: the disk is full, for example. The older checkpoints are left as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_UNFINISHED}*"):  # from a run that was killed
        shutil.rmtree(leftover)
    temporary = folder / f"{_UNFINISHED}{state.step}"
    temporary.mkdir()
    try:
        _write(temporary, model, optimizer, state, best)
        final = _put_in_place(temporary, folder / f"{_PREFIX}{state.step:08d}")
    except BaseException:  # what was written is of no use, and the disk may be full
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in list_checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)
    return final


def _write(folder: Path, model: MiniBERT, optimizer: AdamW, state: RunState, best: NamedArrays | None) -> None:
    """Write the files of a checkpoint."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for group, arrays in _tensor_groups(model, optimizer, best).items():
        flat = model.backend.to_numpy(arrays.flat)  # one transfer for each group
        for name, offset in arrays.layout.offsets.items():
            shape = arrays.layout.shapes[name]
            tensors[f"{group}/{name}"] = flat[offset : offset + int(np.prod(shape))].reshape(shape)
    save_tensors(folder / _TENSORS_FILE, tensors)
    content: dict[str, Any] = {
        "format": FORMAT,
        "step": state.step,
        "elapsed": state.elapsed,
        "settings": dict(state.settings),
        "model": model.config.to_dict(),
        "tokenizer": state.tokenizer,
        "corpus": state.corpus,
        "corpus_bytes": state.corpus_bytes,
        "sha256": _checksum(folder / _TENSORS_FILE),
    }
    content[_CHECKSUM] = _checksum_of_fields(content)
    (folder / _STATE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _put_in_place(temporary: Path, final: Path) -> Path:
    """Give a finished checkpoint its name; return that."""
    if final.exists():  # the run was resumed from an older checkpoint and has come here for the second time
        shutil.rmtree(final)
    rename_folder(temporary, final)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a run's folder of checkpoints, oldest first. Only names are looked at."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def has_only_unfinished_checkpoints(folder: Path) -> bool:
    """Return True if a folder of checkpoints does not exist, or holds only checkpoints that were never finished."""
    return not folder.exists() or (
        folder.is_dir() and all(path.name.startswith(_UNFINISHED) for path in folder.iterdir())
    )


@dataclass(frozen=True)
class FoundCheckpoint:
    """The newest checkpoint that is undamaged.

    Attributes:
        path: its folder, for `restore`.
        state: the state of the run.
        damaged: for each newer checkpoint, its folder and what is wrong with it; newest first.
    """

    path: Path
    state: RunState
    damaged: tuple[tuple[Path, str], ...] = ()


def find_newest(folder: Path) -> FoundCheckpoint:
    """Find the newest checkpoint that is complete and undamaged, and read its state. Nothing is changed.

    Args:
        folder: the run's folder of checkpoints.

    Raises:
        TrainingError: there is no undamaged checkpoint, or a checkpoint cannot be read for another reason.
    """
    damaged: list[tuple[Path, str]] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return FoundCheckpoint(path, _read_state(path), tuple(damaged))
        except _DamagedError as error:
            damaged.append((path, str(error)))
    if not damaged:
        raise TrainingError(f"there is nothing to resume: {folder} holds no checkpoint")
    raise TrainingError(f"{damaged[0][1]}. There is no undamaged checkpoint: start again in another --output")


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint, so that it does not count as one any more; return its new name."""
    renamed = path.with_name(_SET_ASIDE + path.name)
    if renamed.exists():
        shutil.rmtree(renamed)
    return path.rename(renamed)


def restore(path: Path, model: MiniBERT, optimizer: AdamW, best: NamedArrays | None = None) -> None:
    """Load the parameters, the moments and the step of a checkpoint into a model and its optimizer.

    Args:
        path: the checkpoint's folder, from `find_newest`.
        model: a model with the sizes and dtype of the checkpoint.
        optimizer: the optimizer of that model.
        best: gets the best parameters, if they were saved as well.

    Raises:
        TrainingError: the checkpoint belongs to a model with another config.
    """
    content = _read_state_file(path)
    if content["model"] != model.config.to_dict():
        config = model.config.to_dict()
        different = sorted(name for name, value in config.items() if content["model"].get(name) != value)
        raise TrainingError(f"{path} is a checkpoint of another model: {', '.join(different)} differ")
    with safe_open(path / _TENSORS_FILE, framework="numpy") as file:
        for group, arrays in _tensor_groups(model, optimizer, best).items():
            for name, view in arrays.items():
                view[...] = model.backend.asarray(file.get_tensor(f"{group}/{name}"), dtype=model.dtype)
    optimizer.steps = int(content["step"])


def _tensor_groups(model: MiniBERT, optimizer: AdamW, best: NamedArrays | None) -> dict[str, NamedArrays]:
    """Return the arrays that a checkpoint stores; a key is the first part of the stored tensors' names."""
    return {
        "parameters": model.parameters,
        "first_moment": optimizer.first_moment,
        "second_moment": optimizer.second_moment,
        **({} if best is None else {"best_parameters": best}),
    }


def _read_state(path: Path) -> RunState:
    """Read a checkpoint's state after checking that the whole checkpoint is undamaged.

    Raises:
        _DamagedError: a file is damaged, or missing.
        TrainingError: the checkpoint cannot be read for another reason.
    """
    content = _read_state_file(path)
    tensors = path / _TENSORS_FILE
    try:
        undamaged = _checksum(tensors) == content["sha256"]
        with safe_open(tensors, framework="numpy"):
            pass
    except PermissionError as error:
        raise TrainingError(f"{tensors} cannot be read: {error.strerror}") from error
    except (OSError, SafetensorError) as error:
        raise _DamagedError(f"the checkpoint {tensors} is damaged or cut short ({error})") from error
    if not undamaged:
        raise _DamagedError(f"the checkpoint {tensors} is damaged: its checksum differs from the recorded one")
    try:
        return RunState(
            step=int(content["step"]),
            elapsed=float(content["elapsed"]),
            settings=dict(content["settings"]),
            tokenizer=str(content["tokenizer"]),
            corpus=str(content["corpus"]),
            corpus_bytes=content.get("corpus_bytes"),
        )
    except (TypeError, ValueError) as error:
        raise _DamagedError(f"the checkpoint {path / _STATE_FILE} is damaged ({error})") from error


def _read_state_file(path: Path) -> dict[str, Any]:
    """Read a checkpoint's `state.json`, and check its checksum and its format.

    Checkpoints of earlier versions have no checksum of this file. They are read without it.
    """
    file = path / _STATE_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise TrainingError(f"{file} cannot be read: {error.strerror}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _DamagedError(f"the checkpoint {file} is damaged ({error})") from error
    if not isinstance(content, dict) or "format" not in content:
        raise _DamagedError(f"the checkpoint {file} is damaged (its format is not given)")
    recorded = content.pop(_CHECKSUM, None)
    if recorded is not None and recorded != _checksum_of_fields(content):
        raise _DamagedError(f"the checkpoint {file} is damaged: its checksum differs from the recorded one")
    if content["format"] != FORMAT:
        raise TrainingError(
            f"the checkpoint {file} has format {content['format']}, this version reads {FORMAT}; resume it with "
            "the version that wrote it"
        )
    if different := sorted(content.keys() - _NEW_FIELDS ^ _FIELDS):  # also finds a damaged name of the checksum
        raise _DamagedError(f"the checkpoint {file} is damaged (its fields differ: {', '.join(different)[:80]})")
    return content


def _checksum_of_fields(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the fields of `state.json`, however the file is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
