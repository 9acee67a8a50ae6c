"""Arguments from Python: NumPy's integers mean what Python's mean; numbers of another kind are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minibert import AdamW, MiniBERT, MiniBERTConfig, MiniBERTGradients
from minibert.errors import TrainingError
from minibert.random_bits import Stream, derive_key
from minibert.training.settings import Settings
from tests.support.small_bert import ATTENTION_MASK, CONFIG, INPUT_IDS, LABELS, NEXT_SENTENCE_LABELS, small_bert

INTEGERS = [np.int64, np.int32, np.uint8, np.uint64]


@pytest.mark.parametrize("kind", INTEGERS)
def test_an_integer_of_numpy_is_the_same_seed_as_one_of_python(kind):
    assert derive_key(kind(7), Stream.DROPOUT, kind(3)) == derive_key(7, Stream.DROPOUT, 3)
    one, other = MiniBERT(CONFIG, seed=kind(7)), MiniBERT(CONFIG, seed=7)
    assert type(one.seed) is int
    np.testing.assert_array_equal(one.parameters.flat, other.parameters.flat)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("kind", INTEGERS)
def test_an_integer_of_numpy_draws_the_same_dropout(kind, kernels):
    model = MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=100), kernels=kernels)
    expected, _ = model.forward([[5, 6, 7]], dropout_step=7, first_sequence=3)
    found, _ = model.forward([[5, 6, 7]], dropout_step=kind(7), first_sequence=kind(3))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", [0.5, "7", None, math.nan, np.float64(7)])
def test_a_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(TypeError):
        MiniBERT(CONFIG, seed=seed)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**5000], ids=["negative", "large", "gigantic"])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=r"from 0 to 2\*\*64 - 1"):
        MiniBERT(CONFIG, seed=seed)


@pytest.mark.parametrize("number", [0.5, math.nan, math.inf, True, np.True_, "3", 3.0])
@pytest.mark.parametrize("name", ["total_predictions", "total_sequences"])
def test_a_total_that_is_no_integer_is_refused(name, number):
    model = small_bert()
    _, cache = model.forward(INPUT_IDS, ATTENTION_MASK)
    with pytest.raises(TypeError):
        MiniBERTGradients(model).backward(cache, LABELS, NEXT_SENTENCE_LABELS, **{name: number})


def test_an_integer_of_numpy_is_the_same_total():
    model = small_bert()
    _, cache = model.forward(INPUT_IDS, ATTENTION_MASK)
    losses = [
        float(MiniBERTGradients(model).backward(cache, LABELS, total_predictions=total)) for total in (9, np.int32(9))
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("number", [0.5, math.nan, "1", None])
def test_a_first_sequence_that_is_no_integer_is_refused(number):
    with pytest.raises(TypeError):
        small_bert().forward(INPUT_IDS, first_sequence=number)
    with pytest.raises(ValueError, match="counts the sequences of a step"):
        small_bert().forward(INPUT_IDS, first_sequence=2**70)
    with pytest.raises(TypeError):
        small_bert().forward(INPUT_IDS, dropout_step=0.5)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1e-3])
def test_a_learning_rate_that_is_no_number_is_refused_and_changes_nothing(rate):
    model = small_bert()
    optimizer, gradients, before = AdamW(model), MiniBERTGradients(model), model.parameters.flat.copy()
    with pytest.raises(ValueError, match="learning rate must be at least 0 and finite"):
        optimizer.step(gradients.gradients, rate)
    assert optimizer.steps == 0
    np.testing.assert_array_equal(model.parameters.flat, before)


@pytest.mark.parametrize(
    "options", [{"epsilon": math.inf}, {"epsilon": math.nan}, {"weight_decay": math.inf}, {"max_norm": math.nan}]
)
def test_an_optimizer_of_infinities_is_refused(options):
    with pytest.raises(ValueError, match="epsilon and max_norm must be positive"):
        AdamW(small_bert(), **options)


def test_settings_hold_integers_of_python():
    settings = Settings(steps=np.int64(5), seed=np.uint8(7))
    assert type(settings.steps) is type(settings.seed) is int
    with pytest.raises(TrainingError, match=r"--steps must be a whole number, not 5\.0"):
        Settings(steps=5.0)
