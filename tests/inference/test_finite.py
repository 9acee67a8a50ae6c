"""Results that are not finite are errors, never printed as if they were an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from minibert import MiniBERT
from minibert.commands import classify, embed, evaluate, fill_mask
from minibert.data.tokenizer import Tokenizer
from tests.support.small_classifier import save_base


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose weights are finite, but so large that its numbers overflow."""
    save_base(tmp_path / "bert")
    model = MiniBERT.from_pretrained(tmp_path / "bert", heads=("mlm", "pooler", "classifier"), labels=["a", "b"])
    tokenizer = Tokenizer.load(tmp_path / "bert")
    model.save_pretrained(tmp_path / "bert")
    tokenizer.save(tmp_path / "bert", 16)
    path = tmp_path / "bert" / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if "LayerNorm.weight" in name or name.endswith("classifier.weight"):
            tensor[...] = 3.4e38
    save_file(tensors, path)
    return tmp_path / "bert"


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value):RuntimeWarning")
@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            fill_mask,
            ["the [MASK]"],
            "a probability of 'token 3 of the text' is not finite: the model's weights are damaged",
        ),
        (classify, ["the cat"], "a probability of 'the cat' is not finite"),
        (embed, ["--text", "the cat"], "the vector of 'the cat' is not finite"),
    ],
)
def test_a_command_names_a_result_that_is_not_finite(folder, command, arguments, message, capsys):
    assert command.main([*arguments, "--model", str(folder)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "nan" not in captured.out.lower()


@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value):RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*has no next-sentence head")
def test_an_evaluation_that_is_not_finite_is_an_error(folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat is old\n\na new dog is the fox\n\n" * 400)
    assert evaluate.main(["--model", str(folder), "--corpus", str(tmp_path / "text.txt"), "--seq-length", "8"]) == 2
    assert "the evaluation loss is nan" in capsys.readouterr().err
