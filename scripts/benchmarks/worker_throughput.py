"""Embed many texts with one implementation in one precision, and measure it: the worker of `benchmarks.throughput`.

Parties:
    minibert-float32, minibert-bfloat16 and so on: Mini-BERT in each of its precisions, with its default batches.
    transformers-float32, transformers-bfloat16: transformers' model in PyTorch, the second under bfloat16 autocast.
    onnxruntime-float32, onnxruntime-int8: the same model as ONNX; int8 by `quantize_dynamic`, per channel.
    openvino-float32, openvino-default, openvino-int8: the ONNX file in OpenVINO; its default is bfloat16 on processors
        that have the instructions, and int8 is nncf's quantization of weights and activations after calibration.

Peers get what a careful user would give them: the tokenizers library, texts sorted by length, and of several sizes of
batches the one that proves fastest during the warm-up.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison import OURS
from benchmarks.throughput import Job
from minibert.inference.batches import batches_by_length

BATCH_TOKENS = (128, 256, 512, 1024, 2048)
"""The most tokens of a batch, padding included, that peers try."""
_TRIES = 2

Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Takes ids (B, T) and mask (B, T), both int64, and returns the last hidden states (B, T, H), float32."""


def main() -> None:
    """Do the job that the command line names, write the vectors, and print the figures as JSON."""
    job, party = Job.read(sys.argv[1]), sys.argv[2]
    warnings.simplefilter("ignore")  # about cut texts, which every party cuts
    figures: dict[str, Any]
    if party.startswith(OURS):
        embed, figures = load_ours(job, party.removeprefix(f"{OURS}-"))
        vectors = embed(job.texts)
    else:
        name, _, precision = party.partition("-")
        forward, figures = LOADERS[name](job, precision)
        tokenize = load_tokenizer(job)
        sample = job.texts[::4]
        embed_peers(forward, tokenize, sample, BATCH_TOKENS[-1])  # the first calls are slow
        tried = [
            (timed(embed_peers, forward, tokenize, sample, tokens)[0], tokens)
            for _ in range(_TRIES)
            for tokens in BATCH_TOKENS
        ]
        figures["batch_tokens"] = min(tried)[1]

        def embed(texts: list[str]) -> np.ndarray:
            return embed_peers(forward, tokenize, texts, figures["batch_tokens"])

        vectors = embed(job.texts)
    passes = []
    for _ in range(job.passes):
        *seconds, vectors = timed(embed, job.texts)
        passes.append(seconds)
    np.save(Path(job.files) / f"{party}.npy", vectors)
    figures["seconds"], figures["processor"] = map(statistics.median, zip(*passes, strict=True))
    print(json.dumps(figures))


def timed(call: Callable[..., np.ndarray], *arguments: object) -> tuple[float, float, np.ndarray]:
    """Return the seconds that a call took, its processor seconds (summed over threads), and its result."""
    start, processor_start = time.perf_counter(), time.process_time()
    result = call(*arguments)
    return time.perf_counter() - start, time.process_time() - processor_start, result


def load_ours(job: Job, precision: str) -> tuple[Callable[[list[str]], np.ndarray], dict[str, Any]]:
    """Return Mini-BERT's function from texts to vectors (n, H), and what describes it."""
    from backends.cpu.threads import set_threads
    from minibert.inference.embedding import SentenceEmbedder

    set_threads(job.threads)
    embedder = SentenceEmbedder.load(Path(job.model), precision=precision)
    description = embedder.model.backend.description()
    return embedder.embed, {
        "precision": precision,
        "batch_tokens": embedder.batch_tokens,
        "description": description,
    }


def load_tokenizer(job: Job) -> Callable[[list[str]], list[list[int]]]:
    """Return a function from texts to token ids, [CLS] and [SEP] included, cut to the most tokens of a text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(job.model) / "tokenizer.json"))
    tokenizer.enable_truncation(job.max_length)
    tokenizer.no_padding()
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]


def embed_peers(
    forward: Forward, tokenize: Callable[[list[str]], list[list[int]]], texts: list[str], batch_tokens: int
) -> np.ndarray:
    """Return the vectors (n, H) of the texts: the mean of each text's hidden states, scaled to length 1."""
    encoded = tokenize(texts)
    vectors: list[np.ndarray] = [np.empty(0)] * len(texts)
    for chosen in batches_by_length([len(ids) for ids in encoded], batch_tokens):
        ids = np.zeros((len(chosen), len(encoded[chosen[0]])), np.int64)  # the longest text comes first
        mask = np.zeros_like(ids)
        for row, index in enumerate(chosen):
            ids[row, : len(encoded[index])] = encoded[index]
            mask[row, : len(encoded[index])] = 1
        hidden = forward(ids, mask)
        means = np.matmul(mask[:, None, :].astype(np.float32), hidden)[:, 0]  # (B, H)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        for row, index in enumerate(chosen):
            vectors[index] = means[row]
    return np.stack(vectors)


def load_transformers(job: Job, precision: str) -> tuple[Forward, dict[str, Any]]:
    """Return the forward pass of transformers' model, and what describes it."""
    import torch
    import transformers

    torch.set_num_threads(job.threads)
    model = transformers.AutoModel.from_pretrained(job.model, attn_implementation="sdpa").eval()

    def forward(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            hidden = model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state
            return hidden.float().numpy()  # type: ignore[no-any-return]

    description = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    return forward, {"precision": precision, "description": description}


def load_onnxruntime(job: Job, precision: str) -> tuple[Forward, dict[str, Any]]:
    """Return the forward pass in onnxruntime, and what describes it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(
        str(Path(job.files) / f"{precision}.onnx"), options, providers=["CPUExecutionProvider"]
    )

    def forward(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]  # type: ignore[no-any-return]

    return forward, {"precision": precision, "description": f"onnxruntime {onnxruntime.__version__}"}


def load_openvino(job: Job, precision: str) -> tuple[Forward, dict[str, Any]]:
    """Return the forward pass in OpenVINO, and what describes it."""
    import openvino

    core = openvino.Core()
    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": job.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",  # one batch after the other, each with all threads
    }
    if precision == "float32":
        options["INFERENCE_PRECISION_HINT"] = "f32"
    file = "int8.xml" if precision == "int8" else "float32.onnx"
    compiled = core.compile_model(core.read_model(str(Path(job.files) / file)), "CPU", options)
    request = compiled.create_infer_request()

    def forward(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        request.infer({"input_ids": ids, "attention_mask": mask})
        return request.get_output_tensor(0).data  # type: ignore[no-any-return]

    if precision == "default":
        precision = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[
            compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        ]
    return forward, {"precision": precision, "description": f"OpenVINO {openvino.__version__}"}


LOADERS = {"transformers": load_transformers, "onnxruntime": load_onnxruntime, "openvino": load_openvino}

if __name__ == "__main__":
    main()
