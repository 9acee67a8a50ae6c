"""Calls of the twins with operands of any size and dtype, for comparison with the definitions in float64.

A call is a function of (kernels, backend, arrays) that returns everything it computed. The same function runs on the
emulated device with the twins, and on NumPy with the definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from backends import Array, Backend, get_backend
from minibert.kernels import Kernels
from minibert.ops import AttentionLayout, Dropout, score_bound
from minibert.random_bits import Stream, derive_key
from minibert.rows import Rows

Call = Callable[[Kernels, Backend, Mapping[str, Array]], tuple[Array, ...]]

EPSILONS = {"float64": 100, "float32": 100, "float16": 12}
"""The rounding error allowed, in units of the dtype's epsilon. float16 is rounded only when it is stored."""


@dataclass(frozen=True)
class KernelCase:
    """A call, and its operands in float64 on the host."""

    name: str
    operands: dict[str, np.ndarray]
    call: Call


def _empty(like: Array) -> Array:
    return like.copy()


def _dropout(backend: Backend, rows: int, seed: int) -> Dropout:
    numbers = np.random.default_rng(seed).integers(0, 2**32, rows, dtype=np.uint32)
    return Dropout(0.3, derive_key(seed, Stream.DROPOUT, 7, 0, 2), backend.asarray(numbers))


def row_cases(rows: int, columns: int, seed: int) -> list[KernelCase]:
    """Return a case for every operation on arrays (rows, columns)."""
    rng = np.random.default_rng(seed)
    flat = {name: rng.standard_normal((rows, columns)) for name in ("x", "dy", "residual")}
    vectors = {name: rng.standard_normal(columns) for name in ("bias", "weight", "norm_bias")}
    operands = flat | vectors

    def activation(name: str) -> Call:
        def call(k: Kernels, b: Backend, a: Mapping[str, Array]) -> tuple[Array, ...]:
            dbias = _empty(a["bias"])
            y = getattr(k, f"bias_{name}_forward")(a["x"], a["bias"])
            dy = b.xp.asarray(a["dy"], copy=True)  # its memory may be taken
            return y, *getattr(k, f"bias_{name}_backward")(dy, a["x"], a["bias"], dbias), dbias

        return call

    def dropout(k: Kernels, b: Backend, a: Mapping[str, Array]) -> tuple[Array, ...]:
        use = _dropout(b, rows, seed)
        return k.dropout_forward(a["x"], use), k.dropout_backward(a["dy"], use)

    def layer_norm(k: Kernels, b: Backend, a: Mapping[str, Array]) -> tuple[Array, ...]:
        y, statistics = k.layer_norm_forward(a["x"], a["weight"], a["bias"], 1e-3)
        dweight, dbias = _empty(a["weight"]), _empty(a["bias"])
        return y, k.layer_norm_backward(a["dy"], a["x"], a["weight"], statistics, dweight, dbias), dweight, dbias

    def sublayer(dropped: bool) -> Call:
        def call(k: Kernels, b: Backend, a: Mapping[str, Array]) -> tuple[Array, ...]:
            use = _dropout(b, rows, seed) if dropped else None
            y, total, statistics = k.dropout_add_layer_norm_forward(
                a["x"], a["bias"], a["residual"], a["weight"], a["norm_bias"], 1e-3, use
            )
            sums = _empty(a["bias"]), _empty(a["weight"]), _empty(a["norm_bias"])
            return (
                y,
                total,
                *k.dropout_add_layer_norm_backward(a["dy"], total, statistics, a["weight"], use, *sums),
                *sums,
            )

        return call

    def cross_entropy(k: Kernels, b: Backend, a: Mapping[str, Array]) -> tuple[Array, ...]:
        labels = b.asarray(np.random.default_rng(seed).integers(-1, columns, rows).astype(np.int32))
        return k.cross_entropy_forward(a["x"], labels), *k.cross_entropy_backward(a["x"], labels, 0.37)

    def linear(k: Kernels, b: Backend, a: Mapping[str, Array]) -> tuple[Array, ...]:
        dweight, dbias = _empty(a["square"]), _empty(a["bias"])
        dx = k.linear_backward(a["dy"], a["x"], a["square"], dweight, dbias)
        added = k.linear_backward_input(a["dy"], a["square"], a["residual"].copy())
        return k.linear_forward(a["x"], a["square"], a["bias"]), dx, dweight, dbias, added

    square = {"square": rng.standard_normal((columns, columns)) / np.sqrt(columns)}
    calls: dict[str, Call] = {f"bias_{name}": activation(name) for name in ("gelu", "gelu_new", "relu")}
    calls |= {"dropout": dropout, "layer_norm": layer_norm, "cross_entropy": cross_entropy}
    calls |= {"sublayer": sublayer(True), "sublayer, no dropout": sublayer(False)}
    cases = [KernelCase(f"{name} {rows}x{columns}", operands, call) for name, call in calls.items()]
    cases.append(KernelCase(f"linear {rows}x{columns}", operands | square, linear))
    flat_cases = _adamw(rows * columns, rng), _add_scaled(rows * columns, rng)
    return [*cases, _embedding(rows, columns, rng), *flat_cases]


def _embedding(rows: int, columns: int, rng: np.random.Generator) -> KernelCase:
    sizes = (11, 7, 2)
    ids = [rng.integers(0, size, rows).astype(np.int32) for size in sizes]
    operands = {f"table{i}": rng.standard_normal((size, columns)) for i, size in enumerate(sizes)}
    operands["dy"] = rng.standard_normal((rows, columns))

    def call(k: Kernels, b: Backend, a: Mapping[str, Array]) -> tuple[Array, ...]:
        tables, on_device = tuple(a[f"table{i}"] for i in range(3)), tuple(b.asarray(some) for some in ids)
        dtable = _empty(a["table0"])
        b.scatter_add(dtable, on_device[0], a["dy"], deterministic=True)
        return k.embedding_forward(tables, on_device), k.embedding_forward(tables[:1], on_device[:1]), dtable

    return KernelCase(f"embedding {rows}x{columns}", operands, call)


def _adamw(size: int, rng: np.random.Generator) -> KernelCase:
    operands = {name: rng.standard_normal(size) for name in ("parameters", "gradients", "first")}
    operands["second"] = rng.random(size)

    def call(k: Kernels, b: Backend, a: Mapping[str, Array]) -> tuple[Array, ...]:
        parameters, first, second = (a[name].copy() for name in ("parameters", "first", "second"))
        scale = b.asarray(np.array(0.75), dtype=parameters.dtype)
        k.adamw_update(parameters, a["gradients"], first, second, scale, 0.01, 0.9, 0.99, 1e-3, 0.1, 3)
        return parameters, first, second

    return KernelCase(f"adamw {size}", operands, call)


def _add_scaled(size: int, rng: np.random.Generator) -> KernelCase:
    operands = {name: rng.standard_normal(size) for name in ("total", "values")}

    def call(k: Kernels, b: Backend, a: Mapping[str, Array]) -> tuple[Array, ...]:
        total = a["total"].copy()
        k.add_scaled(total, a["values"], 3.0)
        return (total,)

    return KernelCase(f"add_scaled {size}", operands, call)


def attention_case(batch: int, length: int, attention_heads: int, width: int, variant: str, seed: int) -> KernelCase:
    """Return a case of attention over strided rows.

    Variants: plain, masked, dropped, unpadded, pruned, as in tests/support/op_cases.py.
    """
    rng = np.random.default_rng(seed)
    real = rng.random((batch, length)) < 0.7
    real[:, 0] = True
    real[-1] = variant in ("plain", "unpadded")  # otherwise the last sequence is masked altogether
    positions = np.flatnonzero(real) if variant == "unpadded" else np.arange(batch * length)
    slots, query_slots = length, length
    query_places = positions
    if variant == "pruned":
        query_slots = max(1, length // 3)
        query_places = np.flatnonzero(rng.random(batch * query_slots) < 0.8)
    hidden = attention_heads * width
    operands = {
        "queries": rng.standard_normal((len(query_places), hidden)),
        "packed": rng.standard_normal((len(positions), 3 * hidden)),
        "dcontext": rng.standard_normal((len(query_places), hidden)),
    }

    def call(k: Kernels, b: Backend, a: Mapping[str, Array]) -> tuple[Array, ...]:
        keys = Rows.at(b, batch, slots, positions)
        queries = Rows.at(b, batch, query_slots, query_places)
        dtype = a["packed"].dtype
        mask = None
        if variant != "plain":
            excluded = -2.0 * score_bound(b.xp, dtype)
            mask = b.asarray(np.where(real, 0.0, excluded)[:, None, None, :], dtype=dtype)
        layout = AttentionLayout(queries, keys, mask, attention_heads)
        use = _dropout(b, len(query_places), seed) if variant in ("dropped", "unpadded", "pruned") else None
        packed, dpacked = a["packed"], a["packed"].copy()
        q = a["queries"] if variant == "pruned" else packed[:, :hidden]
        dq = _empty(a["queries"]) if variant == "pruned" else dpacked[:, :hidden]
        kv = packed[:, hidden : 2 * hidden], packed[:, 2 * hidden :]
        context, saved = k.attention_forward(q, *kv, layout, use)
        dkv = dpacked[:, hidden : 2 * hidden], dpacked[:, 2 * hidden :]
        k.attention_backward(a["dcontext"], q, *kv, saved, layout, use, dq, *dkv)
        return context, k.attention_weights(q, kv[0], layout), dq, *dkv

    name = f"attention {variant} {batch}x{length}, {attention_heads} heads of {width}"
    return KernelCase(name, operands, call)


def assert_twins_agree(case: KernelCase, dtype: str, backend: Backend) -> None:
    """Check that the twins compute what the definitions compute in float64 from the same rounded operands."""
    host = get_backend("cpu")
    rounded = {name: operand.astype(dtype) for name, operand in case.operands.items()}
    expected = case.call(Kernels(host, "reference"), host, {n: a.astype(np.float64) for n, a in rounded.items()})
    actual = case.call(Kernels(backend, "auto"), backend, {n: backend.asarray(a) for n, a in rounded.items()})
    tolerance = EPSILONS[dtype] * float(np.finfo(dtype).eps)
    for number, (result, wanted) in enumerate(zip(actual, expected, strict=True)):
        what = f"{case.name}, {dtype}, result {number}"
        assert result.dtype == np.dtype(dtype), what
        assert result.shape == wanted.shape, what
        values = backend.to_numpy(result).astype(np.float64)
        # If all results are zero, the terms cancel (the softmax of one score is constant), and rounding is relative to
        # the operands instead.
        scale = float(np.abs(wanted).max(initial=0.0)) or max(np.abs(a).max(initial=0.0) for a in rounded.values())
        np.testing.assert_allclose(values, wanted, rtol=tolerance, atol=tolerance * scale, err_msg=what)
