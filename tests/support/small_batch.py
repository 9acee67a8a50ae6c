"""A small training batch with padding, masked positions and next-sentence labels, for any device."""

from __future__ import annotations

import numpy as np

from minibert.data.batch_source import Batch

B, T, V = 3, 12, 50


def small_batch(step: int, *, padded: bool = True) -> Batch:
    """Return the batch of a step; without `padded`, no sequence is shorter than the others."""
    rng = np.random.default_rng(step)
    mask = np.ones((B, T), dtype=np.int32)
    if padded:
        mask[1, 9:] = 0
    predicted = np.flatnonzero(mask.reshape(-1) * (rng.random(B * T) < 0.3))
    return Batch(
        input_ids=rng.integers(0, V, (B, T)).astype(np.int32),
        attention_mask=mask,
        token_type_ids=np.zeros((B, T), dtype=np.int32),
        prediction_positions=predicted,
        labels=rng.integers(0, V, len(predicted)).astype(np.int32),
        next_sentence_labels=rng.integers(0, 2, B).astype(np.int32),
    )
