"""The command line of `scripts/train.py`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from minibert.commands.parser import Parser, add_settings, add_threads
from minibert.commands.pictures import PLOT_FILE, draw_loss_curve
from minibert.commands.process import INTERRUPTED, SUCCESS, polite_interrupts, run_command, tell
from minibert.commands.screen import Screen, make_screen
from minibert.commands.standard_output import PipeSafeOutput
from minibert.commands.tables import show_examples, show_results
from minibert.data.corpus import CORPUS_HELP
from minibert.errors import TrainingError
from minibert.inference.examples import fill_mask_examples
from minibert.options import COMPUTATION, flag
from minibert.training.log import METRICS_FILE, read_history
from minibert.training.preparation import CACHE_FOLDER
from minibert.training.run import Outcome, Run
from minibert.training.session import new_output, resume, settings_to_start, start
from minibert.training.settings import FREE_TO_CHANGE, RUN, Settings

_DESCRIPTION = """\
Pretrain BERT on your own text, on a CPU or a GPU. Without any option, train a small BERT on the documentation of
Python's standard library, which takes about three minutes."""

_EPILOG = f"""\
corpus:
{CORPUS_HELP}

output folder:
  config.json model.safetensors vocab.txt tokenizer.json ...   the model, in Hugging Face's format
  metrics.jsonl loss_curve.png                                 losses and other figures of the run
  checkpoints/                                                 the last two checkpoints, for --resume

Ctrl-C or SIGTERM ends the training after the current step: a checkpoint is saved, and the exit status is 130. The
same happens when the program that reads standard output ends, as head does. After any end, the same command with
--resume goes on: a run that ended before its first checkpoint is started again.

examples:
  scripts/train.py
  scripts/train.py --corpus books/*.txt --preset mini --seq-length 128 --steps 20000 --output runs/books
  scripts/train.py --output runs/books --resume
  scripts/train.py --output runs/books --resume --steps 40000 --device cuda"""


def build_parser() -> Parser:
    """Return the parser.

    Options that are not given stay out of its result, so that `--resume` can tell which were given.
    """
    parser = Parser(
        prog="train.py",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    groups = add_settings(parser, Settings)
    add_threads(groups[COMPUTATION])
    run = groups[RUN]
    run.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="a new folder for the model, the checkpoints and the log of the run (default: runs/<date and time>)",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --output from its last checkpoint, or start it if there is none. A "
        "resumed run keeps its settings; only these may be changed: "
        f"{', '.join(map(flag, FREE_TO_CHANGE))}",
    )
    run.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="folder that keeps vocabularies and tokenized texts for later runs "
        f"(default: {CACHE_FOLDER} beside --output)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; return the exit status."""
    return run_command(lambda: _train(arguments))


def _train(arguments: Sequence[str] | None) -> int:
    given = vars(build_parser().parse_args(arguments))
    output, cache = given.pop("output", None), given.pop("cache_dir", None)
    resumed = given.pop("resume", False)
    if "steps" in given and "minutes" in given:
        raise TrainingError("--steps and --minutes both say when to stop: give one of them")
    if resumed and output is None:
        raise TrainingError("--resume continues the run in --output: say which folder that is")
    standard_output = PipeSafeOutput()
    screen = make_screen(Console(file=standard_output.stream))
    with polite_interrupts() as ctrl_c:

        def interrupted() -> bool:
            return ctrl_c() or standard_output.closed_by_reader

        settings = settings_to_start(given, output) if resumed else Settings(**given)
        if settings is None:
            session = resume(given, output, screen, cache=cache)
        else:
            if resumed:
                screen.message(f"there is nothing to resume in {output}: starting the run")
            output = output or new_output()
            session = start(settings, output, screen, cache=cache)
        with session as run:
            outcome = run.train(interrupted)
            if outcome.finished:
                show_end(run, outcome, screen)
    if outcome.finished:
        return SUCCESS
    command = f"python scripts/train.py --output {shlex.quote(str(output))} --resume"
    screen.message(f"interrupted after step {outcome.step}, which is saved. Continue with\n  {command}")
    if standard_output.closed_by_reader:
        tell(f"standard output was closed: stopped after step {outcome.step}, which is saved. Continue with {command}")
    return INTERRUPTED


def show_end(run: Run, outcome: Outcome, screen: Screen) -> None:
    """Draw the loss curve of a finished run, show its results and examples, and say what to try next."""
    reason = "Matplotlib is not installed (pip install '.[plot]')"
    try:
        drawn = draw_loss_curve(read_history(run.output / METRICS_FILE), run.output / PLOT_FILE)
    except OSError as error:
        drawn, reason = False, error.strerror or str(error)
    show_results(screen.console, outcome)
    examples = fill_mask_examples(run.model, run.data.tokenizer, run.data.tokenized.evaluation)
    show_examples(screen.console, examples)
    contents = "The model, its vocabulary, the metrics and the loss curve are"
    if not drawn:
        screen.message(f"{PLOT_FILE} was not drawn: {reason}")
        contents = "The model, its vocabulary and the metrics are"
    screen.message(f"{contents} in {run.output}. Try next:")
    folder = shlex.quote(str(run.output))
    text = examples[0].text if examples else run.data.tokenizer.special_tokens["mask_token"]
    screen.message(f"  python scripts/fill_mask.py --model {folder} {shlex.quote(text)}")
    screen.message(f"  python scripts/evaluate.py --model {folder}")
