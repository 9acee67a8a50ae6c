"""The command line of `scripts/finetune.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from minibert.commands.parser import (
    Parser,
    add_compute_options,
    add_model,
    add_option,
    add_settings,
    given_settings,
)
from minibert.commands.process import INTERRUPTED, SUCCESS, polite_interrupts, run_command
from minibert.errors import TrainingError
from minibert.finetuning.finetune import Epoch, FineTuning, check_labels, finetune
from minibert.finetuning.labelled_texts import hold_out, labels_of, read_labelled_texts
from minibert.finetuning.text_classifier import TextClassifier
from minibert.huggingface.config_file import CONFIG_FILE
from minibert.inference.loading import load_model
from minibert.options import Check, Option, at_least
from minibert.parameters import CLASSIFICATION_HEADS
from minibert.training.log import METRICS_FILE, MetricsLog

TABLE_FILE, PICTURE_FILE = "confusion_matrix.txt", "confusion_matrix.png"

_EVALUATION_SHARE = Option(
    "evaluation_share",
    float,
    0.2,
    "share of --data to hold out for the evaluation, if there is no --evaluation-data",
    metavar="S",
    check=Check("between 0 and 1", lambda value: 0.0 < value < 1.0),
)
_MAX_LENGTH = Option(
    "max_length",
    int,
    128,
    "read at most N tokens of every text; this limit is saved with the classifier",
    metavar="N",
    check=at_least(8),
)


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="finetune.py",
        description="Train a classifier of texts from any BERT, evaluate it, and save it.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_model(
        parser,
        "folder of the BERT to start from: an --output of scripts/train.py, or any in Hugging Face's format",
    )
    add("--data", type=Path, required=True, metavar="FILE", help="labelled texts: .csv with column names, or .jsonl")
    add("--text-column", required=True, metavar="NAME", help="name of the column that holds the text")
    add("--label-column", required=True, metavar="NAME", help="name of the column that holds the class")
    add("--text-pair-column", metavar="NAME", help="name of the column that holds a second text (default: none)")
    add(
        "--evaluation-data",
        type=Path,
        metavar="FILE",
        help="labelled texts to evaluate on (default: a part of --data, which is held out)",
    )
    for option in (_EVALUATION_SHARE, _MAX_LENGTH):
        add_option(parser, option)
    add("--output", type=Path, required=True, metavar="DIR", help="a new folder for the classifier")
    add_settings(parser, FineTuning)
    add_compute_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _finetune(arguments))


def _finetune(arguments: Sequence[str] | None) -> int:
    with polite_interrupts("finishing this step and saving the best epoch so far") as interrupted:
        return _until_interrupted(arguments, interrupted)


def _until_interrupted(arguments: Sequence[str] | None, interrupted: Callable[[], bool]) -> int:
    options = build_parser().parse_args(arguments)
    settings = FineTuning(**given_settings(options, FineTuning))
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        raise TrainingError(f"{options.output} is not an empty folder, and nothing is overwritten: give a new folder")
    columns = (options.text_column, options.label_column, options.text_pair_column)
    train = read_labelled_texts(options.data, *columns)
    if options.evaluation_data is not None:
        evaluation = read_labelled_texts(options.evaluation_data, *columns)
    else:
        train, evaluation = hold_out(train, options.evaluation_share, settings.seed)
    labels = labels_of(train)
    check_labels(labels, evaluation)
    model, tokenizer = load_model(
        options.model,
        options.device,
        kernels=options.kernels,
        heads=CLASSIFICATION_HEADS,
        labels=labels,
        seed=settings.seed,
    )
    classifier = TextClassifier(model, tokenizer, options.max_length)
    print(f"{len(train):,} texts to train on, {len(evaluation):,} to evaluate on, {len(labels)} classes", flush=True)

    made = not options.output.exists()
    options.output.mkdir(parents=True, exist_ok=True)
    log = MetricsLog(options.output / METRICS_FILE)

    def report(epoch: Epoch) -> None:
        scores = epoch.evaluation
        log.write("epoch", number=epoch.number, training_loss=epoch.training_loss, **scores.to_dict())
        print(
            f"epoch {epoch.number}: training loss {epoch.training_loss:.3f}, evaluation loss {scores.loss:.3f}, "
            f"accuracy {scores.accuracy:.1%}, macro-F1 {scores.macro_f1:.3f}",
            flush=True,
        )

    try:
        outcome = finetune(classifier, train, evaluation, settings, report, interrupted)
        if outcome.best is None:
            print("interrupted before the first epoch was finished: nothing was saved", file=sys.stderr)
        else:
            if not outcome.finished:
                print("interrupted: the best of the epochs that were finished is saved", file=sys.stderr)
            best = outcome.best
            log.write("result", epoch=best.number, finished=outcome.finished, **best.evaluation.to_dict())
            _save(classifier, options.output, best)
    finally:
        log.close()
        if not (
            options.output / CONFIG_FILE
        ).exists():  # without a classifier, leave the folder as it was: it may be given again
            (options.output / METRICS_FILE).unlink()
            if made and not any(options.output.iterdir()):
                options.output.rmdir()
    return SUCCESS if outcome.finished else INTERRUPTED


def _save(classifier: TextClassifier, output: Path, best: Epoch) -> None:
    """Save the classifier in Hugging Face's format, and its confusion matrix as text and picture."""
    classifier.model.save_pretrained(output)
    classifier.tokenizer.save(output, model_max_length=classifier.max_length)
    table = best.evaluation.table()
    (output / TABLE_FILE).write_text(table + "\n", encoding="utf-8")
    print(f"\nbest epoch: {best.number}\n\n{table}\n")
    if not best.evaluation.draw(output / PICTURE_FILE):
        print(f"{PICTURE_FILE} was not drawn: Matplotlib is not installed (pip install '.[plot]')")
    print(f'The classifier is in {output}. Try next:\n  python scripts/classify.py --model {output} "a text"')
