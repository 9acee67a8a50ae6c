"""The classifier is BertForSequenceClassification: same logits, loss, gradients, training steps and files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from minibert import AdamW, MiniBERT, MiniBERTConfig, MiniBERTGradients
from minibert.commands import finetune as finetune_command
from minibert.data.tokenizer import Tokenizer
from minibert.finetuning.text_classifier import TextClassifier
from minibert.huggingface.pretrained import hugging_face_name
from minibert.optimizer import linear_schedule
from minibert.parameters import CLASSIFICATION_HEADS
from tests.parity.in_transformers import in_transformers
from tests.parity.test_against_transformers import FLOAT32, FLOAT64, tensors, worst
from tests.support.oracle import INPUTS, LABELS, batch, fresh_classifier

KIND = "BertForSequenceClassification"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", FLOAT64), ("float32", FLOAT32)])
@pytest.mark.parametrize("unpad", [False, True])
def test_the_logits_are_theirs(config: MiniBERTConfig, dtype: str, tolerance: float, unpad: bool, tmp_path: Path):
    model, arrays = fresh_classifier(config, dtype), batch(config)
    inputs = {name: arrays[name] for name in INPUTS}
    theirs = in_transformers(model, tmp_path, KIND)
    assert theirs.config.id2label == dict(enumerate(LABELS))
    assert theirs.config.label2id == {label: number for number, label in enumerate(LABELS)}
    logits, cache = model.classify(**inputs, unpad=unpad)
    assert worst(logits, theirs(**tensors(inputs)).logits) < tolerance
    assert worst(cache.pooled_output, theirs.bert(**tensors(inputs)).pooler_output) < tolerance


def test_the_loss_and_every_gradient_are_autograds(config: MiniBERTConfig, tmp_path: Path):
    model, arrays = fresh_classifier(config, "float64"), batch(config)
    inputs = {name: arrays[name] for name in INPUTS}
    theirs = in_transformers(model, tmp_path, KIND)
    outputs = theirs(**tensors(inputs), labels=torch.from_numpy(arrays["class_labels"]))
    outputs.loss.backward()
    gradients = MiniBERTGradients(model)
    loss = gradients.backward_classification(model.classify(**inputs, unpad=True)[1], arrays["class_labels"])
    assert float(loss) == pytest.approx(outputs.loss.item(), rel=FLOAT64)
    autograd = dict(theirs.named_parameters())
    assert {hugging_face_name(name) for name in gradients.gradients} == set(autograd)
    largest = max(float(parameter.grad.abs().max()) for parameter in autograd.values())
    for name, gradient in gradients.gradients.items():
        other = autograd[hugging_face_name(name)].grad.numpy()
        np.testing.assert_allclose(gradient, other, rtol=FLOAT64, atol=FLOAT64 * largest, err_msg=name)


def test_twenty_steps_of_fine_tuning_have_the_losses_of_torchs_adamw(config: MiniBERTConfig, tmp_path: Path):
    model, arrays = fresh_classifier(config, "float64"), batch(config)
    inputs, labels = {name: arrays[name] for name in INPUTS}, arrays["class_labels"]
    theirs = in_transformers(model, tmp_path, KIND)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim == 2], "weight_decay": 0.01},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    torch_optimizer = torch.optim.AdamW(groups, lr=1.0, eps=1e-6)
    gradients, optimizer = MiniBERTGradients(model), AdamW(model)
    ours, autograds = [], []
    for step in range(20):
        rate = 1e-3 * linear_schedule((step + 1) / 20, 0.2)
        ours.append(float(gradients.backward_classification(model.classify(**inputs)[1], labels)))
        optimizer.step(gradients.gradients, rate)
        outputs = theirs(**tensors(inputs), labels=torch.from_numpy(labels))
        autograds.append(outputs.loss.item())
        torch_optimizer.zero_grad()
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in torch_optimizer.param_groups:
            group["lr"] = rate
        torch_optimizer.step()
    assert ours[-1] < ours[0] - 0.3
    np.testing.assert_allclose(ours, autograds, rtol=1e-9)


def test_a_classifier_of_theirs_comes_in_and_goes_out_bit_for_bit(config: MiniBERTConfig, tmp_path: Path):
    theirs = in_transformers(fresh_classifier(config, "float32"), tmp_path / "ours", KIND)
    theirs.save_pretrained(tmp_path / "theirs")
    model = MiniBERT.from_pretrained(tmp_path / "theirs")
    assert model.heads == CLASSIFICATION_HEADS
    assert model.config.labels == LABELS
    back = in_transformers(model, tmp_path / "back", KIND)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore:.*ignored constants that BERT computes. embeddings.position_ids")
def test_a_fine_tuned_folder_predicts_alike_in_transformers(minilm: Path, tmp_path: Path, capsys):
    """The command trains from real weights, and transformers loads the result with its own tokenizer."""
    rows = [{"text": f"{word} again", "kind": kind} for kind, words in WORDS.items() for word in words]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    arguments = {"--model": minilm, "--data": tmp_path / "data.jsonl", "--output": tmp_path / "out"}
    arguments |= {"--text-column": "text", "--label-column": "kind", "--epochs": "1", "--batch-size": "4"}
    assert finetune_command.main([str(word) for pair in arguments.items() for word in pair]) == 0
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        theirs, info = transformers.BertForSequenceClassification.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
    assert not any(info.values()), info
    texts = [row["text"] for row in rows]
    ours = TextClassifier.load(tmp_path / "out")
    assert tuple(theirs.config.id2label.values()) == ours.labels == ("animal", "tool")
    with torch.inference_mode():
        logits = theirs.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(ours.probabilities(ours.encode(texts)), logits.softmax(-1).numpy(), atol=1e-6)


@pytest.mark.filterwarnings("default::minibert.finetuning.text_classifier.ClassificationWarning")
def test_pairs_are_cut_where_theirs_are(minilm: Path):
    ours, theirs = Tokenizer.load(minilm), transformers.AutoTokenizer.from_pretrained(minilm)
    config = MiniBERTConfig(
        vocab_size=ours.vocab_size, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, labels=("a", "b")
    )
    learner = TextClassifier(MiniBERT(config, heads=CLASSIFICATION_HEADS), ours)
    rng = np.random.default_rng(0)
    for length in (10, 11, 64):
        learner.max_length = length
        counts = rng.integers(0, 2 * length, size=(300, 2))
        firsts, seconds = [["cat " * a for a, _ in counts], ["dog " * b for _, b in counts]]
        for a, b, encoded in zip(firsts, seconds, learner.encode(firsts, seconds), strict=True):
            expected = theirs(a, b, truncation=True, max_length=length)
            assert encoded.ids == expected["input_ids"], (length, a, b)
            assert encoded.token_types == expected["token_type_ids"], (length, a, b)


WORDS = {"animal": ("a cat", "the old dog", "foxes", "one owl"), "tool": ("a saw", "the axe", "hammers", "one drill")}
