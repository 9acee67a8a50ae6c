"""Masked language modelling: 15% of the tokens are predicted, 80/10/10, whole words, the same in every batch."""

from math import log

import numpy as np
import pytest
import tokenizers

from minibert.data.masking import MaskingRule, mask_tokens, unigram_cross_entropy
from minibert.data.tokenizer import Tokenizer, build_wordpiece
from minibert.random_bits import Stream

# Special tokens stand anywhere, and [MASK] is not 4: nothing may be assumed about ids.
TOKENS = ["[PAD]", "a", "[UNK]", "##x", "[CLS]", "##y", "[SEP]", *(f"w{n}" for n in range(192)), "[MASK]"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    backend = build_wordpiece({token: id_ for id_, token in enumerate(TOKENS)})
    assert isinstance(backend, tokenizers.Tokenizer)
    return Tokenizer(backend)


@pytest.fixture(scope="module")
def text(tokenizer):
    """(64, 128) random text: [CLS], pieces of which a third continue a word, [SEP], padding in every fourth row."""
    generator = np.random.default_rng(0)
    ids = generator.choice(tokenizer.ordinary_ids[3:], size=(64, 128)).astype(np.int32)
    continuation = generator.random(ids.shape) < 1 / 3
    ids[continuation] = generator.choice(np.flatnonzero(tokenizer.is_continuation), size=continuation.sum())
    ids[:, 0], ids[:, -1] = tokenizer.cls_id, tokenizer.sep_id
    ids[::4, 50], ids[::4, 51:] = tokenizer.sep_id, tokenizer.pad_id
    return ids


def mask(ids, tokenizer, rule=None, numbers=None, **options):
    numbers = np.arange(len(ids)) if numbers is None else np.asarray(numbers)
    return mask_tokens(ids, numbers, rule or MaskingRule(), tokenizer, **{"seed": 0, **options})


def per_row(positions, shape):
    return np.bincount(positions // shape[1], minlength=shape[0])


def within_binomial_bounds(count, total, probability):
    return abs(count - total * probability) < 5 * np.sqrt(total * probability * (1 - probability))


def test_masking_selects_fifteen_percent_of_every_sequence_exactly(tokenizer, text):
    _, positions, _ = mask(text, tokenizer)
    maskable = (~tokenizer.is_special[text]).sum(axis=1)
    expected = [max(1, round(0.15 * count)) for count in maskable.tolist()]
    assert per_row(positions, text.shape).tolist() == expected
    assert set(expected) == {round(0.15 * 126), round(0.15 * 49)}


def test_labels_are_the_hidden_tokens_and_everything_else_stays(tokenizer, text):
    before = text.copy()
    masked, positions, labels = mask(text, tokenizer)
    assert (masked.dtype, positions.dtype, labels.dtype) == (np.int32, np.int64, np.int32)
    assert np.array_equal(labels, text.reshape(-1)[positions])
    assert (np.diff(positions) > 0).all()
    others = np.setdiff1d(np.arange(text.size), positions)
    assert np.array_equal(masked.reshape(-1)[others], text.reshape(-1)[others])
    assert np.array_equal(text, before)


def test_of_the_predicted_tokens_80_percent_are_masked_10_random_and_10_kept(tokenizer, text):
    masked_count = kept = total = 0
    for epoch in range(20):
        masked, positions, labels = mask(text, tokenizer, epoch=epoch)
        seen = masked.reshape(-1)[positions]
        masked_count += (seen == tokenizer.mask_id).sum()
        kept += (seen == labels).sum()
        total += labels.size
    assert total > 20_000
    assert within_binomial_bounds(masked_count, total, 0.8)
    # About one random token in 192 equals the old token; the expected share includes it.
    assert within_binomial_bounds(kept, total, 0.1 + 0.1 / tokenizer.ordinary_ids.size)


def test_a_rule_may_mask_everything_or_nothing(tokenizer, text):
    masked, positions, labels = mask(text, tokenizer, MaskingRule(mask_fraction=1, random_fraction=0))
    assert (masked.reshape(-1)[positions] == tokenizer.mask_id).all()
    masked, positions, labels = mask(text, tokenizer, MaskingRule(mask_fraction=0, random_fraction=0))
    assert labels.size
    assert np.array_equal(masked, text)


def test_random_replacements_are_any_token_that_is_not_special(tokenizer, text):
    rule = MaskingRule(probability=1.0, mask_fraction=0, random_fraction=1.0)
    masked, positions, _ = mask(text, tokenizer, rule)
    seen, counts = np.unique(masked.reshape(-1)[positions], return_counts=True)
    assert np.array_equal(seen, tokenizer.ordinary_ids)
    expected = positions.size / seen.size
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_special_tokens_are_never_predicted(tokenizer, text):
    _, positions, labels = mask(text, tokenizer, MaskingRule(probability=1.0))
    assert not tokenizer.is_special[labels].any()
    assert positions.size == (~tokenizer.is_special[text]).sum()


def test_a_sequence_with_nothing_to_mask_has_no_predictions(tokenizer, text):
    text = text.copy()
    text[3, 1:] = tokenizer.pad_id
    for rule in (MaskingRule(), MaskingRule(whole_word=True)):
        masked, positions, _ = mask(text, tokenizer, rule)
        assert per_row(positions, text.shape)[3] == 0
        assert np.array_equal(masked[3], text[3])
        assert mask(text[3:4], tokenizer, rule)[1].size == 0


def test_a_sequence_with_one_word_has_one_prediction(tokenizer):
    text = np.asarray([[tokenizer.cls_id, tokenizer.token_to_id("w7"), tokenizer.sep_id]], dtype=np.int32)
    _, positions, labels = mask(text, tokenizer)
    assert positions.tolist() == [1]
    assert labels.tolist() == [tokenizer.token_to_id("w7")]


@pytest.mark.parametrize("whole_word", [False, True])
def test_a_sequence_is_masked_alike_in_every_batch(tokenizer, text, whole_word):
    rule = MaskingRule(whole_word=whole_word)
    numbers = np.arange(64) * 1_000_003 + 5
    masked, positions, labels = mask(text, tokenizer, rule, numbers)
    order = np.random.default_rng(1).permutation(64)
    again, positions_again, labels_again = mask(text[order], tokenizer, rule, numbers[order])
    assert np.array_equal(again, masked[order])
    for place, row in enumerate(order[:5]):
        here, there = positions_again // 128 == place, positions // 128 == row
        assert np.array_equal(positions_again[here] % 128, positions[there] % 128)
        assert np.array_equal(labels_again[here], labels[there])


def test_epoch_seed_and_stream_each_change_what_is_hidden(tokenizer, text):
    first = mask(text, tokenizer)[1]
    assert np.array_equal(first, mask(text, tokenizer)[1])
    for options in ({"epoch": 1}, {"seed": 1}, {"stream": Stream.EVALUATION}):
        # 15% of 15% are hidden both times by chance.
        assert np.isin(mask(text, tokenizer, **options)[1], first).mean() < 0.25


def test_every_position_is_hidden_equally_often(tokenizer, text):
    counts = np.zeros(text.shape[1], dtype=int)
    text = np.tile(text[1], (2000, 1))
    np.add.at(counts, mask(text, tokenizer)[1] % 128, 1)
    share = 19 / 126
    assert (np.abs(counts[1:-1] - 2000 * share) < 5 * np.sqrt(2000 * share * (1 - share))).all()


def words_of(ids, tokenizer):
    """Return the words of a row as lists of columns, found one token at a time."""
    words = []
    for column, id_ in enumerate(ids.tolist()):
        if tokenizer.is_special[id_]:
            continue
        if tokenizer.is_continuation[id_] and words and words[-1][-1] == column - 1:
            words[-1].append(column)
        else:
            words.append([column])
    return words


def test_whole_word_masking_hides_all_pieces_of_a_word_or_none(tokenizer, text):
    _, positions, _ = mask(text, tokenizer, MaskingRule(whole_word=True))
    some_long = 0
    for row, ids in enumerate(text):
        hidden = set((positions[positions // 128 == row] % 128).tolist())
        for word in words_of(ids, tokenizer):
            assert len(hidden & set(word)) in {0, len(word)}
            some_long += len(word) > 1 and word[0] in hidden
        maskable = int((~tokenizer.is_special[ids]).sum())
        # Short words are plentiful here, so the number is met exactly.
        assert len(hidden) == round(0.15 * maskable)
    assert some_long > 100


def test_a_word_too_long_for_the_number_of_predictions_is_hidden_only_when_there_is_no_other(tokenizer):
    w, x = tokenizer.token_to_id("w1"), tokenizer.token_to_id("##x")
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    # 10 maskable tokens, 2 predictions: the word of 8 never fits, the two words of one do.
    text = np.asarray([[cls, w, *[x] * 7, w, w, sep]] * 50, dtype=np.int32)
    _, positions, _ = mask(text, tokenizer, MaskingRule(whole_word=True))
    assert np.array_equal(positions % 12, [9, 10] * 50)
    # 7 maskable tokens, 1 prediction, words of 4 and 3 pieces: the shorter one is hidden.
    text = np.asarray([[cls, w, x, x, x, w, x, x, sep]], dtype=np.int32)
    _, positions, _ = mask(text, tokenizer, MaskingRule(whole_word=True))
    assert positions.tolist() == [5, 6, 7]


def test_a_window_that_begins_inside_a_word_treats_the_rest_as_a_word(tokenizer):
    w, x = tokenizer.token_to_id("w1"), tokenizer.token_to_id("##x")
    text = np.asarray([[tokenizer.cls_id, x, x, w, tokenizer.sep_id]] * 200, dtype=np.int32)
    _, positions, _ = mask(text, tokenizer, MaskingRule(probability=0.67, whole_word=True))
    hidden = {tuple((positions[positions // 5 == row] % 5).tolist()) for row in range(200)}
    assert hidden == {(1, 2), (3,)}


def test_the_number_of_predictions_can_be_limited(tokenizer, text):
    _, positions, _ = mask(text, tokenizer, MaskingRule(max_predictions=10))
    assert set(per_row(positions, text.shape).tolist()) == {7, 10}


@pytest.mark.parametrize(
    "options",
    [
        {"probability": 0},
        {"probability": 1.1},
        {"mask_fraction": -0.1},
        {"mask_fraction": 0.8, "random_fraction": 0.3},
        {"max_predictions": 0},
    ],
)
def test_an_impossible_rule_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))[:4]):
        MaskingRule(**options)


def test_the_unigram_baseline_is_the_mean_surprise_at_the_smoothed_frequencies():
    counts = np.asarray([0, 3, 1, 0])
    expected = -(2 * log(4 / 8) + log(1 / 8)) / 3
    assert unigram_cross_entropy(counts, np.asarray([1, 3, 1])) == pytest.approx(expected, rel=1e-12)
    assert unigram_cross_entropy(np.zeros(50), np.asarray([7])) == pytest.approx(log(50))
    with pytest.raises(ValueError, match="no labels"):
        unigram_cross_entropy(counts, np.asarray([], dtype=np.int32))
