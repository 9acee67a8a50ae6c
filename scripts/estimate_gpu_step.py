"""Estimate the time of a training step on a GPU, without a GPU, from its operations, bytes and kernel launches.

    python scripts/estimate_gpu_step.py [--batch-size B] [--seq-length T]

The script prints the table of docs/cuda.md. Nothing is measured. The counts are those of this code
(tests/cuda_emulated/test_activity.py counts the launches). The speeds are the manufacturer's peaks, multiplied by
the shares below, which are assumptions.
"""

from __future__ import annotations

from dataclasses import dataclass

from minibert import MiniBERTConfig
from minibert.commands.parser import Parser
from minibert.parameters import Layout

LAUNCHES_PER_LAYER, LAUNCHES_OF_THE_PRUNED_LAYER, LAUNCHES_BEYOND = 33, 40, 57  # beyond: outside the layers
SHARE_OF_BANDWIDTH = 0.75  # of the peak, for kernels that only move data
SECONDS_OF_HOST_PER_LAUNCH = 8e-6  # Python and CuPy; the device waits for the host if its own work takes less time
SECONDS_BETWEEN_KERNELS = 1.5e-6
PREDICTED = 0.15  # share of the tokens that a step predicts


@dataclass(frozen=True)
class Gpu:
    """A GPU with the peaks of its data sheet.

    Attributes:
        name: for the table.
        peaks: arithmetic -> floating-point operations per second.
        bandwidth: of the memory, in bytes per second.
    """

    name: str
    peaks: dict[str, float]
    bandwidth: float


GPUS = (
    Gpu("A100 SXM 80 GB", {"float32": 19.5e12, "TF32": 156e12, "float16": 312e12}, 2.039e12),
    Gpu("H100 SXM", {"float32": 67e12, "TF32": 495e12, "float16": 989e12}, 3.35e12),
)
SHARE_OF_PEAK = {"float32": 0.80, "TF32": 0.50, "float16": 0.45}  # for matrix products of these sizes
BYTES = {"float32": 4, "TF32": 4, "float16": 2}  # of a number in memory


@dataclass(frozen=True)
class Counts:
    """Counts of one training step.

    Attributes:
        operations: floating-point operations in matrix products.
        numbers: numbers read from memory or written to it.
        launches: of kernels.
        parameters: of the model.
    """

    operations: float
    numbers: float
    launches: int
    parameters: int


def count(config: MiniBERTConfig, sequences: int, length: int) -> Counts:
    """Count a step that predicts 15% of the tokens.

    The backward pass has two matrix products for every product of the forward pass, hence the factor 3.
    """
    h, i, v, layers = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_hidden_layers
    n, m = sequences * length, int(PREDICTED * sequences * length)
    scores = n * config.num_attention_heads * length
    full = 2 * n * (4 * h * h + 2 * h * i) + 4 * n * length * h
    pruned = 2 * n * 2 * h * h + 2 * m * (2 * h * h + 2 * h * i) + 4 * m * length * h
    heads = 2 * m * (h * h + h * v)
    operations = 3.0 * ((layers - 1) * full + pruned + heads)
    # Kernels between the products, in numbers read and written. Forward: bias 6, split 6, merge 2, two sub-layers 8.
    # Backward: two sub-layers 14, sums 3, split 9, merge 6. GELU, of width I, has 2 forward and 4 backward, because
    # its output is not kept but computed again. The softmax has 3 forward and 4 backward.
    between = n * h * (22 + 32) + n * i * 6 + scores * 7
    # The products themselves: with weights (two of these add to an array that exists), and in attention.
    products = n * (3 * (8 * h + 2 * i) + 2 * h) + n * h * 12 + scores * 6
    # The pruned layer still needs the keys and values of all tokens: bias 4, splits 8, sums 2, merge 4, products 9.
    keys_and_values = n * h * 27
    # Logits: the product, the bias, loss and gradient in one pass, and three kernels that read the gradient.
    # Embeddings: the look-up, layer norm and dropout.
    of_heads = m * v * 8 + n * h * 20
    parameters = Layout.of(config).size
    # Parameters: weights are read twice and their gradients written (3). For the norm, gradients are read (1). AdamW
    # reads four numbers and writes three (7).
    numbers = (layers - 1 + m / n) * (between + products) + keys_and_values + of_heads + parameters * (3 + 1 + 7)
    launches = (layers - 1) * LAUNCHES_PER_LAYER + LAUNCHES_OF_THE_PRUNED_LAYER + LAUNCHES_BEYOND
    return Counts(operations, numbers, launches, parameters)


def milliseconds(counts: Counts, gpu: Gpu, arithmetic: str) -> tuple[float, str]:
    """Return the estimated milliseconds of a step, and what bounds it: "launches", "products" or "memory"."""
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
