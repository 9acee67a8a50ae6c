"""The command line of `scripts/train.py`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from minibert.commands.parser import Parser, add_threads
from minibert.commands.pictures import PLOT_FILE, draw_loss_curve
from minibert.commands.pipes import LastingOutput
from minibert.commands.process import INTERRUPTED, SUCCESS, polite_interrupts, run_command, tell
from minibert.commands.screen import Screen, make_screen
from minibert.commands.tables import show_examples, show_results
from minibert.config import PRESETS
from minibert.data.batch_source import OBJECTIVES
from minibert.data.corpus import CORPUS_HELP
from minibert.errors import TrainingError
from minibert.inference.examples import fill_mask_examples
from minibert.training.log import METRICS_FILE, read_history
from minibert.training.preparation import CACHE_FOLDER
from minibert.training.run import Outcome, Run
from minibert.training.session import new_output, resume, start
from minibert.training.settings import DEFAULT_MINUTES, DTYPES, Settings, option

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
    """All options. One that is not given does not appear in the result, so that `--resume` knows what was."""
    parser = Parser(
        prog="train.py",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    defaults = {name: field.default for name, field in Settings.__dataclass_fields__.items()}

    def add(group: Any, name: str, kind: type, metavar: str, text: str) -> None:
        default = defaults[name]
        note = "" if default is None else f" (default: {default:g})" if kind is float else f" (default: {default})"
        group.add_argument(option(name), type=kind, metavar=metavar, help=text + note)

    run = parser.add_argument_group("the run")
    run.add_argument("--corpus", nargs="+", metavar="TEXT", help="what to train on, see below (default: stdlib)")
    run.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: runs/<date and time>)")
    run.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --output from its last checkpoint, with its own settings; only --steps or "
        "--minutes, --device, --kernels, --accumulate, --learning-rate and the intervals below may be changed",
    )
    add(run, "device", str, "{cpu,cuda,cuda:N}", "where to compute")
    add_threads(run)
    add(run, "steps", int, "N", "how many optimizer steps to train; such a run can be repeated bit for bit on a CPU")
    add(run, "minutes", float, "M", f"or how long, evaluations included (default: {DEFAULT_MINUTES:g})")
    add(run, "seed", int, "N", "of parameters, order, masks and dropout")
    run.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help=f"for vocabularies and tokens, which later runs find again (default: {CACHE_FOLDER} beside --output)",
    )

    model = parser.add_argument_group("the model")
    add(model, "preset", str, "{" + ",".join(PRESETS) + "}", "its size")
    add(model, "vocab_size", int, "V", "tokens in the vocabulary")
    model.add_argument("--cased", action="store_true", help="tell upper from lower case")
    add(model, "dropout", float, "P", "of hidden states and attention weights; 0.1 for more than a few epochs")
    add(
        model,
        "initializer_range",
        float,
        "S",
        "spread of fresh weights (default: 0.02, BERT-base's, scaled to the width)",
    )
    add(model, "dtype", str, "{" + ",".join(DTYPES) + "}", "of all numbers")
    add(model, "kernels", str, "{auto,reference}", "fast twins of single operations, or their definitions")

    task = parser.add_argument_group("the task")
    add(task, "objective", str, "{" + ",".join(OBJECTIVES) + "}", "masked tokens, or next sentences as well")
    add(task, "seq_length", int, "T", "tokens in a sequence")
    add(task, "mask_probability", float, "P", "the share of tokens to predict; evaluations predict 15%%")
    task.add_argument("--whole-word-masking", action="store_true", help="mask words instead of word pieces")

    step = parser.add_argument_group("the optimizer")
    add(
        step, "batch_size", int, "B", "sequences in an optimizer step, all micro-batches together; more for longer runs"
    )
    add(
        step,
        "accumulate",
        int,
        "N",
        "micro-batches a step is divided into; less memory, the same result but for rounding",
    )
    add(
        step,
        "learning_rate",
        float,
        "R",
        "the highest, reached at the end of the warm-up (default: 2e-3 for tiny, less for wider models)",
    )
    add(step, "warmup", float, "SHARE", "of the training over which the learning rate rises, to fall afterwards")
    add(step, "weight_decay", float, "W", "of AdamW; biases and layer norms have none")
    add(step, "clip_norm", float, "N", "gradients with a larger norm are scaled down to it")

    reports = parser.add_argument_group("intervals, in steps")
    add(reports, "report_every", int, "N", "a line of metrics")
    add(reports, "evaluate_every", int, "N", "an evaluation on the held-out text")
    add(reports, "checkpoint_every", int, "N", "a checkpoint")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; return the exit status."""
    return run_command(lambda: _train(arguments))


def _train(arguments: Sequence[str] | None) -> int:
    given = vars(build_parser().parse_args(arguments))
    output, cache = given.pop("output", None), given.pop("cache_dir", None)
    resumed = given.pop("resume", False)
    if "corpus" in given:
        given["corpus"] = tuple(given["corpus"])
    if "steps" in given and "minutes" in given:
        raise TrainingError("--steps and --minutes both say when to stop: give one of them")
    if resumed and output is None:
        raise TrainingError("--resume continues the run in --output: say which folder that is")
    standard_output = LastingOutput()
    screen = make_screen(Console(file=standard_output.stream))
    with polite_interrupts() as ctrl_c:

        def interrupted() -> bool:
            return ctrl_c() or standard_output.closed_by_reader

        if resumed:
            session = resume(given, output, screen, cache=cache)
        else:
            settings = Settings(**given)
            output = output or new_output()
            session = start(settings, output, screen, cache=cache)
        with session as run:
            outcome = run.train(interrupted)
            if outcome.finished:
                show_end(run, outcome, screen)
    if outcome.finished:
        return SUCCESS
    command = f"python scripts/train.py --output {output} --resume"
    screen.message(f"interrupted after step {outcome.step}, which is saved. Continue with\n  {command}")
    if standard_output.closed_by_reader:
        tell(f"standard output was closed: stopped after step {outcome.step}, which is saved. Continue with {command}")
    return INTERRUPTED


def show_end(run: Run, outcome: Outcome, screen: Screen) -> None:
    """Draw the loss curve of a finished run, show its results and examples, and say what to try next."""
    drawn = draw_loss_curve(read_history(run.output / METRICS_FILE), run.output / PLOT_FILE)
    show_results(screen.console, outcome)
    examples = fill_mask_examples(run.model, run.data.tokenizer, run.data.tokenized.evaluation)
    show_examples(screen.console, examples)
    if not drawn:
        screen.message(f"{PLOT_FILE} was not drawn: Matplotlib is not installed (pip install '.[plot]')")
    screen.message(f"The model, its vocabulary, the metrics and the loss curve are in {run.output}. Try next:")
    text = examples[0].text if examples else run.data.tokenizer.special_tokens["mask_token"]
    screen.message(f"  python scripts/fill_mask.py --model {run.output} {shlex.quote(text)}")
    screen.message(f"  python scripts/evaluate.py --model {run.output}")
