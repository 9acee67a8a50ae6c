"""Return the files that a batch passes, and those that a resume passes, in order.

`tests/documents/test_routes.py` runs a training and a resume, and checks that each of these files takes part.
"""

from __future__ import annotations

from benchmarks.report import table

from documents.files import ROOT, first_sentence, link

BATCH = (
    "minibert/training/preparation.py",
    "minibert/data/corpus.py",
    "minibert/data/tokenizer.py",
    "minibert/data/token_file.py",
    "minibert/data/sequences.py",
    "minibert/data/masking.py",
    "minibert/data/batch_source.py",
    "minibert/training/run.py",
    "minibert/training/trainer.py",
    "minibert/inputs.py",
    "minibert/rows.py",
    "minibert/model.py",
    "minibert/kernels.py",
    "minibert/ops/embedding.py",
    "minibert/ops/layer_norm.py",
    "minibert/ops/dropout.py",
    "minibert/ops/linear.py",
    "minibert/ops/attention.py",
    "minibert/ops/softmax.py",
    "minibert/ops/activations.py",
    "minibert/cache.py",
    "minibert/gradients.py",
    "minibert/ops/cross_entropy.py",
    "minibert/optimizer.py",
    "minibert/ops/adamw.py",
)
"""The files to open to follow one batch from the text to the update of the parameters, twins aside."""

SIDE_ROADS = (
    "minibert/data/content.py",
    "minibert/data/permutation.py",
    "minibert/data/prefetch.py",
    "minibert/data/text_files.py",
    "minibert/data/text_stream.py",
    "minibert/data/token_splitting.py",
    "minibert/data/tokenizer_files.py",
    "minibert/data/tokenizer_safety.py",
    "minibert/data/vocabulary.py",
    "minibert/gradient_accumulator.py",
    "minibert/ops/accumulation.py",
    "minibert/ops/precision.py",
    "minibert/parameters.py",
    "minibert/random_bits.py",
    "minibert/training/budget.py",
    "minibert/training/thread_choice.py",
)
"""Files of the core, `data/` and `training/` that a batch needs, too, and that a first reading can leave closed."""

RESUME = (
    "scripts/train.py",
    "minibert/commands/train.py",
    "minibert/training/session.py",
    "minibert/training/output_folder.py",
    "minibert/training/checkpoint.py",
    "minibert/training/settings.py",
    "minibert/data/tokenizer.py",
    "minibert/training/preparation.py",
    "minibert/training/log.py",
    "minibert/training/run.py",
)
"""The files to open to follow `--resume` from the command line to the next step."""

LAYER_NORM = (
    "docs/gradients.md",
    "minibert/ops/layer_norm.py",
    "backends/cpu/kernels/layer_norm.py",
    "backends/cuda/twins.py",
    "backends/cuda/kernels.cu",
)
"""The files from the formula of layer norm to its CUDA kernel."""


def route(files: tuple[str, ...], page: str) -> str:
    """Return the files with their first sentences, numbered.

    Args:
        files: one of the routes above.
        page: the page that shows the table, for its links.
    """
    rows = [(str(number), link(name, page), first_sentence(ROOT / name)) for number, name in enumerate(files, start=1)]
    return table(("", "file", "content"), rows)


def side_roads(page: str) -> str:
    """Return links to the files that a first reading can leave closed."""
    return ", ".join(link(name, page) for name in SIDE_ROADS) + "."
