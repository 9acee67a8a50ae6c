"""A twin gets each argument shorter, longer or of another dtype: it must refuse, or compute the right result.

The definition decides which. Where the definition raises, the twin must raise; where the definition computes, the twin
may compute the same. The arguments come from the cases of tests/support/op_cases.py, so a new operation is covered as
soon as it has a case.

All arrays lie between guards, also those that twins ask the backend for. So a twin that reads or writes beyond an array
fails a test here, instead of ending the process somewhere else.
"""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from backends.cpu.backend import NumpyBackend
from backends.cpu.kernels import TWINS
from minibert.kernels import Kernels
from minibert.ops import DEFINITIONS, Dropout
from tests.support.op_cases import CASES, run

_GUARD = 1 << 12  # elements on either side, more than any case has
_REFUSALS = (ValueError, TypeError, IndexError)


class GuardedBackend(NumpyBackend):
    """NumPy whose arrays lie between guards: NaN, or for integers zeros, which are valid ids."""

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = int(np.prod(shape))
        guard = np.nan if np.dtype(dtype).kind == "f" else 0
        block = np.full(size + 2 * _GUARD, guard, dtype=dtype)
        self._blocks.append(block)
        return block[_GUARD : _GUARD + size].reshape(shape)

    def placed(self, array: np.ndarray) -> np.ndarray:
        """Return a copy that lies between guards."""
        place = self.empty(array.shape, array.dtype)
        place[...] = array
        return place

    def assert_nothing_was_written_beside_an_array(self) -> None:
        for block in self._blocks:
            guard = np.concatenate((block[:_GUARD], block[-_GUARD:]))
            assert (np.isnan(guard) if guard.dtype.kind == "f" else guard == 0).all()


def arrays_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], np.ndarray]]:
    """Yield the path and the array of every array within arguments, in tuples and in the fields of dataclasses."""
    if isinstance(value, np.ndarray):
        yield path, value
    elif isinstance(value, tuple | list):
        for index, part in enumerate(value):
            yield from arrays_in(part, (*path, index))
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.name != "row_of_slot":  # only definitions read it
                yield from arrays_in(getattr(value, field.name), (*path, field.name))


def changed(value: Any, change: Callable[[tuple[Any, ...], np.ndarray], np.ndarray], path: tuple[Any, ...] = ()) -> Any:
    """Return the arguments with every array replaced by the result of `change`."""
    if isinstance(value, np.ndarray):
        return change(path, value)
    if isinstance(value, tuple | list):
        return tuple(changed(part, change, (*path, index)) for index, part in enumerate(value))
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        parts = {name: changed(getattr(value, name), change, (*path, name)) for name in names}
        return dataclasses.replace(value, **parts)
    return value


def _calls() -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Yield case, operation and a copy of the arguments of every call of a twin in the cases."""
    calls: list[tuple[str, str, tuple[Any, ...]]] = []

    class Recording(Kernels):
        def bind(self, definition: Callable[..., Any]) -> Callable[..., Any]:
            function, name = super().bind(definition), definition.__name__

            def recorded(*arguments: Any, **named: Any) -> Any:
                if name in TWINS:
                    all_of_them = *arguments, *named.values()  # the cases name only the last argument
                    calls.append((case.name, name, copy.deepcopy(all_of_them)))
                return function(*arguments, **named)

            return recorded

    for case in CASES:
        if "rows" not in case.name:  # the same operations with more rows
            run(case, Recording(NumpyBackend()), NumpyBackend(), "float32")
    flat = np.linspace(1, 2, 7, dtype=np.float32)
    rates = 0.01, 0.9, 0.999, 1e-6, 0.1, 1
    calls.append(("adamw", "adamw_update", (*(flat.copy() for _ in range(4)), np.asarray(np.float32(0.7)), *rates)))
    calls.append(("squared_norm", "squared_norm", (flat,)))
    return iter(calls)


CALLS = list(_calls())


def _shortened(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: array[(slice(None),) * axis + (slice(-1),)]


def _lengthened(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: np.concatenate((array, array[(slice(None),) * axis + (slice(-1, None),)]), axis)


def _changes(array: np.ndarray) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    for axis in range(array.ndim):
        yield f"shortened along axis {axis}", _shortened(axis)
        yield f"lengthened along axis {axis}", _lengthened(axis)
    yield "with another axis", lambda a: a[..., None]
    if array.dtype.kind == "f":
        yield "as float64", lambda a: a.astype(np.float64)
    else:
        yield "as float32", lambda a: a.astype(np.float32)


def _outcome(function: Callable[..., Any], backend: GuardedBackend, arguments: tuple[Any, ...]) -> Any:
    """Return the function's results and its arguments after the call, or the exception that it raised."""
    try:
        with np.errstate(all="ignore"):
            returned = function(backend, *arguments)
    except _REFUSALS as error:
        return error
    backend.assert_nothing_was_written_beside_an_array()
    if isinstance(returned, np.generic):  # NumPy returns 0-d arrays as scalars
        returned = np.asarray(returned)
    return [np.array(array) for _, array in arrays_in((returned, arguments))]


def _assert_refused_or_right(operation: str, arguments: tuple[Any, ...]) -> bool:
    """Check that the twin refused, or computed what the definition computes; return True if it refused."""
    results = []
    for function in (TWINS[operation], DEFINITIONS[operation]):
        backend = GuardedBackend()
        results.append(_outcome(function, backend, changed(arguments, lambda _, array, b=backend: b.placed(array))))
    twin, definition = results
    if isinstance(twin, Exception):
        return True
    # the definition cannot use what the twin's forward pass saved, so there is nothing to compare with
    assert operation != "attention_backward", "the twin computed, though an argument does not fit the others"
    assert not isinstance(definition, Exception), f"the twin computed, though the definition raises {definition}"
    if operation == "attention_forward":  # twin and definition save different things for the backward pass
        twin, definition = [*twin[:1], *twin[2:]], [*definition[:1], *definition[2:]]
    for found, expected in zip(twin, definition, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    return False


@pytest.mark.parametrize("operation", sorted(TWINS))
def test_a_twin_refuses_what_its_definition_refuses(operation: str):
    probes = refused = 0
    for case, called, arguments in CALLS:
        if called != operation:
            continue
        for path, array in arrays_in(arguments):
            for what, change in _changes(array):

                def of_one(where: tuple[Any, ...], each: np.ndarray, path=path, change=change) -> np.ndarray:
                    return change(each) if where == path else each

                try:
                    refused += _assert_refused_or_right(operation, changed(arguments, of_one))
                except AssertionError as error:
                    raise AssertionError(f"{case}: {operation}, argument {path} {what}: {error}") from error
                probes += 1
    assert probes, "no case calls the operation"
    assert refused, "no probe was refused: the probes are wrong"


@pytest.mark.parametrize("operation", sorted(TWINS))
def test_a_twin_accepts_arguments_that_fit(operation: str):
    """Without this test, a twin that refuses everything would pass."""
    for _, called, arguments in CALLS:
        if called == operation:
            backend = GuardedBackend()
            outcome = _outcome(TWINS[operation], backend, changed(arguments, lambda _, a, b=backend: b.placed(a)))
            assert not isinstance(outcome, Exception), outcome


IDS = np.array([0, 3, 1], dtype=np.int32)


_FAR_AWAY = """
import numpy as np
from backends import get_backend
from minibert.kernels import Kernels
backend, table, ids = get_backend("cpu"), np.ones((4, 5), np.float32), np.array([0, {wrong}], np.int32)
for call in (
    lambda: Kernels(backend).embedding_forward((table,), (ids,)),
    lambda: Kernels(backend).embedding_backward(np.ones((2, 5), np.float32), (ids,), (table,)),
):
    try:
        call()
    except IndexError as error:
        print(error)
"""


@pytest.mark.parametrize("wrong", [-(2**31), 2**31 - 1])
def test_an_id_far_outside_its_table_is_an_error_and_not_the_end_of_the_process(wrong: int):
    done = subprocess.run(
        [sys.executable, "-c", _FAR_AWAY.format(wrong=wrong)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"[1] is {wrong}, but the table has 4 rows") == 2


@pytest.mark.parametrize("wrong", [4, 9, -1])
def test_an_id_outside_its_table_is_an_error(wrong: int):
    backend = GuardedBackend()
    table, dy = backend.placed(np.ones((4, 5), np.float32)), backend.placed(np.ones((3, 5), np.float32))
    ids = backend.placed(np.where(IDS == 3, np.int32(wrong), IDS))
    message = rf"\[1\] is {wrong}, but the table has 4 rows, from 0 to 3"
    for call in (
        lambda: TWINS["embedding_forward"](backend, (table, table), (IDS, ids)),
        lambda: TWINS["embedding_backward"](backend, dy, (IDS, ids), (table, table)),
        lambda: backend.scatter_add(table, ids, dy),
    ):
        with pytest.raises(IndexError, match=message):
            call()
    backend.assert_nothing_was_written_beside_an_array()


def test_a_read_only_gradient_is_refused():
    """BLAS would write to its address without an error."""
    (arguments,) = [a for case, name, a in CALLS if (case, name) == ("attention:plain", "attention_backward")]
    arguments[-1].flags.writeable = False
    with pytest.raises(ValueError, match="must be writeable arrays"):
        TWINS["attention_backward"](NumpyBackend(), *arguments)


def test_queries_and_keys_of_different_numbers_of_sequences_are_refused():
    (arguments,) = [a for case, name, a in CALLS if (case, name) == ("attention:pruned", "attention_forward")]
    layout = arguments[3]
    more = dataclasses.replace(layout, queries=dataclasses.replace(layout.queries, sequences=4))
    with pytest.raises(ValueError, match="queries of 4 sequences, but keys of 3"):
        TWINS["attention_forward"](NumpyBackend(), *arguments[:3], more, None)
    for slots in ([0, 1, 3, 2], [0, 1, 2, 9], [-1, 0, 1, 2]):
        places = dataclasses.replace(layout.queries, slot_of_row=np.array(slots, dtype=np.int32))
        with pytest.raises(ValueError, match="slot_of_row of the queries must increase, and lie between 0 and 8"):
            TWINS["attention_forward"](
                NumpyBackend(), *arguments[:3], dataclasses.replace(layout, queries=places), None
            )


def test_the_guards_see_a_twin_that_writes_beyond_an_array():
    backend = GuardedBackend()
    array = backend.empty((3, 4), np.float32)
    beyond = np.lib.stride_tricks.as_strided(array, (4, 4), writeable=True)
    backend.assert_nothing_was_written_beside_an_array()
    beyond[3, 0] = 1.0
    with pytest.raises(AssertionError):
        backend.assert_nothing_was_written_beside_an_array()


def test_dropout_needs_row_numbers_of_uint32():
    x, numbers = np.ones((3, 4), np.float32), np.arange(3, dtype=np.int64)
    with pytest.raises(TypeError, match="row_numbers of dropout must be uint32, not int64"):
        TWINS["dropout_forward"](NumpyBackend(), x, Dropout(0.5, (1, 2), numbers))
