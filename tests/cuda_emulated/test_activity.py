"""What a training step asks of the device: few launches, no waiting, the same numbers as on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
from emulated_cuda.device import ACTIVITY

from backends import Backend, get_backend
from minibert import MiniBERT, MiniBERTConfig
from minibert.data.batch import Batch
from minibert.optimizer import AdamW
from minibert.training.trainer import Trainer

MOST_PER_LAYER, MOST_BEYOND = 40, 60
B, T, V = 3, 12, 50


def config(layers: int) -> MiniBERTConfig:
    return MiniBERTConfig.preset("tiny", vocab_size=V, num_hidden_layers=layers)


def batch(step: int, *, padded: bool = True) -> Batch:
    """A batch with masked positions, padding and next-sentence labels."""
    rng = np.random.default_rng(step)
    mask = np.ones((B, T), dtype=np.int32)
    if padded:
        mask[1, 9:] = 0
    predicted = np.flatnonzero(mask.reshape(-1) * (rng.random(B * T) < 0.3))
    return Batch(
        input_ids=rng.integers(0, V, (B, T)).astype(np.int32),
        attention_mask=mask,
        token_type_ids=np.zeros((B, T), dtype=np.int32),
        prediction_positions=predicted,
        labels=rng.integers(0, V, len(predicted)).astype(np.int32),
        next_sentence_labels=rng.integers(0, 2, B).astype(np.int32),
    )


def trainer(backend: Backend, layers: int = 2, **arguments: object) -> Trainer:
    model = MiniBERT(config(layers), backend=backend, seed=3, **arguments)
    return Trainer(model, AdamW(model))


def launches(backend: Backend, layers: int, *, padded: bool = True) -> int:
    """Of one training step, once everything is compiled."""
    some = trainer(backend, layers)
    some.step(batch(0, padded=padded), 1e-3)
    ACTIVITY.reset()
    some.step(batch(1, padded=padded), 1e-3)
    return ACTIVITY.launches.total()


@pytest.mark.parametrize("padded", [True, False])
def test_a_step_takes_forty_launches_per_layer_and_sixty_beyond(padded: bool, cuda: Backend):
    """Forward and backward together. The last layer, pruned to the predicted positions, has more than the others (it
    gathers its queries and projects them apart); the others leave room for it.
    """
    two, three = (launches(cuda, layers, padded=padded) for layers in (2, 3))
    assert three - two <= MOST_PER_LAYER
    assert two <= 2 * MOST_PER_LAYER + MOST_BEYOND


def test_a_step_never_waits_for_the_device(cuda: Backend):
    some = trainer(cuda)
    some.step(batch(0), 1e-3)
    ACTIVITY.reset()
    for step in range(1, 4):
        some.step(batch(step), 1e-3)
    assert (ACTIVITY.waits, ACTIVITY.downloads) == (0, 0)
    some.collect()
    assert ACTIVITY.downloads == 2  # the losses and the norms of all three steps, at once


def test_no_product_copies_an_operand(cuda: Backend):
    some = trainer(cuda)
    ACTIVITY.reset()
    some.step(batch(0), 1e-3)
    assert not [name for name in ACTIVITY.launches if "copy of" in name]


def test_twenty_steps_have_the_losses_of_the_cpu(cuda: Backend):
    """With dropout, padding and both losses: the same masks on both devices, or the losses would part at once."""
    losses = {}
    for name, backend, kernels in (("cpu", get_backend("cpu"), "reference"), ("cuda", cuda, "auto")):
        some = trainer(backend, kernels=kernels)
        for step in range(20):
            some.step(batch(step), 2e-3)
        losses[name] = some.collect().losses
    assert losses["cpu"][0] != losses["cpu"][-1]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-5)


def test_two_runs_are_the_same_bit_for_bit_when_asked_for(cuda: Backend, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINIBERT_DETERMINISTIC", "1")
    backend = get_backend("cuda")
    results = []
    for _ in range(2):
        some = trainer(backend)
        for step in range(3):
            some.step(batch(step), 2e-3)
        results.append(backend.to_numpy(some.model.parameters.flat))
    np.testing.assert_array_equal(*results)
    assert ACTIVITY.launches["scatter_add_runs"] > 0
    assert "scatter_add" not in ACTIVITY.launches
