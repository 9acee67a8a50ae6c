"""A trained model and its vocabulary from a folder, with the checks that belong to both together."""

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

_LARGEST_PADDING = 128  # tables of embeddings are rounded up to a multiple of at most this


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
    """The model and the tokenizer of an output folder, or of any folder in Hugging Face's format.

    Args:
        folder: with config.json, model.safetensors and vocab.txt or tokenizer.json.
        device: where to compute.
        dtype: to compute in.
        kernels: see `MiniBERT`.
        heads: what is needed on the encoder; only that is read.
        labels: the classes of a new classifier.
        seed: of a new classifier, and of dropout.

    Raises:
        TrainingError: no such folder, no model, no trained head for masked words or classes where one is asked
            for, no vocabulary, or one that does not belong to the model.
        BackendError: a device that this machine does not have.
    """
    if not folder.is_dir():
        raise TrainingError(f"there is no folder {folder}; give the --output of a finished run")
    if not (folder / "config.json").exists() and (folder / "checkpoints").is_dir():
        raise TrainingError(
            f"the run in {folder} is not finished: it has checkpoints but no model yet. Continue it with "
            f"scripts/train.py --output {folder} --resume"
        )
    with explained(), warnings.catch_warnings():
        # a missing head for masked words is an error below, not a head drawn at random
        warnings.filterwarnings("ignore", message=".* has no masked-language-model head", category=PretrainedWarning)
        tokenizer = Tokenizer.load(folder)
        model = MiniBERT.from_pretrained(
            folder, device=device, dtype=dtype, kernels=kernels, heads=heads, labels=labels, seed=seed
        )
    surplus = model.config.vocab_size - tokenizer.vocab_size
    if not 0 <= surplus < _LARGEST_PADDING:
        raise TrainingError(
            f"the vocabulary in {folder} has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}: "
            "they do not belong together"
        )
    if "mlm" in model.absent_heads:
        raise TrainingError(
            f"the model in {folder} has no masked-language-model head: it can embed texts, but not predict words"
        )
    return model, tokenizer
