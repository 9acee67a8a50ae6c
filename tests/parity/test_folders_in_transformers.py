"""Folders of ours are folders of theirs: tokenizer and trained model load without a warning and agree."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from small_run import run, write_text

from minibert import MiniBERT
from minibert.data.tokenizer import Tokenizer

TEXTS = [
    "A plain sentence, with commas; and (brackets)!",
    "Élégante crème brûlée, naïve façade, Ångström, œuvre",
    "ÜBERGRÖSSE STRASSE straße İstanbul",
    "北京是中国的首都。 東京タワー 서울 नमस्ते Привет мир שלום مرحبا",
    "emoji 😀 👩‍👩‍👧 🇫🇷 and ☃",
    "tabs\tand\nlines and\u00a0spaces\u3000wide, a zero\u200bwidth, a\x00null, soft\u00adhyphen",
    "http://example.org/a_b?c=d&e=%20f  x=3.14e-10 #tag @user",
    "e\u0301 combining, ﬁ ligature, ½ ² ™",
    "[MASK] [CLS] literally and [mask] in small letters",
    "supercalifragilisticexpialidocious" * 5,
    "",
    "   ",
]


def strictly(load, folder: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(folder)


def assert_same_ids(tokenizer: Tokenizer, theirs) -> None:
    for text in TEXTS:
        expected = theirs(text)
        ids, types = tokenizer.encode_pair(text)
        assert ids == expected["input_ids"], text
        assert types == expected["token_type_ids"], text
    pair = theirs(TEXTS[0], TEXTS[1])
    assert tokenizer.encode_pair(TEXTS[0], TEXTS[1]) == (pair["input_ids"], pair["token_type_ids"])


@pytest.mark.parametrize("change", ["as published", "from vocab.txt", "cased", "keeping accents"])
def test_a_saved_tokenizer_gives_autotokenizers_ids(change, minilm, tmp_path):
    shutil.copytree(minilm, tmp_path / "in", ignore=shutil.ignore_patterns("*.safetensors", "data_config.json"))
    if change != "as published":
        (tmp_path / "in" / "tokenizer.json").unlink()
    config = tmp_path / "in" / "tokenizer_config.json"
    if change == "cased":
        config.write_text('{"do_lower_case": false}')
    if change == "keeping accents":
        config.write_text('{"do_lower_case": true, "strip_accents": false}')
    tokenizer = Tokenizer.load(tmp_path / "in")
    assert tokenizer.lowercase == (change != "cased")
    tokenizer.save(tmp_path / "out", 512)
    theirs = strictly(transformers.AutoTokenizer.from_pretrained, tmp_path / "out")
    assert theirs.model_max_length == 512
    assert theirs.mask_token_id == tokenizer.mask_id
    assert_same_ids(tokenizer, theirs)
    if change == "as published":
        assert_same_ids(tokenizer, transformers.AutoTokenizer.from_pretrained(minilm))


def test_a_trained_folder_is_a_folder_of_theirs(tmp_path, capsys):
    """What scripts/train.py leaves: BertForPreTraining and AutoTokenizer load it, and it computes the same."""
    run(write_text(tmp_path / "animals.txt", documents=40), tmp_path / "run", objective="mlm+nsp")
    capsys.readouterr()
    folder = tmp_path / "run"
    theirs, info = strictly(
        lambda path: transformers.BertForPreTraining.from_pretrained(path, output_loading_info=True), folder
    )
    assert not any(info.values()), info
    tokenizer = strictly(transformers.AutoTokenizer.from_pretrained, folder)
    assert_same_ids(Tokenizer.load(folder), tokenizer)
    encoded = tokenizer(["the red fox eats [MASK].", "a cow"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        outputs = theirs.eval()(**encoded)
    logits, cache = MiniBERT.from_pretrained(folder).forward(**{name: value.numpy() for name, value in encoded.items()})
    real = encoded["attention_mask"].numpy() == 1
    np.testing.assert_allclose(logits[real], outputs.prediction_logits.numpy()[real], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cache.next_sentence_logits, outputs.seq_relationship_logits, rtol=1e-4, atol=1e-5)
