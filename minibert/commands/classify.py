"""The command line of `scripts/classify.py`.

NumPy and the model are imported after the texts are read, so that `--help` and errors appear at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from minibert.commands.input_lines import read_lines
from minibert.commands.parser import Parser, add_compute_options, add_model
from minibert.commands.process import SUCCESS, run_command
from minibert.commands.quick_start import quick_backend
from minibert.commands.standard_output import PIPE_CLOSED, as_json, write_to_standard_output
from minibert.errors import explained


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="classify.py",
        description="Find the class of texts with a classifier that scripts/finetune.py or transformers has saved.",
        epilog="Prints one JSON object for every text: the text, its label, and the probability of every label.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "texts", nargs="*", metavar="TEXT", help="text to classify (default: every line of standard input)"
    )
    parser.add_argument(
        "--text-pair", metavar="TEXT", help="second text of every pair, for a classifier of pairs of texts"
    )
    add_model(parser, "folder of the classifier")
    add_compute_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _classify(arguments))


def _classify(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    with explained():
        texts = options.texts or list(read_lines("-"))
        backend = quick_backend(options.device, options.kernels, options.precision, sum(map(len, texts)))
        from minibert.finetuning.text_classifier import TextClassifier
        from minibert.inference.finite import check_finite

        classifier = TextClassifier.load(options.model, backend, options.kernels, options.precision)
    pairs = None if options.text_pair is None else [options.text_pair] * len(texts)
    probabilities = classifier.probabilities(classifier.encode(texts, pairs))
    check_finite(probabilities, "a probability", texts)
    rows = probabilities.tolist()
    whole = write_to_standard_output(lambda file: _write(texts, classifier.labels, rows, file))
    return SUCCESS if whole else PIPE_CLOSED


def _write(texts: Sequence[str], labels: Sequence[str], rows: Sequence[Sequence[float]], file: TextIO) -> None:
    """Write one line of JSON for each text; `rows` holds the probabilities of all labels for each text."""
    for text, row in zip(texts, rows, strict=True):
        probabilities = {label: round(p, 6) for label, p in zip(labels, row, strict=True)}
        result = {"text": text, "label": labels[row.index(max(row))], "probabilities": probabilities}
        file.write(as_json(result, file) + "\n")
