"""Training: what a run does with its settings, its data and its clock."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import small_run
from small_run import go_on, losses, of_kind, run, small_settings, write_text

from backends.numpy_backend import NumpyBackend
from minibert import AdamW, MiniBERT
from minibert.data.batch_source import BatchSource
from minibert.optimizer import linear_schedule
from minibert.training.budget import Budget
from minibert.training.checkpoint import checkpoints
from minibert.training.display import duration
from minibert.training.errors import NonFiniteError, TrainingError
from minibert.training.evaluation import evaluate
from minibert.training.examples import fill_mask_examples
from minibert.training.fill_mask import fill_mask
from minibert.training.loading import load_model
from minibert.training.loss_curve import draw_loss_curve
from minibert.training.metrics import METRICS_FILE, MetricsLog, read_metrics
from minibert.training.preparation import CACHE_FOLDER, prepare_data
from minibert.training.session import start
from minibert.training.settings import Settings
from minibert.training.trainer import Trainer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "animals.txt")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory, request):
    """A run that had time to learn: its folder and metrics."""
    output = tmp_path_factory.mktemp("trained") / "run"
    device = request.config.getoption("--device")
    history = run(
        corpus, output, steps=160, batch_size=32, evaluate_every=60, seed=1, initializer_range=0.1, device=device
    )
    return output, history


def prepared(corpus, cache, **changes):
    """(settings, data, fresh model) of a small run."""
    settings = small_settings(corpus, **changes)
    data = prepare_data(settings, cache)
    config = settings.model_config(data.tokenizer.vocab_size)
    return settings, data, MiniBERT(config, dtype=settings.dtype, seed=settings.seed)


# --- learning ------------------------------------------------------------------------------------------------


def test_a_trained_model_knows_more_than_how_frequent_words_are(trained):
    _, history = trained
    first, *_, last = of_kind(history, "evaluation")
    assert last["loss"] < first["loss"]
    assert last["below_unigram"] > 1.0
    assert last["below_unigram"] == pytest.approx(last["unigram_loss"] - last["loss"])
    assert last["perplexity"] == pytest.approx(math.exp(last["loss"]))


def test_the_saved_model_fills_masks_with_what_it_learnt(trained):
    output, _ = trained
    model, tokenizer = load_model(output)
    (colours,) = fill_mask(model, tokenizer, "the [MASK] goose eats grains in the garden.", top=3)
    assert colours[0].token == "white"
    assert colours[0].probability >= colours[1].probability >= colours[2].probability > 0.0
    (places,) = fill_mask(model, tokenizer, "the red fox eats berries in the [MASK].", top=1)
    assert [place.token for place in places] == ["forest"]
    both = fill_mask(model, tokenizer, "the [MASK] fox eats berries in the [MASK].", top=2)
    assert [len(candidates) for candidates in both] == [2, 2]


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


def test_next_sentence_prediction_is_trained_and_evaluated_with_its_objective(corpus, tmp_path):
    history = run(corpus, tmp_path / "pairs", objective="mlm+nsp", seq_length=32)
    evaluation = of_kind(history, "evaluation")[-1]
    assert 0.0 <= evaluation["next_sentence_accuracy"] <= 1.0
    assert evaluation["next_sentence_loss"] > 0.0
    alone = run(corpus, tmp_path / "alone")
    assert "next_sentence_loss" not in of_kind(alone, "evaluation")[-1]


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


def test_whole_word_masking_changes_what_is_trained_on_but_not_what_is_measured(corpus, cache):
    _, pieces, _ = prepared(corpus, cache, vocab_size=45)
    _, words, _ = prepared(corpus, cache, vocab_size=45, whole_word_masking=True)
    assert any(
        not np.array_equal(pieces.source.training_batch(n).labels, words.source.training_batch(n).labels)
        for n in range(5)
    )
    for a, b in zip(pieces.evaluation_batches(), words.evaluation_batches(), strict=True):
        np.testing.assert_array_equal(a.input_ids, b.input_ids)


# --- the loop ------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_the_end_without_a_wasted_step(corpus, tmp_path):
    history = run(corpus, tmp_path / "run", steps=10, warmup=0.2, learning_rate=1e-3, report_every=1)
    rates = [entry["learning_rate"] for entry in of_kind(history, "train")]
    assert rates == [1e-3 * linear_schedule((step + 0.5) / 10, 0.2) for step in range(10)]
    assert min(rates) > 0.0


def test_a_run_by_minutes_ends_when_they_are_over_with_the_rate_at_its_lowest():
    budget = Budget(steps=None, seconds=60.0)
    assert not budget.exhausted(steps_done=100, elapsed=59.9)
    assert budget.exhausted(steps_done=100, elapsed=60.0)
    assert budget.progress(steps_done=0, elapsed=0.0) == 0.0
    assert budget.progress(steps_done=10, elapsed=30.0) == pytest.approx(0.525)  # half of a 3-second step ahead
    assert budget.progress(steps_done=10, elapsed=59.9) == 1.0
    assert budget.remaining(steps_done=10, elapsed=45.0) == 15.0


def test_a_run_by_steps_knows_the_time_left_once_a_step_was_taken():
    budget = Budget(steps=10, seconds=None)
    assert budget.remaining(steps_done=0, elapsed=0.1) is None
    assert budget.remaining(steps_done=5, elapsed=20.0) == 20.0
    assert [duration(seconds) for seconds in (None, 20.2, 200.0, 7500.0)] == [
        "an unknown time", "20 s", "3 min 20 s", "2 h 05 min",
    ]  # fmt: skip


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


def test_figures_wait_unchanged_until_they_are_collected(corpus, cache):
    """Arrays of a step that were used again by the next would give other numbers here."""
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
    small = write_text(tmp_path / "small.txt", documents=3_010)
    with open(tmp_path / "large.txt", "w", encoding="utf-8") as large:
        for _ in range(20):
            large.write(small.read_text(encoding="utf-8"))
    assert (tmp_path / "large.txt").stat().st_size > 10e6
    tokenizer = prepare_data(small_settings(small), tmp_path).tokenizer
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


# --- evaluation ----------------------------------------------------------------------------------------------


def test_an_evaluation_is_the_mean_over_all_masked_tokens(corpus, cache):
    """Against logits at every position, put together in plain NumPy."""
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


def test_dropout_is_off_in_an_evaluation(corpus, cache):
    _, data, model = prepared(corpus, cache, dropout=0.5)
    counts = data.tokenized.unigram_counts
    assert evaluate(model, data.evaluation_batches(), counts) == evaluate(model, data.evaluation_batches(), counts)


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


def test_an_evaluation_without_anything_to_predict_is_an_error(corpus, cache):
    _, data, model = prepared(corpus, cache)
    with pytest.raises(TrainingError, match="too short"):
        evaluate(model, [], data.tokenized.unigram_counts)


# --- when the numbers break ----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_names_the_step_and_keeps_the_last_good_checkpoint(corpus, tmp_path):
    output = tmp_path / "run"
    run(corpus, output, steps=4, checkpoint_every=2)
    (good,) = checkpoints(output / "checkpoints")[-1:]
    before = (good / "tensors.safetensors").read_bytes()
    (output / "model.safetensors").unlink()
    with pytest.raises(NonFiniteError, match=r"at step (\d+).*last good checkpoint is kept.*--learning-rate") as failed:
        go_on(output, steps=40, learning_rate=1e30, report_every=20, checkpoint_every=3)
    assert checkpoints(output / "checkpoints")[-1] == good
    assert (good / "tensors.safetensors").read_bytes() == before
    assert not (output / "model.safetensors").exists()
    (stopped,) = of_kind(read_metrics(output / METRICS_FILE), "stopped")
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
    assert not checkpoints(tmp_path / "run" / "checkpoints")
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
    assert not checkpoints(tmp_path / "run" / "checkpoints")


# --- what is written -----------------------------------------------------------------------------------------


def test_the_output_folder_holds_the_model_the_vocabulary_and_what_happened(trained):
    output, _ = trained
    names = {path.name for path in output.iterdir()}
    assert names >= {
        "config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json",
        "metrics.jsonl", "loss_curve.png", "checkpoints",
    }  # fmt: skip
    assert (output / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_are_json_lines_that_describe_the_run_and_every_report(trained):
    output, history = trained
    lines = [json.loads(line) for line in (output / METRICS_FILE).read_text().splitlines()]
    assert lines == history
    assert lines[0]["kind"] == "run"
    assert lines[0]["settings"]["steps"] == 160
    assert {"device", "model", "parameters", "tokenizer", "corpus", "training_tokens"} <= set(lines[0])
    kinds = Counter(line["kind"] for line in lines)
    assert kinds == {"run": 1, "train": 80, "evaluation": 3, "result": 1}
    report = of_kind(lines, "train")[-1]
    assert set(report) == {
        "kind", "step", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "elapsed", "memory",
    }  # fmt: skip
    assert report["step"] == 160


def test_nan_never_reaches_the_metrics(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write("train", loss=math.nan)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_metrics_line_cut_short_by_a_crash_is_dropped_when_the_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "run"}\n{"kind": "train", "st')
    log = MetricsLog(path)
    log.write("train", step=2)
    log.close()
    assert path.read_text() == '{"kind": "run"}\n{"kind": "train", "step": 2}\n'


def test_steps_done_twice_count_once_in_the_history(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for kind, step in (("run", None), ("train", 2), ("train", 4), ("resumed", 2), ("train", 3)):
        log.write(kind, **({} if step is None else {"step": step}))
    log.close()
    history = read_metrics(tmp_path / "metrics.jsonl")
    assert [(entry["kind"], entry.get("step")) for entry in history] == [
        ("run", None), ("train", 2), ("resumed", 2), ("train", 3),
    ]  # fmt: skip


def test_without_matplotlib_the_run_ends_well_and_says_what_is_missing(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not draw_loss_curve([], tmp_path / "curve.png")
    shown = small_run.display()
    outcome = start(small_settings(corpus, steps=2), tmp_path / "run", shown)
    assert outcome.finished
    assert "Matplotlib is not installed" in shown.console.file.getvalue()
    assert not (tmp_path / "run" / "loss_curve.png").exists()


def test_an_output_folder_in_use_is_left_alone(corpus, trained, tmp_path):
    output, _ = trained
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with pytest.raises(TrainingError, match=r"holds another run.*--resume"):
        run(corpus, output)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="not an empty folder"):
        run(corpus, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_second_run_finds_vocabulary_and_tokens_of_the_first(corpus, tmp_path, monkeypatch):
    run(corpus, tmp_path / "first", steps=1)
    made = sorted(path.name for path in (tmp_path / CACHE_FOLDER).iterdir())
    assert [name.split("-")[0] for name in made] == ["tokens", "vocabulary"]

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("minibert.training.preparation.train_tokenizer", forbidden)
    monkeypatch.setattr("minibert.data.token_file._tokenize", forbidden)
    assert losses(run(corpus, tmp_path / "second", steps=1, seed=3))
    assert sorted(path.name for path in (tmp_path / CACHE_FOLDER).iterdir()) == made


def test_examples_hide_a_whole_word_of_held_out_sentences(trained, corpus):
    output, _ = trained
    model, tokenizer = load_model(output)
    data = prepare_data(small_settings(corpus), output.parent / CACHE_FOLDER, tokenizer)
    examples = fill_mask_examples(model, tokenizer, data.tokenized.evaluation, count=3, top=2)
    assert len(examples) == 3
    for example in examples:
        assert example.text.count("[MASK]") == 1
        assert example.answer.isalpha()
        assert len(example.candidates) == 2


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "huge"}, "--preset must be one of tiny, mini, small, medium, base, not 'huge'"),
        ({"objective": "clm"}, r"--objective must be one of mlm, mlm\+nsp"),
        ({"seq_length": 513}, "--seq-length 513 is longer than the model's table of positions, which has 512"),
        ({"seq_length": 2}, "--seq-length must be at least"),
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"batch_size": 4, "accumulate": 5}, "--accumulate 5 divides a step into more micro-batches"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"minutes": 0.0, "steps": None}, "--minutes must be a positive number"),
        ({"minutes": 1.0}, "--steps and --minutes"),
        ({"learning_rate": math.nan}, "--learning-rate must be a positive number, not nan"),
        ({"learning_rate": -1e-3}, "--learning-rate must be"),
        ({"warmup": 1.0}, "--warmup must be a share"),
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, "--weight-decay must be at least 0"),
        ({"clip_norm": 0.0}, "--clip-norm must be a positive number"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"mask_probability": 0.0}, "masking probability"),
        ({"dtype": "float16"}, "--dtype must be one of float32, float64"),
        ({"kernels": "fast"}, "--kernels must be"),
        ({"report_every": 0}, "--report-every must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(corpus, changes, message):
    with pytest.raises(TrainingError, match=message):
        small_settings(corpus, **changes)


def test_settings_survive_the_way_through_json(corpus):
    settings = small_settings(corpus, dropout=0.25, whole_word_masking=True)
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    with pytest.raises(TrainingError, match="does not know: colour"):
        Settings.from_dict({**settings.to_dict(), "colour": "red"})


def test_every_setting_is_documented():
    for field in dataclasses.fields(Settings):
        assert f"{field.name}" in (Settings.__doc__ or "")


def test_a_model_without_a_mask_to_fill_or_with_too_long_a_text_is_an_error(trained):
    model, tokenizer = load_model(trained[0])
    with pytest.raises(TrainingError, match=r"there is no \[MASK\] in the text"):
        fill_mask(model, tokenizer, "the red fox")
    with pytest.raises(TrainingError, match=r"the text has 603 tokens.*takes 512"):
        fill_mask(model, tokenizer, "[MASK] " + "fox " * 600)
    with pytest.raises(TrainingError, match="must be at least 1"):
        fill_mask(model, tokenizer, "[MASK]", top=0)


def test_a_batch_is_prepared_only_from_its_step(corpus, cache):
    """What a resume rests on: no state but the step, neither in the order nor in the masks."""
    _, data, _ = prepared(corpus, cache)
    assert isinstance(data.source, BatchSource)
    late = data.source.training_batch(50)
    for step in (3, 99):
        data.source.training_batch(step)
    np.testing.assert_array_equal(data.source.training_batch(50).input_ids, late.input_ids)
