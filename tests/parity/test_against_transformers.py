"""Mini-BERT is BERT: all its numbers equal those of Hugging Face's implementation and PyTorch's autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minibert import AdamW, MiniBERT, MiniBERTConfig, MiniBERTGradients
from minibert.huggingface.pretrained import hugging_face_name
from minibert.optimizer import linear_schedule
from tests.parity.in_transformers import in_transformers
from tests.support.oracle import INPUTS, batch, fresh_model

FLOAT64, FLOAT32 = 1e-10, 1e-5  # relative to the largest number of the array


def worst(ours: Any, theirs: torch.Tensor, where: np.ndarray | None = None) -> float:
    """Return the largest difference, relative to the largest expected number."""
    expected = theirs.detach().numpy()
    assert ours.shape == expected.shape
    difference = np.abs(np.asarray(ours) - expected)
    if where is not None:
        difference, expected = difference[where], expected[where]
    return float(difference.max() / np.abs(expected).max())


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", FLOAT64), ("float32", FLOAT32)])
def test_everything_on_the_way_forward_is_theirs(config: MiniBERTConfig, dtype: str, tolerance: float, tmp_path: Path):
    model, arrays = fresh_model(config, dtype), batch(config)
    inputs = {name: arrays[name] for name in INPUTS}
    theirs = in_transformers(model, tmp_path)(**tensors(inputs), output_hidden_states=True, output_attentions=True)
    logits, cache = model.forward(**inputs)
    assert worst(logits, theirs.prediction_logits) < tolerance
    assert worst(cache.next_sentence_logits, theirs.seq_relationship_logits) < tolerance
    assert len(cache.hidden_states) == len(theirs.hidden_states) == config.num_hidden_layers + 1
    for ours, other in zip(cache.hidden_states, theirs.hidden_states, strict=True):
        assert worst(ours, other) < tolerance
    for layer, other in zip(cache.layers, theirs.attentions, strict=True):
        assert worst(layer.attention_weights, other) < tolerance


def test_the_pooled_output_is_theirs(config: MiniBERTConfig, tmp_path: Path):
    model, arrays = fresh_model(config, "float64"), batch(config)
    inputs = {name: arrays[name] for name in INPUTS}
    theirs = in_transformers(model, tmp_path).bert(**tensors(inputs))
    assert worst(model.forward(**inputs)[1].pooled_output, theirs.pooler_output) < FLOAT64


@pytest.mark.parametrize("pruned", [False, True], ids=["every position", "predicted positions"])
def test_the_loss_and_every_gradient_are_autograds(config: MiniBERTConfig, pruned: bool, tmp_path: Path):
    model, arrays = fresh_model(config, "float64"), batch(config)
    theirs = in_transformers(model, tmp_path)
    inputs = {name: arrays[name] for name in INPUTS}
    outputs = theirs(
        **tensors(inputs),
        labels=torch.from_numpy(arrays["labels"]),
        next_sentence_label=torch.from_numpy(arrays["next_sentence_labels"]),
    )
    outputs.loss.backward()

    gradients = MiniBERTGradients(model)
    labels, arguments = arrays["labels"], {}
    if pruned:
        positions = np.flatnonzero(labels.reshape(-1) >= 0)
        labels, arguments = labels.reshape(-1)[positions], {"prediction_positions": positions, "unpad": True}
    loss = gradients.backward(model.forward(**inputs, **arguments)[1], labels, arrays["next_sentence_labels"])
    assert float(loss) == pytest.approx(outputs.loss.item(), rel=FLOAT64)
    autograd = dict(theirs.named_parameters())
    largest = max(float(parameter.grad.abs().max()) for parameter in autograd.values())
    assert {hugging_face_name(name) for name in gradients.gradients} == set(autograd)
    for name, gradient in gradients.gradients.items():
        other = autograd[hugging_face_name(name)].grad.numpy()
        assert gradient.shape == other.shape
        # the gradient of a key bias is zero except for rounding, so the tolerance has an absolute part
        np.testing.assert_allclose(gradient, other, rtol=FLOAT64, atol=FLOAT64 * largest, err_msg=name)


def test_twenty_training_steps_have_the_losses_of_torchs_adamw(config: MiniBERTConfig, tmp_path: Path):
    model, arrays = fresh_model(config, "float64"), batch(config)
    theirs = in_transformers(model, tmp_path)
    decayed = [p for p in theirs.parameters() if p.ndim == 2]
    others = [p for p in theirs.parameters() if p.ndim == 1]
    torch_optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=1.0, eps=1e-6
    )
    gradients, optimizer = MiniBERTGradients(model), AdamW(model)
    inputs = {name: arrays[name] for name in INPUTS}
    ours, autograds = [], []
    for step in range(20):
        rate = 3e-3 * linear_schedule((step + 1) / 20, 0.2)
        _, cache = model.forward(**inputs)
        ours.append(float(gradients.backward(cache, arrays["labels"], arrays["next_sentence_labels"])))
        optimizer.step(gradients.gradients, rate)

        outputs = theirs(
            **tensors(inputs),
            labels=torch.from_numpy(arrays["labels"]),
            next_sentence_label=torch.from_numpy(arrays["next_sentence_labels"]),
        )
        autograds.append(outputs.loss.item())
        torch_optimizer.zero_grad()
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in torch_optimizer.param_groups:
            group["lr"] = rate
        torch_optimizer.step()
    assert ours[-1] < ours[0] - 1.0
    np.testing.assert_allclose(ours, autograds, rtol=1e-9)


def test_a_folder_of_theirs_comes_in_and_goes_out_bit_for_bit(config: MiniBERTConfig, tmp_path: Path):
    theirs = in_transformers(fresh_model(config, "float32"), tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    model = MiniBERT.from_pretrained(tmp_path / "theirs")
    assert model.config == config
    back = in_transformers(model, tmp_path / "back")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name
