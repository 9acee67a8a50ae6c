"""transformers loads the folders of Mini-BERT, tokenizer and model, without a warning and with the same results."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import normalizers, pre_tokenizers

from minibert import MiniBERT
from minibert.data.tokenizer import Tokenizer
from tests.support.small_run import run, write_text

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
    assert tokenizer.encode_pair(TEXTS[0], "")[0] == theirs(TEXTS[0], "")["input_ids"]
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


PARTS = {
    "of the course": (
        normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]),
    ),
    "split at whitespace": (normalizers.BertNormalizer(lowercase=True), pre_tokenizers.WhitespaceSplit()),
    "as it stands": (normalizers.NFC(), pre_tokenizers.Whitespace()),
    "uncleaned": (normalizers.BertNormalizer(clean_text=False), pre_tokenizers.BertPreTokenizer()),
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_tokenizer_that_is_not_berts_is_saved_as_what_it_is(parts, minilm, tmp_path):
    """PreTrainedTokenizerFast saves a tokenizer, Mini-BERT loads and saves it, and the ids stay the same."""
    ours = Tokenizer.load(minilm)
    ours.backend.normalizer, ours.backend.pre_tokenizer = parts
    names = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=ours.backend,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{name: ours.special_tokens[name] for name in names},
    )
    fast.save_pretrained(tmp_path / "in")
    tokenizer = Tokenizer.load(tmp_path / "in")
    for folder in ("in", "out"):
        if folder == "out":
            tokenizer.save(tmp_path / "out", 512)
        (tmp_path / folder / "config.json").write_text('{"model_type": "bert"}')
        theirs = strictly(transformers.AutoTokenizer.from_pretrained, tmp_path / folder)
        assert_same_ids(tokenizer, theirs)
    assert theirs.model_max_length == 512
    assert theirs.mask_token_id == tokenizer.mask_id


@pytest.mark.parametrize("change", ["a token twice", "an added token"])
def test_every_token_of_a_vocabulary_alone_has_their_id(change, minilm, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    vocabulary = (minilm / "vocab.txt").read_text(encoding="utf-8").splitlines()
    if change == "a token twice":
        vocabulary.append("sentence")
    else:
        (tmp_path / "added_tokens.json").write_text(json.dumps({"<new>": len(vocabulary)}))
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.save(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text('{"model_type": "bert"}')
    for other in (theirs, strictly(transformers.AutoTokenizer.from_pretrained, tmp_path / "out")):
        assert_same_ids(tokenizer, other)
        for text in ("a <new> sentence", "<new>s"):
            assert tokenizer.encode_pair(text)[0] == other(text)["input_ids"]


def test_a_trained_folder_is_a_folder_of_theirs(tmp_path, capsys):
    """BertForPreTraining and AutoTokenizer load the output of scripts/train.py and compute the same."""
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


def test_a_model_saved_over_shards_is_the_one_they_read(tmp_path):
    """Mini-BERT loads a folder of shards, changes the model and saves it there: both libraries see the change."""
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20
    )
    transformers.BertForPreTraining(config).save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model = MiniBERT.from_pretrained(tmp_path)
    model.parameters["pooler.bias"][...] = 7.0
    model.save_pretrained(tmp_path)
    theirs = strictly(transformers.BertForPreTraining.from_pretrained, tmp_path)
    assert (theirs.bert.pooler.dense.bias == 7.0).all()
    assert (MiniBERT.from_pretrained(tmp_path).parameters["pooler.bias"] == 7.0).all()
    assert not list(tmp_path.glob("model-*.safetensors"))
