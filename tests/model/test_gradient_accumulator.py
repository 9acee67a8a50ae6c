"""The accumulator adds in place, weighs, averages, and refuses what does not fit."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from backends import Backend
from minibert import GradientAccumulator, MiniBERT, MiniBERTGradients
from tests.support.small_bert import CONFIG, small_bert


def test_it_adds_weighted_gradients_and_averages_them(backend: Backend):
    model = small_bert(backend, "float32")
    gradients, accumulator = MiniBERTGradients(model).gradients, GradientAccumulator(model)
    for value, weight in ((2.0, 3), (6.0, 1), (100.0, 0)):
        gradients.flat[...] = value
        accumulator.add(gradients, weight=weight)
    assert accumulator.total_weight == 4
    np.testing.assert_allclose(backend.to_numpy(accumulator.gradients["mlm.bias"]), 12.0)
    accumulator.average()
    np.testing.assert_allclose(backend.to_numpy(accumulator.gradients.flat), 3.0)
    assert accumulator.total_weight == 1
    accumulator.reset()
    assert (backend.to_numpy(accumulator.gradients.flat) == 0.0).all()
    assert accumulator.total_weight == 0


def test_it_works_across_its_blocks():
    """More parameters than one block holds, and not a multiple of it."""
    model = MiniBERT(CONFIG.preset("tiny", vocab_size=4001), initialised=False)
    assert model.parameters.layout.size > 2**18
    gradients, accumulator = MiniBERTGradients(model).gradients, GradientAccumulator(model)
    gradients.flat[...] = np.arange(gradients.flat.size) % 1000
    accumulator.add(gradients)
    accumulator.add(gradients, weight=0.5)
    np.testing.assert_array_equal(accumulator.gradients.flat, 1.5 * gradients.flat)


def test_any_mapping_from_name_to_gradient_will_do(backend: Backend):
    model = small_bert(backend, "float32")
    accumulator = GradientAccumulator(model)
    accumulator.add({name: backend.xp.ones_like(view) for name, view in model.parameters.items()}, weight=2.0)
    assert (backend.to_numpy(accumulator.gradients.flat) == 2.0).all()


def test_averaging_nothing_changes_nothing():
    accumulator = GradientAccumulator(small_bert())
    accumulator.average()
    assert (accumulator.gradients.flat == 0.0).all()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_no_count_is_refused(weight: float):
    model = small_bert()
    with pytest.raises(ValueError, match="weight must be a number of predictions"):
        GradientAccumulator(model).add(MiniBERTGradients(model).gradients, weight=weight)


def test_gradients_of_another_model_are_refused_and_nothing_is_added():
    accumulator = GradientAccumulator(small_bert())
    other = MiniBERT(CONFIG.from_dict({**CONFIG.to_dict(), "vocab_size": 24}))
    other.parameters.flat[...] = 1.0
    with pytest.raises(ValueError, match=r"token_embeddings has the shape \(24, 12\), this model's \(23, 12\)"):
        accumulator.add(other.parameters)
    with pytest.raises(ValueError, match="only one of the two has"):
        accumulator.add({"token_embeddings": other.parameters["token_embeddings"]})
    assert (accumulator.gradients.flat == 0.0).all()
    assert accumulator.total_weight == 0


def test_the_demonstration_runs_as_the_readme_says():
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "minibert.gradient_accumulator"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "averaged gradient against the batch's: largest difference" in run.stdout
