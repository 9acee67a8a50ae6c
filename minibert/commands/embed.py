"""The command line of `scripts/embed.py`. NumPy and the model are imported when the texts have been seen."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from minibert.commands.parser import Parser, add_threads
from minibert.commands.pipes import PIPE_CLOSED, as_json, read_lines, write_to_standard_output
from minibert.commands.process import SUCCESS, run_command
from minibert.commands.quick_start import quick_backend
from minibert.errors import InferenceError, explained
from minibert.inference.pooling import POOLINGS

if TYPE_CHECKING:
    from minibert.inference.embedding import SentenceEmbedder

_CHUNK = 8192  # texts that are sorted together and held in memory


def build_parser() -> Parser:
    """All options."""
    parser = Parser(
        prog="embed.py",
        description="Turn every line of a file into a vector. Vectors come in the order of the lines.",
        epilog="Pooling, normalisation and the longest text are read from the folder where sentence-transformers "
        "wrote it; otherwise vectors are means, as they are.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "input", nargs="?", metavar="FILE", help="a text file, one text a line (default: standard input)"
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="an output folder, or Hugging Face's")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=".npy (one float32 array) or .jsonl (one object a line); JSON lines to standard output if not given",
    )
    parser.add_argument("--text", action="append", metavar="TEXT", help="embed this instead; may be repeated")
    parser.add_argument("--pooling", choices=POOLINGS, help="how tokens become a vector (default: as the folder says)")
    normalize = parser.add_mutually_exclusive_group()
    normalize.add_argument("--normalize", action="store_true", default=None, help="vectors of length 1")
    normalize.add_argument("--no-normalize", dest="normalize", action="store_false", help="vectors as they are")
    parser.add_argument("--batch-tokens", type=int, metavar="N", help="computed at once (default: what is fastest)")
    parser.add_argument("--device", default="cpu", metavar="{cpu,cuda,cuda:N}", help="(default: cpu)")
    add_threads(parser)
    parser.add_argument("--kernels", default="auto", metavar="{auto,reference}", help="(default: auto)")
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
        if options.batch_tokens is not None and options.batch_tokens < 1:
            raise InferenceError(f"--batch-tokens must be at least 1, not {options.batch_tokens}")
        texts = iter(options.text) if options.text else read_lines(options.input or "-")
        first = list(islice(texts, _CHUNK))
        backend = quick_backend(options.device, options.kernels, sum(map(len, first)))
        from minibert.inference.embedding import SentenceEmbedder

        embedder = SentenceEmbedder.load(
            options.model,
            device=backend,
            kernels=options.kernels,
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
        InferenceError: it is a folder, or its folder does not exist or may not be written to.
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
    """Write one JSON object a line for each text."""
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
