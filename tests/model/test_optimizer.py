"""AdamW, clipping and the schedule against their papers, written out plainly in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backends import Backend
from minibert import AdamW, MiniBERT, MiniBERTConfig, MiniBERTGradients
from minibert.kernels import CHOICES, Kernels
from minibert.optimizer import clipping_scale, linear_schedule
from tests.support import backends_under_test
from tests.support.checking import assert_close

TINY = MiniBERTConfig(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=6,
)


def _loshchilov_hutter(start, gradients, decayed, learning_rates, clip):
    """Algorithm 2 of arXiv:1711.05101 with clipping before it; returns the final parameters."""
    p, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, (gradient, lr) in enumerate(zip(gradients, learning_rates, strict=True), start=1):
        g = gradient * min(1.0, clip / (np.linalg.norm(gradient) + 1e-6))
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        p = p - lr * (m_hat / (np.sqrt(v_hat) + 1e-6) + 0.01 * decayed * p)
    return p


@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_adamw_takes_the_steps_of_its_paper(kernels: str, backend: Backend):
    for dtype in backends_under_test.float_dtypes(backend):
        model = MiniBERT(TINY, backend=backend, dtype=dtype, kernels=kernels)
        gradients, optimizer = MiniBERTGradients(model).gradients, AdamW(model)
        start = np.array(backend.to_numpy(model.parameters.flat), dtype=np.float64)
        rng = np.random.default_rng(0)
        draws = [scale * rng.standard_normal(start.shape) for scale in (0.001, 1.0, 0.01)]  # only the second is clipped
        rates = [0.01, 0.02, 0.005]
        for draw, rate in zip(draws, rates, strict=True):
            gradients.flat[...] = backend.asarray(draw, dtype=model.dtype)
            norm = optimizer.step(gradients, rate)
            assert float(norm) == pytest.approx(np.linalg.norm(draw), rel=1e-5)
        decayed = np.arange(start.size) < model.parameters.layout.decayed_size
        expected = _loshchilov_hutter(start, draws, decayed, rates, clip=1.0)
        assert_close(backend, model.parameters.flat, expected, dtype)


def test_biases_and_layer_norms_do_not_decay(backend: Backend):
    model = MiniBERT(TINY, backend=backend)
    model.parameters.flat[...] = 1.0
    gradients = MiniBERTGradients(model).gradients  # zero: only the decay moves a parameter
    AdamW(model, weight_decay=0.1).step(gradients, 0.5)
    for name, value in model.parameters.items():
        kept = name.endswith(".bias") or "layer_norm" in name
        np.testing.assert_allclose(backend.to_numpy(value), 1.0 if kept else 0.95, rtol=1e-6, err_msg=name)


def test_small_gradients_are_not_clipped_and_large_ones_to_the_norm(backend: Backend):
    model = MiniBERT(TINY, backend=backend)
    gradients = MiniBERTGradients(model).gradients
    assert float(clipping_scale(model, gradients, 1.0)[1]) == 1.0  # all zero
    gradients["mlm.bias"][...] = 10.0
    norm, scale = clipping_scale(model, gradients, 1.0)
    assert float(norm) == pytest.approx(10.0 * np.sqrt(20.0))
    assert float(norm * scale) == pytest.approx(1.0, rel=1e-5)


def test_gradients_of_another_model_are_refused_before_anything_is_trained(backend: Backend):
    """One of the same size, too: a twin would train the wrong parameters, and read beyond the end of a smaller one."""
    for kernels in CHOICES:
        model = MiniBERT(TINY, backend=backend, kernels=kernels)
        optimizer, before = AdamW(model), backend.to_numpy(model.parameters.flat).copy()
        swapped = replace(TINY, vocab_size=TINY.intermediate_size, intermediate_size=TINY.vocab_size)
        for config in (replace(TINY, vocab_size=19), replace(TINY, vocab_size=40), swapped):
            other = MiniBERT(config, backend=backend)
            with pytest.raises(ValueError, match=r"of another model: token_embeddings has the shape \(\d+, 8\) there"):
                optimizer.step(MiniBERTGradients(other).gradients, 0.1)
        fewer = MiniBERT(TINY, backend=backend, heads=("mlm",))
        with pytest.raises(ValueError, match=r"pooler.weight has the shape None there and \(8, 8\) here"):
            optimizer.step(MiniBERTGradients(fewer).gradients, 0.1)
        assert optimizer.steps == 0
        np.testing.assert_array_equal(backend.to_numpy(model.parameters.flat), before)
        optimizer.step(MiniBERTGradients(MiniBERT(TINY, backend=backend)).gradients, 0.1)  # an equal layout will do


def test_gradients_of_another_dtype_are_refused(float64_backend: Backend):
    model = MiniBERT(TINY, backend=float64_backend)
    gradients = MiniBERTGradients(MiniBERT(TINY, backend=float64_backend, dtype="float64")).gradients
    with pytest.raises(TypeError, match=r"gradients are .*float64, but the parameters .*float32; both need one"):
        AdamW(model).step(gradients, 0.1)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("which", range(1, 4))
def test_an_adamw_update_of_arrays_of_different_sizes_is_refused(which: int, choice: str, backend: Backend):
    """By the twin's own check, of a whole block more: the end of a block must not hide it."""
    flat = [backend.xp.ones(1 << 15, dtype=backend.xp.float32, device=backend.device) for _ in range(4)]
    flat[which] = backend.xp.ones(1 << 16, dtype=backend.xp.float32, device=backend.device)
    scale = backend.xp.asarray(1.0, dtype=backend.xp.float32, device=backend.device)
    with pytest.raises((ValueError, IndexError, RuntimeError)):  # the libraries have their own words
        Kernels(backend, choice).adamw_update(*flat, scale, 0.1, 0.9, 0.999, 1e-6, 0.01, 1)


def test_the_schedule_rises_and_falls_in_straight_lines():
    factors = [linear_schedule(progress, 0.1) for progress in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert factors == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])
    assert linear_schedule(0.0, 0.0) == 1.0
    assert linear_schedule(1.5, 0.1) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"betas": (0.9, 1.0)}, "betas"), ({"epsilon": 0.0}, "epsilon"), ({"max_norm": -1.0}, "max_norm")],
)
def test_numbers_that_make_no_optimizer_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdamW(MiniBERT(TINY), **arguments)
