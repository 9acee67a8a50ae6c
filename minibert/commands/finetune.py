"""The command behind `scripts/finetune.py`: train a classifier of texts, evaluate it and save it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from minibert.commands.confusion_matrix import confusion_table, draw_confusion_matrix
from minibert.commands.parser import Parser, add_threads
from minibert.commands.process import INTERRUPTED, SUCCESS, polite_interrupts, run_command
from minibert.errors import TrainingError
from minibert.finetuning.finetune import Epoch, FineTuning, FineTuningResult, check_labels, finetune
from minibert.finetuning.labelled_texts import LabelledText, hold_out, labels_of, read_labelled_texts
from minibert.finetuning.text_classifier import TextClassifier
from minibert.huggingface.config_file import CONFIG_FILE
from minibert.inference.loading import load_model
from minibert.parameters import CLASSIFICATION_HEADS
from minibert.training.log import METRICS_FILE, RunLog
from minibert.training.output_folder import FolderState, folder_state

TABLE_FILE, PICTURE_FILE = "confusion_matrix.txt", "confusion_matrix.png"


def build_parser() -> Parser:
    """All options."""
    default = FineTuning()
    parser = Parser(
        prog="finetune.py",
        description="Train a classifier of texts from any BERT, evaluate it, and save it.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="what to begin with: an output folder, or another")
    add("--data", type=Path, required=True, metavar="FILE", help="labelled texts: .csv with column names, or .jsonl")
    add("--text-column", required=True, metavar="NAME", help="which column is the text")
    add("--label-column", required=True, metavar="NAME", help="which column is the class")
    add("--text-pair-column", metavar="NAME", help="which column is a second text, if there is one")
    add("--evaluation-data", type=Path, metavar="FILE", help="to evaluate on; a share of --data is held out otherwise")
    add("--evaluation-share", type=float, default=0.2, metavar="S", help="of --data, held out (default: 0.2)")
    add("--output", type=Path, required=True, metavar="DIR", help="a new folder for the classifier")
    add("--epochs", type=int, default=default.epochs, metavar="N", help=f"at most (default: {default.epochs})")
    add("--batch-size", type=int, default=default.batch_size, metavar="N", help=f"(default: {default.batch_size})")
    add("--learning-rate", type=float, default=default.learning_rate, metavar="R", help="(default: 5e-5)")
    add("--warmup", type=float, default=default.warmup, metavar="S", help=f"share (default: {default.warmup})")
    add("--weight-decay", type=float, default=default.weight_decay, metavar="W", help="(default: 0.01)")
    add("--patience", type=int, default=default.patience, metavar="N", help="epochs without progress (default: 2)")
    add("--max-length", type=int, default=128, metavar="N", help="tokens read of a text, saved with it (default: 128)")
    add("--seed", type=int, default=0, metavar="N", help="of classifier, order, dropout and split (default: 0)")
    add("--device", default="cpu", metavar="{cpu,cuda,cuda:N}", help="(default: cpu)")
    add_threads(parser)
    add("--kernels", default="auto", metavar="{auto,reference}", help="(default: auto)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _finetune(arguments))


def _finetune(arguments: Sequence[str] | None) -> int:
    with polite_interrupts("finishing this step and saving the best epoch so far") as interrupted:
        return _until_interrupted(arguments, interrupted)


def _until_interrupted(arguments: Sequence[str] | None, interrupted: Callable[[], bool]) -> int:
    options = build_parser().parse_args(arguments)
    settings = FineTuning(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup=options.warmup,
        weight_decay=options.weight_decay,
        patience=options.patience,
        seed=options.seed,
    )
    if folder_state(options.output) is not FolderState.NEW:
        raise TrainingError(f"{options.output} is not an empty folder, and nothing is overwritten: give a new folder")
    if not 0.0 < options.evaluation_share < 1.0:
        raise TrainingError(f"--evaluation-share must be between 0 and 1, not {options.evaluation_share}")
    if options.max_length < 8:
        raise TrainingError(f"--max-length must be at least 8, not {options.max_length}")
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

    result = _train_and_save(classifier, train, evaluation, settings, options.output, interrupted)
    return SUCCESS if result.finished else INTERRUPTED


def _train_and_save(
    classifier: TextClassifier,
    train: Sequence[LabelledText],
    evaluation: Sequence[LabelledText],
    settings: FineTuning,
    output: Path,
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
        result = finetune(classifier, train, evaluation, settings, report, interrupted)
        if result.best is None:
            print("interrupted before the first epoch was finished: nothing was saved", file=sys.stderr)
        else:
            if not result.finished:
                print("interrupted: the best of the finished epochs is saved", file=sys.stderr)
            best = result.best
            log.write("result", epoch=best.number, finished=result.finished, **best.evaluation.to_dict())
            _save(classifier, output, best)
    finally:
        log.close()
        if not (output / CONFIG_FILE).exists():  # without a classifier, the folder is left as it was
            (output / METRICS_FILE).unlink()
            if created and not any(output.iterdir()):
                output.rmdir()
    return result


def _save(classifier: TextClassifier, output: Path, best: Epoch) -> None:
    """Save the classifier in Hugging Face's format, and its confusion matrix as text and picture."""
    classifier.model.save_pretrained(output)
    classifier.tokenizer.save(output, model_max_length=classifier.max_length)
    table = confusion_table(best.evaluation)
    (output / TABLE_FILE).write_text(table + "\n", encoding="utf-8")
    print(f"\nbest epoch: {best.number}\n\n{table}\n")
    if not draw_confusion_matrix(best.evaluation, output / PICTURE_FILE):
        print(f"{PICTURE_FILE} was not drawn: Matplotlib is not installed (pip install '.[plot]')")
    print(f'The classifier is in {output}. Try next:\n  python scripts/classify.py --model {output} "a text"')
