"""Load a trained model and its tokenizer from a folder, and check that the two belong together."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from backends import Backend
from minibert.data.tokenizer import Tokenizer
from minibert.errors import TrainingError, explained
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
    heads: Iterable[str] = PRETRAINING_HEADS,
    labels: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[MiniBERT, Tokenizer]:
    """Load the model and the tokenizer of a run's output folder, or of any folder in Hugging Face's format.

    Args:
        folder: with config.json, model.safetensors and vocab.txt or tokenizer.json.
        device: where to compute.
        dtype: "float32" or "float64".
        kernels: as for `MiniBERT`.
        heads: the heads to load.
        labels: the classes of a new classifier.
        seed: of a new classifier, and of dropout.

    Raises:
        TrainingError: the folder is missing or has no model; the model lacks the masked-language-model head or the
            labels of a classifier, and the head is asked for; the vocabulary is missing or belongs to another model.
        BackendError: this machine does not have the device.
    """
    if not folder.is_dir():
        raise TrainingError(f"there is no folder {folder}; give the output folder of a finished run")
    if not (folder / "config.json").exists() and (folder / "checkpoints").is_dir():
        raise TrainingError(
            f"the run in {folder} is not finished: it has checkpoints but no model yet. Continue it with "
            f"scripts/train.py --output {folder} --resume"
        )
    with explained(), warnings.catch_warnings():
        # without the head for masked words there is an error below, so the warning that it is random says too much
        warnings.filterwarnings("ignore", message=".* has no masked-language-model head", category=PretrainedWarning)
        tokenizer = Tokenizer.load(folder)
        model = MiniBERT.from_pretrained(
            folder, device=device, dtype=dtype, kernels=kernels, heads=heads, labels=labels, seed=seed
        )
    _check_vocabulary(folder, model, tokenizer)
    if "mlm" in model.absent_heads:
        raise TrainingError(
            f"the model in {folder} has no masked-language-model head: it can embed texts, but not predict words"
        )
    return model, tokenizer


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
