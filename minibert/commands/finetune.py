"""The command behind `scripts/finetune.py`: train a classifier of texts, evaluate it and save it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from minibert.checksums import MODEL_FILES, write_checksums
from minibert.commands.confusion_matrix import confusion_table, draw_confusion_matrix
from minibert.commands.parser import (
    Parser,
    add_compute_options,
    add_model,
    add_option,
    add_settings,
    given_settings,
)
from minibert.commands.process import INTERRUPTED, SUCCESS, polite_interrupts, run_command, tell
from minibert.errors import TrainingError
from minibert.finetuning.checkpoints import CHECKPOINTS_FOLDER, EpochCheckpoints, has_checkpoint
from minibert.finetuning.finetune import FineTuning, FineTuningResult, check_labels, finetune
from minibert.finetuning.labelled_texts import LabelledText, hold_out, labels_of, read_labelled_texts
from minibert.finetuning.scores import Epoch
from minibert.finetuning.text_classifier import TextClassifier
from minibert.huggingface.config_file import CONFIG_FILE
from minibert.inference.loading import load_model
from minibert.options import Check, Option, at_least
from minibert.parameters import CLASSIFICATION_HEADS
from minibert.training.log import METRICS_FILE, RunLog, read_history
from minibert.training.output_folder import FolderState, folder_state

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
        "folder of the BERT to start from: an --output of scripts/train.py, or any BERT in Hugging Face's format",
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
    add(
        "--resume",
        action="store_true",
        help="continue the training in --output after its last epoch, or start it if there is none",
    )
    add_settings(parser, FineTuning)
    add_compute_options(parser, trains=True)
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
    if options.resume and _is_finished(options.output):
        print(f"the fine-tuning in {options.output} is finished, and its classifier is saved there")
        return SUCCESS
    _check_output(options.output, options.resume)
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
        precision=options.precision,
        heads=CLASSIFICATION_HEADS,
        labels=labels,
        seed=settings.seed,
    )
    classifier = TextClassifier(model, tokenizer, options.max_length)
    print(f"{len(train):,} texts to train on, {len(evaluation):,} to evaluate on, {len(labels)} classes", flush=True)

    checkpoints = EpochCheckpoints(options.output, settings, tokenizer.fingerprint(), [*train, *evaluation], tell)
    result = _train_and_save(classifier, train, evaluation, settings, options.output, checkpoints, interrupted)
    return SUCCESS if result.finished else INTERRUPTED


def _is_finished(output: Path) -> bool:
    """Return True if the log in a folder ends with the result of a fine-tuning that was not interrupted."""
    log = output / METRICS_FILE
    history = read_history(log) if log.is_file() else []
    return bool(history) and history[-1]["kind"] == "result" and history[-1].get("finished") is True


def _check_output(output: Path, resume: bool) -> None:
    """Refuse a folder in which the training would overwrite something.

    Raises:
        TrainingError: the folder holds something else than an interrupted fine-tuning, or that without `--resume`.
    """
    names = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if has_checkpoint(output):
        if not resume:
            raise TrainingError(
                f"{output} holds a fine-tuning that was interrupted: continue it with --resume, or give a new folder"
            )
        return
    killed_early = resume and names <= {METRICS_FILE, CHECKPOINTS_FOLDER}  # before the first checkpoint
    if folder_state(output) is not FolderState.NEW and not killed_early:
        raise TrainingError(f"{output} is not an empty folder, and nothing is overwritten: give a new folder")


def _train_and_save(
    classifier: TextClassifier,
    train: Sequence[LabelledText],
    evaluation: Sequence[LabelledText],
    settings: FineTuning,
    output: Path,
    checkpoints: EpochCheckpoints,
    interrupted: Callable[[], bool],
) -> FineTuningResult:
    """Train the classifier, report and log every epoch, and save the best one; without one, leave no files behind."""
    created = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    log = RunLog(output / METRICS_FILE)

    def report(epoch: Epoch) -> None:
        scores = epoch.evaluation
        log.write("epoch", number=epoch.number, training_loss=epoch.training_loss, **scores.to_dict())
        print(
            f"epoch {epoch.number}: training loss {epoch.training_loss:.3f}, evaluation loss {scores.loss:.3f}, "
            f"accuracy {scores.accuracy:.1%}, macro-F1 {scores.macro_f1:.3f}",
            flush=True,
        )

    try:
        result = finetune(classifier, train, evaluation, settings, report, interrupted, checkpoints)
        if result.best is None:
            print("interrupted before the first epoch was finished: nothing was saved", file=sys.stderr)
        else:
            if not result.finished:
                print("interrupted: the best of the finished epochs is saved, and --resume goes on", file=sys.stderr)
            best = result.best
            log.write("result", epoch=best.number, finished=result.finished, **best.evaluation.to_dict())
            _save(classifier, output, best)
            if result.finished:
                checkpoints.delete()
    finally:
        log.close()
        if log.failure is not None:
            tell(f"the last lines of {output / METRICS_FILE} could not be written: {log.failure}")
        if not (output / CONFIG_FILE).exists() and not has_checkpoint(output):  # the folder is left as it was
            checkpoints.delete()
            (output / METRICS_FILE).unlink()
            if created and not any(output.iterdir()):
                output.rmdir()
    return result


def _save(classifier: TextClassifier, output: Path, best: Epoch) -> None:
    """Save the classifier in Hugging Face's format, and its confusion matrix as text and picture."""
    classifier.model.save_pretrained(output)
    classifier.tokenizer.save(output, model_max_length=classifier.max_length)
    write_checksums(output, MODEL_FILES)
    table = confusion_table(best.evaluation)
    (output / TABLE_FILE).write_text(table + "\n", encoding="utf-8")
    print(f"\nbest epoch: {best.number}\n\n{table}\n")
    if not draw_confusion_matrix(best.evaluation, output / PICTURE_FILE):
        print(f"{PICTURE_FILE} was not drawn: Matplotlib is not installed (pip install '.[plot]')")
    folder = shlex.quote(str(output))
    print(f'The classifier is in {output}. Try next:\n  python scripts/classify.py --model {folder} "a text"')
