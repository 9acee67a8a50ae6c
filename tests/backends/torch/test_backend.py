"""The torch backend computes what NumPy computes, from the same source and without autograd."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from backends import Backend, BackendError, get_backend
from backends.cpu.threads import set_threads
from minibert import AdamW, MiniBERT, MiniBERTConfig
from minibert.commands.device_checks import check_dropout_masks
from minibert.gradients import MiniBERTGradients
from minibert.training.trainer import Trainer
from tests.support.small_batch import V, small_batch


def model_on(backend: Backend, activation: str = "gelu") -> MiniBERT:
    config = MiniBERTConfig.preset("tiny", vocab_size=V, num_hidden_layers=2, hidden_act=activation)
    return MiniBERT(config, backend=backend, dtype="float64", seed=3, kernels="reference")


def loss_and_gradients(backend: Backend, activation: str) -> tuple[float, dict[str, np.ndarray]]:
    """Return the loss of a batch with dropout and padding, and the gradients, on the host."""
    model, given = model_on(backend, activation), small_batch(0)
    gradients = MiniBERTGradients(model)
    _, cache = model.forward(
        given.input_ids,
        given.attention_mask,
        given.token_type_ids,
        prediction_positions=given.prediction_positions,
        next_sentence=True,
        dropout_step=5,
        unpad=True,
    )
    loss = gradients.backward(cache, given.labels, given.next_sentence_labels)
    return float(loss), {name: backend.to_numpy(array).copy() for name, array in gradients.gradients.items()}


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_the_gradients_are_those_of_numpy(activation: str):
    expected_loss, expected = loss_and_gradients(get_backend("cpu"), activation)
    loss, found = loss_and_gradients(get_backend("torch"), activation)
    assert loss == pytest.approx(expected_loss, rel=1e-14)
    assert found.keys() == expected.keys()
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for name, gradient in expected.items():
        # the true gradient of the keys' bias is zero: its rounding is that of the other gradients
        scale = largest if name.endswith("attention.key.bias") else np.abs(gradient).max()
        assert np.abs(found[name] - gradient).max() <= 1e-12 * scale, name


def test_twenty_steps_have_the_losses_of_numpy():
    losses = []
    for name in ("cpu", "torch"):
        model = model_on(get_backend(name))
        trainer = Trainer(model, AdamW(model))
        for step in range(20):
            trainer.step(small_batch(step), 2e-3)
        losses.append(trainer.collect().losses)
    assert losses[0][0] != losses[0][-1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-10)


def test_autograd_records_nothing():
    loss_and_gradients(get_backend("torch"), "gelu")
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    assert not [tensor for tensor in tensors if tensor.requires_grad or tensor.grad_fn is not None]


def test_dropout_drops_what_it_drops_in_numpy():
    """PyTorch cannot add or shift uint32, so the bits are computed in int64."""
    assert check_dropout_masks(get_backend("torch")) == "300,000 elements"


def test_arrays_of_another_device_are_refused():
    with pytest.raises(TypeError, match="lives on meta, but this backend uses cpu"):
        get_backend("torch").asarray(torch.empty(3, device="meta"))


def test_a_device_that_this_pytorch_cannot_use_is_an_error_with_a_remedy():
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(BackendError, match=f"torch:{missing} was asked for, .* or run with --device torch"):
        get_backend(f"torch:{missing}")


def test_the_number_of_threads_that_was_set_is_pytorchs_too(monkeypatch: pytest.MonkeyPatch):
    usual = torch.get_num_threads()
    monkeypatch.setattr("backends.cpu.threads._number_set", None)
    try:
        set_threads(1)
        assert "CPU, 1 threads" in get_backend("torch").description()
    finally:
        torch.set_num_threads(usual)


def test_a_scatter_add_in_a_fixed_order_leaves_pytorchs_setting_as_it_was():
    backend = get_backend("torch")
    target, rows = backend.asarray(np.zeros((4, 2))), backend.asarray(np.ones((3, 2)))
    backend.scatter_add(target, backend.asarray(np.array([1, 1, 3])), rows, deterministic=True)
    assert backend.to_numpy(target)[:, 0].tolist() == [0.0, 2.0, 0.0, 1.0]
    assert not torch.are_deterministic_algorithms_enabled()
