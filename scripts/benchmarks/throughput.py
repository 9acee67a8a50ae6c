"""Compare the speed of sentence embeddings in several precisions, Mini-BERT's and its peers', with the same model.

The parties take turns, each time in a fresh process, as in `benchmarks.comparison`. A process loads its model, embeds
all texts once to warm up, and is then timed. The time includes tokenizing and the way from hidden states to vectors.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends import PRECISIONS, Backend
from benchmarks.comparison import OURS, Result, WorkerError, run_process
from benchmarks.embeddings import lowest_cosine, mixed_texts, model_name

REFERENCE = f"{OURS}-float32"
"""The party whose vectors the others are compared with."""

PEERS: Mapping[str, tuple[str, ...]] = {
    "transformers-float32": ("torch", "transformers"),
    "transformers-bfloat16": ("torch", "transformers"),
    "onnxruntime-float32": ("torch", "transformers", "onnx", "onnxruntime"),
    "onnxruntime-int8": ("torch", "transformers", "onnx", "onnxruntime"),
    "openvino-float32": ("torch", "transformers", "onnx", "openvino"),
    "openvino-default": ("torch", "transformers", "onnx", "openvino"),
    "openvino-int8": ("torch", "transformers", "onnx", "openvino", "nncf"),
}
"""The peers, and the packages that each needs. PyTorch and transformers write the ONNX file for the others."""

CALIBRATION_TEXTS = 300
"""How many other texts nncf gets to find the ranges of the activations; 300 is its default."""


@dataclass(frozen=True)
class Job:
    """The work of every party: embed the same texts with the same model.

    Attributes:
        model: the folder of the model.
        files: the folder of the prepared peers' models; the vectors are written there too.
        texts: the texts.
        calibration: other texts, for peers that choose their scales beforehand.
        max_length: the most tokens of a text, [CLS] and [SEP] included.
        threads: how many threads compute.
        passes: how often all texts are embedded after the first time; each pass is timed.
    """

    model: str
    files: str
    texts: list[str]
    calibration: list[str]
    max_length: int
    threads: int
    passes: int

    @classmethod
    def read(cls, path: str) -> Job:
        """Read a job from the file that `write` wrote."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """Write the job to a file, for the command line of a worker."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")


def our_parties(backend: Backend) -> tuple[list[str], list[str]]:
    """Return Mini-BERT in each precision that is fast on a backend, and a line about each precision that is not."""
    fast = {
        precision: backend.with_precision(precision, "float32").twins_have_precision
        for precision in PRECISIONS
        if precision != "auto"
    }
    notes = [
        f"{OURS}-{name} is left out, because it is slow on this machine"
        for name, is_fast in fast.items()
        if not is_fast
    ]
    return [f"{OURS}-{name}" for name, is_fast in fast.items() if is_fast], notes


def available_peers(packages: frozenset[str]) -> tuple[list[str], list[str]]:
    """Return the peers that these packages are enough for, and a line about every peer that is left out."""
    missing = {peer: [name for name in needed if name not in packages] for peer, needed in PEERS.items()}
    notes = [f"{peer} is left out, because it needs {', '.join(names)}" for peer, names in missing.items() if names]
    return [peer for peer, names in missing.items() if not names], notes


def compare_throughput(
    folder: Path,
    ours: Sequence[str],
    peers: Sequence[str],
    peer_python: str,
    *,
    texts: int,
    rounds: int,
    threads: int,
    passes: int = 3,
    say: Callable[[str], None] = print,
) -> Result:
    """Compare the parties on mixed texts.

    Args:
        folder: the model; its pooling must be the mean of all tokens, scaled to length 1.
        ours: Mini-BERT in several precisions, float32 among them.
        peers: some of `PEERS`.
        peer_python: the interpreter that has their packages.
        texts: how many texts.
        rounds: how many processes each party gets.
        threads: of every party.
        passes: how often each process embeds all texts while it is timed.
        say: is called with a line about every process.

    Returns:
        The model, texts, tokens, threads; for every party its precision, the seconds of each round (medians of the
        passes), the ratios of the time and of the processor time to Mini-BERT's in the same precision, and the lowest
        cosine.

    Raises:
        WorkerError: a worker failed, or the peers do not have the model's pooling.
    """
    from minibert.inference.embedding import SentenceEmbedder

    embedder = SentenceEmbedder.load(folder)
    pooling = embedder.pooling
    if pooling.pooling != "mean" or not pooling.normalize or pooling.prompt or pooling.lowercase:
        raise WorkerError(
            f"throughput compares vectors that are the mean of all tokens, scaled to length 1, of texts as they are; "
            f"the files in {folder} ask for {pooling}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        chosen, calibration = mixed_texts(texts), mixed_texts(CALIBRATION_TEXTS, skip=texts)
        job = Job(str(folder), scratch, chosen, calibration, embedder.max_length, threads, passes)
        file = Path(scratch) / "job.json"
        job.write(file)
        tokens = sum(min(len(ids) + 2, embedder.max_length) for ids in embedder.tokenizer.encode_batch(chosen))
        del embedder
        say(f"{len(chosen):,} texts, {tokens:,} tokens, {threads} {'thread' if threads == 1 else 'threads'}")
        if needed := [peer for peer in peers if not peer.startswith("transformers")]:
            run_process([peer_python, "benchmarks.prepare_peers", str(file), *needed], "the preparation of the peers")
        found: dict[str, list[Result]] = {party: [] for party in (*ours, *peers)}
        for number in range(rounds):
            for party in found if number % 2 == 0 else reversed(found):
                python = sys.executable if party in ours else peer_python
                figures = run_process([python, "benchmarks.worker_throughput", str(file), party], party, threads)
                found[party].append(figures)
                speed = len(chosen) / figures["seconds"]
                say(f"  round {number + 1}: {party} {speed:.0f} texts/s, {figures['batch_tokens']} tokens in a batch")
        vectors = {party: np.load(Path(scratch) / f"{party}.npy") for party in found}
    return {
        "model": model_name(folder),
        "texts": len(chosen),
        "tokens": tokens,
        "threads": threads,
        "parties": summarize(found, {p: lowest_cosine(v, vectors[REFERENCE]) for p, v in vectors.items()}),
    }


def summarize(found: Mapping[str, Sequence[Result]], cosines: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return the figures of each party from those of its processes, with the ratios within each round.

    Args:
        found: party -> the figures of its process in each round.
        cosines: party -> its lowest cosine.

    Returns:
        Party -> figures. "ratios" is empty if Mini-BERT does not have the party's precision.
    """
    summary = {}
    for party, rounds in found.items():
        precision = rounds[-1]["precision"]
        pairs = list(zip(rounds, found.get(f"{OURS}-{precision}", ()), strict=False))  # none if Mini-BERT lacks it
        seconds = [figures["seconds"] for figures in rounds]
        summary[party] = {
            "precision": precision,
            "seconds": statistics.median(seconds),
            "round_seconds": seconds,
            "ratios": [theirs["seconds"] / ours["seconds"] for theirs, ours in pairs],
            "processor_ratios": [theirs["processor"] / ours["processor"] for theirs, ours in pairs],
            "lowest_cosine": cosines[party],
            "batch_tokens": rounds[-1]["batch_tokens"],
            "description": rounds[-1]["description"],
        }
    return summary
