"""One case per operation and variant: small inputs, a call of the forward function, a call of the backward function.

The same cases serve three tests: every backend against NumPy in float64, every gradient against central differences,
and every twin against its definition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backends import Array, Backend
from minibert.kernels import Kernels
from minibert.ops import AttentionLayout, Dropout, score_bound, softmax_backward, stable_softmax
from minibert.random_bits import Stream, derive_key
from minibert.rows import Rows

Arrays = dict[str, Array]


@dataclass(frozen=True)
class Case:
    """One operation with inputs.

    Attributes:
        name: for the test id.
        operations: the names in `minibert.ops` that the case exercises.
        inputs: differentiable inputs, name -> float64 array on the host.
        forward: (kernels, backend, inputs) -> y, and what the backward function needs.
        backward: (kernels, backend, dy, inputs, saved) -> name -> gradient of every input.
    """

    name: str
    operations: tuple[str, ...]
    inputs: dict[str, np.ndarray]
    forward: Callable[[Kernels, Backend, Arrays], tuple[Array, Any]]
    backward: Callable[[Kernels, Backend, Array, Arrays, Any], Arrays] = field(repr=False)


def _normal(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def _empty(backend: Backend, *likes: Array) -> list[Array]:
    """Return arrays for gradients, filled with NaN, so that a missing write shows."""
    return [backend.xp.full_like(like, float("nan")) for like in likes]


def _assert_same(backend: Backend, again: Array, once: Array) -> None:
    """Check that a backward function computed y again as the forward function had, but for the last bits."""
    once, again = backend.to_numpy(once), backend.to_numpy(again)
    np.testing.assert_allclose(again, once, rtol=16 * np.finfo(once.dtype).eps, atol=np.finfo(once.dtype).eps)


def _dropout(backend: Backend, rows: int) -> Dropout:
    numbers = np.arange(1000, 1000 + rows, dtype=np.uint32)
    return Dropout(0.3, derive_key(1, Stream.DROPOUT, 7, 0, 2), backend.asarray(numbers))


def _pair(operation: str) -> tuple[str, str]:
    return f"{operation}_forward", f"{operation}_backward"


def _size(rows: int, usual: int) -> str:
    """Return the end of a case's name: the number of rows, unless it is the usual one."""
    return "" if rows == usual else f":{rows} rows"


def _softmax() -> Case:
    def forward(kernels: Kernels, backend: Backend, a: Arrays) -> tuple[Array, Any]:
        y = stable_softmax(a["x"])
        return y, y

    return Case(
        "stable_softmax", (), _normal(0, x=(3, 2, 7)), forward, lambda k, b, dy, a, y: {"x": softmax_backward(dy, y)}
    )


def _linear(bias: bool, rows: int = 7, outputs: int = 4, inputs: int = 5) -> Case:
    shapes = {"x": (rows, inputs), "weight": (outputs, inputs), **({"bias": (outputs,)} if bias else {})}

    def forward(kernels: Kernels, backend: Backend, a: Arrays) -> tuple[Array, Any]:
        return kernels.linear_forward(a["x"], a["weight"], a.get("bias")), None

    def backward(kernels: Kernels, backend: Backend, dy: Array, a: Arrays, saved: Any) -> Arrays:
        outputs = dict(zip(("weight", "bias"), _empty(backend, *list(a.values())[1:]), strict=False))
        dx = kernels.linear_backward(dy, a["x"], a["weight"], outputs["weight"], outputs.get("bias"))
        return {"x": dx, **outputs}

    name = f"linear{'' if bias else ':no bias'}{_size(rows, 7)}"
    return Case(name, _pair("linear"), _normal(1, **shapes), forward, backward)


def _linear_added() -> Case:
    """x is the input of two linear layers: the second's gradient is added to the first's, in place."""

    def forward(kernels: Kernels, backend: Backend, a: Arrays) -> tuple[Array, Any]:
        return kernels.linear_forward(a["x"], a["first"]) + kernels.linear_forward(a["x"], a["second"]), None

    def backward(kernels: Kernels, backend: Backend, dy: Array, a: Arrays, saved: Any) -> Arrays:
        dfirst, dsecond = _empty(backend, a["first"], a["second"])
        dx = kernels.linear_backward(dy, a["x"], a["first"], dfirst)
        kernels.linear_backward_weight(dy, a["x"], dsecond)
        total = kernels.linear_backward_input(dy, a["second"], add_to=dx)
        assert total is dx
        return {"x": dx, "first": dfirst, "second": dsecond}

    inputs = _normal(10, x=(7, 5), first=(4, 5), second=(4, 5))
    operations = (*_pair("linear"), "linear_backward_input", "linear_backward_weight")
    return Case("linear:added", operations, inputs, forward, backward)


def _embedding() -> Case:
    ids = {"tokens": [3, 1, 3, 3, 0, 8], "positions": [0, 1, 2, 0, 1, 2], "segments": [0, 0, 1, 1, 0, 1]}

    def on(backend: Backend) -> tuple[Array, ...]:
        return tuple(backend.asarray(np.asarray(values, dtype=np.int32)) for values in ids.values())

    def forward(kernels: Kernels, backend: Backend, a: Arrays) -> tuple[Array, Any]:
        return kernels.embedding_forward(tuple(a.values()), on(backend)), None

    def backward(kernels: Kernels, backend: Backend, dy: Array, a: Arrays, saved: Any) -> Arrays:
        tables = {name: backend.xp.zeros_like(table) for name, table in a.items()}
        kernels.embedding_backward(dy, on(backend), tuple(tables.values()))
        return tables

    inputs = _normal(2, tokens=(9, 4), positions=(5, 4), segments=(2, 4))
    return Case("embedding", _pair("embedding"), inputs, forward, backward)


def _layer_norm(rows: int = 6, width: int = 9) -> Case:
    def forward(kernels: Kernels, backend: Backend, a: Arrays) -> tuple[Array, Any]:
        return kernels.layer_norm_forward(a["x"], a["weight"], a["bias"], 1e-12)

    def backward(kernels: Kernels, backend: Backend, dy: Array, a: Arrays, statistics: Any) -> Arrays:
        dweight, dbias = _empty(backend, a["weight"], a["bias"])
        dx = kernels.layer_norm_backward(dy, a["x"], a["weight"], statistics, dweight, dbias)
        return {"x": dx, "weight": dweight, "bias": dbias}

    inputs = _normal(3, x=(rows, width), weight=(width,), bias=(width,))
    return Case(f"layer_norm{_size(rows, 6)}", _pair("layer_norm"), inputs, forward, backward)


def _activation(name: str, rows: int = 8, width: int = 6) -> Case:
    def forward(kernels: Kernels, backend: Backend, a: Arrays) -> tuple[Array, Any]:
        return getattr(kernels, f"bias_{name}_forward")(a["x"], a["bias"]), None

    def backward(kernels: Kernels, backend: Backend, dy: Array, a: Arrays, saved: Any) -> Arrays:
        (dbias,) = _empty(backend, a["bias"])
        dy = backend.xp.asarray(dy, copy=True)  # twins may overwrite dy
        dx, y = getattr(kernels, f"bias_{name}_backward")(dy, a["x"], a["bias"], dbias)
        _assert_same(backend, y, forward(kernels, backend, a)[0])
        return {"x": dx, "bias": dbias}

    inputs = _normal(4, x=(rows, width), bias=(width,))
    return Case(f"bias_{name}{_size(rows, 8)}", _pair(f"bias_{name}"), inputs, forward, backward)


def _plain_dropout() -> Case:
    return Case(
        "dropout",
        (*_pair("dropout"), "dropout_mask"),
        _normal(5, x=(9, 11)),
        lambda kernels, backend, a: (kernels.dropout_forward(a["x"], _dropout(backend, 9)), None),
        lambda kernels, backend, dy, a, saved: {"x": kernels.dropout_backward(dy, _dropout(backend, 9))},
    )


def _sublayer(dropped: bool, rows: int = 6, width: int = 8) -> Case:
    names = ("x", "bias", "residual", "weight", "norm_bias")

    def dropout(backend: Backend) -> Dropout | None:
        return _dropout(backend, rows) if dropped else None

    def forward(kernels: Kernels, backend: Backend, a: Arrays) -> tuple[Array, Any]:
        y, *saved = kernels.dropout_add_layer_norm_forward(*(a[name] for name in names), 1e-5, dropout(backend))
        return y, saved

    def backward(kernels: Kernels, backend: Backend, dy: Array, a: Arrays, saved: Any) -> Arrays:
        dbias, dweight, dnorm_bias = _empty(backend, a["bias"], a["weight"], a["norm_bias"])
        dx, dresidual = kernels.dropout_add_layer_norm_backward(
            dy, *saved, a["weight"], dropout(backend), dbias, dweight, dnorm_bias
        )
        return dict(zip(names, (dx, dbias, dresidual, dweight, dnorm_bias), strict=True))

    matrix, vector = (rows, width), (width,)
    inputs = _normal(6, x=matrix, bias=vector, residual=matrix, weight=vector, norm_bias=vector)
    name = "dropout_add_layer_norm" + ("" if dropped else ":no dropout") + _size(rows, 6)
    return Case(name, _pair("dropout_add_layer_norm"), inputs, forward, backward)


_PADDING = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0], [0, 0, 0, 0, 0]])  # the last sequence is fully masked
_FEW = np.array([1, 3, 4, 6])  # positions b * T + t of pruned queries; the last sequence has none


def _attention(variant: str) -> Case:
    """Return a variant: plain, masked, dropped, unpadded (rows for real tokens only) or pruned (few query rows)."""
    batch, length, attention_heads, width = 3, 5, 2, 6
    every = np.arange(batch * length)
    positions = np.flatnonzero(_PADDING.reshape(-1)) if variant == "unpadded" else every
    query_positions = _FEW if variant == "pruned" else positions

    def layout(backend: Backend, dtype: Any) -> AttentionLayout:
        keys = Rows.at(backend, batch, length, positions)
        queries = keys
        if variant == "pruned":  # sequence 0 has queries in slots 0, 1, 2; sequence 1 in slot 0
            queries = Rows.at(backend, batch, 3, np.array([0, 1, 2, 3]))
        mask = None
        if variant != "plain":
            excluded = -2.0 * score_bound(backend.xp, dtype)
            mask = backend.asarray(np.where(_PADDING, 0.0, excluded)[:, None, None, :], dtype=dtype)
        return AttentionLayout(queries, keys, mask, attention_heads)

    def dropout(backend: Backend) -> Dropout | None:
        return None if variant in ("plain", "masked") else _dropout(backend, len(query_positions))

    def forward(kernels: Kernels, backend: Backend, a: Arrays) -> tuple[Array, Any]:
        q, k, v = a.values()
        return kernels.attention_forward(q, k, v, layout(backend, q.dtype), dropout(backend))

    def backward(kernels: Kernels, backend: Backend, dy: Array, a: Arrays, saved: Any) -> Arrays:
        q, k, v = a.values()
        gradients = _empty(backend, q, k, v)
        kernels.attention_backward(dy, q, k, v, saved, layout(backend, q.dtype), dropout(backend), *gradients)
        return dict(zip(a, gradients, strict=True))

    inputs = _normal(
        7, queries=(len(query_positions), width), keys=(len(positions), width), values=(len(positions), width)
    )
    return Case(f"attention:{variant}", (*_pair("attention"), "attention_weights"), inputs, forward, backward)


def _cross_entropy() -> Case:
    labels = np.array([2, 0, -100, 4, 4, -1], dtype=np.int32)

    def forward(kernels: Kernels, backend: Backend, a: Arrays) -> tuple[Array, Any]:
        return kernels.cross_entropy_forward(a["logits"], backend.asarray(labels)), None

    def backward(kernels: Kernels, backend: Backend, dy: Array, a: Arrays, saved: Any) -> Arrays:
        # the operation has one scale for all losses, so dy has the same value for all of them
        scale = float(backend.to_numpy(dy)[0])
        losses, dlogits = kernels.cross_entropy_backward(a["logits"], backend.asarray(labels), scale)
        _assert_same(backend, losses, forward(kernels, backend, a)[0])
        return {"logits": dlogits}

    return Case("cross_entropy", _pair("cross_entropy"), _normal(8, logits=(6, 5)), forward, backward)


CASES = [
    _softmax(),
    _linear(bias=True),
    _linear(bias=False),
    _linear(bias=True, rows=37, outputs=21, inputs=19),  # rows > outputs > inputs, and the other way round
    _linear(bias=True, rows=3, outputs=35, inputs=41),
    _linear_added(),
    _embedding(),
    _layer_norm(),
    _layer_norm(rows=67, width=37),
    _activation("gelu"),
    _activation("gelu", rows=67, width=37),
    _activation("gelu_new"),
    _activation("gelu_new", rows=67, width=37),
    _activation("relu"),
    _activation("relu", rows=67, width=37),
    _plain_dropout(),
    _sublayer(dropped=True),
    _sublayer(dropped=False),
    _sublayer(dropped=True, rows=67, width=37),
    *(_attention(variant) for variant in ("plain", "masked", "dropped", "unpadded", "pruned")),
    _cross_entropy(),
]


def output_gradient(case: Case, y: np.ndarray) -> np.ndarray:
    """Return dy for a case's backward function: random, or the same number everywhere where the operation needs it."""
    if case.name == "cross_entropy":
        return np.full(y.shape, 0.37)
    return np.random.default_rng(99).standard_normal(y.shape)


def run(
    case: Case, kernels: Kernels, backend: Backend, dtype: str, inputs: dict[str, np.ndarray] | None = None
) -> tuple[Array, Arrays]:
    """Return the case's y and its gradients on a backend, in a dtype."""
    target = backend.dtype(dtype)
    arrays = {name: backend.asarray(value, dtype=target) for name, value in (inputs or case.inputs).items()}
    y, saved = case.forward(kernels, backend, arrays)
    dy = backend.asarray(output_gradient(case, backend.to_numpy(y)), dtype=target)
    return y, case.backward(kernels, backend, dy, arrays, saved)
