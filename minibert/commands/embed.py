"""The command line of `scripts/embed.py`.

NumPy and the model are imported after the first texts are read, so that `--help` and errors appear at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from minibert.commands.input_lines import read_lines
from minibert.commands.parser import Parser, add_compute_options, add_model, add_option
from minibert.commands.process import SUCCESS, run_command
from minibert.commands.quick_start import quick_backend
from minibert.commands.standard_output import PIPE_CLOSED, as_json, write_to_standard_output
from minibert.errors import InferenceError, explained
from minibert.inference.pooling import POOLINGS
from minibert.options import Option, at_least

if TYPE_CHECKING:
    from minibert.inference.embedding import SentenceEmbedder

_CHUNK = 8192  # number of texts that are sorted by length and kept in memory at a time


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="embed.py",
        description="Turn every line of a file into a vector. Vectors come in the order of the lines.",
        epilog="A folder that sentence-transformers saved says how tokens are pooled, whether vectors are normalized "
        "and how long a text may be. With any other folder, a vector is the mean of the hidden states, not "
        "normalized.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "input", nargs="?", metavar="FILE", help="text file with one text on every line (default: standard input)"
    )
    add_model(parser)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write: .npy for one float32 array, .jsonl for one JSON object on every line (default: JSON "
        "lines on standard output)",
    )
    parser.add_argument(
        "--text", action="append", metavar="TEXT", help="embed this text instead of a file; may be repeated"
    )
    add_option(
        parser,
        Option(
            "pooling",
            str,
            None,
            "vector of a text: mean of the hidden states of its tokens, or hidden state of its [CLS] token",
            choices=POOLINGS,
            default_text="as the model's folder says",
        ),
    )
    normalize = parser.add_mutually_exclusive_group()
    normalize.add_argument(
        "--normalize",
        action="store_true",
        default=None,
        help="scale vectors to length 1 (default: as the model's folder says)",
    )
    normalize.add_argument("--no-normalize", dest="normalize", action="store_false", help="do not scale vectors")
    add_option(
        parser,
        Option(
            "batch_tokens",
            int,
            None,
            "number of tokens to compute at once",
            metavar="N",
            check=at_least(1),
            default_text="what is fastest on the device",
        ),
    )
    add_compute_options(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_command(lambda: _embed(arguments))


def _embed(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    with explained():
        if options.output is not None and options.output.suffix not in (".npy", ".jsonl"):
            raise InferenceError(f"--output {options.output}: write to a file that ends in .npy or .jsonl")
        if options.output is not None:
            _check_output(options.output)
        if options.text and options.input is not None:
            raise InferenceError(f"give texts by --text or the file {options.input}, not both")
        texts = iter(options.text) if options.text else read_lines(options.input or "-")
        first = list(islice(texts, _CHUNK))
        backend = quick_backend(options.device, options.kernels, options.precision, sum(map(len, first)))
        from minibert.inference.embedding import SentenceEmbedder

        embedder = SentenceEmbedder.load(
            options.model,
            device=backend,
            kernels=options.kernels,
            precision=options.precision,
            pooling=options.pooling,
            normalize=options.normalize,
            batch_tokens=options.batch_tokens,
        )
        chunks = _embed_in_chunks(embedder, chain(first, texts))
        if options.output is None:
            whole = write_to_standard_output(lambda file: _write_json_lines(chunks, file))
            return SUCCESS if whole else PIPE_CLOSED
        _write_file(chunks, options.output, embedder.width)
    return SUCCESS


def _check_output(output: Path) -> None:
    """Check that the file can be written, before hours are spent on its content.

    Raises:
        InferenceError: the path is a folder, or its folder does not exist or is not writable.
    """
    folder = output.parent
    if output.is_dir():
        raise InferenceError(f"--output {output} is a folder; write to a file")
    if not folder.is_dir():
        raise InferenceError(f"--output {output}: there is no folder {folder}; create it or write elsewhere")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InferenceError(f"--output {output}: you may not write to the folder {folder}; write elsewhere")


def _embed_in_chunks(embedder: SentenceEmbedder, texts: Iterator[str]) -> Iterator[tuple[list[str], Any]]:
    """Yield some texts at a time with their vectors (n, H), in the order of the texts."""
    while chunk := list(islice(texts, _CHUNK)):
        yield chunk, embedder.embed(chunk)


def _write_json_lines(chunks: Iterable[tuple[list[str], Any]], file: TextIO) -> None:
    """Write one line of JSON for each text."""
    for texts, vectors in chunks:
        for text, vector in zip(texts, vectors.tolist(), strict=True):
            numbers = ", ".join(format(number, ".9g") for number in vector)  # nine digits identify every float32
            file.write(f'{{"text": {as_json(text, file)}, "embedding": [{numbers}]}}\n')
        file.flush()


def _write_file(chunks: Iterable[tuple[list[str], Any]], path: Path, width: int) -> None:
    """Write all vectors to a file. It appears under its name only when it is complete."""
    import numpy as np

    from minibert.files import write_beside

    def write(beside: Path) -> None:
        if path.suffix == ".jsonl":
            with beside.open("w", encoding="utf-8") as file:
                _write_json_lines(chunks, file)
            return
        vectors = [np.empty((0, width), dtype=np.float32), *(chunk for _, chunk in chunks)]
        with beside.open("wb") as binary:
            np.save(binary, np.concatenate(vectors))

    write_beside(path, write)
