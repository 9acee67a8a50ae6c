"""A few sentences that the model has never seen, each with a word hidden, to look at after the training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minibert.data.token_file import TokenSplit
from minibert.data.tokenizer import Tokenizer
from minibert.inference.fill_mask import Candidate, fill_ids
from minibert.model import MiniBERT

_SHORTEST, _LONGEST = 8, 24  # tokens: enough context to guess from, few enough for a line
_SHORTEST_WORD = 3


@dataclass(frozen=True)
class Example:
    """A sentence with a mask, the word that stood there, and what the model would put."""

    text: str
    answer: str
    candidates: list[Candidate]


def fill_mask_examples(
    model: MiniBERT, tokenizer: Tokenizer, split: TokenSplit, count: int = 4, top: int = 3
) -> list[Example]:
    """Examples from a split, spread evenly over it; fewer than `count` if it has no more fitting sentences."""
    examples: list[Example] = []
    sentences = split.sentence_offsets.size - 1
    used: set[int] = set()
    for part in range(count):
        for number in range(part * sentences // count, (part + 1) * sentences // count):
            hidden = _hide_word(tokenizer, split, number)
            if hidden is not None and number not in used:
                used.add(number)
                ids, answer = hidden
                (candidates,) = fill_ids(model, tokenizer, [tokenizer.cls_id, *ids, tokenizer.sep_id], top)
                text = tokenizer.decode(ids, skip_special_tokens=False)
                examples.append(Example(text, answer, candidates))
                break
    return examples


def _hide_word(tokenizer: Tokenizer, split: TokenSplit, number: int) -> tuple[list[int], str] | None:
    """A sentence with the word nearest to its middle hidden, and the word; None if the sentence does not do."""
    start, stop = split.sentence_offsets[number : number + 2]
    ids = split.tokens[start:stop].astype(np.int64)
    if ids.size and ids[-1] == tokenizer.sep_id:  # it ends its document
        ids = ids[:-1]
    if not _SHORTEST <= ids.size <= _LONGEST or tokenizer.is_special[ids].any():
        return None
    continued = np.append(tokenizer.is_continuation[ids[1:]], False)
    whole = np.flatnonzero(~tokenizer.is_continuation[ids] & ~continued)
    for position in sorted(whole.tolist(), key=lambda place: abs(2 * place - ids.size)):
        word = tokenizer.id_to_token(int(ids[position]))
        if len(word) >= _SHORTEST_WORD and word.isalpha():
            ids[position] = tokenizer.mask_id
            return ids.tolist(), word
    return None
