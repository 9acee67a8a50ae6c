"""Show that Mini-BERT's four critical fixes hold: print every statement, what was measured, and PASS or FAIL.

    python scripts/verify_fixes.py [--device cpu|cuda|cuda:N|torch] [--seed N]

Each fix avoids a mistake that is easily made when BERT is written by hand:

1. The attention mask is added to the scores, before the softmax. The embeddings are never masked.
2. The gradient of the token embeddings is one scatter-add. No loop over tokens is needed, and duplicates add up.
3. There is one softmax, and its weights are finite for every score.
4. Gradients are accumulated in place, in buffers that are allocated once.

Each fix has one function below, which runs the code and measures. Times are reported but never judged, because they
differ between machines. The exit status is 1 if a check fails.
"""

from __future__ import annotations

import statistics
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from benchmarks.scatter import compare_scatter, loop_over_tokens, seconds_of_loop_over_numbers
from rich.console import Console
from rich.table import Table

from backends import Array, Backend, BackendError, get_backend
from minibert import GradientAccumulator, MiniBERT, MiniBERTConfig, MiniBERTGradients, stable_softmax
from minibert.commands.parser import Parser, add_option
from minibert.kernels import CHOICES, Kernels
from minibert.ops import AttentionLayout
from minibert.options import DEVICE
from minibert.rows import Rows

CONFIG = MiniBERTConfig.preset(
    "tiny", vocab_size=64, hidden_size=32, num_attention_heads=4, intermediate_size=64, max_position_embeddings=16
)
INF = float("inf")
EXTREME_SCORES = {  # scores -> the weights that they must get
    (1e9, -1e9, 0.0): (1.0, 0.0, 0.0),
    (1e9, 1e9, -INF): (0.5, 0.5, 0.0),
    (INF, 0.0, -INF): (1.0, 0.0, 0.0),
    (INF, INF, 1e9): (0.5, 0.5, 0.0),
    (-1e9, -1e9, -INF): (0.5, 0.5, 0.0),
    (-INF, -INF, -INF): (0.0, 0.0, 0.0),
}
VERDICTS = {True: "[green]PASS", False: "[bold red]FAIL", None: "report"}


class Check(NamedTuple):
    """A statement, what was measured, and whether the statement holds; None where nothing is judged."""

    statement: str
    measured: str
    passed: bool | None


def float_dtypes(backend: Backend) -> dict[str, Any]:
    """Return the floating-point dtypes of the device: name -> dtype."""
    dtypes = backend.xp.__array_namespace_info__().dtypes(device=backend.device, kind="real floating")
    return dict(dtypes)


def small_bert(backend: Backend, seed: int, kernels: str = "auto") -> MiniBERT:
    """Return a small BERT, in float64 if the device has float64."""
    dtype = "float64" if "float64" in float_dtypes(backend) else "float32"
    return MiniBERT(CONFIG, backend=backend, dtype=dtype, seed=seed, kernels=kernels)


def largest(x: np.ndarray[Any, Any]) -> float:
    """Return the largest absolute value; NaN if there is a NaN, which then fails every comparison."""
    return float(np.max(np.abs(x)))


# --- 1: the mask ---------------------------------------------------------------------------------------------------


def check_mask(backend: Backend, seed: int) -> Iterator[Check]:
    """Show that the mask is added to the scores before the softmax, and changes nothing else."""
    host, random, model = backend.to_numpy, np.random.default_rng(seed), small_bert(backend, seed)
    ids = random.integers(1, CONFIG.vocab_size, (3, 12))
    mask = np.ones_like(ids)
    mask[1, 7:] = mask[2, 3:] = 0
    real = mask == 1
    logits, cache = model.forward(ids, mask)
    unmasked_logits, unmasked_cache = model.forward(ids)

    weights = np.stack([host(layer.attention_weights) for layer in cache.layers])  # (L, B, A, T, T)
    leaked = largest(weights * ~real[:, None, None, :])
    off_one = largest(weights.sum(axis=-1) - 1.0)
    yield Check(
        "masked keys get an attention weight of exactly 0, and the other keys share 1",
        f"largest masked weight {leaked!r}; sums differ from 1 by up to {off_one:.1e}",
        leaked == 0.0 and off_one < 1e-5,
    )

    shared = host(unmasked_cache.layers[0].attention_weights) * real[:, None, None, :]
    error = largest(weights[0] - shared / shared.sum(axis=-1, keepdims=True))
    yield Check(
        "the mask changes no score of a real key: their weights keep their ratios",
        f"largest difference {error:.1e} in the first layer",
        error < 1e-5,
    )

    other_ids = np.where(real, ids, random.integers(1, CONFIG.vocab_size, ids.shape))
    changed = int(np.sum(other_ids != ids))
    difference = largest(host(model.forward(other_ids, mask)[0])[real] - host(logits)[real])
    yield Check(
        "changing masked tokens does not change the logits of real positions",
        f"{changed} tokens changed; largest difference {difference!r}",
        changed > 0 and difference == 0.0,
    )

    control = largest(host(model.forward(other_ids)[0])[real] - host(unmasked_logits)[real])
    yield Check(
        "without the mask, the same tokens do change them (so the check above can fail)",
        f"largest difference {control:.1e}",
        control > 1e-6,
    )

    embeddings, unmasked_embeddings = host(cache.hidden_states[0]), host(unmasked_cache.hidden_states[0])
    yield Check(
        "the embeddings are the same with and without a mask",
        f"largest difference {largest(embeddings - unmasked_embeddings)!r} in {embeddings.size} numbers",
        bool(np.array_equal(embeddings, unmasked_embeddings)),
    )


# --- 2: the scatter-add --------------------------------------------------------------------------------------------


def check_scatter_add(backend: Backend, seed: int) -> Iterator[Check]:
    """Show that a batch needs one scatter-add, which equals the loops over tokens and is faster."""
    xp, random = backend.xp, np.random.default_rng(seed)
    model = small_bert(backend, seed, "reference")  # its scatter-add is backend.scatter_add, whose calls are counted
    gradients = MiniBERTGradients(model)
    table = gradients.gradients["token_embeddings"]
    calls: list[tuple[int, ...]] = []
    scatter_add = backend.scatter_add

    def counted(target: Array, indices: Array, rows: Array, **options: bool) -> None:
        if target is table:
            calls.append(tuple(indices.shape))
        scatter_add(target, indices, rows, **options)

    ids = random.integers(0, CONFIG.vocab_size, (4, 8))
    with mock.patch.object(backend, "scatter_add", counted):
        gradients.backward(model.forward(ids)[1], ids)
    yield Check(
        "a backward pass makes one scatter-add into the token embeddings, for all tokens of the batch",
        f"{len(calls)} call for {ids.size} tokens",
        calls == [(ids.size,)],
    )

    correct = True
    zipf = np.minimum(random.zipf(1.2, (32, 128)) - 1, 8191)  # few tokens are frequent, as in text
    for frequency, ids in (("as frequent as words of a text", zipf), ("all the same", np.full_like(zipf, 7))):
        dy = random.standard_normal((*ids.shape, 256)).astype(np.float32)
        expected = np.zeros((8192, 256))
        loop_over_tokens(expected, ids, dy.astype(np.float64))
        result = xp.zeros(expected.shape, dtype=xp.float32, device=backend.device)
        rows, indices = backend.asarray(dy.reshape(-1, 256)), backend.asarray(ids.reshape(-1).astype(np.int32))
        Kernels(backend).embedding_backward(rows, (indices,), (result,))
        error = largest(backend.to_numpy(result) - expected) / largest(expected)
        correct = correct and error < 1e-5
        yield Check(
            f"it equals the loop over tokens, ids {frequency}",
            f"{ids.size} rows into {np.unique(ids).size} different ids; float32 against float64: {error:.1e}",
            error < 1e-5,
        )

    if not correct:
        return  # the time of a wrong sum means nothing
    times = [
        f"{way} {1e3 * figures['seconds']:.2f} ms ({statistics.median(figures['ratios']):.0f}x)"
        for way, figures in compare_scatter(backend, rounds=21).items()
    ]
    times.append(f"loops over single numbers {1e3 * seconds_of_loop_over_numbers():.0f} ms (extrapolated)")
    yield Check(
        f"the time to add (4096, 256) rows to an (8192, 256) table: scatter_add on {backend.name}, the rest in NumPy",
        "; ".join(times),
        None,
    )


# --- 3: the softmax ------------------------------------------------------------------------------------------------


def weights_by_user(kernels: Kernels, backend: Backend, scores: Array) -> dict[str, np.ndarray[Any, Any]]:
    """Return the softmax of scores (R, S) as every part of a training step computes it: name -> (R, S) on the host.

    Attention: every row of the scores is a sequence of S slots. With one head of size 1, the scores as keys and ones
    as queries, the scores of attention are the given ones. With a value of 1 at one slot and 0 elsewhere, the context
    is the weight of that slot.

    Cross-entropy: the gradient is the softmax, less 1 at the label. The label is 0 here.
    """
    sequences, slots = scores.shape
    xp, host = backend.xp, backend.to_numpy
    layout = AttentionLayout(Rows(sequences, slots), Rows(sequences, slots), mask=None, attention_heads=1)
    keys = xp.reshape(scores, (-1, 1))  # (R S, 1)
    queries = xp.ones_like(keys)
    labels = backend.asarray(np.zeros(sequences, dtype=np.int32))
    contexts = []
    for slot in range(slots):
        values = backend.asarray(np.tile(np.eye(slots)[slot], sequences)[:, None], dtype=scores.dtype)  # (R S, 1)
        context, _ = kernels.attention_forward(queries, keys, values, layout, None)
        contexts.append(host(context).reshape(sequences, slots)[:, 0])
    with np.errstate(invalid="ignore"):  # the loss of infinite logits is infinite or NaN, its gradient is finite
        _, dlogits = kernels.cross_entropy_backward(scores, labels, 1.0)
    return {
        "stable_softmax": host(stable_softmax(scores)),
        "attention's weights": host(kernels.attention_weights(queries, keys, layout))[:, 0, 0, :],
        "attention's context": np.stack(contexts, axis=1),
        "cross-entropy's gradient": host(dlogits) + np.eye(slots)[0],
    }


@contextmanager
def constant_softmax() -> Iterator[None]:
    """Let `stable_softmax` return 0.25 everywhere, in every module that has imported it.

    The body of the function is exchanged, not a module's name for it. So the exchange misses no module.
    """

    def constant(x: Array, axis: int = -1) -> Array:
        return x * 0.0 + 0.25

    body, stable_softmax.__code__ = stable_softmax.__code__, constant.__code__
    try:
        yield
    finally:
        stable_softmax.__code__ = body


def check_softmax(backend: Backend, seed: int) -> Iterator[Check]:
    """Show that there is one softmax, and that its weights are finite."""
    xp, host, random = backend.xp, backend.to_numpy, np.random.default_rng(seed)
    expected = np.asarray(list(EXTREME_SCORES.values()))
    errors: dict[str, list[np.ndarray[Any, Any]]] = {}
    for dtype in float_dtypes(backend).values():
        scores = xp.asarray([list(row) for row in EXTREME_SCORES], dtype=dtype, device=backend.device)
        for choice in CHOICES:
            for user, weights in weights_by_user(Kernels(backend, choice), backend, scores).items():
                errors.setdefault(user, []).append(weights - expected)
    worst = {user: largest(np.stack(differences)) for user, differences in errors.items()}
    yield Check(
        "scores of ±1e9 and ±inf give the right, finite weights; a row of -inf gives zeros",
        f"{len(EXTREME_SCORES)} rows, every floating-point dtype, with and without fast kernels; largest errors: "
        + ", ".join(f"{user} {error!r}" for user, error in worst.items()),
        all(error < 1e-6 for error in worst.values()),
    )

    scores = backend.asarray(random.standard_normal((2, 3)), dtype=xp.float32)
    with constant_softmax():
        replaced = weights_by_user(Kernels(backend, "reference"), backend, scores)
    others = [user for user, weights in replaced.items() if not largest(weights - 0.25) < 1e-6]
    yield Check(
        "attention and cross-entropy have no softmax of their own: all use stable_softmax",
        f"while stable_softmax is made to return 0.25, {len(replaced) - len(others)} of {len(replaced)} places return "
        f"0.25; the others: {', '.join(others) or 'none'}",
        not others,
    )

    model = small_bert(backend, seed)
    ids = random.integers(0, CONFIG.vocab_size, (2, 8))
    mask = np.asarray([[1] * 8, [0] * 8])
    for layer in range(CONFIG.num_hidden_layers):
        model.parameters[f"layers.{layer}.attention.query.weight"][...] *= 1e10  # scores of about 1e9
    logits, cache = model.forward(ids, mask)
    gradients = MiniBERTGradients(model)
    loss = float(gradients.backward(cache, ids))
    attention = cache.layers[0].attention
    reached = largest(host(attention.queries)) * largest(host(attention.keys))
    masked = largest(host(cache.layers[0].attention_weights)[1])
    finite = all(bool(np.all(np.isfinite(host(x)))) for x in (logits, gradients.gradients.flat))
    yield Check(
        "a model with huge scores and a fully masked sequence stays finite, forward and backward",
        f"|query| * |key| up to {reached:.0e}; weights of the masked sequence {masked!r}; loss {loss:.2f}; "
        f"logits and gradients finite: {finite}",
        finite and masked == 0.0 and bool(np.isfinite(loss)),
    )


# --- 4: the accumulator --------------------------------------------------------------------------------------------


def address(array: Array) -> int:
    """Return the address of an array's first element in the memory of its device."""
    if isinstance(array, np.ndarray):
        return int(array.__array_interface__["data"][0])
    return int(array.data_ptr() if hasattr(array, "data_ptr") else array.data.ptr)  # PyTorch's; CuPy's


def check_accumulator(backend: Backend, seed: int) -> Iterator[Check]:
    """Show that accumulation is exact, works in place and allocates nothing."""
    random, model = np.random.default_rng(seed), small_bert(backend, seed)
    gradients, accumulator = MiniBERTGradients(model), GradientAccumulator(model)
    flat = accumulator.gradients.flat
    addresses = [address(flat), *map(address, accumulator.gradients.values())]

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
        "micro-batches with 5, 1, 3 and 2 predictions average to the gradient of the whole batch",
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
    before = None if backend.name == "cpu" else backend.memory().used  # on a CPU, tracemalloc tells more exactly
    tracemalloc.start()
    warm_calls()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = flat.shape[0] * flat.dtype.itemsize
    on_device = "" if backend.name == "cpu" else "; PyTorch's own memory is not counted on a CPU"
    if before is not None:
        on_device = f"; device memory in use: {before:,} bytes, then {backend.memory().used:,}"
    same = addresses == [address(accumulator.gradients.flat), *map(address, accumulator.gradients.values())]
    yield Check(
        "add, average and reset work in place and allocate nothing",
        f"all {len(addresses)} arrays at the same address: {same}; at most {peak:,} bytes of host memory allocated "
        f"(for views), while the gradients have {size:,}{on_device}",
        same and accumulator.gradients.flat is flat and peak < size / 16,
    )


FIXES: dict[str, Callable[[Backend, int], Iterator[Check]]] = {
    "1. The mask is added to the scores, before the softmax": check_mask,
    "2. The token embeddings' gradient is one scatter-add": check_scatter_add,
    "3. There is one softmax, and it stays finite": check_softmax,
    "4. Gradients are accumulated in place": check_accumulator,
}


def main() -> int:
    """Run every check and print the table; return the exit status."""
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    add_option(parser, DEVICE)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers in the checks (default: 0)")
    try:
        arguments = parser.parse_args()
        backend = get_backend(arguments.device)
    except (BackendError, ValueError) as error:
        parser.error(str(error))

    table = Table("Statement", "Measured", "", title="The four critical fixes", caption=backend.description())
    failures = 0
    for fix, check_fix in FIXES.items():
        table.add_section()
        table.add_row(f"[bold]{fix}")
        for check in check_fix(backend, arguments.seed):
            failures += check.passed is False
            table.add_row(check.statement, check.measured, VERDICTS[check.passed])
    console = Console()
    console.print(table)
    console.print(f"{failures} check(s) failed" if failures else "all checks passed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
