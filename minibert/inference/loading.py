"""Load a trained model and its tokenizer from a folder, and check that the two belong together."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from backends import Backend
from minibert.checksums import CHECKSUMS_FILE, find_damage
from minibert.data.tokenizer import Tokenizer
from minibert.errors import TrainingError, explained
from minibert.huggingface.config_file import CONFIG_FILE
from minibert.huggingface.pretrained import PretrainedWarning
from minibert.model import MiniBERT
from minibert.parameters import PRETRAINING_HEADS

_LARGEST_PADDING = 128  # a table of embeddings may be rounded up to a multiple of at most this


def load_model(
    folder: Path,
    device: Backend | str = "cpu",
    dtype: str = "float32",
    kernels: str = "auto",
    *,
    precision: str = "float32",
    heads: Iterable[str] = PRETRAINING_HEADS,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[MiniBERT, Tokenizer]:
    """Load the model and the tokenizer of a run's output folder, or of any folder in Hugging Face's format.

    Args:
        folder: a folder with config.json, model.safetensors and vocab.txt or tokenizer.json.
        device: where to compute.
        dtype: "float32" or "float64".
        kernels: "auto" or "reference", as for `MiniBERT`.
        precision: as for `MiniBERT`.
        heads: the heads to load.
        labels: the classes of a new classifier.
        seed: decides the parameters of a new classifier, and dropout.

    Raises:
        TrainingError: the folder is missing or has no model, perhaps because its run is not finished; a
            masked-language-model head is asked for and missing, or a classifier is asked for and has no labels; the
            vocabulary is missing or belongs to another model; a file is damaged.
        BackendError: this machine does not have the device.
    """
    if not folder.is_dir():
        raise TrainingError(f"there is no folder {folder}; give the output folder of a finished run")
    if not (folder / CONFIG_FILE).exists():
        _check_run_is_finished(folder)
    if (damage := find_damage(folder, required=False)) is not None:
        raise TrainingError(
            f"{damage}: put the right file back or, if it was changed on purpose, delete {folder / CHECKSUMS_FILE}"
        )
    with explained(), warnings.catch_warnings():
        # no warning that the head for masked words is random: if it is missing, an error follows below
        warnings.filterwarnings("ignore", message=".* has no masked-language-model head", category=PretrainedWarning)
        tokenizer = Tokenizer.load(folder)
        model = MiniBERT.from_pretrained(
            folder,
            device=device,
            dtype=dtype,
            kernels=kernels,
            precision=precision,
            heads=heads,
            labels=labels,
            seed=seed,
        )
    _check_vocabulary(folder, model, tokenizer)
    if "mlm" in model.absent_heads:
        raise TrainingError(
            f"the model in {folder} has no masked-language-model head: it can embed texts, but not predict words"
        )
    return model, tokenizer


def _check_run_is_finished(folder: Path) -> None:
    """Refuse a folder without a model in which a run is under way or was interrupted.

    Raises:
        TrainingError: the folder holds such a run; the message says how to get a model.
    """
    # loaded only for an error, since commands that use a model should start fast
    from minibert.training.output_folder import FolderState, folder_state

    state = folder_state(folder)
    if state is FolderState.RESUMABLE:
        raise TrainingError(
            f"the run in {folder} is not finished: it has checkpoints but no model yet; continue it with "
            f"scripts/train.py --output {shlex.quote(str(folder))} --resume"
        )
    if state is FolderState.IN_USE:
        raise TrainingError(f"the run in {folder} is still training and has no model yet; wait for its end")
    if state in (FolderState.BEGUN, FolderState.BEGUN_OR_RUNNING):
        raise TrainingError(
            f"the run in {folder} has neither a model nor a checkpoint; start it again with scripts/train.py "
            f"--output {shlex.quote(str(folder))}"
        )


def _check_vocabulary(folder: Path, model: MiniBERT, tokenizer: Tokenizer) -> None:
    """Refuse a vocabulary that belongs to another model.

    Raises:
        TrainingError: the vocabulary is larger than the model's table of embeddings, or much smaller.
    """
    surplus = model.config.vocab_size - tokenizer.vocab_size
    if not 0 <= surplus < _LARGEST_PADDING:
        raise TrainingError(
            f"the vocabulary in {folder} has {tokenizer.vocab_size} tokens, but the model has "
            f"{model.config.vocab_size}; one of the two belongs to another model"
        )
