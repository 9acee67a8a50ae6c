"""Sequences for the model: packed sequences are full, and next-sentence pairs follow each other or do not."""

from itertools import pairwise

import numpy as np
import pytest

from minibert.data.sequences import PackedSequences, PairedSequences
from minibert.data.token_file import TokenSplit
from minibert.data.tokenizer import Tokenizer, build_wordpiece
from minibert.errors import DataError
from minibert.random_bits import Stream, derive_key

# Every word names its place: "3.17" is word 17 of document 3.
DOCUMENTS, WORDS = 40, 100
TOKENS = ["[CLS]", "[SEP]", "[PAD]", *(f"{d}.{w}" for d in range(DOCUMENTS) for w in range(WORDS)), "[UNK]", "[MASK]"]
KEY = derive_key(0, Stream.PAIRING, 0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(build_wordpiece({token: id_ for id_, token in enumerate(TOKENS)}))


def make_split(lengths_of_documents, tokenizer):
    """A split of documents, each given as the list of the lengths of its sentences."""
    tokens, documents, sentences = [], [0], []
    for document, lengths in enumerate(lengths_of_documents):
        word = 0
        for length in lengths:
            sentences.append(len(tokens))
            tokens += [3 + document * WORDS + word + n for n in range(length)]
            word += length
        tokens.append(tokenizer.sep_id)
        documents.append(len(tokens))
    sentences.append(len(tokens))
    return TokenSplit(np.asarray(tokens, np.uint16), np.asarray(documents), np.asarray(sentences))


@pytest.fixture(scope="module")
def split(tokenizer):
    """40 documents of 1 to 12 sentences of 1 to 8 words."""
    generator = np.random.default_rng(0)
    return make_split([generator.integers(1, 9, size=1 + n % 12).tolist() for n in range(DOCUMENTS)], tokenizer)


def place(id_):
    """(document, word) of an id."""
    return divmod(int(id_) - 3, WORDS)


def pairs(sequences, key=KEY, indices=None):
    """Segment A, segment B and label of every pair, read back from the arrays."""
    examples = sequences.read_examples(np.arange(len(sequences)) if indices is None else np.asarray(indices), key)
    for ids, mask, types, label in zip(
        examples.input_ids,
        examples.attention_mask,
        examples.token_type_ids,
        examples.next_sentence_labels,
        strict=True,
    ):
        length = mask.sum()
        second = types.argmax()
        yield ids[1 : second - 1].tolist(), ids[second : length - 1].tolist(), int(label)


def test_packed_sequences_are_full_and_read_on_where_the_last_one_ended(split, tokenizer):
    sequences = PackedSequences(split, tokenizer, 16)
    rows = sequences.read_rows(np.arange(len(sequences)))
    assert rows.dtype == np.int32
    assert rows.shape == (split.number_of_tokens // 14, 16)
    assert (rows[:, 0] == tokenizer.cls_id).all()
    assert (rows[:, -1] == tokenizer.sep_id).all()
    text = rows[:, 1:-1].reshape(-1)
    assert np.array_equal(text, split.tokens[: text.size])
    assert tokenizer.sep_id in text


def test_packed_sequences_can_be_asked_for_in_any_order(split, tokenizer):
    sequences = PackedSequences(split, tokenizer, 16)
    rows = sequences.read_rows(np.arange(len(sequences)))
    assert np.array_equal(sequences.read_rows(np.asarray([5, 0, 5])), rows[[5, 0, 5]])
    examples = sequences.read_examples(np.asarray([3]), KEY)
    assert np.array_equal(examples.input_ids, rows[[3]])
    assert examples.attention_mask is examples.token_type_ids is examples.next_sentence_labels is None


def test_a_pair_is_cls_a_sep_b_sep_and_padding(split, tokenizer):
    sequences = PairedSequences(split, tokenizer, 24)
    examples = sequences.read_examples(np.arange(len(sequences)), KEY)
    arrays = (examples.input_ids, examples.attention_mask, examples.token_type_ids)
    assert all(array.shape == (len(sequences), 24) and array.dtype == np.int32 for array in arrays)
    for ids, mask, types in zip(*arrays, strict=True):
        length = mask.sum()
        assert (np.sort(mask)[::-1] == mask).all()
        assert (ids[length:] == tokenizer.pad_id).all()
        assert ids[0] == tokenizer.cls_id
        separators = np.flatnonzero(ids == tokenizer.sep_id)
        assert separators.tolist() == [types.argmax() - 1, length - 1]
        assert types.tolist() == [0] * (separators[0] + 1) + [1] * (separators[1] - separators[0]) + [0] * (24 - length)


def test_the_next_sentence_is_next_and_a_random_one_is_from_another_document(split, tokenizer):
    starts = {place(split.tokens[offset]) for offset in split.sentence_offsets[:-1]}
    found = 0
    for epoch in range(30):
        for a, b, label in pairs(PairedSequences(split, tokenizer, 24), derive_key(0, Stream.PAIRING, epoch)):
            for segment in (a, b):
                assert segment
                assert all(y - x == 1 for x, y in pairwise(segment))  # one stretch of one document
            (document_a, _), (document_b, word_b) = place(a[0]), place(b[0])
            if label == 0:
                assert b[0] == a[-1] + 1
                assert document_a == document_b
            else:
                assert document_a != document_b
                assert (document_b, word_b) in starts
                found += 1
    assert found > 500


def test_half_of_the_pairs_are_random(split, tokenizer):
    sequences = PairedSequences(split, tokenizer, 24)
    keys = [derive_key(0, Stream.PAIRING, epoch) for epoch in range(100)]
    labels = [label for key in keys for _, _, label in pairs(sequences, key)]
    assert len(labels) > 5000
    # Documents of one word, which nothing can follow, are the only ones that tip the balance.
    assert abs(np.mean(labels) - 0.5) < 5 * 0.5 / np.sqrt(len(labels)) + 0.01


def test_a_segment_ends_with_a_sentence_unless_there_is_only_one(split, tokenizer):
    ends = {place(split.tokens[offset - 1]) for offset in split.sentence_offsets[1:-1]}
    ends |= {place(split.tokens[offset - 2]) for offset in split.document_offsets[1:]}
    single = {number for number in range(DOCUMENTS) if number % 12 == 0}
    for a, _, _ in pairs(PairedSequences(split, tokenizer, 24, short_probability=0)):
        assert place(a[-1]) in ends or place(a[0])[0] in single


def test_long_pairs_fill_the_sequence_and_some_are_short_on_purpose(tokenizer):
    split = make_split([[7] * 14] * DOCUMENTS, tokenizer)
    lengths = {}
    for probability in (0.0, 0.1):
        sequences = PairedSequences(split, tokenizer, 24, probability)
        keys = [derive_key(0, Stream.PAIRING, epoch) for epoch in range(20)]
        lengths[probability] = np.asarray([len(a) + len(b) for key in keys for a, b, _ in pairs(sequences, key)])
    assert lengths[0.0].max() == lengths[0.1].max() == 21
    assert lengths[0.1].min() < 6
    assert (lengths[0.0] == 21).mean() > 0.6  # the others stand at the end of a document
    short = (lengths[0.1] < 21).mean() - (lengths[0.0] < 21).mean()
    assert 0.03 < short < 0.1


def test_a_pair_depends_on_its_number_and_the_key_only(split, tokenizer):
    sequences = PairedSequences(split, tokenizer, 24)
    whole = list(pairs(sequences))
    order = np.random.default_rng(0).permutation(len(sequences))
    assert list(pairs(sequences, indices=order)) == [whole[index] for index in order]
    assert list(pairs(sequences, derive_key(0, Stream.PAIRING, 1))) != whole


def test_every_part_of_the_text_is_read_in_the_course_of_some_epochs(split, tokenizer):
    sequences = PairedSequences(split, tokenizer, 24)
    seen = set()
    for epoch in range(40):
        for a, b, _ in pairs(sequences, derive_key(0, Stream.PAIRING, epoch)):
            seen.update(a, b)
    words = set(split.tokens.tolist()) - {tokenizer.sep_id}
    assert len(seen) > 0.99 * len(words)


def test_a_document_of_one_word_is_followed_by_a_random_one(tokenizer):
    split = make_split([[1], [1], [1], [1], [1], [1]], tokenizer)
    for a, b, label in pairs(PairedSequences(split, tokenizer, 8)):
        assert (len(a), len(b), label) == (1, 1, 1)
        assert a != b


def test_a_sentence_longer_than_the_sequence_is_cut(tokenizer):
    split = make_split([[60, 40], [100]], tokenizer)
    sequences = PairedSequences(split, tokenizer, 12)
    for a, b, label in pairs(sequences):
        assert len(a) + len(b) <= 9
        assert label == 1 or b[0] == a[-1] + 1


def test_too_little_text_or_too_short_sequences_are_errors(split, tokenizer):
    tiny = make_split([[3], [2]], tokenizer)
    with pytest.raises(DataError, match="7 tokens of text are not enough for one sequence of 32"):
        PackedSequences(tiny, tokenizer, 32)
    with pytest.raises(DataError, match="7 tokens of text are not enough for one sequence of 32"):
        PairedSequences(tiny, tokenizer, 32)
    with pytest.raises(DataError, match="from another document, and the text is a single one"):
        PairedSequences(make_split([[9] * 9], tokenizer), tokenizer, 16)
    with pytest.raises(DataError, match="at least 3 tokens, not 2"):
        PackedSequences(split, tokenizer, 2)
    with pytest.raises(DataError, match="at least 5 tokens, not 4"):
        PairedSequences(split, tokenizer, 4)
    assert len(PackedSequences(split, tokenizer, 3)) == split.number_of_tokens
    assert all(len(a) == len(b) == 1 for a, b, _ in pairs(PairedSequences(split, tokenizer, 5)))
