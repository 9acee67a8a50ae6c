"""The oracle: the same BERT in Hugging Face's transformers, loaded from a folder that Mini-BERT wrote."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from minibert import MiniBERT


def in_transformers(model: MiniBERT, folder: Path, kind: str = "BertForPreTraining") -> Any:
    """Save a model and load it into transformers; a warning from transformers is an error."""
    model.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs, info = getattr(transformers, kind).from_pretrained(
            folder, attn_implementation="eager", output_loading_info=True, dtype=torch.float64
        )
    assert not any(info.values()), info  # nothing missing, unexpected, mismatched
    dtype = torch.float64 if model.dtype == np.float64 else torch.float32
    return theirs.to(dtype).eval()
