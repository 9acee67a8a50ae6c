"""Compare the time to embed one sentence from a cold start: the whole process, from the command to the printed vector.

Each peer runs the shortest script that computes the same vector. The parties take turns, each time in a fresh process.
Processor time, summed over threads, is measured too: a process that starts many threads costs more than its seconds
show. Beside it stands what the party's packages take on the disk.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison import HIDDEN_VARIABLES, OURS, SCRIPTS, Result, WorkerError, run_process
from benchmarks.embeddings import lowest_cosine
from benchmarks.throughput import Job

SENTENCE = "A cat sits on the mat."

TRANSFORMERS = """
import sys, torch
from transformers import AutoModel, AutoTokenizer
folder, _, text = sys.argv[1:]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
with torch.no_grad():
    hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)
print(torch.nn.functional.normalize(hidden)[0].tolist())
"""

SENTENCE_TRANSFORMERS = """
import sys
from sentence_transformers import SentenceTransformer
folder, _, text = sys.argv[1:]
print(SentenceTransformer(folder, device="cpu").encode(text, normalize_embeddings=True).tolist())
"""

ONNXRUNTIME = """
import sys, numpy, onnxruntime, tokenizers
folder, file, text = sys.argv[1:]
tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.no_padding()
ids = numpy.array([tokenizer.encode(text).ids])
session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
mean = session.run(None, {"input_ids": ids, "attention_mask": numpy.ones_like(ids)})[0][0].mean(0)
print((mean / numpy.linalg.norm(mean)).tolist())
"""

OPENVINO = """
import sys, numpy, openvino, tokenizers
folder, file, text = sys.argv[1:]
tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
tokenizer.no_padding()
ids = numpy.array([tokenizer.encode(text).ids])
model = openvino.Core().compile_model(file, "CPU")
mean = model({"input_ids": ids, "attention_mask": numpy.ones_like(ids)})[0][0].mean(0)
print((mean / numpy.linalg.norm(mean)).tolist())
"""

PEERS = {
    "transformers": TRANSFORMERS,
    "sentence-transformers": SENTENCE_TRANSFORMERS,
    "onnxruntime": ONNXRUNTIME,
    "openvino": OPENVINO,
}

NEEDED: Mapping[str, tuple[str, ...]] = {
    "transformers": ("torch", "transformers"),
    "sentence-transformers": ("sentence_transformers",),
    "onnxruntime": ("onnxruntime", "tokenizers", "torch", "transformers", "onnx"),
    "openvino": ("openvino", "tokenizers", "torch", "transformers", "onnx"),
}
"""The packages that must be there to measure each peer; PyTorch and transformers write the ONNX file."""

REQUIREMENTS = {
    OURS: ("minibert[fast]",),
    "transformers": ("transformers", "torch"),
    "sentence-transformers": ("sentence-transformers",),
    "onnxruntime": ("onnxruntime", "tokenizers"),
    "openvino": ("openvino", "tokenizers"),
}
"""The packages that a user installs to embed sentences with each party."""


def available_peers(packages: frozenset[str]) -> list[str]:
    """Return the peers that these packages are enough for."""
    return [peer for peer, needed in NEEDED.items() if packages.issuperset(needed)]


def compare_start(
    folder: Path, peers: Sequence[str], peer_python: str, rounds: int, say: Callable[[str], None] = print
) -> Result:
    """Compare whole processes.

    Args:
        folder: the model.
        peers: some of `PEERS`.
        peer_python: the interpreter that has their packages.
        rounds: how many processes each party gets.
        say: is called with a line about every round.

    Returns:
        The sentence; for every party its seconds and processor seconds (medians), the ratios of both to Mini-BERT's
        within a round, the cosine of its vector to Mini-BERT's, and the bytes of its packages.

    Raises:
        WorkerError: a process failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch)
        if {"onnxruntime", "openvino"}.intersection(peers):
            job = files / "job.json"
            Job(str(folder), scratch, [], [], 512, 1, 1).write(job)
            run_process([peer_python, "benchmarks.prepare_peers", str(job)], "writing the ONNX file")
        embed = str(SCRIPTS / "embed.py")
        commands = {OURS: [sys.executable, embed, "--model", str(folder), "--text", SENTENCE]}
        for peer in peers:
            script = files / f"shortest_{peer}.py"  # a file named like a package would hide the package
            script.write_text(PEERS[peer], encoding="utf-8")
            commands[peer] = [peer_python, str(script), str(folder), str(files / "float32.onnx"), SENTENCE]
        found: dict[str, list[Result]] = {party: [] for party in commands}
        for party, command in commands.items():
            run_command(command, party)  # warm up: files come into the memory cache, bytecode onto the disk
        for number in range(rounds):
            for party in commands if number % 2 == 0 else reversed(commands):
                found[party].append(run_command(commands[party], party))
            times = ", ".join(f"{party} {rounds[-1]['seconds']:.2f} s" for party, rounds in found.items())
            say(f"  round {number + 1}: {times}")
    sizes = {party: installed_bytes(party, sys.executable if party == OURS else peer_python) for party in found}
    return {"sentence": SENTENCE, "parties": summarize(found, sizes)}


def run_command(command: Sequence[str], party: str) -> Result:
    """Run a command that prints a vector; return the "vector", the "seconds" and the "processor" seconds.

    Raises:
        WorkerError: the command failed.
    """
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN_VARIABLES}
    environment |= {"HF_HUB_OFFLINE": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"no message, exit status {done.returncode}"]
        raise WorkerError(f"{party} failed on one sentence: {last[0]}")
    vector = json.loads(done.stdout[done.stdout.index("[") : done.stdout.index("]") + 1])
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"vector": vector, "seconds": seconds, "processor": processor}


def installed_bytes(party: str, python: str) -> int:
    """Return the bytes that a party's packages and all their dependencies take in an interpreter's environment.

    Raises:
        WorkerError: a package is missing.
    """
    return int(run_process([python, "benchmarks.install_size", *REQUIREMENTS[party]], f"{party}'s size")["bytes"])


def summarize(found: Mapping[str, Sequence[Result]], sizes: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Return the figures of each party from those of its processes, with the ratios within each round."""
    ours = found[OURS]
    return {
        party: {
            "seconds": statistics.median(figures["seconds"] for figures in rounds),
            "processor": statistics.median(figures["processor"] for figures in rounds),
            "ratios": [a["seconds"] / b["seconds"] for a, b in zip(rounds, ours, strict=True)],
            "processor_ratios": [a["processor"] / b["processor"] for a, b in zip(rounds, ours, strict=True)],
            "cosine": lowest_cosine(np.array([rounds[-1]["vector"]]), np.array([ours[-1]["vector"]])),
            "installed_bytes": sizes[party],
        }
        for party, rounds in found.items()
    }
