"""Time Mini-BERT's training step on NumPy: the worker for Mini-BERT's own parties.

Parties:
    minibert: in float32.
    minibert-bfloat16: in bfloat16.
    minibert-reference: in float32, without the twins.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from backends import get_backend
from backends.cpu.threads import set_threads
from benchmarks.comparison import OURS_BFLOAT16
from benchmarks.work import Work, peak_bytes, timed
from minibert import AdamW, MiniBERT, MiniBERTConfig, MiniBERTGradients
from minibert.kernels import Kernels
from minibert.ops import DEFINITIONS


def sgemm_gflops(work: Work) -> dict[str, float]:
    """Measure the speed of NumPy's matrix product in float32, in GFLOP/s.

    Each product of this step is repeated, with nothing else between the repetitions.

    Returns:
        "step": the speed over all products of this step, from the median time of each; "best": the fastest
        repetition of all.
    """
    from threadpoolctl import threadpool_limits  # imported after the peak memory of the step was measured

    rng = np.random.default_rng(0)
    total_flops, total_seconds, best = 0.0, 0.0, 0.0
    layers = Counter(work.linear_layers(pruned=True))
    with threadpool_limits(work.threads):
        for (rows, outputs, inputs), count in layers.items():
            x, weight, dy = (
                rng.standard_normal(shape, dtype=np.float32)
                for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
            )
            flops = 2.0 * rows * outputs * inputs
            for a, b in ((x, weight.T), (dy, weight), (dy.T, x)):
                out = np.empty((a.shape[0], b.shape[1]), dtype=np.float32)
                seconds = []
                for _ in range(11):
                    start = time.perf_counter()
                    np.matmul(a, b, out=out)
                    seconds.append(time.perf_counter() - start)
                total_flops += count * flops
                total_seconds += count * statistics.median(seconds)
                best = max(best, flops / min(seconds))
    return {"step": 1e-9 * total_flops / total_seconds, "best": 1e-9 * best}


def time_operations(kernels: Kernels) -> dict[str, float]:
    """Let every operation of `kernels` measure its time; return the dictionary that it adds to: name -> seconds."""
    spent: dict[str, float] = {}

    def timed_operation(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = operation(*arguments, **options)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - start
            return result

        return call

    for name in DEFINITIONS:
        setattr(kernels, name, timed_operation(name, getattr(kernels, name)))
    return spent


def make_step(work: Work) -> tuple[Callable[[], None], MiniBERT, list[float]]:
    """Return a function that takes a training step, its model, and the list to which each step adds its loss."""
    config = MiniBERTConfig(
        vocab_size=work.vocabulary,
        hidden_size=work.hidden,
        num_hidden_layers=work.layers,
        num_attention_heads=work.hidden // 64,
        intermediate_size=4 * work.hidden,
        hidden_dropout_prob=work.dropout,
        attention_probs_dropout_prob=work.dropout,
    )
    model = MiniBERT(
        config,
        kernels="reference" if work.party == "minibert-reference" else "auto",
        precision="bfloat16" if work.party == OURS_BFLOAT16 else "float32",
    )
    gradients, optimizer = MiniBERTGradients(model), AdamW(model)
    batch = work.batch_arrays()
    mask = np.ones_like(batch["ids"])
    losses: list[float] = []

    def step() -> None:
        _, cache = model.forward(
            batch["ids"],
            mask,
            prediction_positions=batch["positions"],
            next_sentence=False,
            dropout_step=optimizer.steps,
            unpad=True,
        )
        losses.append(float(gradients.backward(cache, batch["labels"])))
        optimizer.step(gradients.gradients, 1e-4)

    return step, model, losses


def main() -> None:
    """Do the work that the command line describes, and print the figures."""
    work = Work.from_json(sys.argv[1])
    set_threads(work.threads)
    step, model, losses = make_step(work)
    figures = timed(step, work.warmup, work.steps)
    figures["peak_bytes"] = peak_bytes()
    whole, spent = 0.0, time_operations(model.kernels)
    for _ in range(work.steps):
        start = time.perf_counter()
        step()
        whole += time.perf_counter() - start
    operations = {name: seconds / work.steps for name, seconds in spent.items()}
    operations["everything else"] = whole / work.steps - sum(operations.values())
    figures["operations"] = dict(sorted(operations.items(), key=lambda item: -item[1]))
    if work.party != OURS_BFLOAT16:
        figures["sgemm_gflops"] = sgemm_gflops(work)
    figures["product_gflop"] = work.product_flops(pruned=True) / 1e9
    figures["losses"] = losses
    figures["description"] = f"{get_backend('cpu').description()}, {model.precision}"
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
