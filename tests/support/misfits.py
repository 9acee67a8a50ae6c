"""Arguments of twins that do not match each other, for tests that every twin of every device refuses them.

The arguments come from the cases of tests/support/op_cases.py, so a new operation is covered as soon as it has a case.
There are two kinds of misfits. `CHANGES` are made to every array of every call, one at a time: the twin must refuse, or
compute what the definition computes. `PLANTED` is a table of single misfits with the message that a reader gets, which
must be the same on every device.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends import Array, Backend
from backends.cpu.backend import NumpyBackend
from minibert.kernels import Kernels
from minibert.ops import DEFINITIONS
from tests.support.op_cases import CASES, run

Path = tuple[Any, ...]
"""Where an array lies in a call's arguments: argument number, then places in tuples and names of fields."""

_GUARD = 1 << 12  # elements on either side of an array, more than any case has


@dataclass(frozen=True)
class Call:
    """A call of a twin.

    Attributes:
        case: name of the case that made it.
        operation: name of the twin.
        arguments: all but the backend, as they were before the call; arrays are host copies.
    """

    case: str
    operation: str
    arguments: tuple[Any, ...]


class GuardedNumpyBackend(NumpyBackend):
    """NumPy whose arrays lie between guards: NaN for floats, otherwise zeros, which are ids that exist."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = int(np.prod(shape))
        guard = np.nan if np.dtype(dtype).kind == "f" else 0
        block = np.full(size + 2 * _GUARD, guard, dtype=dtype)
        self._blocks.append(block)
        return block[_GUARD : _GUARD + size].reshape(shape)

    def asarray(self, host: Any, dtype: Any = None) -> np.ndarray:
        """Return a copy between guards."""
        host = np.asarray(host, dtype=dtype)
        place = self.empty(host.shape, host.dtype)
        place[...] = host
        return place

    def assert_nothing_was_written_beside_an_array(self) -> None:
        """Check all guards."""
        for block in self._blocks:
            guard = np.concatenate((block[:_GUARD], block[-_GUARD:]))
            assert (np.isnan(guard) if guard.dtype.kind == "f" else guard == 0).all()


# --- arrays within arguments --------------------------------------------------------------------------------------


def is_array(value: Any) -> bool:
    """True for arrays of NumPy and CuPy, but not for NumPy's scalars."""
    return hasattr(value, "strides") and not isinstance(value, np.generic)


def arrays_in(value: Any, path: Path = ()) -> Iterator[tuple[Path, Array]]:
    """Yield every array within arguments, also those in tuples and in fields of dataclasses."""
    if is_array(value):
        yield path, value
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from arrays_in(part, (*path, index))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from arrays_in(getattr(value, field.name), (*path, field.name))


def changed(value: Any, change: Callable[[Path, Array], Any], path: Path = ()) -> Any:
    """Return the arguments with every array replaced by what `change` makes of it."""
    if is_array(value):
        return change(path, value)
    if isinstance(value, tuple | list):
        return tuple(changed(part, change, (*path, index)) for index, part in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        parts = {name: changed(getattr(value, name), change, (*path, name)) for name in names}
        return dataclasses.replace(value, **parts)
    return value


def changed_at(arguments: tuple[Any, ...], where: Path, change: Callable[[Array], Any]) -> tuple[Any, ...]:
    """Return the arguments with one array changed."""
    result: tuple[Any, ...] = changed(arguments, lambda path, array: change(array) if path == where else array)
    return result


def on_device(backend: Backend, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments with every host array copied to a backend; strides are kept."""
    result: tuple[Any, ...] = changed(arguments, lambda _, array: _with_strides(backend, array))
    return result


def _with_strides(backend: Backend, array: np.ndarray) -> Array:
    """Return a copy on the device that is contiguous only if the host array is."""
    if array.flags.c_contiguous:
        return backend.asarray(array)
    wide = np.zeros((*array.shape, 2), dtype=array.dtype)
    wide[..., 0] = array
    return backend.asarray(wide)[..., 0]


# --- calls --------------------------------------------------------------------------------------------------------


def recorded_calls(backend: Backend) -> list[Call]:
    """Run the cases on a backend, and return the arguments of each call of a twin."""
    calls: list[Call] = []
    current = ""

    def recording(operation: str, twin: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(DEFINITIONS[operation])

        def recorded(first: Backend, *arguments: Any, **named: Any) -> Any:
            given = signature.bind(first, *arguments, **named).args[1:]
            calls.append(Call(current, operation, changed(given, lambda _, array: first.to_numpy(array).copy())))
            return twin(first, *arguments, **named)

        return recorded

    recorder = copy.copy(backend)
    recorder.twins = {name: recording(name, twin) for name, twin in backend.twins.items()}
    kernels = Kernels(recorder)
    for case in CASES:
        if "rows" not in case.name:  # the same operations with more rows
            current = case.name
            run(case, kernels, backend, "float32")
    return calls


def calls_beyond_the_cases(backend: Backend, calls: list[Call]) -> list[Call]:
    """Return calls of the twins that no case calls, because they have no gradient."""
    flat = np.linspace(1, 2, 7, dtype=np.float32)
    rates = 0.01, 0.9, 0.999, 1e-6, 0.1, 1
    scale = np.asarray(np.float32(0.7))
    more = [
        Call("adamw", "adamw_update", (flat, flat + 1, flat + 2, flat + 3, scale, *rates)),
        Call("add_scaled", "add_scaled", (flat, flat + 1, 0.5)),
        Call("squared_norm", "squared_norm", (flat,)),
    ]
    for call in calls:
        if call.operation == "attention_forward":
            queries, keys, _, layout, _ = call.arguments
            more.append(Call(call.case, "attention_weights", (queries, keys, layout)))
    return [call for call in more if call.operation in backend.twins]


# --- changes to any array -----------------------------------------------------------------------------------------


def _shortened(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array[(slice(None),) * axis + (slice(-1),)].copy()


def _lengthened(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.concatenate((array, array[(slice(None),) * axis + (slice(-1, None),)]), axis)


def strided(array: np.ndarray) -> np.ndarray:
    """Return the same values with a gap after each element."""
    wide = np.zeros((*array.shape, 2), dtype=array.dtype)
    wide[..., 0] = array
    return wide[..., 0]


def layouts_of(array: np.ndarray) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Yield how the same values can lie in memory in another way: name and function."""
    yield "with gaps", strided
    if array.dtype.kind != "f":
        yield "as int64", lambda a: a.astype(np.int64)


def changes_of(array: np.ndarray) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Yield what can be made of an array that does not match the others any more: name and function."""
    for axis in range(array.ndim):
        yield f"shortened along axis {axis}", _shortened(axis)
        yield f"lengthened along axis {axis}", _lengthened(axis)
    yield "with another axis", lambda a: a[..., None]
    if array.dtype.kind == "f":
        yield "as float64", lambda a: a.astype(np.float64)
        yield "as float16", lambda a: np.zeros(a.shape, np.float16)
    else:
        yield "as float32", lambda a: a.astype(np.float32)


# --- planted misfits ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Misfit:
    """One argument of one call that does not match the others.

    Attributes:
        operation: whose twin must refuse it.
        case: the case that makes the call.
        what: for the test id.
        where: the array that is changed.
        change: what it becomes.
        error: what the twin raises.
        message: what the error says, after the name of the operation; a regular expression.
    """

    operation: str
    case: str
    what: str
    where: Path
    change: Callable[[np.ndarray], np.ndarray]
    error: type[Exception]
    message: str


def _shorter(operation: str, case: str, name: str, where: Path, axis: int = 0) -> Misfit:
    message = rf"{name} has the shape \(.*\), but the other arrays ask for \(.*\)"
    what = f"{name} too short" if axis == 0 else f"{name} too narrow"
    return Misfit(operation, case, what, where, _shortened(axis), ValueError, message)


def _longer(operation: str, case: str, name: str, where: Path) -> Misfit:
    message = rf"{name} has the shape \(.*\), but the other arrays ask for \(.*\)"
    return Misfit(operation, case, f"{name} too long", where, _lengthened(0), ValueError, message)


def _float64(operation: str, case: str, name: str, where: Path) -> Misfit:
    message = f"the arrays must share a dtype, but {name} is float64 beside float32"
    return Misfit(operation, case, f"{name} float64", where, lambda a: a.astype(np.float64), TypeError, message)


def _deeper(operation: str, case: str, name: str, where: Path, needed: str = r"\(rows, columns\)") -> Misfit:
    message = rf"{name} must have the shape {needed}, not \(.*\)"
    return Misfit(operation, case, f"{name} with another axis", where, lambda a: a[..., None], ValueError, message)


def _as(operation: str, case: str, name: str, where: Path, dtype: str, message: str) -> Misfit:
    return Misfit(operation, case, f"{name} {dtype}", where, lambda a: a.astype(dtype), TypeError, message)


def _rows_of_dropout(operation: str, case: str, where: Path) -> list[Misfit]:
    where = (*where, "row_numbers")
    few = r"dropout needs one row number for each of \d+ rows, not the shape \(\d+,\)"
    words = "the row_numbers of dropout must be uint32, not int64"
    return [
        Misfit(operation, case, "too few row_numbers", where, _shortened(0), ValueError, few),
        Misfit(operation, case, "row_numbers int64", where, lambda a: a.astype(np.int64), TypeError, words),
    ]


def _of_activation(name: str) -> list[Misfit]:
    case, forward, backward = f"bias_{name}", f"bias_{name}_forward", f"bias_{name}_backward"
    return [
        _deeper(forward, case, "x", (0,)),
        _as(forward, case, "x", (0,), "int32", "x must be .*float32 or float64, not int32"),
        _shorter(forward, case, "bias", (1,)),
        _float64(forward, case, "bias", (1,)),
        _shorter(backward, case, "dy", (0,)),
        _longer(backward, case, "dy", (0,)),
        _shorter(backward, case, "bias", (2,)),
        _shorter(backward, case, "dbias", (3,)),
        _float64(backward, case, "dbias", (3,)),
    ]


def _of_layer_norms() -> list[Misfit]:
    forward, backward, case = "layer_norm_forward", "layer_norm_backward", "layer_norm"
    misfits = [
        _deeper(forward, case, "x", (0,)),
        _shorter(forward, case, "weight", (1,)),
        _shorter(forward, case, "bias", (2,)),
        _float64(forward, case, "bias", (2,)),
        _shorter(backward, case, "dy", (0,)),
        _shorter(backward, case, "weight", (2,)),
        _shorter(backward, case, "x_mean", (3, 0)),
        _shorter(backward, case, "inverse_deviation", (3, 1)),
        _float64(backward, case, "inverse_deviation", (3, 1)),
        _shorter(backward, case, "dweight", (4,)),
        _longer(backward, case, "dbias", (5,)),
    ]
    forward, backward, case = (
        "dropout_add_layer_norm_forward",
        "dropout_add_layer_norm_backward",
        "dropout_add_layer_norm",
    )
    vectors = {"bias": 1, "weight": 3, "norm_bias": 4}
    misfits += [_shorter(forward, case, name, (number,)) for name, number in vectors.items()]
    misfits += [
        _deeper(forward, case, "x", (0,)),
        _shorter(forward, case, "residual", (2,)),
        _float64(forward, case, "residual", (2,)),
        *_rows_of_dropout(forward, case, (6,)),
        _shorter(backward, case, "dy", (0,)),
        _shorter(backward, case, "x_mean", (2, 0)),
        _shorter(backward, case, "inverse_deviation", (2, 1)),
        _shorter(backward, case, "weight", (3,)),
        _shorter(backward, case, "dbias", (5,)),
        _shorter(backward, case, "dweight", (6,)),
        _shorter(backward, case, "dnorm_bias", (7,)),
        _float64(backward, case, "dnorm_bias", (7,)),
        *_rows_of_dropout(backward, case, (4,)),
    ]
    return misfits


def _of_linear_layers() -> list[Misfit]:
    forward, of_weight, of_input = "linear_forward", "linear_backward_weight", "linear_backward_input"
    gap = "add_to must be contiguous"
    return [
        _deeper(forward, "linear", "x", (0,)),
        _as(forward, "linear", "x", (0,), "int32", "x must be .*float32 or float64, not int32"),
        _shorter(forward, "linear", "weight", (1,), axis=1),
        _float64(forward, "linear", "weight", (1,)),
        _shorter(forward, "linear", "bias", (2,)),
        _float64(forward, "linear", "bias", (2,)),
        _shorter(of_weight, "linear:added", "x", (1,)),
        _shorter(of_weight, "linear:added", "dweight", (2,)),
        _float64(of_weight, "linear:added", "dweight", (2,)),
        Misfit(
            of_weight, "linear:added", "dweight not contiguous", (2,), strided, ValueError, "dweight must be contig"
        ),
        _shorter(of_input, "linear:added", "weight", (1,)),
        _shorter(of_input, "linear:added", "add_to", (2,)),
        _float64(of_input, "linear:added", "add_to", (2,)),
        Misfit(of_input, "linear:added", "add_to not contiguous", (2,), strided, ValueError, gap),
    ]


def _of_attention() -> list[Misfit]:
    forward, backward = "attention_forward", "attention_backward"
    rows = r"the {} have \d rows, but the layout has \d"

    def layout(operation: str, *path: str) -> Path:
        return (3 if operation == forward else 5, *path)

    misfits = [
        _deeper(forward, "attention:plain", "queries", (0,)),
        _shorter(forward, "attention:plain", "keys", (1,), axis=1),
        _float64(forward, "attention:plain", "keys", (1,)),
        _shorter(forward, "attention:plain", "values", (2,)),
        _float64(forward, "attention:plain", "values", (2,)),
        Misfit(
            forward, "attention:pruned", "queries too short", (0,), _shortened(0), ValueError, rows.format("queries")
        ),
        *_rows_of_dropout(forward, "attention:dropped", (4,)),
        *_rows_of_dropout(backward, "attention:dropped", (6,)),
    ]
    for number, name in ((0, "dcontext"), (3, "values"), (8, "dkeys"), (9, "dvalues"), (4, "saved"), (7, "dqueries")):
        misfits += [
            _shorter(backward, "attention:masked", name, (number,)),
            _float64(backward, "attention:masked", name, (number,)),
        ]
    for operation in (forward, backward):
        misfits += [
            _shorter(operation, "attention:masked", "mask", layout(operation, "mask")),
            _shorter(operation, "attention:masked", "mask", layout(operation, "mask"), axis=3),
            _float64(operation, "attention:masked", "mask", layout(operation, "mask")),
        ]
        for name in ("queries", "keys"):
            where = layout(operation, name, "row_of_slot")
            spoken = f"row_of_slot of the {name}"
            misfits += [
                _shorter(operation, "attention:unpadded", spoken, where),
                _as(
                    operation, "attention:unpadded", spoken, where, "float32", f"{spoken} must be integers, not float32"
                ),
            ]
    return misfits


def _of_the_rest() -> list[Misfit]:
    embedding, scale = "embedding_forward", "gradient_scale"
    misfits = [
        _deeper("dropout_forward", "dropout", "x", (0,)),
        *_rows_of_dropout("dropout_forward", "dropout", (1,)),
        *_rows_of_dropout("dropout_backward", "dropout", (1,)),
        _deeper(embedding, "embedding", r"tables\[0\]", (0, 0)),
        _shorter(embedding, "embedding", r"tables\[1\]", (0, 1), axis=1),
        _float64(embedding, "embedding", r"tables\[2\]", (0, 2)),
        _shorter(embedding, "embedding", r"ids\[1\]", (1, 1)),
        _longer(embedding, "embedding", r"ids\[2\]", (1, 2)),
        _as(embedding, "embedding", "ids", (1, 0), "float32", r"ids\[0\] must be integers, not float32"),
        _deeper("squared_norm", "squared_norm", "x", (0,), r"\(size,\)"),
        _deeper("add_scaled", "add_scaled", "total", (0,), r"\(size,\)"),
        _shorter("add_scaled", "add_scaled", "values", (1,)),
        _longer("add_scaled", "add_scaled", "values", (1,)),
        _float64("add_scaled", "add_scaled", "values", (1,)),
        _deeper("adamw_update", "adamw", "parameters", (0,), r"\(size,\)"),
    ]
    for number, name in enumerate(("gradients", "first_moment", "second_moment"), 1):
        misfits += [
            _shorter("adamw_update", "adamw", name, (number,)),
            _longer("adamw_update", "adamw", name, (number,)),
            _float64("adamw_update", "adamw", name, (number,)),
        ]
    message = rf"{scale} has the shape \(1,\), but the other arrays ask for \(\)"
    one_axis = Misfit("adamw_update", "adamw", f"{scale} (1,)", (4,), lambda a: a[None], ValueError, message)
    misfits += [one_axis, _float64("adamw_update", "adamw", scale, (4,))]
    for operation in ("cross_entropy_forward", "cross_entropy_backward"):
        misfits += [
            _deeper(operation, "cross_entropy", "logits", (0,)),
            _shorter(operation, "cross_entropy", "labels", (1,)),
            _as(operation, "cross_entropy", "labels", (1,), "float32", "labels must be integers, not float32"),
        ]
    return misfits


PLANTED = [
    *(misfit for name in ("gelu", "gelu_new", "relu") for misfit in _of_activation(name)),
    *_of_attention(),
    *_of_layer_norms(),
    *_of_linear_layers(),
    *_of_the_rest(),
]
