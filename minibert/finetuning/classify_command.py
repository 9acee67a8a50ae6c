"""The command line of `scripts/classify.py`. NumPy and the model are imported when the texts have been seen."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from minibert.inference.quick import quick_backend
from minibert.training.command_line import SUCCESS, Parser, run_command
from minibert.training.errors import explained


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
    parser.add_argument("--kernels", default="auto", metavar="{auto,reference}", help="(default: auto)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Classifies texts; returns the exit status."""
    return run_command(lambda: _classify(arguments))


def _classify(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    texts = options.texts or [line.removesuffix("\n") for line in sys.stdin]
    backend = quick_backend(options.device, options.kernels, sum(map(len, texts)))
    from minibert.finetuning.text_classifier import TextClassifier

    with explained():
        classifier = TextClassifier.load(options.model, backend, options.kernels)
    pairs = None if options.text_pair is None else [options.text_pair] * len(texts)
    for text, row in zip(texts, classifier.probabilities(classifier.encode(texts, pairs)), strict=True):
        probabilities = {label: round(float(p), 6) for label, p in zip(classifier.labels, row, strict=True)}
        label = classifier.labels[int(row.argmax())]
        print(json.dumps({"text": text, "label": label, "probabilities": probabilities}, ensure_ascii=False))
    return SUCCESS
