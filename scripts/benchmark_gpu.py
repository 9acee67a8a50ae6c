"""Time training steps on a GPU, in Mini-BERT or in PyTorch.

    python scripts/benchmark_gpu.py --device cuda --party minibert --preset base

All parties train models of the same sizes, predict every seventh token (14%), with dropout 0.1, clipping and AdamW. The
steps follow one another without waiting for the device. Without --preset, three sizes are timed, one after the other.

    minibert        in float32, or in TF32 if CUPY_TF32=1 is set
    torch           in bfloat16 (autocast), scaled-dot-product attention, logits at the predicted positions, fused AdamW
    torch-compiled  the same under torch.compile
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from backends import BackendError, get_backend
from minibert import MiniBERT, MiniBERTConfig
from minibert.commands.gpu_measurements import random_batch
from minibert.commands.parser import Parser, add_option
from minibert.commands.process import SUCCESS
from minibert.commands.verify_gpu import FINDING, NOT_RUN
from minibert.data.batch_source import Batch
from minibert.optimizer import AdamW
from minibert.options import DEVICE
from minibert.training.trainer import Trainer

SIZES = (("tiny", 256, 128), ("mini", 32, 128), ("base", 32, 128))  # preset, sequences, tokens in each
QUICK_SIZES = (("tiny", 2, 16),)
WARM_UP = 3  # steps that are not timed


def milliseconds(step: Callable[[], None], wait: Callable[[], None], steps: int) -> float:
    """Return the time of a step, over several steps without waiting in between.

    Args:
        step: runs one training step; it may return before the device has finished.
        wait: waits until the device has finished.
        steps: how many steps to time.
    """
    for _ in range(WARM_UP):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return 1e3 * (time.perf_counter() - start) / steps


def time_minibert(config: MiniBERTConfig, batch: Batch, device: str, steps: int) -> tuple[str, float]:
    """Time Mini-BERT; return a description of it and the milliseconds of a step."""
    model = MiniBERT(config, backend=get_backend(device))
    trainer = Trainer(model, AdamW(model))
    taken = milliseconds(lambda: trainer.step(batch, 1e-4), model.backend.synchronize, steps)
    trainer.collect()  # raises an error if a loss is not finite
    return f"Mini-BERT {'TF32' if getattr(model.backend, 'tf32', False) else 'float32'}", taken


def time_torch(
    config: MiniBERTConfig, batch: Batch, device: str, steps: int, compiled: bool = False
) -> tuple[str, float]:
    """Time Hugging Face's BERT in PyTorch; return a description of it and the milliseconds of a step."""
    import torch
    import transformers
    from torch.nn import functional

    settings = transformers.BertConfig(**config.to_dict(), attn_implementation="sdpa")
    model = transformers.BertForMaskedLM(settings).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids, positions, labels = (
        torch.as_tensor(array.astype("int64"), device=device)
        for array in (batch.input_ids, batch.prediction_positions, batch.labels)
    )
    kind = device.partition(":")[0]

    def masked_loss() -> torch.Tensor:
        hidden = model.bert(ids).last_hidden_state.view(-1, config.hidden_size)[positions]
        return functional.cross_entropy(model.cls(hidden), labels)

    loss_of = torch.compile(masked_loss) if compiled else masked_loss

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(kind, dtype=torch.bfloat16):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def wait() -> None:
        if kind == "cuda":
            torch.cuda.synchronize()

    how = ", compiled" if compiled else ""
    return f"PyTorch {torch.__version__} bfloat16{how}", milliseconds(step, wait, steps)


def why_torch_cannot_run(device: str) -> str:
    """Return what PyTorch lacks here; empty if it can run."""
    if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        return f"{' and '.join(missing)} not installed"
    import torch

    return "" if device == "cpu" or torch.cuda.is_available() else f"PyTorch {torch.__version__} sees no GPU"


PARTIES: dict[str, Callable[..., tuple[str, float]]] = {
    "minibert": time_minibert,
    "torch": time_torch,
    "torch-compiled": lambda *arguments: time_torch(*arguments, compiled=True),
}


def main() -> int:
    """Print the milliseconds of a training step and the tokens per second for each size; return the exit status."""
    parser = Parser(description=__doc__.splitlines()[0])
    add_option(parser, DEVICE._replace(default="cuda"))
    parser.add_argument("--party", choices=PARTIES, default="minibert", help="what to time (default: minibert)")
    parser.add_argument("--preset", metavar="P", help="size of the model: tiny, mini, ..., base (default: three sizes)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="sequences in a step, with --preset")
    parser.add_argument("--seq-length", type=int, default=128, metavar="T", help="tokens in a sequence, with --preset")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps (default: 20)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and two steps; the figures mean nothing")
    try:
        given = parser.parse_args()
        get_backend(given.device)
        sizes = QUICK_SIZES if given.quick else SIZES
        if given.preset:
            sizes = ((given.preset, given.batch_size, given.seq_length),)
        configs = [MiniBERTConfig.preset(preset) for preset, _, _ in sizes]
    except (BackendError, ValueError) as error:
        parser.error(str(error))
    if given.party != "minibert" and (reason := why_torch_cannot_run(given.device)):
        print(reason)
        return NOT_RUN
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for config, (preset, sequences, length) in zip(configs, sizes, strict=True):
        batch, steps = random_batch(config, sequences, length), 2 if given.quick else given.steps
        name, taken = PARTIES[given.party](config, batch, given.device, steps)
        rate = sequences * length / taken * 1e3
        print(
            f"{FINDING}{preset}, {sequences} x {length}: {taken:.2f} ms a step, {rate:,.0f} tokens/s, {name}",
            flush=True,
        )
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
