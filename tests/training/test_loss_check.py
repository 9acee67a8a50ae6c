"""A training that learns nothing says so, with the likely cause; a loss that is not finite stops it or is skipped."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from minibert import AdamW
from minibert.commands.tables import show_results
from minibert.errors import NonFiniteError
from minibert.gradients import MiniBERTGradients
from minibert.training.log import METRICS_FILE, read_history
from minibert.training.loss_check import diverged, learnt_nothing
from minibert.training.session import start
from minibert.training.trainer import MOST_SKIPPED, Trainer
from tests.support.small_run import display, losses, of_kind, prepared, run, small_settings, write_text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "animals.txt")


# --- a loss that shows that nothing is learnt ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "rate", "kind", "cause"),
    [
        (5.41, 2e-3, "stuck", "Usual causes: too few steps or too small a --batch-size (now 8)"),
        (5.39, 0.03, "stuck", "the high --learning-rate 0.03 (0.002 is usual for tiny)"),
        (6.30, 1e-9, "above", "the low --learning-rate 1e-09"),
        (6.80, 1.00, "above", "the high --learning-rate 1 "),
        (11_677.0, 100.0, "above", "the high --learning-rate 100 "),
        (5.30, 100.0, None, ""),
        (4.00, 2e-3, None, ""),
    ],
)
def test_an_evaluation_loss_that_is_not_below_the_baseline_has_a_likely_cause(loss, rate, kind, cause):
    warning = learnt_nothing(loss, 5.4, small_settings(Path("unused.txt"), learning_rate=rate))
    assert (None if warning is None else warning.kind) == kind
    if warning is not None:
        assert f"({loss:,.2f} and 5.40)" in warning.text
        assert cause in warning.text
        assert len(re.findall("from the context|how frequent words are", warning.text)) == 1


@pytest.mark.parametrize(("objective", "allowed"), [("mlm", 0.0), ("mlm+nsp", math.log(2.0))])
def test_a_loss_above_that_of_guessing_is_a_divergence(objective, allowed):
    settings = small_settings(Path("unused.txt"), objective=objective)
    level = math.log(1000) + allowed
    assert diverged(level + 0.4, 1000, settings) is None
    assert "the training diverges" in diverged(level + 0.6, 1000, settings).text


def test_a_divergence_is_named_during_the_run_and_in_its_results(corpus, tmp_path):
    screen = display()
    settings = small_settings(corpus, steps=12, learning_rate=10.0, evaluate_every=6)
    with start(settings, tmp_path / "run", screen) as begun:
        outcome = begun.train()
    shown = screen.console.file.getvalue()
    assert shown.count("the training diverges: the loss") == 1
    assert shown.count("is far above the unigram baseline") == 1
    history = read_history(tmp_path / "run" / METRICS_FILE)
    assert [line["text"][:20] for line in of_kind(history, "warning")] == [
        "the training diverge",
        "the evaluation loss ",
    ]
    assert of_kind(history, "result")[-1]["warning"] == outcome.warning
    console = Console(file=io.StringIO(), width=400)
    show_results(console, outcome)
    assert f"warning: {outcome.warning}" in console.file.getvalue()


def test_a_training_that_learns_has_no_warning(corpus, tmp_path):
    history = run(corpus, tmp_path / "run", steps=120, batch_size=32, initializer_range=0.1, evaluate_every=70)
    assert of_kind(history, "evaluation")[-1]["below_unigram"] > 0.1
    assert not of_kind(history, "warning")
    assert "warning" not in of_kind(history, "result")[-1]


# --- a loss that is not finite -------------------------------------------------------------------------------


def nan_in_steps(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Let the gradients of some steps, counted from 1, be NaN."""
    backward = MiniBERTGradients.backward

    def broken(self: MiniBERTGradients, *arguments: Any, **options: Any) -> Any:
        loss = backward(self, *arguments, **options)
        if self.steps_for_test() in steps:
            self.gradients.flat[...] = math.nan
        return loss

    trainer_init = Trainer.__init__

    def noting(self: Trainer, *arguments: Any, **options: Any) -> None:
        trainer_init(self, *arguments, **options)
        monkeypatch.setattr(
            MiniBERTGradients, "steps_for_test", lambda gradients: self.optimizer.steps + 1, raising=False
        )

    monkeypatch.setattr(Trainer, "__init__", noting)
    monkeypatch.setattr(MiniBERTGradients, "backward", broken)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_is_skipped_if_that_was_chosen(corpus, tmp_path, monkeypatch, accumulate):
    nan_in_steps(monkeypatch, {3, 4})
    every = {"steps": 8, "report_every": 1, "accumulate": accumulate}
    with pytest.raises(NonFiniteError, match="the gradient's norm is nan at step 3"):
        run(corpus, tmp_path / "stopped", **every)
    history = run(corpus, tmp_path / "skipped", non_finite="skip", **every)
    assert [(line["step"], line["reason"]) for line in of_kind(history, "skipped")] == [
        (3, "the gradient's norm is nan"), (4, "the gradient's norm is nan"),
    ]  # fmt: skip
    assert [line["step"] for line in of_kind(history, "train")] == [1, 2, 5, 6, 7, 8]
    assert np.isfinite(losses(history)).all()
    assert of_kind(history, "result")[-1]["step"] == 8


def test_a_skipped_step_changes_nothing_but_the_number_of_the_step(corpus, tmp_path, monkeypatch):
    _, data, model = prepared(corpus, tmp_path)
    optimizer = AdamW(model)
    nan_in_steps(monkeypatch, {2})
    trainer = Trainer(model, optimizer, skip_non_finite=True)
    trainer.step(data.source.training_batch(0), 1e-3)
    arrays = (model.parameters.flat, optimizer.first_moment.flat, optimizer.second_moment.flat)
    before = [array.copy() for array in arrays]
    trainer.step(data.source.training_batch(1), 1e-3)
    assert optimizer.steps == 2
    for array, expected in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_too_many_skipped_steps_in_a_row_end_the_run(corpus, tmp_path, monkeypatch):
    nan_in_steps(monkeypatch, set(range(3, 100)))
    with pytest.raises(NonFiniteError, match=r"nan at step 13, and 10 steps before it were skipped"):
        run(corpus, tmp_path / "run", steps=20, non_finite="skip")
    assert MOST_SKIPPED == 10


def test_checking_for_finite_numbers_changes_no_bit(corpus, tmp_path):
    usual = run(corpus, tmp_path / "usual", report_every=1)
    checked = run(corpus, tmp_path / "checked", report_every=1, non_finite="skip")
    assert losses(checked) == losses(usual)
