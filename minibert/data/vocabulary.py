"""Train a WordPiece vocabulary that is the same on every run; needed once for each new corpus.

The `tokenizers` library counts pairs of word pieces and merges the most frequent pair, as was done for BERT's
vocabularies (Wu et al., "Google's neural machine translation system", 2016, section 4.1). Among equally
frequent pairs it prefers the one with smaller ids, and it numbers the pieces `##a`, `##b`, ... in the order of
a hash table, which differs from run to run. Here every piece of one character gets its id beforehand, in the
order of the characters. Then ids and merges are the same every time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from minibert.data.tokenizer import CONTINUATION, SPECIAL_TOKENS, Tokenizer, build_wordpiece
from minibert.errors import DataError
from minibert.random_bits import Stream, derive_key, random_bits

# Training reads at most this much text, about four seconds of work on two cores; a larger corpus is sampled evenly.
SAMPLE_CHARACTERS = 1 << 24
_BLOCK_CHARACTERS = 1 << 14  # a document is sampled in blocks of at most this length
_LARGEST_ALPHABET = 1000  # as in the `tokenizers` library's own BERT recipe; rarer characters become [UNK]


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    lowercase: bool = True,
    *,
    sample_characters: int = SAMPLE_CHARACTERS,
) -> Tokenizer:
    """Train a WordPiece vocabulary on some texts; the same texts give the same vocabulary and ids.

    Args:
        texts: documents; read once, with bounded memory.
        vocab_size: V, the number of tokens including `[PAD] [UNK] [CLS] [SEP] [MASK]`, which get the ids 0 to 4. A
            small corpus may not have enough different word pieces; then the vocabulary is smaller.
        lowercase: make all text lower case and drop accents, as the uncased BERT models do.
        sample_characters: a longer text is sampled evenly, in the same way on every run.

    Raises:
        DataError: there is no text, or `vocab_size` has no room for the special tokens and one character.
    """
    smallest = len(SPECIAL_TOKENS) + 2
    if vocab_size < smallest:
        raise DataError(
            f"a vocabulary of {vocab_size} tokens is too small: it must hold {len(SPECIAL_TOKENS)} special tokens and "
            f"the characters of the text; ask for at least {smallest}, or better for 1,000 or more"
        )
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    sample = [normalizer.normalize_str(block) for block in _draw_sample(texts, sample_characters)]
    pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet, continuing = _choose_alphabet(sample, pre_tokenizer, vocab_size - len(SPECIAL_TOKENS))
    if not alphabet:
        raise DataError("there is no text to make a vocabulary from; give a corpus with words in it")
    # The trainer gives its special tokens the first ids in the given order, but not the characters of its alphabet.
    # So the characters are passed as special tokens, too.
    fixed = [*SPECIAL_TOKENS.values(), *alphabet, *(CONTINUATION + character for character in continuing)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=fixed,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk_token"]))
    learner.pre_tokenizer = pre_tokenizer
    learner.train_from_iterator(sample, trainer, length=len(sample))
    return Tokenizer(build_wordpiece(learner.get_vocab(), {"do_lower_case": lowercase}))


def _draw_sample(texts: Iterable[str], limit: int) -> list[str]:
    """Return the texts in blocks: all blocks, or an even sample of at most `limit` characters.

    Every block has a fixed random number. Blocks whose number is above a threshold are dropped, and the
    threshold is halved whenever the kept blocks grow too long. So memory is bounded, and every part of the
    corpus has the same chance.
    """
    kept: list[tuple[int, str]] = []
    characters, threshold = 0, 1 << 32
    for draw, block in zip(_draw_numbers(), _cut_blocks(texts), strict=False):
        if draw >= threshold:
            continue
        kept.append((draw, block))
        characters += len(block)
        while characters > limit and len(kept) > 1:
            threshold >>= 1
            kept = [(draw, block) for draw, block in kept if draw < threshold] or kept[:1]
            characters = sum(len(block) for _, block in kept)
    return [block for _, block in kept]


def _draw_numbers() -> Iterator[int]:
    """Yield 32-bit random numbers without end; they are the same on every run."""
    key = derive_key(0, Stream.SPLIT, 1)
    for start in count(0, 1024):
        yield from random_bits(np.arange(start, start + 1024).astype(np.uint32), key).tolist()


def _cut_blocks(texts: Iterable[str]) -> Iterator[str]:
    """Yield each text in blocks of at most `_BLOCK_CHARACTERS`, cut at a space if there is one."""
    for text in texts:
        start = 0
        while len(text) - start > _BLOCK_CHARACTERS:
            space = text.rfind(" ", start + 1, start + _BLOCK_CHARACTERS)  # a word must not be cut in two
            cut = space if space > 0 else start + _BLOCK_CHARACTERS
            yield text[start:cut]
            start = cut
        yield text[start:]


def _choose_alphabet(
    sample: list[str], pre_tokenizer: pre_tokenizers.PreTokenizer, room: int
) -> tuple[list[str], list[str]]:
    """Return (the most frequent characters, sorted; those of them that can continue a word).

    Args:
        sample: the text.
        pre_tokenizer: tells which characters are words of their own.
        room: how many tokens of the vocabulary are free.
    """
    counts = np.zeros(0x110000, dtype=np.int64)
    for block in sample:
        found = np.bincount(np.frombuffer(block.encode("utf-32-le"), dtype="<u4"))
        counts[: found.size] += found
    codes = np.flatnonzero(counts)
    by_frequency = [chr(code) for code in codes[np.argsort(-counts[codes], kind="stable")]]
    characters = [character for character in by_frequency if not character.isspace()]
    # Each character needs a token as the start of a word and one as its continuation; both must fit.
    characters = sorted(characters[: max(1, min(_LARGEST_ALPHABET, room // 2))])
    # Punctuation marks and ideographs are words of their own, so they never continue a word.
    continuing = [character for character in characters if len(pre_tokenizer.pre_tokenize_str("a" + character)) == 1]
    return characters, continuing
