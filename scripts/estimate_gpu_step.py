"""Estimate the time of a training step on a GPU from counts: floating-point operations, bytes, launches.

No GPU was measured for this. The counts are of this code (tests/cuda_emulated counts the launches); the speeds are
the manufacturer's peaks, times the shares below, which are assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass

from minibert import MiniBERTConfig
from minibert.commands.parser import Parser
from minibert.parameters import Layout

LAUNCHES_PER_LAYER, LAUNCHES_OF_THE_PRUNED_LAYER, LAUNCHES_BEYOND = 33, 40, 57
SHARE_OF_BANDWIDTH = 0.75  # that kernels which only move data reach
SECONDS_OF_HOST_PER_LAUNCH = 8e-6  # Python and CuPy; the device waits for the host when its own work is shorter
SECONDS_BETWEEN_KERNELS = 1.5e-6
PREDICTED = 0.15


@dataclass(frozen=True)
class Gpu:
    """Peaks from the data sheets: operations a second by arithmetic, bytes a second of memory."""

    name: str
    peaks: dict[str, float]
    bandwidth: float


GPUS = (
    Gpu("A100 SXM 80 GB", {"float32": 19.5e12, "TF32": 156e12, "float16": 312e12}, 2.039e12),
    Gpu("H100 SXM", {"float32": 67e12, "TF32": 495e12, "float16": 989e12}, 3.35e12),
)
SHARE_OF_PEAK = {"float32": 0.80, "TF32": 0.50, "float16": 0.45}  # that products of these sizes reach
BYTES = {"float32": 4, "TF32": 4, "float16": 2}


@dataclass(frozen=True)
class Counts:
    """Of one training step: operations in products, numbers moved, launches, all parameters."""

    operations: float
    numbers: float
    launches: int
    parameters: int


def count(config: MiniBERTConfig, sequences: int, length: int) -> Counts:
    """Count a step that predicts 15% of the tokens; backward products are twice the forward ones."""
    h, i, v, layers = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_hidden_layers
    n, m = sequences * length, int(PREDICTED * sequences * length)
    scores = n * config.num_attention_heads * length
    full = 2 * n * (4 * h * h + 2 * h * i) + 4 * n * length * h
    pruned = 2 * n * 2 * h * h + 2 * m * (2 * h * h + 2 * h * i) + 4 * m * length * h
    heads = 2 * m * (h * h + h * v)
    operations = 3.0 * ((layers - 1) * full + pruned + heads)
    # Kernels between the products, in numbers read and written. Forward: bias 6, split 6, merge 2, two sub-layers 8.
    # Backward: two sub-layers 14, sums 3, split 9, merge 6. And GELU 2 + 4 of width I (its output is written again in
    # the backward pass, not kept), softmax 3 + 4.
    between = n * h * (22 + 32) + n * i * 6 + scores * 7
    # The products themselves: those with weights, two of which add to what is there; those of attention.
    products = n * (3 * (8 * h + 2 * i) + 2 * h) + n * h * 12 + scores * 6
    # In the pruned layer keys and values are of all tokens: bias 4, splits 8, sums 2, merge 4, products 9.
    keys_and_values = n * h * 27
    # Logits: product, bias, loss and gradient in one, three readers of that. Embeddings, their norm and dropout.
    of_heads = m * v * 8 + n * h * 20
    parameters = Layout.of(config).size
    # weights read twice and their gradients written; the norm by way of the squares; AdamW reads four, writes three
    numbers = (layers - 1 + m / n) * (between + products) + keys_and_values + of_heads + parameters * (3 + 3 + 7)
    launches = (layers - 1) * LAUNCHES_PER_LAYER + LAUNCHES_OF_THE_PRUNED_LAYER + LAUNCHES_BEYOND
    return Counts(operations, numbers, launches, parameters)


def milliseconds(counts: Counts, gpu: Gpu, arithmetic: str) -> tuple[float, str]:
    """The estimate, and what it is bound by."""
    products = counts.operations / (gpu.peaks[arithmetic] * SHARE_OF_PEAK[arithmetic])
    moving = counts.numbers * BYTES[arithmetic] / (gpu.bandwidth * SHARE_OF_BANDWIDTH)
    device = products + moving + counts.launches * SECONDS_BETWEEN_KERNELS
    host = counts.launches * SECONDS_OF_HOST_PER_LAUNCH
    bound = "launches" if host > device else "products" if products > moving else "memory"
    return 1e3 * max(device, host), bound


def main() -> None:
    """Print the table of docs/cuda.md."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="sequences in a step")
    parser.add_argument("--seq-length", type=int, default=128, metavar="T", help="tokens in a sequence")
    given = parser.parse_args()
    print("| model | counts of a step | GPU | float32 | TF32 | float16 |\n| --- | --- | --- | --- | --- | --- |")
    for preset in ("mini", "base"):
        counts = count(MiniBERTConfig.preset(preset), given.batch_size, given.seq_length)
        what = (
            f"{counts.parameters / 1e6:.1f} M parameters, {counts.operations / 1e9:,.0f} GFLOP, "
            f"{counts.numbers * 4 / 1e9:.1f} GB, {counts.launches} launches"
        )
        for gpu in GPUS:
            cells = (f"{time:.1f} ms ({bound})" for time, bound in (milliseconds(counts, gpu, a) for a in BYTES))
            print(f"| {preset} | {what} | {gpu.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
