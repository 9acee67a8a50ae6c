"""Time Mini-BERT's training step on a GPU, and PyTorch's too if torch and transformers are installed.

    python scripts/benchmark_gpu.py --device cuda --preset base

Both train a model of the same sizes in float32, or in TF32 if CUPY_TF32=1 is set. Both predict every seventh token
(14%), with dropout 0.1, clipping and AdamW. PyTorch runs as people usually run it: BertForMaskedLM, logits at all
positions, fused AdamW.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable

import numpy as np

from backends import BackendError, get_backend
from minibert import MiniBERT, MiniBERTConfig
from minibert.commands.parser import Parser, add_option
from minibert.data.batch_source import Batch
from minibert.optimizer import AdamW
from minibert.options import DEVICE
from minibert.training.trainer import Trainer


def make_batch(config: MiniBERTConfig, sequences: int, length: int) -> Batch:
    """Return a batch of random tokens without padding; every seventh token (14%) is predicted."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, (sequences, length)).astype(np.int32)
    positions = np.arange(3, ids.size, 7)
    labels = rng.integers(0, config.vocab_size, len(positions)).astype(np.int32)
    return Batch(ids, None, None, positions, labels, None)


def median_milliseconds(step: Callable[[], None], wait: Callable[[], None], steps: int) -> float:
    """Return the median time of a step, after three steps to warm up.

    Args:
        step: runs one training step; it may return before the device has finished.
        wait: waits until the device has finished.
        steps: how many steps to time.
    """
    times = []
    for number in range(steps + 3):
        start = time.perf_counter()
        step()
        wait()
        if number >= 3:
            times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def time_minibert(config: MiniBERTConfig, batch: Batch, device: str, steps: int) -> tuple[str, float]:
    """Time Mini-BERT; return a description of it and the milliseconds of a step."""
    model = MiniBERT(config, backend=get_backend(device))
    trainer = Trainer(model, AdamW(model))
    milliseconds = median_milliseconds(lambda: trainer.step(batch, 1e-4), model.backend.synchronize, steps)
    trainer.collect()  # raises an error if a loss is not finite
    return f"Mini-BERT on {model.backend.description()}", milliseconds


def time_torch(config: MiniBERTConfig, batch: Batch, device: str, steps: int) -> tuple[str, float]:
    """Time Hugging Face's BERT in PyTorch; return a description of it and the milliseconds of a step."""
    import torch
    import transformers

    tf32 = getattr(get_backend(device), "tf32", False)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    model = transformers.BertForMaskedLM(transformers.BertConfig(**config.to_dict())).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device != "cpu")
    ids = torch.as_tensor(batch.input_ids.astype(np.int64), device=device)
    labels = torch.full_like(ids, -100)
    labels.view(-1)[torch.as_tensor(batch.prediction_positions, device=device)] = torch.as_tensor(
        batch.labels.astype(np.int64), device=device
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    name = f"PyTorch {torch.__version__}, transformers {transformers.__version__}"
    return name, median_milliseconds(step, wait, steps)


def main() -> None:
    """Print the milliseconds of a training step and the tokens per second of Mini-BERT and PyTorch."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_option(parser, DEVICE._replace(default="cuda"))
    parser.add_argument("--preset", default="mini", metavar="P", help="sizes of the model: tiny, mini, ..., base")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="sequences in a step")
    parser.add_argument("--seq-length", type=int, default=128, metavar="T", help="tokens in a sequence")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps; the median is printed")
    try:
        given = parser.parse_args()
        get_backend(given.device)
        config = MiniBERTConfig.preset(given.preset)
    except (BackendError, ValueError) as error:
        parser.error(str(error))
    batch = make_batch(config, given.batch_size, given.seq_length)
    parties = [time_minibert]
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        parties.append(time_torch)
    else:
        print("PyTorch is not measured, since torch and transformers are not both installed")
    for party in parties:
        name, milliseconds = party(config, batch, given.device, given.steps)
        rate = given.batch_size * given.seq_length / milliseconds * 1e3
        sizes = f"{given.preset}, {given.batch_size} x {given.seq_length}"
        print(f"{sizes}: {milliseconds:.2f} ms a step, {rate:,.0f} tokens/s, {name}")


if __name__ == "__main__":
    main()
