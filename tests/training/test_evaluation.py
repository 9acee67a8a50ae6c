"""Evaluation: the same tokens for every run, and figures that agree with plain NumPy."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from minibert import AdamW
from minibert.data.batch_source import evaluation_batches
from minibert.data.masking import MaskingRule
from minibert.errors import TrainingError
from minibert.training.evaluation import Evaluation, evaluate
from minibert.training.trainer import Trainer
from tests.support.small_run import losses, of_kind, prepared, run, write_text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "animals.txt")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_an_evaluation_is_the_mean_over_all_masked_tokens(corpus, cache):
    """The expected figures come from the logits at every position, in plain NumPy."""
    _, data, model = prepared(corpus, cache, dtype="float64")
    expected, right, labels = [], [], []
    for batch in data.evaluation_batches():
        logits, _ = model.forward(batch.input_ids)  # (B, T, V)
        rows = logits.reshape(-1, logits.shape[-1])[batch.prediction_positions]  # (M, V)
        shifted = rows - rows.max(axis=1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        expected += (-log_probabilities[np.arange(batch.labels.size), batch.labels]).tolist()
        right += (rows.argmax(axis=1) == batch.labels).tolist()
        labels += batch.labels.tolist()
    frequencies = (data.tokenized.unigram_counts + 1) / (data.tokenized.unigram_counts + 1).sum()
    found = evaluate(model, data.evaluation_batches(), data.tokenized.unigram_counts)
    assert found.predictions == len(expected) > 50
    assert found.loss == pytest.approx(np.mean(expected), rel=1e-12)
    assert found.accuracy == np.mean(right)
    assert found.unigram_loss == pytest.approx(-np.log(frequencies[labels]).mean(), rel=1e-12)


def test_every_seed_is_evaluated_on_the_same_text_with_the_same_masks(corpus, cache):
    _, first, _ = prepared(corpus, cache, seed=0)
    _, other, _ = prepared(corpus, cache, seed=7)
    for a, b in zip(first.evaluation_batches(), other.evaluation_batches(), strict=True):
        np.testing.assert_array_equal(a.input_ids, b.input_ids)
        np.testing.assert_array_equal(a.labels, b.labels)


def test_an_evaluation_predicts_15_percent_of_the_tokens_by_berts_rule_whatever_the_training_does(corpus, cache):
    _, data, _ = prepared(corpus, cache, vocab_size=45, mask_probability=0.5, whole_word_masking=True)
    expected = evaluation_batches(data.evaluation_sequences, data.tokenizer, MaskingRule(0.15), 4)
    labels = np.concatenate([batch.labels for batch in data.evaluation_batches()])
    np.testing.assert_array_equal(labels, np.concatenate([batch.labels for batch in expected]))


def test_dropout_is_off_in_an_evaluation(corpus, cache):
    found = []
    for dropout in (0.0, 0.5):
        _, data, model = prepared(corpus, cache, dropout=dropout)
        found.append(evaluate(model, data.evaluation_batches(), data.tokenized.unigram_counts))
    assert found[0] == found[1]


def test_an_evaluation_leaves_the_training_alone(corpus, tmp_path):
    often = run(corpus, tmp_path / "often", evaluate_every=1, report_every=1, dropout=0.1)
    once = run(corpus, tmp_path / "once", report_every=1, dropout=0.1)
    assert losses(often) == losses(once)


def test_next_sentence_accuracy_counts_the_pairs_told_right(corpus, cache):
    _, data, model = prepared(corpus, cache, objective="mlm+nsp", seq_length=32)
    model.parameters["next_sentence.weight"][...] = 0.0
    model.parameters["next_sentence.bias"][...] = np.asarray([0.0, 1.0])  # "random", whatever comes
    labels = np.concatenate([batch.next_sentence_labels for batch in data.evaluation_batches()])
    found = evaluate(model, data.evaluation_batches(), data.tokenized.unigram_counts)
    assert found.next_sentence_accuracy == np.mean(labels == 1)
    assert found.next_sentence_loss == pytest.approx(np.mean(np.log1p(np.exp(1.0)) - (labels == 1)), rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "words"),
    [(4.5, "0.500 nats below the unigram baseline"), (8.232, "3.232 nats above the unigram baseline")],
)
def test_an_evaluation_says_on_which_side_of_the_baseline_it_is(loss, words):
    evaluation = Evaluation(loss, perplexity=np.exp(loss), accuracy=0.1, unigram_loss=5.0, predictions=50)
    assert evaluation.compared_with_unigram() == words


def test_an_evaluation_is_bounded_and_spread_over_the_text(corpus, cache):
    _, data, _ = prepared(corpus, cache)
    whole = np.concatenate([batch.input_ids for batch in data.evaluation_batches()])
    assert len(whole) == len(data.evaluation_sequences) > 10
    _, bounded, _ = prepared(corpus, cache, evaluation_tokens=5 * 16 + 15)
    batches = list(bounded.evaluation_batches())
    assert sum(batch.number_of_sequences for batch in batches) == bounded.evaluated_sequences() == 5
    part = np.concatenate([batch.input_ids for batch in batches])
    places = [next(n for n, row in enumerate(whole) if (row == wanted).all()) for wanted in part]
    assert places == [n * len(whole) // 5 for n in range(5)]
    _, tiny, _ = prepared(corpus, cache, evaluation_tokens=1)
    assert tiny.evaluated_sequences() == 1


def test_an_evaluation_reports_its_progress(corpus, cache, monkeypatch):
    monkeypatch.setattr("minibert.training.preparation._EVALUATION_TOKENS_PER_BATCH", 64)
    _, data, model = prepared(corpus, cache)
    done = []
    evaluate(model, data.evaluation_batches(), data.tokenized.unigram_counts, done.append)
    assert done == [*range(4, done[-1], 4), data.evaluated_sequences()]
    assert len(done) > 3


def test_an_evaluation_needs_less_memory_than_a_step_of_training(tmp_path):
    """Nothing is kept for a backward pass, and the batch before is forgotten while a batch is computed."""
    corpus, cache = write_text(tmp_path / "animals.txt", documents=2500), tmp_path / "cache"
    peaks = {}
    for what in ("evaluation", "training") * 2:  # the first time, modules are loaded
        # a step of as many tokens as a batch of an evaluation
        _, data, model = prepared(corpus, cache, preset="mini", batch_size=64, evaluation_tokens=3 * 1024)
        trainer = Trainer(model, AdamW(model))
        model.backend.pool.clear()
        tracemalloc.start()
        if what == "evaluation":
            evaluate(model, data.evaluation_batches(), data.tokenized.unigram_counts)
        else:
            trainer.step(data.source.training_batch(0), 1e-3)
        peaks[what] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert data.evaluated_sequences() >= 3 * 64
    assert peaks["evaluation"] < 0.6 * peaks["training"]


def test_evaluations_do_not_count_as_time_of_training(corpus, tmp_path, monkeypatch):
    clock = iter(range(0, 10**9, 1))
    now = [0.0]

    def slow_evaluation(*arguments):
        now[0] += 1000.0
        return evaluate(*arguments)

    monkeypatch.setattr("minibert.training.run.time.monotonic", lambda: now[0] + next(clock) * 1e-6)
    monkeypatch.setattr("minibert.training.run.evaluate", slow_evaluation)
    history = run(corpus, tmp_path / "run", evaluate_every=2)
    assert of_kind(history, "result")[-1]["elapsed"] < 1.0


def test_an_evaluation_without_anything_to_predict_is_an_error(corpus, cache):
    _, data, model = prepared(corpus, cache)
    with pytest.raises(TrainingError, match="too short"):
        evaluate(model, [], data.tokenized.unigram_counts)
