"""A worker: Mini-BERT's training step on NumPy. Parties: minibert, and minibert-reference without twins."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from benchmarks.work import Work, peak_bytes, timed


def sgemm_gflops(threads: int) -> float:
    """What NumPy's matrix product reaches in float32, on a shape of the model's: GFLOP/s, the best of many."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    best = 0.0
    with threadpool_limits(threads):
        for m, n, k in ((4096, 1024, 256), (4096, 256, 1024), (2048, 2048, 1024)):
            a, b = rng.standard_normal((m, k), dtype=np.float32), rng.standard_normal((k, n), dtype=np.float32)
            c = np.empty((m, n), dtype=np.float32)
            for _ in range(12):
                start = time.perf_counter()
                np.matmul(a, b, out=c)
                best = max(best, 2e-9 * m * n * k / (time.perf_counter() - start))
    return best


class _Timed:
    """Kernels that add up the time of every operation."""

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels
        self.seconds: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.kernels, name)

        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = operation(*arguments, **options)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            return result

        return call


def main() -> None:
    """Do the work given as the first argument."""
    work = Work.from_json(sys.argv[1])
    import numpy as np

    from backends import get_backend
    from backends.threads import set_threads
    from minibert import MiniBERT, MiniBERTConfig, MiniBERTGradients
    from minibert.optimizer import AdamW

    set_threads(work.threads)
    config = MiniBERTConfig(
        vocab_size=work.vocabulary,
        hidden_size=work.hidden,
        num_hidden_layers=work.layers,
        num_attention_heads=work.hidden // 64,
        intermediate_size=4 * work.hidden,
        hidden_dropout_prob=work.dropout,
        attention_probs_dropout_prob=work.dropout,
    )
    model = MiniBERT(config, kernels="reference" if work.party == "minibert-reference" else "auto")
    gradients, optimizer = MiniBERTGradients(model), AdamW(model)
    batch = work.batch_arrays()
    mask = np.ones_like(batch["ids"])
    losses = []

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

    figures = timed(step, work.warmup, work.steps)
    figures["peak_bytes"] = peak_bytes()
    whole, kernels = 0.0, model.kernels
    model.kernels = clocked = _Timed(kernels)  # type: ignore[assignment]
    for _ in range(work.steps):
        start = time.perf_counter()
        step()
        whole += time.perf_counter() - start
    operations = {name: seconds / work.steps for name, seconds in clocked.seconds.items()}
    operations["everything else"] = whole / work.steps - sum(operations.values())
    figures["operations"] = dict(sorted(operations.items(), key=lambda item: -item[1]))
    figures["sgemm_gflops"] = sgemm_gflops(work.threads)
    figures["product_gflop"] = work.product_flops(pruned=True) / 1e9
    figures["loss"] = losses[-1]
    figures["description"] = get_backend("cpu").description()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
