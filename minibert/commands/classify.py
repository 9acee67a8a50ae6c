"""The command line of `scripts/classify.py`. NumPy and the model are imported when the texts have been seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from minibert.commands.parser import Parser, add_threads
from minibert.commands.pipes import PIPE_CLOSED, as_json, read_lines, write_to_standard_output
from minibert.commands.process import SUCCESS, run_command
from minibert.commands.quick_start import quick_backend
from minibert.errors import explained


def build_parser() -> Parser:
    """All options."""
    parser = Parser(
        prog="classify.py",
        description="Tell the class of texts with a classifier that scripts/finetune.py, or transformers, has saved.",
        epilog="Prints one JSON object a text: the text, its label, and the probability of every label.",
        allow_abbrev=False,
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="every line of standard input if there is none")
    parser.add_argument("--text-pair", metavar="TEXT", help="the second text, of a classifier of pairs")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the classifier's folder")
    parser.add_argument("--device", default="cpu", metavar="{cpu,cuda,cuda:N}", help="(default: cpu)")
    add_threads(parser)
    parser.add_argument("--kernels", default="auto", metavar="{auto,reference}", help="(default: auto)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _classify(arguments))


def _classify(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    with explained():
        texts = options.texts or list(read_lines("-"))
        backend = quick_backend(options.device, options.kernels, sum(map(len, texts)))
        from minibert.finetuning.text_classifier import TextClassifier

        classifier = TextClassifier.load(options.model, backend, options.kernels)
    pairs = None if options.text_pair is None else [options.text_pair] * len(texts)
    probabilities = classifier.probabilities(classifier.encode(texts, pairs)).tolist()
    whole = write_to_standard_output(lambda file: _write(texts, classifier.labels, probabilities, file))
    return SUCCESS if whole else PIPE_CLOSED


def _write(texts: Sequence[str], labels: Sequence[str], rows: Sequence[Sequence[float]], file: TextIO) -> None:
    """Write one JSON object a line for each text; a row holds the probabilities of its labels."""
    for text, row in zip(texts, rows, strict=True):
        probabilities = {label: round(p, 6) for label, p in zip(labels, row, strict=True)}
        result = {"text": text, "label": labels[row.index(max(row))], "probabilities": probabilities}
        file.write(as_json(result, file) + "\n")
