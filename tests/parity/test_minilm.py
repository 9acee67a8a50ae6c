"""Real weights: all-MiniLM-L6-v2 gives the sentence embeddings that it gives in transformers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from minibert.data import stdlib_text
from minibert.inference.embedding import SentenceEmbedder
from minibert.inference.pooling import SentencePooling

pytestmark = pytest.mark.filterwarnings("ignore:.*ignored constants that BERT computes. embeddings.position_ids")

COSINE = 0.999999
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """200 texts from this Python's documentation, of one word to a paragraph."""
    words = " ".join(text for _, text in stdlib_text.stdlib_documents()[:40]).split()
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(1, 40, 180), rng.integers(40, 80, 20)])
    starts = rng.integers(0, len(words) - 200, lengths.size)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


@pytest.fixture(scope="module")
def theirs(minilm: Path, sentences: list[str]) -> np.ndarray:
    """(200, H) by transformers, each sentence alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    vectors = []
    with torch.inference_mode():
        for sentence in sentences:
            encoded = tokenizer(sentence, truncation=True, max_length=256, return_tensors="pt")
            vectors.append(torch.nn.functional.normalize(model(**encoded).last_hidden_state.mean(1))[0].numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("batch_tokens", [1, 1024, 10**9], ids=["one by one", "by length", "one batch"])
@pytest.mark.filterwarnings("default::minibert.inference.embedding.EmbeddingWarning")
def test_every_embedding_has_the_direction_of_transformers(minilm, sentences, theirs, batch_tokens):
    vectors = SentenceEmbedder.load(minilm, batch_tokens=batch_tokens).embed(sentences)
    assert len(sentences) == 200
    assert (vectors * theirs).sum(axis=1).min() >= COSINE


@pytest.mark.filterwarnings("default::minibert.inference.embedding.EmbeddingWarning")
def test_so_it_has_in_one_padded_batch(minilm, sentences, theirs):
    """The definition computes the padding as well, which the embedder skips."""
    embedder = SentenceEmbedder.load(minilm)
    sequences = embedder._sequences(sentences)
    ids = np.zeros((200, max(map(len, sequences))), dtype=np.int32)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
    hidden = embedder.model.encode(ids, mask, unpad=False)
    vectors = (hidden * mask[:, :, None]).sum(axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (vectors * theirs).sum(axis=1).min() >= COSINE


def test_its_files_say_mean_and_unit_length(minilm):
    assert SentencePooling.read(minilm) == SentencePooling("mean", True, 256, False)


@pytest.mark.parametrize("change", ["as published", "a prompt", "the tokenizer's length", "no files of theirs"])
@pytest.mark.filterwarnings("default::minibert.inference.embedding.EmbeddingWarning", "default:::sentence_transformers")
def test_every_folder_is_read_as_sentence_transformers_reads_it(change, minilm, sentences, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "model"
    shutil.copytree(minilm, folder)
    if change == "a prompt":
        content = {"prompts": {"q": "query: "}, "default_prompt_name": "q"}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(content))
    if change == "the tokenizer's length":
        (folder / "sentence_bert_config.json").unlink()
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 20}))
    if change == "no files of theirs":
        (folder / "modules.json").unlink()
    texts = [*sentences[:20], " ".join(sentences[:30])]
    expected = SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(SentenceEmbedder.load(folder).embed(texts), expected, rtol=1e-3, atol=1e-5)


def test_the_command_gives_the_same_vector(minilm, sentences, theirs):
    command = [sys.executable, str(ROOT / "scripts" / "embed.py"), "--model", str(minilm), "--text", sentences[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    vector = np.array(json.loads(done.stdout)["embedding"])
    assert vector @ theirs[0] >= COSINE
