"""The command line of `scripts/train.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from minibert.commands.parser import Parser, add_settings, add_threads
from minibert.commands.process import INTERRUPTED, SUCCESS, polite_interrupts, run_command, tell
from minibert.commands.screen import make_display
from minibert.commands.standard_output import PipeSafeOutput
from minibert.data.corpus import CORPUS_HELP
from minibert.errors import TrainingError
from minibert.options import COMPUTATION, flag
from minibert.training.preparation import CACHE_FOLDER
from minibert.training.session import new_output, resume, start
from minibert.training.settings import FREE_TO_CHANGE, RUN, Settings

_DESCRIPTION = """\
Pretrain BERT on your own text, on a CPU or a GPU. Without any option this makes a small BERT from the
documentation of Python's standard library in about three minutes."""

_EPILOG = f"""\
corpus:
{CORPUS_HELP}

output folder:
  config.json model.safetensors vocab.txt tokenizer.json ...   the model, as Hugging Face reads it
  metrics.jsonl loss_curve.png                                 what happened
  checkpoints/                                                 to resume from; the last two are kept

Ctrl-C, SIGTERM, or the end of whatever reads standard output (as of | head) ends the training after the step at
hand, with a checkpoint and exit status 130. A run that ended before its first checkpoint, in whatever way, is
started again with the same command.

examples:
  scripts/train.py
  scripts/train.py --corpus books/*.txt --preset mini --seq-length 128 --steps 20000 --output runs/books
  scripts/train.py --output runs/books --resume
  scripts/train.py --output runs/books --resume --steps 40000 --device cuda"""


def build_parser() -> Parser:
    """Return the parser. An option that is not given stays out of its result, so that `--resume` knows what was."""
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
        help="continue the run in --output from its last checkpoint. The run keeps its settings; only these may be "
        f"changed: {', '.join(map(flag, FREE_TO_CHANGE))}",
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
    """Trains; returns the exit status."""
    return run_command(lambda: _train(arguments))


def _train(arguments: Sequence[str] | None) -> int:
    given = vars(build_parser().parse_args(arguments))
    output, cache = given.pop("output", None), given.pop("cache_dir", None)
    resumed = given.pop("resume", False)
    if "steps" in given and "minutes" in given:
        raise TrainingError("--steps and --minutes both say when to stop: give one of them")
    screen = PipeSafeOutput()
    display = make_display(Console(file=screen.stream))
    with polite_interrupts() as ctrl_c:

        def interrupted() -> bool:
            return ctrl_c() or screen.closed_by_reader

        if resumed:
            if output is None:
                raise TrainingError("--resume continues the run in --output: say which folder that is")
            outcome = resume(given, output, display, cache=cache, interrupted=interrupted)
        else:
            settings = Settings(**given)
            output = output or new_output()
            outcome = start(settings, output, display, cache=cache, interrupted=interrupted)
    if screen.closed_by_reader and not outcome.finished:
        tell(
            f"standard output was closed: stopped after step {outcome.step}, which is saved. Continue with "
            f"python scripts/train.py --output {output} --resume"
        )
    return SUCCESS if outcome.finished else INTERRUPTED
