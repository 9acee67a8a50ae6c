"""Loading a model from a folder whose run is not finished: the error says so, and what to do."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import pytest

from minibert.errors import TrainingError
from minibert.inference.loading import load_model
from minibert.training.log import METRICS_FILE, RunLog


def test_a_run_with_checkpoints_only_is_to_be_continued(tmp_path: Path):
    (tmp_path / "checkpoints" / "step-00000003").mkdir(parents=True)
    with pytest.raises(TrainingError, match=r"has checkpoints but no model yet; continue it with .* --resume$"):
        load_model(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks that can be asked about")
def test_a_run_that_is_still_training_is_to_be_waited_for(tmp_path: Path):
    training = pytest.raises(TrainingError, match="is still training and has no model yet; wait for its end")
    with closing(RunLog(tmp_path / METRICS_FILE)), training:
        load_model(tmp_path)


def test_a_run_without_a_checkpoint_is_to_be_started_again(tmp_path: Path):
    (tmp_path / METRICS_FILE).touch()
    with pytest.raises(TrainingError, match=r"neither a model nor a checkpoint; start it again with scripts/train\.py"):
        load_model(tmp_path)
