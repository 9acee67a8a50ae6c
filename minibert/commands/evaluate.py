"""The command line of `scripts/evaluate.py`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from minibert.commands.parser import Parser, add_compute_options, add_model, add_option
from minibert.commands.process import SUCCESS, run_command
from minibert.commands.screen import make_screen
from minibert.commands.tables import show_evaluation
from minibert.data.batch_source import OBJECTIVES, build_sequences
from minibert.data.corpus import CORPUS_HELP, open_corpus
from minibert.data.token_file import prepare_tokens
from minibert.errors import TrainingError, brief
from minibert.inference.loading import load_model
from minibert.options import Option, options_of
from minibert.training.evaluation import evaluate
from minibert.training.log import read_run_description
from minibert.training.preparation import CACHE_FOLDER, evaluated_sequences, frozen_batches
from minibert.training.settings import Settings

_DESCRIPTION = """\
Measure a model on the held-out part of a text. The masks are fixed: the same model and text always give the same
figures. For a model of scripts/train.py, the defaults of --corpus, --objective and --seq-length are those of its
training; with them, the figures are those that the training ended with."""

_TOKENS = options_of(Settings)["evaluation_tokens"]
_DEFAULT_LENGTH = 128  # for models whose training is unknown; BERT had this length in 90% of its steps


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="evaluate.py",
        description=_DESCRIPTION,
        epilog=f"corpus:\n{CORPUS_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model(parser)
    parser.add_argument(
        "--corpus",
        nargs="+",
        metavar="TEXT",
        help="text to evaluate on, see below (default: the text that the model was trained on, or stdlib)",
    )
    parser.add_argument(
        "--encoding",
        metavar="NAME",
        help="encoding of the text files (default: that of the model's own training text, or utf-8)",
    )
    parser.add_argument(
        "--skip-damaged",
        action="store_true",
        help="leave out lines and files that are damaged, and count them; a model that was trained so does it always",
    )
    add_option(
        parser,
        Option(
            "objective",
            str,
            None,
            "mlm: predict masked tokens; mlm+nsp: also predict whether the second segment follows the first",
            choices=OBJECTIVES,
            default_text="the model's own objective in training, or mlm",
        ),
    )
    parser.add_argument(
        "--seq-length",
        type=int,
        metavar="T",
        help=f"number of tokens in a sequence (default: the model's own length in training, or {_DEFAULT_LENGTH})",
    )
    add_option(parser, _TOKENS._replace(default=None, default_text=f"as in its training, or {_TOKENS.default}"))
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help=f"folder that keeps tokenized texts for later runs (default: {CACHE_FOLDER} beside --model)",
    )
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    add_compute_options(parser, dtype=True)
    return parser


def _share_in_words(share: float) -> str:
    return "" if share == 1.0 else f"{share:.1%} of "


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate a model; return the exit status."""
    return run_command(lambda: _evaluate(arguments))


def _evaluate(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    run = read_run_description(options.model).get("settings", {})
    objective = run.get("objective", OBJECTIVES[0]) if options.objective is None else options.objective
    if objective not in OBJECTIVES:
        raise TrainingError(f"--objective must be one of {', '.join(OBJECTIVES)}, not {brief(objective)}")
    model, tokenizer = load_model(
        options.model, options.device, options.dtype, options.kernels, precision=options.precision
    )
    longest = model.config.max_position_embeddings
    length = options.seq_length
    if length is None:
        length = run.get("seq_length", min(_DEFAULT_LENGTH, longest))
    if length > longest:
        raise TrainingError(
            f"--seq-length {length} is too long: the model reads at most {longest} tokens; give a smaller number"
        )
    if objective == "mlm+nsp" and "next_sentence" in model.absent_heads:
        raise TrainingError(f"the model in {options.model} has no next-sentence head: evaluate it with --objective mlm")
    if objective == "mlm+nsp" and run.get("objective", objective) != objective:
        raise TrainingError(
            f"the model in {options.model} was trained with --objective {run['objective']}: its next-sentence head was "
            "never trained, so its figures would mean nothing; evaluate the model with --objective mlm"
        )

    tokens = options.evaluation_tokens
    if tokens is None:
        tokens = run.get(_TOKENS.name, _TOKENS.default)

    screen = make_screen(Console(stderr=options.json))  # with --json, standard output is for the figures alone
    corpus = open_corpus(
        options.corpus or run.get("corpus", ["stdlib"]),
        encoding=options.encoding or run.get("encoding", "utf-8"),
        skip_damaged=options.skip_damaged or run.get("skip_damaged", False),
    )
    try:
        cache = options.cache_dir or options.model.resolve().parent / CACHE_FOLDER
        tokenized = prepare_tokens(corpus, tokenizer, cache, progress=screen.preparing)
    finally:
        screen.end()
    sequences = build_sequences(objective, tokenized.evaluation, tokenizer, length)
    measured = evaluated_sequences(sequences, tokens)
    try:
        evaluation = evaluate(
            model,
            frozen_batches(sequences, tokenizer, tokens),
            tokenized.unigram_counts,
            lambda done: screen.preparing("evaluating", done * length),
        )
    finally:
        screen.end()
    if not math.isfinite(evaluation.loss):
        raise TrainingError(
            f"the evaluation loss is {evaluation.loss}: the weights in {options.model} are damaged, or too large for "
            "its numbers; use another checkpoint"
        )
    share = measured / len(sequences)
    if options.json:
        print(json.dumps({**evaluation.to_dict(), "share_of_held_out_text": share}, allow_nan=False))
    else:
        title = f"{options.model} on {_share_in_words(share)}the held-out part of {corpus.description}"
        show_evaluation(screen.console, evaluation, title)
    return SUCCESS
