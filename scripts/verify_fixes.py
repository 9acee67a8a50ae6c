"""Verify Mini-BERT's four critical fixes: what is checked, what was measured, PASS or FAIL.

    python scripts/verify_fixes.py [--device cpu|cuda|cuda:N] [--seed N]

The fixes are four mistakes that a BERT written by hand easily makes, and that this one must never make again:

1. the attention mask is added to the scores before the softmax, never to the embeddings;
2. the gradient of the token embeddings is one vectorised scatter-add, not a nested loop, and counts duplicates;
3. there is one softmax, and it stays finite for every score;
4. gradients are accumulated in place, in buffers that are allocated once.

Times are reported, never judged: they differ from machine to machine. Exit status 1 if a check fails.
"""

from __future__ import annotations

import ast
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

import minibert
from backends import Array, Backend, BackendError, get_backend
from minibert import GradientAccumulator, MiniBERT, MiniBERTConfig, MiniBERTGradients, stable_softmax
from minibert.commands.parser import Parser
from minibert.kernels import Kernels

SOURCES = Path(minibert.__file__).parent
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
CONFIG = MiniBERTConfig.preset("tiny", max_position_embeddings=16, **SMALL)
KNOWN_EXPONENTIALS = {  # where an array is exponentiated outside the softmax, and why that is no softmax
    ("ops/activations.py", "bias_gelu_backward"): "GELU's normal density",
    ("ops/cross_entropy.py", "cross_entropy_forward"): "cross-entropy's log of a sum",
}
VERDICTS = {True: "[green]PASS", False: "[bold red]FAIL", None: "report"}


class Check(NamedTuple):
    """One statement, what was measured to prove it, and whether it holds; None where nothing is judged."""

    statement: str
    measured: str
    passed: bool | None


class Setting(NamedTuple):
    """What every check starts from."""

    backend: Backend
    seed: int

    def model(self, kernels: str = "auto") -> MiniBERT:
        """A small BERT in float64 where the device has it."""
        kinds = self.backend.xp.__array_namespace_info__().dtypes(device=self.backend.device, kind="real floating")
        dtype = "float64" if "float64" in kinds else "float32"
        return MiniBERT(CONFIG, backend=self.backend, dtype=dtype, seed=self.seed, kernels=kernels)

    def random(self) -> np.random.Generator:
        """Random numbers on the host, the same in every check."""
        return np.random.default_rng(self.seed)


def largest(x: np.ndarray[Any, Any]) -> float:
    """The largest absolute value."""
    return float(np.max(np.abs(x)))


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Every function and method of minibert, parsed, with the path of its file within the package."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield path.relative_to(SOURCES).as_posix(), node


def called(node: ast.AST) -> set[str]:
    """The names of the functions that are called within a node; `math.exp` keeps its module, `xp.exp` is `exp`."""
    names = set()
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            text = ast.unparse(call.func)
            names.add(text if text.startswith("math.") else text.rpartition(".")[2])
    return names


def identifiers(node: ast.AST) -> set[str]:
    """Every name, attribute and argument within a node (but no word of its comments and docstrings)."""
    fields = ((part, field) for part in ast.walk(node) for field in ("id", "attr", "arg"))
    return {name for part, field in fields if isinstance(name := getattr(part, field, None), str)}


def check_mask(setting: Setting) -> Iterator[Check]:
    """The mask is added to the scores, before the softmax, and to nothing else."""
    host, random, model = setting.backend.to_numpy, setting.random(), setting.model()
    ids = random.integers(1, CONFIG.vocab_size, (3, 12))
    mask = np.ones_like(ids)
    mask[1, 7:] = mask[2, 3:] = 0
    real = mask == 1
    logits, cache = model.forward(ids, mask)

    leaked, off_one = 0.0, 0.0
    for layer in cache.layers:
        weights = host(layer.attention_weights)  # (B, A, T, T)
        leaked = max(leaked, largest(weights * ~real[:, None, None, :]))
        off_one = max(off_one, largest(weights.sum(axis=-1) - 1.0))
    yield Check(
        "masked keys get an attention weight of exactly 0, and the others share 1",
        f"largest masked weight {leaked!r}; sums differ from 1 by up to {off_one:.1e}",
        leaked == 0.0 and off_one < 1e-5,
    )

    other_ids = np.where(real, ids, random.integers(1, CONFIG.vocab_size, ids.shape))
    others = host(model.forward(other_ids, mask)[0])
    changed = int(np.sum(other_ids != ids))
    difference = largest(others[real] - host(logits)[real])
    yield Check(
        "changing masked tokens does not change the logits of real positions",
        f"{changed} tokens changed; largest difference {difference!r}",
        changed > 0 and difference == 0.0,
    )

    control = largest(host(model.forward(other_ids)[0])[real] - host(model.forward(ids)[0])[real])
    yield Check(
        "without the mask the same tokens do change them (so the check can fail)",
        f"largest difference {control:.1e}",
        control > 1e-6,
    )

    embedded = host(cache.hidden_states[0])
    unmasked = host(model.forward(ids)[1].hidden_states[0])
    sources = [function for _, function in functions() if function.name in ("_embeddings", "embedding_forward")]
    seen = {name for function in sources for name in identifiers(function) if "mask" in name}
    yield Check(
        "the embeddings never see the mask",
        f"names with 'mask' in {' and '.join(sorted({f.name for f in sources}))}: {', '.join(sorted(seen)) or 'none'}; "
        f"embeddings with and without mask differ by {largest(embedded - unmasked)!r}",
        len(sources) >= 2 and not seen and bool(np.array_equal(embedded, unmasked)),
    )


def nested_loops(table: np.ndarray[Any, Any], ids: np.ndarray[Any, Any], dy: np.ndarray[Any, Any]) -> None:
    """The gradient as one writes it first: one addition of a row for every sequence and position."""
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            table[ids[b, t]] += dy[b, t]


def element_loops(table: np.ndarray[Any, Any], ids: np.ndarray[Any, Any], dy: np.ndarray[Any, Any]) -> None:
    """The same with a third loop, over the hidden size."""
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            for h in range(dy.shape[2]):
                table[ids[b, t], h] += dy[b, t, h]


def median_ms(run: Callable[[], None], repeats: int) -> float:
    """The median time of a call, in milliseconds, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def check_scatter_add(setting: Setting) -> Iterator[Check]:
    """One scatter-add per table, equal to the nested loops."""
    backend, xp, random = setting.backend, setting.backend.xp, setting.random()
    model, kernels = setting.model("reference"), Kernels(backend)  # the definition's calls; what training runs
    gradients = MiniBERTGradients(model)
    table = gradients.gradients["token_embeddings"]
    calls: list[tuple[int, ...]] = []
    scatter_add = backend.scatter_add

    def counted(target: Array, indices: Array, rows: Array, **options: bool) -> None:
        if target is table:
            calls.append(tuple(indices.shape))
        scatter_add(target, indices, rows, **options)

    ids = random.integers(0, CONFIG.vocab_size, (4, 8))
    backend.scatter_add = counted  # type: ignore[method-assign]
    try:
        gradients.backward(model.forward(ids)[1], ids)
    finally:
        backend.scatter_add = scatter_add  # type: ignore[method-assign]
    yield Check(
        "one scatter-add for all tokens of a batch",
        f"{len(calls)} call for {ids.size} tokens",
        calls == [(ids.size,)],
    )

    batch, length, width, vocabulary, few = 32, 128, 256, 8192, 2
    zipf = np.minimum(random.zipf(1.2, (batch, length)) - 1, vocabulary - 1)  # as in text: few tokens, often
    for what, ids in (("as frequent as words of a text", zipf), ("all the same", np.full_like(zipf, 7))):
        dy = random.standard_normal((batch, length, width)).astype(np.float32)
        expected = np.zeros((vocabulary, width))
        nested_loops(expected, ids, dy.astype(np.float64))
        result = xp.zeros((vocabulary, width), dtype=xp.float32, device=backend.device)
        rows = backend.asarray(dy.reshape(-1, width))
        indices = backend.asarray(ids.reshape(-1).astype(np.int32))
        kernels.embedding_backward(rows, (indices,), (result,))
        error = largest(backend.to_numpy(result) - expected) / largest(expected)
        yield Check(
            f"equal to nested loops, ids {what}",
            f"{ids.size} rows into {np.unique(ids).size} different ids; float32 against float64: {error:.1e}",
            error < 1e-5,
        )

    ids, indices = zipf, backend.asarray(zipf.reshape(-1).astype(np.int32))
    host_table = np.zeros((vocabulary, width), dtype=np.float32)

    def vectorised() -> None:
        kernels.embedding_backward(rows, (indices,), (result,))
        backend.synchronize()

    ours = median_ms(vectorised, 21)
    loops = median_ms(lambda: nested_loops(host_table, ids, dy), 9)
    add_at = median_ms(lambda: np.add.at(host_table, ids.reshape(-1), dy.reshape(-1, width)), 9)
    # too slow for all sequences: measured on a few of them, and scaled up
    elements = median_ms(lambda: element_loops(host_table, ids[:few], dy[:few]), 3) * batch / few
    yield Check(
        f"the time of ({batch * length}, {width}) rows into ({vocabulary}, {width})",
        f"scatter-add on {backend.name} {ours:.2f} ms; on the host, nested loops over (b, t) {loops:.1f} ms "
        f"({loops / ours:.1f}x), np.add.at {add_at:.1f} ms ({add_at / ours:.1f}x), element by element "
        f"{elements:.0f} ms ({elements / ours:.0f}x; extrapolated from {few} of {batch} sequences)",
        None,
    )


def check_softmax(setting: Setting) -> Iterator[Check]:
    """One softmax, finite for every score."""
    backend, xp, inf = setting.backend, setting.backend.xp, float("inf")
    cases = {  # scores -> weights
        (1e9, -1e9, 0.0): (1.0, 0.0, 0.0),
        (1e9, 1e9, -inf): (0.5, 0.5, 0.0),
        (inf, 0.0, -inf): (1.0, 0.0, 0.0),
        (inf, inf, 1e9): (0.5, 0.5, 0.0),
        (-1e9, -1e9, -inf): (0.5, 0.5, 0.0),
        (-inf, -inf, -inf): (0.0, 0.0, 0.0),
    }
    worst = 0.0
    for dtype in backend.xp.__array_namespace_info__().dtypes(device=backend.device, kind="real floating").values():
        scores = xp.asarray([list(case) for case in cases], dtype=dtype, device=backend.device)
        weights = backend.to_numpy(stable_softmax(scores))
        worst = max(worst, largest(weights - np.asarray(list(cases.values()))))
    yield Check(
        "scores of ±1e9 and ±inf give the right, finite weights; a row of -inf gives zeros",
        f"{len(cases)} rows in every floating dtype; largest error {worst!r}",
        worst < 1e-6,
    )

    model = setting.model()
    ids = setting.random().integers(0, CONFIG.vocab_size, (2, 8))
    mask = np.asarray([[1] * 8, [0] * 8])
    for layer in range(CONFIG.num_hidden_layers):  # scores of about 1e9
        model.parameters[f"layers.{layer}.attention.query.weight"][...] *= 1e10
    logits, cache = model.forward(ids, mask)
    gradients = MiniBERTGradients(model)
    loss = float(gradients.backward(cache, ids))
    reached = largest(backend.to_numpy(cache.layers[0].queries)) * largest(backend.to_numpy(cache.layers[0].keys))
    masked = largest(backend.to_numpy(cache.layers[0].attention_weights)[1])
    finite = all(bool(np.all(np.isfinite(backend.to_numpy(x)))) for x in (logits, gradients.gradients.flat))
    yield Check(
        "a model with huge scores and a fully masked sequence stays finite, forward and backward",
        f"|query| * |key| up to {reached:.0e}; weights of the masked sequence {masked!r}; loss {loss:.2f}; "
        f"logits and gradients finite: {finite}",
        finite and masked == 0.0 and np.isfinite(loss),
    )

    exponentials, softmaxes, users = set[tuple[str, str]](), set[str](), set[str]()
    for file, function in functions():
        calls = called(function)
        softmaxes |= {f"{name} in {file}" for name in calls & {"softmax", "log_softmax", "logsumexp"}}
        if "stable_softmax" in calls:
            users.add(function.name)
        if file != "ops/softmax.py":
            exponentials |= {(file, function.name)} if calls & {"exp", "exp2", "expm1"} else set()
            softmaxes |= {f"{function.name} in {file}"} if "softmax" in function.name else set()
    unknown = exponentials - set(KNOWN_EXPONENTIALS)
    strangers = sorted(softmaxes) + [f"exp in {name} of {file}" for file, name in sorted(unknown)]
    known = " and ".join(sorted(KNOWN_EXPONENTIALS[place] for place in exponentials & set(KNOWN_EXPONENTIALS)))
    yield Check(
        "it is the only softmax in minibert/",
        f"called by {', '.join(sorted(users))}; other exponentials of arrays: {known}; "
        f"strangers: {', '.join(strangers) or 'none'}",
        not strangers and users >= {"attention_weights", "cross_entropy_backward"},
    )


def address(array: Array) -> int:
    """Where an array's elements lie in its device's memory."""
    if isinstance(array, np.ndarray):
        return int(array.__array_interface__["data"][0])
    return int(array.data.ptr)


def check_accumulator(setting: Setting) -> Iterator[Check]:
    """Accumulation is exact, in place, and allocates nothing."""
    backend, random, model = setting.backend, setting.random(), setting.model()
    gradients, accumulator = MiniBERTGradients(model), GradientAccumulator(model)
    flat = accumulator.gradients.flat
    places = [address(flat), *map(address, accumulator.gradients.values())]

    whole_numbers = random.integers(-8, 9, flat.shape[0]).astype(np.float64)
    gradients.gradients.flat[...] = backend.asarray(whole_numbers, dtype=flat.dtype)
    for weight in (5, 1, 3, 7):
        accumulator.add(gradients.gradients, weight=weight)
    exact = bool(np.array_equal(backend.to_numpy(flat), 16 * whole_numbers))
    accumulator.average()
    average = bool(np.array_equal(backend.to_numpy(flat), whole_numbers))
    yield Check(
        "weighted sums and averages are exact",
        f"weights 5, 1, 3, 7 of whole numbers: sum exact: {exact}, average exact: {average}",
        exact and average,
    )

    ids = random.integers(0, CONFIG.vocab_size, (4, 8))
    labels = np.where(np.arange(8) < np.asarray([[5], [1], [3], [2]]), ids, -100)
    gradients.backward(model.forward(ids)[1], labels)
    whole = np.array(backend.to_numpy(gradients.gradients.flat))
    accumulator.reset()
    for row, row_labels in zip(ids, labels, strict=True):
        gradients.backward(model.forward(row[None])[1], row_labels[None])
        accumulator.add(gradients.gradients, weight=int(np.sum(row_labels >= 0)))
    accumulator.average()
    error = largest(backend.to_numpy(flat) - whole) / largest(whole)
    yield Check(
        "micro-batches with 5, 1, 3 and 2 predictions average to the whole batch's gradient",
        f"largest difference {error:.1e} of the largest entry",
        error < (1e-12 if whole.dtype == np.float64 else 1e-5),
    )

    def warm_calls() -> None:
        for _ in range(10):
            accumulator.add(gradients.gradients, weight=3)
            accumulator.add(gradients.gradients)
            accumulator.average()
            accumulator.reset()

    warm_calls()
    before = None if backend.name == "cpu" else backend.memory().used  # of the process, if the device is the host
    tracemalloc.start()
    warm_calls()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = flat.shape[0] * flat.dtype.itemsize
    grown = "" if before is None else f"; device memory in use before {before:,}, after {backend.memory().used:,} bytes"
    same = places == [address(accumulator.gradients.flat), *map(address, accumulator.gradients.values())]
    yield Check(
        "add, average and reset work in place and allocate nothing",
        f"all {len(places)} buffers at the same address: {same}; host memory allocated at the most {peak:,} bytes "
        f"(views), where the gradients have {size:,}{grown}",
        same and accumulator.gradients.flat is flat and peak < size / 16,
    )


FIXES: dict[str, Callable[[Setting], Iterator[Check]]] = {
    "1. The mask is added to the scores, before the softmax": check_mask,
    "2. The token embeddings' gradient is one scatter-add": check_scatter_add,
    "3. One softmax, and it stays finite": check_softmax,
    "4. Accumulation in place": check_accumulator,
}


def main() -> int:
    """Run every check and print the table."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of the checks' random numbers (default: 0)")
    arguments = parser.parse_args()
    console = Console()
    try:
        backend = get_backend(arguments.device)
    except (BackendError, ValueError) as error:
        parser.error(str(error))

    table = Table("Statement", "Measured", "", title="The four critical fixes", caption=backend.description())
    failures = 0
    for fix, checks in FIXES.items():
        table.add_section()
        table.add_row(f"[bold]{fix}")
        for check in checks(Setting(backend, arguments.seed)):
            failures += check.passed is False
            table.add_row(check.statement, check.measured, VERDICTS[check.passed])
    console.print(table)
    console.print(f"{failures} check(s) failed" if failures else "all checks passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
