"""Settings and budget: what may be asked for, and how long it takes."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from minibert.commands.train import build_parser
from minibert.errors import TrainingError
from minibert.options import flag, options_of
from minibert.training.budget import Budget
from minibert.training.display import duration
from minibert.training.settings import FREE_TO_CHANGE, Settings
from tests.support.small_run import small_settings, write_text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "animals.txt")


# --- settings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "huge"}, "--preset must be one of tiny, mini, small, medium, base, not 'huge'"),
        ({"objective": "clm"}, r"--objective must be one of mlm, mlm\+nsp"),
        ({"seq_length": 513}, "--seq-length 513 is too long: the model reads at most 512 tokens"),
        ({"seq_length": 2}, "--seq-length must be at least"),
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"batch_size": 4, "accumulate": 5}, "--accumulate 5 splits a step into more micro-batches"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"minutes": 0.0, "steps": None}, "--minutes must be above 0 and finite"),
        ({"minutes": 1.0}, "--steps and --minutes"),
        ({"learning_rate": math.nan}, "--learning-rate must be above 0 and finite, not nan"),
        ({"learning_rate": -1e-3}, "--learning-rate must be"),
        ({"warmup": 1.0}, "--warmup must be at least 0 and below 1"),
        ({"dropout": 1.0}, "--dropout must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, "--weight-decay must be at least 0"),
        ({"clip_norm": 0.0}, "--clip-norm must be above 0 and finite"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"mask_probability": 0.0}, "--mask-probability must be above 0 and at most 1, not 0.0"),
        ({"dtype": "float16"}, "--dtype must be one of float32, float64"),
        ({"kernels": "fast"}, "--kernels must be one of auto, reference, not 'fast'"),
        ({"device": "tpu"}, "--device must be cpu, cuda or cuda:N .*, not 'tpu'"),
        ({"vocab_size": 0}, "--vocab-size must be at least 1, not 0"),
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


def test_what_says_when_to_stop_is_replaced_as_a_whole(corpus):
    by_steps = small_settings(corpus, steps=10)
    by_minutes = by_steps.resumed_with({"minutes": 3.0})
    assert (by_minutes.steps, by_minutes.minutes) == (None, 3.0)
    again = by_minutes.resumed_with({"steps": 20})
    assert (again.steps, again.minutes) == (20, None)
    assert again.resumed_with({}) == again


def test_wider_models_get_a_lower_rate_and_smaller_weights_unless_told_otherwise():
    tiny, base = Settings(), Settings(preset="base")
    assert base.learning_rate < tiny.learning_rate
    assert base.model_config(100).initializer_range == pytest.approx(0.02)  # BERT's own
    assert tiny.model_config(100).initializer_range == pytest.approx(0.02 * 6**0.5)
    assert Settings(preset="base", learning_rate=0.5, initializer_range=0.1).learning_rate == 0.5
    assert Settings(initializer_range=0.1).model_config(100).initializer_range == 0.1


def test_every_setting_is_documented():
    text = build_parser().format_help()
    for field in dataclasses.fields(Settings):
        assert f"  {flag(field.name)} " in text
        assert options_of(Settings)[field.name].meaning


def test_a_resumed_run_may_change_these_settings_only():
    assert set(FREE_TO_CHANGE) == {
        *("corpus", "evaluation_tokens", "non_finite"),
        *("steps", "minutes", "learning_rate", "device", "kernels", "precision", "accumulate"),
        *("report_every", "evaluate_every", "checkpoint_every"),
    }


# --- budget ---------------------------------------------------------------------------------------------------


def test_a_run_by_minutes_ends_when_they_are_over_with_the_rate_at_its_lowest():
    budget = Budget(steps=None, seconds=60.0)
    assert not budget.exhausted(steps_done=100, elapsed=59.9)
    assert budget.exhausted(steps_done=100, elapsed=60.0)
    assert budget.schedule_position(steps_done=0, elapsed=0.0) == 0.0
    assert budget.schedule_position(steps_done=10, elapsed=30.0) == pytest.approx(
        0.525
    )  # half of a 3-second step ahead
    assert budget.schedule_position(steps_done=10, elapsed=59.9) == 1.0
    assert budget.seconds_left(steps_done=10, elapsed=45.0) == 15.0


def test_a_run_by_steps_knows_the_time_left_once_a_step_was_taken():
    budget = Budget(steps=10, seconds=None)
    assert budget.seconds_left(steps_done=0, elapsed=0.1) is None
    assert budget.seconds_left(steps_done=5, elapsed=20.0) == 20.0
    assert [duration(seconds) for seconds in (None, 20.2, 200.0, 7500.0)] == [
        "an unknown time", "20 s", "3 min 20 s", "2 h 05 min",
    ]  # fmt: skip
