"""A classifier that trains in a second: labelled texts, a BERT to start from, and the command line for both."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from minibert import MiniBERT, MiniBERTConfig
from minibert.data.tokenizer import Tokenizer, build_wordpiece
from minibert.finetuning.labelled_texts import LabelledText

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ANIMALS, TOOLS, FILLER = ["cat", "dog", "fox", "owl"], ["saw", "axe", "file", "drill"], ["the", "a", "is", "old", "new"]


def sentences(count: int, seed: int = 0) -> list[LabelledText]:
    """Return texts whose label depends on one word; the other words are fillers."""
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        label, words = ("animal", ANIMALS) if number % 3 else ("tool", TOOLS)
        text = [*rng.choice(FILLER, rng.integers(1, 5)), rng.choice(words), *rng.choice(FILLER, rng.integers(0, 4))]
        examples.append(LabelledText(" ".join(text), None, label))
    return examples


def save_base(folder: Path) -> Path:
    """Write a folder like that of a pretrained model; its weights are random."""
    words = [*SPECIAL, *ANIMALS, *TOOLS, *FILLER]
    config = MiniBERTConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    MiniBERT(config).save_pretrained(folder)
    Tokenizer(build_wordpiece({word: id_ for id_, word in enumerate(words)})).save(folder, 16)
    return folder


def write_csv(path: Path, examples: list[LabelledText]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "kind"])
        writer.writerows([example.text, example.label] for example in examples)
    return path


def command(base: Path, data: Path, output: Path, *more: str) -> list[str]:
    options = {"--model": base, "--data": data, "--text-column": "what", "--label-column": "kind", "--output": output}
    return [*(str(word) for pair in options.items() for word in pair), "--learning-rate", "3e-3", *more]
