"""Let a model fill in hidden words of held-out sentences, as examples to look at after the training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minibert.data.token_file import TokenSplit
from minibert.data.tokenizer import Tokenizer
from minibert.inference.fill_mask import Candidate, fill_ids
from minibert.model import MiniBERT

_SHORTEST, _LONGEST = 8, 24  # tokens in a sentence: enough context to guess from, few enough for a line
_SHORTEST_WORD = 3  # letters


@dataclass(frozen=True)
class Example:
    """A sentence with one hidden word.

    Attributes:
        text: the sentence, with [MASK] in the place of the word.
        answer: the hidden word.
        candidates: the model's candidates for the word, the likeliest first.
    """

    text: str
    answer: str
    candidates: list[Candidate]


def fill_mask_examples(
    model: MiniBERT, tokenizer: Tokenizer, split: TokenSplit, count: int = 4, top: int = 3
) -> list[Example]:
    """Choose sentences of a split, hide a word in each, and let the model fill it in.

    Args:
        model: a model with a masked-language-model head.
        tokenizer: the model's vocabulary.
        split: the text, usually the held-out part. The sentences are spread evenly over it.
        count: how many examples to make; there are fewer if the split has too few suitable sentences.
        top: how many candidates to give for each.
    """
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
    """Hide the word nearest to the middle of a sentence.

    Args:
        tokenizer: the vocabulary.
        split: the text.
        number: the number of the sentence in the split.

    Returns:
        The ids of the sentence with the mask, and the hidden word. None if the sentence is too short, too long or has
        no suitable word: a word of letters only that is one token.
    """
    start, stop = split.sentence_offsets[number : number + 2]
    ids = split.tokens[start:stop].astype(np.int64)
    if ids.size and ids[-1] == tokenizer.sep_id:  # the last sentence of its document
        ids = ids[:-1]
    if not _SHORTEST <= ids.size <= _LONGEST or tokenizer.is_special[ids].any():
        return None
    continued = np.append(tokenizer.is_continuation[ids[1:]], False)
    whole_words = np.flatnonzero(~tokenizer.is_continuation[ids] & ~continued)
    for position in sorted(whole_words.tolist(), key=lambda place: abs(2 * place - ids.size)):
        word = tokenizer.id_to_token(int(ids[position]))
        if len(word) >= _SHORTEST_WORD and word.isalpha():
            ids[position] = tokenizer.mask_id
            return ids.tolist(), word
    return None
