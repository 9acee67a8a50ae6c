"""Evaluation: the same tokens for every run, and figures that agree with plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from minibert.data.batch_source import evaluation_batches
from minibert.data.masking import MaskingRule
from minibert.errors import TrainingError
from minibert.training.evaluation import Evaluation, evaluate
from tests.support.small_run import losses, prepared, run, write_text


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


def test_an_evaluation_without_anything_to_predict_is_an_error(corpus, cache):
    _, data, model = prepared(corpus, cache)
    with pytest.raises(TrainingError, match="too short"):
        evaluate(model, [], data.tokenized.unigram_counts)
