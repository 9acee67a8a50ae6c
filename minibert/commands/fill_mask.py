"""The command line of `scripts/fill_mask.py`.

Users type this command again and again, so it starts fast: NumPy and the model are imported after the arguments are
read, and tables are plain text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minibert.commands.parser import Parser, add_compute_options, add_model, add_option
from minibert.commands.process import SUCCESS, run_command
from minibert.commands.quick_start import quick_backend
from minibert.options import Option

if TYPE_CHECKING:
    from minibert.inference.fill_mask import Candidate


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="fill_mask.py",
        description="Show the tokens that a model would put in the place of every [MASK].",
        allow_abbrev=False,
    )
    parser.add_argument("text", help='text with [MASK], in quotes: "the function returns a [MASK] object."')
    add_model(parser)
    add_option(parser, Option("top", int, 5, "number of candidates to show for every [MASK]", metavar="N"))
    add_compute_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _fill_mask(arguments))


def _fill_mask(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    backend = quick_backend(options.device, options.kernels, options.precision, len(options.text))
    from minibert.inference.fill_mask import fill_mask
    from minibert.inference.loading import load_model

    model, tokenizer = load_model(
        options.model, backend, kernels=options.kernels, precision=options.precision, heads=("mlm",)
    )
    masks = fill_mask(model, tokenizer, options.text, options.top)
    for number, candidates in enumerate(masks, start=1):
        print("Candidates" if len(masks) == 1 else f"Mask {number} of {len(masks)}")
        print(table(candidates))
    return SUCCESS


def table(candidates: Sequence[Candidate]) -> str:
    """Return a table with two columns, token and probability, and a title line."""
    width = max(len("token"), *(len(candidate.token) for candidate in candidates))
    rows = [f"  {candidate.token:<{width}}  {candidate.probability:11.2%}" for candidate in candidates]
    return "\n".join([f"  {'token':<{width}}  probability", *rows])
