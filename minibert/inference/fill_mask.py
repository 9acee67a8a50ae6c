"""What a model puts in the place of [MASK]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minibert.data.tokenizer import Tokenizer
from minibert.errors import TrainingError
from minibert.model import MiniBERT
from minibert.ops import stable_softmax


@dataclass(frozen=True)
class Candidate:
    """A token that could stand at a mask, and how probable the model finds it."""

    token: str
    probability: float


def fill_mask(model: MiniBERT, tokenizer: Tokenizer, text: str, top: int = 5) -> list[list[Candidate]]:
    """The likeliest tokens for every [MASK] of a text.

    Args:
        model: with a trained masked-language-model head.
        tokenizer: of that model.
        text: with one [MASK] or more; they are filled independently of each other.
        top: how many candidates.

    Returns:
        For every mask, in the order of the text, its candidates, the likeliest first.

    Raises:
        TrainingError: no mask, too long a text, a number of candidates below 1.
    """
    ids, _ = tokenizer.encode_pair(text)
    mask = tokenizer.special_tokens["mask_token"]
    if tokenizer.mask_id not in ids:
        raise TrainingError(f"there is no {mask} in the text; write it where a word is to be guessed")
    longest = model.config.max_position_embeddings
    if len(ids) > longest:
        raise TrainingError(
            f"the text has {len(ids)} tokens, with {tokenizer.special_tokens['cls_token']} and "
            f"{tokenizer.special_tokens['sep_token']}, and this model takes {longest}; shorten it"
        )
    return fill_ids(model, tokenizer, ids, top)


def fill_ids(model: MiniBERT, tokenizer: Tokenizer, ids: Sequence[int], top: int) -> list[list[Candidate]]:
    """As `fill_mask`, of a text that is tokens already, [CLS] and [SEP] included."""
    if top < 1:
        raise TrainingError(f"the number of candidates must be at least 1, not {top}")
    positions = np.flatnonzero(np.asarray(ids) == tokenizer.mask_id)  # (M,)
    logits, _ = model.forward([list(ids)], prediction_positions=positions, next_sentence=False)  # (M, V)
    # A table of embeddings that was rounded up has rows that no token belongs to.
    probabilities = model.backend.to_numpy(stable_softmax(logits[:, : tokenizer.vocab_size]))
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]  # (M, top)
    tokens = tokenizer.tokens()
    return [
        [Candidate(tokens[id_], float(row[id_])) for id_ in chosen]
        for row, chosen in zip(probabilities, best.tolist(), strict=True)
    ]
