"""Batches: a pure function of the step, the same in any split, and always the same for evaluation."""

import tracemalloc

import numpy as np
import pytest

from minibert.data.batch_source import (
    Batch,
    BatchSource,
    build_batch_source,
    build_sequences,
    evaluation_batches,
)
from minibert.data.corpus import open_corpus
from minibert.data.masking import MaskingRule
from minibert.data.sequences import PackedSequences
from minibert.data.token_file import prepare_tokens
from minibert.data.vocabulary import train_tokenizer
from minibert.errors import DataError

OBJECTIVES = ("mlm", "mlm+nsp")


def write_corpus(path, documents):
    generator = np.random.default_rng(0)
    words = np.asarray([f"w{number:x}" for number in range(400)])
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(documents):
            for line in generator.integers(0, 400, size=(12, 14)):
                file.write(" ".join(words[line]) + ".\n")
            file.write("\n")
    return open_corpus([str(path)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(tokenized corpus, tokenizer) of 300 documents."""
    folder = tmp_path_factory.mktemp("batches")
    corpus = write_corpus(folder / "corpus.txt", 300)
    tokenizer = train_tokenizer((document.text for document in corpus), 300)
    return prepare_tokens(corpus, tokenizer, folder, evaluation_fraction=0.05), tokenizer


@pytest.fixture(params=OBJECTIVES)
def objective(request):
    return request.param


def make(data, objective, batch_size=8, seed=0, **options):
    tokenized, tokenizer = data
    return build_batch_source(
        objective, tokenized, tokenizer, seq_length=32, batch_size=batch_size, seed=seed, **options
    )


def arrays(batch):
    names = ("input_ids", "attention_mask", "token_type_ids", "next_sentence_labels", "prediction_positions", "labels")
    return {name: getattr(batch, name) for name in names if getattr(batch, name) is not None}


def same(batch, other):
    one, two = arrays(batch), arrays(other)
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def unmasked(batch):
    """(B, T) the text before tokens were hidden: the labels put back."""
    ids = batch.input_ids.copy()
    ids.reshape(-1)[batch.prediction_positions] = batch.labels
    return ids


def test_a_batch_has_the_arrays_of_its_objective(data):
    source, _ = make(data, "mlm")
    batch = source.training_batch(0)
    assert set(arrays(batch)) == {"input_ids", "prediction_positions", "labels"}
    assert (batch.number_of_sequences, batch.number_of_tokens) == (8, 8 * 32)
    assert batch.number_of_predictions == batch.labels.size > 8
    source, _ = make(data, "mlm+nsp")
    batch = source.training_batch(0)
    assert len(arrays(batch)) == 6
    assert batch.number_of_tokens == batch.attention_mask.sum() < 8 * 32
    assert set(source.training_batch(1).next_sentence_labels.tolist()) <= {0, 1}
    for array in arrays(batch).values():
        assert array.dtype == (np.int64 if array is batch.prediction_positions else np.int32)


def test_a_training_batch_is_a_pure_function_of_the_step(data, objective):
    source, _ = make(data, objective)
    in_order = [source.training_batch(step) for step in range(5)]
    resumed, _ = make(data, objective)
    assert same(resumed.training_batch(4), in_order[4])
    assert same(resumed.training_batch(2), in_order[2])
    assert not same(in_order[2], in_order[4])


def test_seed_decides_order_and_masks(data, objective):
    one, _ = make(data, objective, seed=1)
    other, _ = make(data, objective, seed=2)
    assert not np.array_equal(unmasked(one.training_batch(0)), unmasked(other.training_batch(0)))


def test_an_epoch_reads_every_sequence_once_and_the_next_one_in_another_order_with_other_masks(data):
    tokenized, tokenizer = data
    source, _ = make(data, "mlm", batch_size=7)
    sequences = PackedSequences(tokenized.train, tokenizer, 32)
    size = len(sequences)
    expected = {row.tobytes(): number for number, row in enumerate(sequences.read_rows(np.arange(size)))}
    assert len(expected) == size
    assert source.steps_per_epoch == size / 7
    steps = -(-2 * size // 7)
    batches = [source.training_batch(step) for step in range(steps)]
    order = [expected[row.tobytes()] for batch in batches for row in unmasked(batch)]
    assert all(batch.number_of_sequences == 7 for batch in batches)
    first, second = order[:size], order[size : 2 * size]
    assert sorted(first) == sorted(second) == list(range(size))
    assert first != second
    masked = np.concatenate([batch.input_ids for batch in batches])
    hidden_alike = [
        np.array_equal(masked[place], masked[size + second.index(number)]) for place, number in enumerate(first[:100])
    ]
    assert sum(hidden_alike) == 0


def test_a_batch_across_two_epochs_keeps_its_predictions_in_place(data, objective):
    _, tokenizer = data
    source, _ = make(data, objective, batch_size=7)
    size = len(source.train_sequences)
    assert size % 7
    batch = source.training_batch(size // 7)
    assert (np.diff(batch.prediction_positions) > 0).all()
    assert not tokenizer.is_special[batch.labels].any()
    assert (np.bincount(batch.prediction_positions // 32, minlength=7) > 0).all()
    assert (unmasked(batch)[:, 0] == tokenizer.cls_id).all()
    assert tokenizer.mask_id not in unmasked(batch)


def test_fifteen_percent_of_the_text_is_predicted_and_never_a_special_token(data, objective):
    _, tokenizer = data
    source, _ = make(data, objective)
    for step in range(50):
        batch = source.training_batch(step)
        assert not tokenizer.is_special[batch.labels].any()
        ordinary = (~tokenizer.is_special[unmasked(batch)]).sum()
        # Every sequence has a whole number of predictions.
        assert abs(batch.number_of_predictions - 0.15 * ordinary) <= 0.5 * batch.number_of_sequences


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_micro_batches_together_are_the_batch(data, objective, parts):
    source, _ = make(data, objective)
    batch = source.training_batch(3)
    micro = batch.split(parts)
    sizes = [part.number_of_sequences for part in micro]
    assert len(micro) == parts
    assert max(sizes) - min(sizes) <= 1
    assert [part.first_sequence for part in micro] == [sum(sizes[:number]) for number in range(parts)]
    assert sum(part.number_of_tokens for part in micro) == batch.number_of_tokens
    assert sum(part.number_of_predictions for part in micro) == batch.number_of_predictions
    assert np.array_equal(np.concatenate([part.input_ids for part in micro]), batch.input_ids)
    assert np.array_equal(np.concatenate([unmasked(part) for part in micro]), unmasked(batch))
    for name in ("attention_mask", "token_type_ids", "next_sentence_labels"):
        if getattr(batch, name) is not None:
            assert np.array_equal(np.concatenate([getattr(part, name) for part in micro]), getattr(batch, name))
    for part in micro:
        assert part.prediction_positions.max() < part.input_ids.size


def test_a_micro_batch_can_be_split_again(data):
    source, _ = make(data, "mlm")
    batch = source.training_batch(0)
    quarters = batch.split(4)
    again = [part for half in batch.split(2) for part in half.split(2)]
    assert all(same(one, two) for one, two in zip(quarters, again, strict=True))
    assert [part.first_sequence for part in again] == [0, 2, 4, 6]


def test_a_batch_has_no_more_parts_than_sequences(data):
    batch = make(data, "mlm")[0].training_batch(0)
    for parts in (0, 9):
        with pytest.raises(ValueError, match=f"into 1 to 8 parts, not {parts}"):
            batch.split(parts)


def test_a_part_may_have_nothing_to_predict():
    ids = np.asarray([[1, 5, 2], [1, 0, 2]], dtype=np.int32)
    batch = Batch(ids, None, None, np.asarray([1]), np.asarray([5], dtype=np.int32), None)
    first, second = batch.split(2)
    assert (first.number_of_predictions, second.number_of_predictions) == (1, 0)


def test_evaluation_is_frozen_and_does_not_depend_on_seed_or_batch_size(data, objective):
    _, tokenizer = data
    rule = MaskingRule()
    _, held_out = make(data, objective, seed=1)
    _, other_held_out = make(data, objective, seed=2)
    first = list(evaluation_batches(held_out, tokenizer, rule, 8))
    second = list(evaluation_batches(other_held_out, tokenizer, rule, 5))
    third = list(evaluation_batches(held_out, tokenizer, rule, 8))
    assert sum(batch.number_of_sequences for batch in first) == len(held_out)
    for name in ("input_ids", "labels"):
        values = [np.concatenate([getattr(batch, name) for batch in run]) for run in (first, second, third)]
        assert np.array_equal(values[0], values[1])
        assert np.array_equal(values[0], values[2])


def test_a_limited_evaluation_is_spread_over_the_text(data):
    tokenized, tokenizer = data
    held_out = build_sequences("mlm", tokenized.evaluation, tokenizer, 32)
    rule = MaskingRule()
    (batch,) = evaluation_batches(held_out, tokenizer, rule, 8, limit=3)
    size = len(held_out)
    assert np.array_equal(unmasked(batch), held_out.read_rows(np.asarray([0, size // 3, 2 * size // 3])))
    assert sum(b.number_of_sequences for b in evaluation_batches(held_out, tokenizer, rule, 8, limit=10**6)) == size
    for options in ({"batch_size": 0}, {"batch_size": 8, "limit": 0}):
        with pytest.raises(ValueError, match="the batch size and the limit must be at least 1"):
            list(evaluation_batches(held_out, tokenizer, rule, **options))


def test_training_masks_are_not_those_of_the_evaluation(data):
    tokenized, tokenizer = data
    sequences = PackedSequences(tokenized.train, tokenizer, 32)
    source = BatchSource(sequences, MaskingRule(), 8, 0, tokenizer)
    trained = {row.tobytes() for step in range(10) for row in source.training_batch(step).input_ids}
    evaluated = {
        row.tobytes() for b in evaluation_batches(sequences, tokenizer, MaskingRule(), 8) for row in b.input_ids
    }
    assert not trained & evaluated


def test_too_little_text_is_an_error_that_says_what_to_do(data):
    tokenized, tokenizer = data
    with pytest.raises(DataError, match=r"makes \d+ sequences of 32 tokens, fewer than one batch of 100000"):
        make(data, "mlm", batch_size=100_000)
    with pytest.raises(DataError, match=r"the evaluation text: .* not enough for one sequence of 10000"):
        build_batch_source("mlm", tokenized, tokenizer, seq_length=10_000, batch_size=1, seed=0)
    with pytest.raises(DataError, match=r"no objective 'clm'; choose one of mlm, mlm\+nsp"):
        build_batch_source("clm", tokenized, tokenizer, seq_length=32, batch_size=1, seed=0)
    with pytest.raises(ValueError, match="at least one sequence"):
        make(data, "mlm", batch_size=0)
    with pytest.raises(ValueError, match="steps are counted from 0"):
        make(data, "mlm")[0].training_batch(-1)


@pytest.fixture(scope="module")
def corpora_of_1_and_4_megabytes(data, tmp_path_factory):
    """Two corpora whose tokens are made already, and the folder they are in."""
    folder = tmp_path_factory.mktemp("large")
    corpora = [write_corpus(folder / f"{documents}.txt", documents) for documents in (1500, 6000)]
    for corpus, megabytes in zip(corpora, (1, 4), strict=True):
        assert corpus.files[0].stat().st_size > megabytes * 1_000_000
        prepare_tokens(corpus, data[1], folder)
    return corpora, folder


def test_twenty_steps_take_no_more_memory_on_a_larger_corpus(corpora_of_1_and_4_megabytes, data, objective):
    _, tokenizer = data
    corpora, folder = corpora_of_1_and_4_megabytes
    peaks = []
    for corpus in corpora:
        tracemalloc.start()
        source, _ = make((prepare_tokens(corpus, tokenizer, folder), tokenizer), objective)
        for step in range(20):
            source.training_batch(step)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000
