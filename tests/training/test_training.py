"""Training: steps, the loop around them, and what happens when numbers become infinite or NaN."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file

from backends.cpu.backend import NumpyBackend
from minibert import AdamW, MiniBERT
from minibert.data.batch_source import BatchSource
from minibert.errors import NonFiniteError
from minibert.optimizer import linear_schedule
from minibert.training.checkpoint import list_checkpoints
from minibert.training.log import METRICS_FILE, read_history
from minibert.training.preparation import prepare_data
from minibert.training.trainer import Trainer
from tests.support.small_run import go_on, losses, of_kind, prepared, run, small_settings, write_text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "animals.txt")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


# --- learning -------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_losses_to_the_last_bit_and_another_seed_others(corpus, tmp_path):
    first = run(corpus, tmp_path / "first", dropout=0.1)
    again = run(corpus, tmp_path / "again", dropout=0.1)
    other = run(corpus, tmp_path / "other", dropout=0.1, seed=1)
    assert losses(first) == losses(again)
    assert of_kind(first, "evaluation")[-1]["loss"] == of_kind(again, "evaluation")[-1]["loss"]
    assert all(a != b for a, b in zip(losses(first), losses(other), strict=True))


@pytest.mark.parametrize("objective", ["mlm", "mlm+nsp"])
def test_micro_batches_change_a_step_by_rounding_only(corpus, cache, objective):
    parameters = []
    for accumulate in (1, 3):  # 8 sequences in parts of 3, 3 and 2, which predict different numbers of tokens
        settings, data, model = prepared(
            corpus, cache, accumulate=accumulate, dropout=0.1, objective=objective, dtype="float64"
        )
        trainer = Trainer(model, AdamW(model), accumulate=settings.accumulate)
        for step in range(3):
            trainer.step(data.source.training_batch(step), 1e-3)
        parameters.append((trainer.collect().losses, model.parameters.flat))
    (whole_losses, whole), (split_losses, split) = parameters
    np.testing.assert_allclose(split_losses, whole_losses, rtol=1e-12)
    np.testing.assert_allclose(split, whole, rtol=1e-7, atol=1e-9)


def test_the_next_sentence_head_learns_only_where_it_is_part_of_the_objective(corpus, cache):
    changed = {}
    for objective in ("mlm", "mlm+nsp"):
        _, data, model = prepared(corpus, cache, objective=objective, seq_length=32)
        bias = np.array(model.parameters["next_sentence.bias"])
        trainer = Trainer(model, AdamW(model))
        trainer.step(data.source.training_batch(0), 1e-3)
        changed[objective] = not np.array_equal(model.parameters["next_sentence.bias"], bias)
    assert changed == {"mlm": False, "mlm+nsp": True}


def test_dropout_is_off_unless_asked_for(corpus, tmp_path):
    assert losses(run(corpus, tmp_path / "without")) != losses(run(corpus, tmp_path / "with", dropout=0.5))


def test_every_step_draws_its_own_dropout_and_always_the_same(corpus, cache):
    _, data, model = prepared(corpus, cache, dropout=0.5)
    seen = []
    for _ in range(2):
        trainer = Trainer(model, AdamW(model))
        for _ in range(3):
            trainer.step(data.source.training_batch(0), learning_rate=0.0)
        seen.append(trainer.collect().losses.tolist())
    assert len(set(seen[0])) == 3
    assert seen[0] == seen[1]


def test_the_seed_decides_the_first_parameters_and_what_is_trained_on(corpus, cache, tmp_path):
    parameters, batches = [], []
    for seed in (0, 1):
        output = tmp_path / f"seed-{seed}"
        run(corpus, output, seed=seed, stop_after=0)
        parameters.append(load_file(list_checkpoints(output / "checkpoints")[0] / "tensors.safetensors"))
        batches.append(prepared(corpus, cache, seed=seed)[1].source.training_batch(0).input_ids)
    name = "parameters/layers.0.attention.query.weight"
    assert not np.array_equal(parameters[0][name], parameters[1][name])
    assert not np.array_equal(*batches)


def test_whole_word_masking_changes_what_is_trained_on_but_not_what_is_measured(corpus, cache):
    _, pieces, _ = prepared(corpus, cache, vocab_size=45)
    _, words, _ = prepared(corpus, cache, vocab_size=45, whole_word_masking=True)
    assert any(
        not np.array_equal(pieces.source.training_batch(n).labels, words.source.training_batch(n).labels)
        for n in range(5)
    )
    for a, b in zip(pieces.evaluation_batches(), words.evaluation_batches(), strict=True):
        np.testing.assert_array_equal(a.input_ids, b.input_ids)


def test_next_sentence_prediction_is_trained_and_evaluated_with_its_objective(corpus, tmp_path):
    history = run(corpus, tmp_path / "pairs", objective="mlm+nsp", seq_length=32)
    evaluation = of_kind(history, "evaluation")[-1]
    assert 0.0 <= evaluation["next_sentence_accuracy"] <= 1.0
    assert evaluation["next_sentence_loss"] > 0.0
    alone = run(corpus, tmp_path / "alone")
    assert "next_sentence_loss" not in of_kind(alone, "evaluation")[-1]


# --- the loop -------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_the_end_without_a_wasted_step(corpus, tmp_path):
    history = run(corpus, tmp_path / "run", steps=10, warmup=0.2, learning_rate=1e-3, report_every=1)
    rates = [entry["learning_rate"] for entry in of_kind(history, "train")]
    assert rates == [1e-3 * linear_schedule((step + 0.5) / 10, 0.2) for step in range(10)]
    assert min(rates) > 0.0


def test_a_run_by_minutes_trains_and_evaluates(corpus, tmp_path):
    history = run(corpus, tmp_path / "run", steps=None, minutes=0.005)
    assert of_kind(history, "train")
    assert of_kind(history, "evaluation")[-1]["step"] == of_kind(history, "result")[-1]["step"]


def test_nothing_is_fetched_from_the_device_between_reports(corpus, cache):
    class Watched(NumpyBackend):
        fetched = 0

        def to_numpy(self, array):
            Watched.fetched += 1
            return super().to_numpy(array)

    settings, data, _ = prepared(corpus, cache)
    model = MiniBERT(settings.model_config(data.tokenizer.vocab_size), backend=Watched())
    trainer = Trainer(model, AdamW(model), accumulate=2)
    Watched.fetched = 0
    for step in range(4):
        trainer.step(data.source.training_batch(step), 1e-3)
    assert Watched.fetched == 0
    figures = trainer.collect()
    assert Watched.fetched == 2
    assert figures.losses.shape == figures.gradient_norms.shape == (4,)
    assert figures.tokens == 4 * 8 * 16
    assert trainer.pending == 0


def test_a_dry_run_leaves_no_trace(corpus, cache):
    losses_of = []
    for with_dry_run in (True, False):
        settings, data, model = prepared(corpus, cache, dropout=0.1)
        trainer = Trainer(model, AdamW(model), accumulate=2)
        if with_dry_run:
            trainer.dry_run(data.source.training_batch(5))
        assert trainer.pending == 0
        for step in range(2):
            trainer.step(data.source.training_batch(step), settings.learning_rate)
        losses_of.append(trainer.collect().losses.tolist())
    assert losses_of[0] == losses_of[1]


def test_figures_wait_unchanged_until_they_are_collected(corpus, cache):
    """If the next step overwrote the arrays of a step, the figures would differ here."""
    found = []
    for together in (True, False):
        _, data, model = prepared(corpus, cache)
        trainer = Trainer(model, AdamW(model))
        figures = []
        for step in range(4):
            trainer.step(data.source.training_batch(step), 1e-3)
            if step == 3 or not together:
                figures.append(trainer.collect())
        found.append(
            [np.concatenate([getattr(each, name) for each in figures]) for name in ("losses", "gradient_norms")]
        )
    np.testing.assert_array_equal(found[0], found[1])


def test_training_needs_no_more_memory_on_a_larger_corpus(tmp_path):
    """20 steps of the tiny preset on 0.5 and on 10 MB of text."""
    words = write_text(tmp_path / "words.txt").read_text(encoding="utf-8").replace("\n", " ").replace(".", " ")
    document = "\n".join(words[start : start + 900] for start in range(0, len(words), 900)) + "\n\n"
    for name, size in (("small", 500_000), ("large", 10_000_000)):
        (tmp_path / f"{name}.txt").write_text(document * (size // len(document) + 1), encoding="utf-8")
    tokenizer = prepare_data(small_settings(tmp_path / "small.txt"), tmp_path).tokenizer
    peaks = {}
    for name in ("small", "small", "large"):  # the first only warms up what is allocated once
        settings = small_settings(tmp_path / f"{name}.txt")
        prepare_data(settings, tmp_path, tokenizer)  # tokenizing has a test of its own, where the data are tested
        tracemalloc.start()
        data = prepare_data(settings, tmp_path, tokenizer)
        model = MiniBERT(settings.model_config(tokenizer.vocab_size))
        trainer = Trainer(model, AdamW(model))
        for step in range(20):
            trainer.step(data.source.training_batch(step), 1e-3)
        trainer.collect()
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks["large"] < peaks["small"] + 2**20


def test_a_batch_is_prepared_only_from_its_step(corpus, cache):
    """A batch depends on the step alone: neither the order nor the masks have a state. Resuming needs this."""
    _, data, _ = prepared(corpus, cache)
    assert isinstance(data.source, BatchSource)
    late = data.source.training_batch(50)
    for step in (3, 99):
        data.source.training_batch(step)
    np.testing.assert_array_equal(data.source.training_batch(50).input_ids, late.input_ids)


# --- when the numbers break -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_names_the_step_and_keeps_the_last_good_checkpoint(corpus, tmp_path):
    output = tmp_path / "run"
    run(corpus, output, steps=4, checkpoint_every=2)
    (good,) = list_checkpoints(output / "checkpoints")[-1:]
    before = (good / "tensors.safetensors").read_bytes()
    (output / "model.safetensors").unlink()
    with pytest.raises(NonFiniteError, match=r"at step (\d+).*last good checkpoint is kept.*--learning-rate") as failed:
        go_on(output, steps=40, learning_rate=1e30, report_every=20, checkpoint_every=3)
    assert list_checkpoints(output / "checkpoints")[-1] == good
    assert (good / "tensors.safetensors").read_bytes() == before
    assert not (output / "model.safetensors").exists()
    (stopped,) = of_kind(read_history(output / METRICS_FILE), "stopped")
    assert stopped["step"] == failed.value.step

    with pytest.raises(NonFiniteError) as looked_at_every_step:
        go_on(output, steps=40, learning_rate=1e30, report_every=1)
    assert failed.value.step == looked_at_every_step.value.step > 4

    history = go_on(output, steps=6, learning_rate=1e-3)  # the remedy
    assert of_kind(history, "result")[-1]["step"] == 6
    assert (output / "model.safetensors").exists()


def test_a_loss_that_breaks_before_the_first_checkpoint_leaves_none(corpus, tmp_path):
    with pytest.raises(NonFiniteError, match=r"No checkpoint had been written yet.*--learning-rate"):
        run(corpus, tmp_path / "run", learning_rate=1e30, checkpoint_every=2, report_every=3)
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_broken_parameters_are_never_saved_even_when_the_losses_were_finite(corpus, cache):
    _, data, model = prepared(corpus, cache)
    trainer = Trainer(model, AdamW(model))
    trainer.step(data.source.training_batch(0), 1e-3)
    trainer.collect()
    trainer.check_parameters()
    model.parameters["pooler.bias"][0] = np.nan  # no loss depends on it
    with pytest.raises(NonFiniteError, match="parameter is NaN"):
        trainer.check_parameters()


def test_the_first_of_several_broken_steps_is_named(corpus, cache):
    _, data, model = prepared(corpus, cache)
    trainer = Trainer(model, AdamW(model))
    for step in range(6):
        if step == 3:
            model.parameters["mlm.bias"][7] = np.inf
        trainer.step(data.source.training_batch(step), 1e-3)
        if step == 1:
            trainer.collect()
    with pytest.raises(NonFiniteError, match="at step 4") as error:  # steps are counted from 1
        trainer.collect()
    assert error.value.step == 4


def test_gradients_that_overflow_are_found_although_the_loss_is_finite(corpus, cache):
    class Overflowing(AdamW):
        def step(self, gradients, learning_rate):
            return super().step(gradients, learning_rate) * np.inf

    _, data, model = prepared(corpus, cache)
    trainer = Trainer(model, Overflowing(model))
    trainer.step(data.source.training_batch(0), 1e-3)
    with pytest.raises(NonFiniteError, match="norm is inf at step 1"):
        trainer.collect()


def test_a_run_whose_parameters_broke_writes_no_checkpoint(corpus, tmp_path, monkeypatch):
    step = Trainer.step

    def break_the_pooler(trainer, batch, learning_rate):
        step(trainer, batch, learning_rate)
        trainer.model.parameters["pooler.bias"][0] = np.nan

    monkeypatch.setattr(Trainer, "step", break_the_pooler)
    with pytest.raises(NonFiniteError, match="parameter is NaN or infinite after step 2"):
        run(corpus, tmp_path / "run", stop_after=2)
    assert not list_checkpoints(tmp_path / "run" / "checkpoints")
