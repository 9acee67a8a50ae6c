"""Predict the words that a text hides behind [MASK]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minibert.data.tokenizer import Tokenizer
from minibert.errors import TrainingError
from minibert.inference.finite import check_finite
from minibert.model import MiniBERT
from minibert.ops import stable_softmax


@dataclass(frozen=True)
class Candidate:
    """A candidate for a mask: a token, and the probability that the model gives it."""

    token: str
    probability: float


def fill_mask(model: MiniBERT, tokenizer: Tokenizer, text: str, top: int = 5) -> list[list[Candidate]]:
    """Return the most probable tokens for every [MASK] of a text.

    Args:
        model: a model with a trained masked-language-model head.
        tokenizer: the model's tokenizer.
        text: a text with at least one [MASK]; each is predicted independently of the others.
        top: the number of candidates for each mask.

    Returns:
        For every mask, in the order of the text, a list of candidates, the most probable first.

    Raises:
        TrainingError: the text has no mask or is too long, or `top` is below 1.
        InferenceError: a probability is not finite.
    """
    ids, _ = tokenizer.encode_pair(text)
    mask = tokenizer.special_tokens["mask_token"]
    if tokenizer.mask_id not in ids:
        raise TrainingError(f"there is no {mask} in the text; write {mask} where the model should predict a word")
    longest = model.config.max_position_embeddings
    if len(ids) > longest:
        raise TrainingError(
            f"the text has {len(ids)} tokens, including {tokenizer.special_tokens['cls_token']} and "
            f"{tokenizer.special_tokens['sep_token']}, but this model reads at most {longest}; shorten the text"
        )
    return fill_ids(model, tokenizer, ids, top)


def fill_ids(model: MiniBERT, tokenizer: Tokenizer, ids: Sequence[int], top: int) -> list[list[Candidate]]:
    """Return the same as `fill_mask` for a text that is given as token ids, [CLS] and [SEP] included."""
    if top < 1:
        raise TrainingError(f"the number of candidates must be at least 1, not {top}")
    positions = np.flatnonzero(np.asarray(ids) == tokenizer.mask_id)  # (M,)
    logits, _ = model.forward([list(ids)], prediction_positions=positions, next_sentence=False)  # (M, V)
    # a table of embeddings that was rounded up has rows at the end that belong to no token
    probabilities = model.backend.to_numpy(stable_softmax(logits[:, : tokenizer.vocab_size]))
    check_finite(probabilities, "a probability", [f"token {position + 1} of the text" for position in positions])
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]  # (M, top)
    tokens = tokenizer.tokens()
    return [
        [Candidate(tokens[id_], float(row[id_])) for id_ in chosen]
        for row, chosen in zip(probabilities, best.tolist(), strict=True)
    ]
