"""A twin refuses arrays that do not match each other: too short, too long, of another dtype or another shape.

Compiled kernels read and write by address, so an array that does not match would be read or written beyond its end. A
twin that does not refuse such an array must compute what the definition computes from it.

The same misfits (tests/support/misfits.py) run on every set of twins of the device under test: NumPy's and Numba's on a
CPU, the CUDA twins with `--device cuda` or `--device cuda-emulated`.

On a CPU the arrays lie between guards, and so do those that twins ask the backend for; the emulated device has guards
of its own. A twin that reads or writes beyond an array thus fails a test here, instead of ending the process later.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from backends import Backend, get_backend
from backends.cpu.twins import NUMPY_TWINS, numba_kernels
from minibert.ops import DEFINITIONS
from tests.support.misfits import (
    PLANTED,
    Call,
    GuardedNumpyBackend,
    Misfit,
    arrays_in,
    calls_beyond_the_cases,
    changed_at,
    changes_of,
    layouts_of,
    on_device,
    recorded_calls,
)

_REFUSALS = (ValueError, TypeError, IndexError)
_ONLY_VALUES_TELL = {
    ("embedding_forward", 0, "shortened along axis 0"),
    ("cross_entropy_forward", 0, "shortened along axis 1"),
    ("cross_entropy_backward", 0, "shortened along axis 1"),
}
"""Operation, argument, change: a table loses a row that an id names, or the logits lose a label's column.

All shapes still match. CUDA twins cannot see this fault, since reading ids would make the host wait for the device. The
host checks ids and labels before it transfers them.
"""


class _NumpyTwinsBackend(GuardedNumpyBackend):
    twins = NUMPY_TWINS


def _sets_of_twins(device: str) -> dict[str, Callable[[], Backend]]:
    """Return name -> backend with these twins, for a device."""
    if device != "cpu":
        return {"cuda": lambda: get_backend(device)}
    numba = {} if numba_kernels() is None else {"numba": GuardedNumpyBackend}
    return {"numpy": _NumpyTwinsBackend, **numba}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test for every set of twins, and for every operation in it or every misfit that concerns it."""
    if "twins" not in metafunc.fixturenames:
        return
    sets = _sets_of_twins(metafunc.config.getoption("--device"))
    operations = {name: sorted(make().twins) for name, make in sets.items()}
    if "operation" in metafunc.fixturenames:
        pairs = [(name, operation) for name in sets for operation in operations[name]]
        metafunc.parametrize(("twins", "operation"), pairs)
    elif "misfit" in metafunc.fixturenames:
        planted = [(name, misfit) for name in sets for misfit in PLANTED if misfit.operation in operations[name]]
        ids = [f"{name}-{misfit.operation}-{misfit.what}" for name, misfit in planted]
        metafunc.parametrize(("twins", "misfit"), planted, ids=ids)
    else:
        metafunc.parametrize("twins", sets)


@pytest.fixture
def make_backend(twins: str, device: str) -> Callable[[], Backend]:
    """Make a backend with the set of twins; on a CPU with guards of its own."""
    return _sets_of_twins(device)[twins]


@functools.cache
def _calls(twins: str, device: str) -> list[Call]:
    backend = _sets_of_twins(device)[twins]()
    recorded = recorded_calls(backend)
    return recorded + calls_beyond_the_cases(backend, recorded)


def _result(function: Callable[..., Any], backend: Backend, arguments: tuple[Any, ...]) -> Any:
    """Return what a function returned and left in its arguments, on the host; or the exception that it raised."""
    arguments = on_device(backend, arguments)
    try:
        with np.errstate(all="ignore"):
            returned = function(backend, *arguments)
    except _REFUSALS as error:
        return error
    if isinstance(backend, GuardedNumpyBackend):
        backend.assert_nothing_was_written_beside_an_array()
    if isinstance(returned, np.generic):  # what NumPy makes of a 0-d array
        returned = np.asarray(returned)
    return [backend.to_numpy(array).copy() for _, array in arrays_in((returned, arguments))]


def _assert_same(operation: str, found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    if operation == "attention_forward":  # the second result is what the twin keeps for the backward pass
        found, expected = [*found[:1], *found[2:]], [*expected[:1], *expected[2:]]
    given_up = operation.startswith("bias_") and operation.endswith("_backward")
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if given_up and number == 2:  # dy, whose memory a twin may take
            continue
        tolerance = 4e-3 if other.dtype == np.float16 else 1e-4
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def _assert_refused_or_right(backend: Backend, operation: str, arguments: tuple[Any, ...]) -> bool:
    """Return True if the twin refused; check its results against the definition's if it did not."""
    found = _result(backend.twins[operation], backend, arguments)
    if isinstance(found, Exception):
        return True
    # What attention's forward pass saves differs from twin to twin, so there is no definition to compare with here.
    assert operation != "attention_backward", "was computed, though an array does not match the others"
    expected = _result(DEFINITIONS[operation], GuardedNumpyBackend(), arguments)
    assert not isinstance(expected, Exception), f"was computed, though the definition says {expected}"
    _assert_same(operation, found, expected)
    return False


def test_a_twin_refuses_what_its_definition_refuses(
    twins: str, operation: str, device: str, make_backend: Callable[[], Backend]
):
    probes = refused = 0
    for call in _calls(twins, device):
        if call.operation != operation:
            continue
        for path, array in arrays_in(call.arguments):
            for what, change in changes_of(array):
                if twins == "cuda" and (operation, path[0], what) in _ONLY_VALUES_TELL:
                    continue
                try:
                    changed = changed_at(call.arguments, path, change)
                    refused += _assert_refused_or_right(make_backend(), operation, changed)
                except AssertionError as error:
                    raise AssertionError(f"{call.case}: {operation}, argument {path} {what}: {error}") from error
                probes += 1
    assert probes, "no case calls it"
    assert refused, "nothing was refused: the probes are not what they should be"


def test_gaps_and_wider_integers_are_refused_or_change_nothing(
    twins: str, operation: str, device: str, make_backend: Callable[[], Backend]
):
    """Kernels that read and write without gaps need a copy of such an input, and cannot write to such an output."""
    for call in _calls(twins, device):
        if call.operation != operation:
            continue
        expected = _result(make_backend().twins[operation], make_backend(), call.arguments)
        for path, array in arrays_in(call.arguments):
            for what, change in layouts_of(array):
                arguments = changed_at(call.arguments, path, change)
                found = _result(make_backend().twins[operation], make_backend(), arguments)
                if not isinstance(found, Exception):
                    try:
                        _assert_same(operation, found, expected)
                    except AssertionError as error:
                        raise AssertionError(f"{call.case}: {operation}, argument {path} {what}: {error}") from error


def test_what_matches_is_accepted(twins: str, operation: str, device: str, make_backend: Callable[[], Backend]):
    """Otherwise a twin that refuses everything would pass."""
    for call in _calls(twins, device):
        if call.operation == operation:
            backend = make_backend()
            result = _result(backend.twins[operation], backend, call.arguments)
            assert not isinstance(result, Exception), result


def test_a_planted_misfit_is_refused_with_the_same_message_on_every_device(
    twins: str, misfit: Misfit, device: str, make_backend: Callable[[], Backend]
):
    calls = [c for c in _calls(twins, device) if (c.operation, c.case) == (misfit.operation, misfit.case)]
    assert calls, "no case makes this call"
    backend = make_backend()
    arguments = on_device(backend, changed_at(calls[0].arguments, misfit.where, misfit.change))
    with pytest.raises(misfit.error, match=f"^[a-z_]+: {misfit.message}"):
        backend.twins[misfit.operation](backend, *arguments)


def test_every_operation_has_planted_misfits(twins: str, make_backend: Callable[[], Backend]):
    covered = {misfit.operation for misfit in PLANTED}
    parts = {"linear_backward": "linear_backward_weight", "embedding_backward": "scatter_add"}
    covered |= {"attention_weights", *parts}  # the checks of attention_forward, and of the operations that these call
    assert set(make_backend().twins) <= covered


def test_every_twin_is_reached_by_a_case(twins: str, make_backend: Callable[[], Backend]):
    """So that the comparison with the definitions, `tests/ops/test_twins.py`, leaves none out."""
    backend = make_backend()
    called = {call.operation for call in recorded_calls(backend)}
    without_a_gradient = {
        "adamw_update",
        "add_scaled",
        "attention_weights",
        "squared_norm",
    }  # these have tests of their own there
    assert set(backend.twins) - called <= without_a_gradient


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_scatter_add_refuses_rows_that_do_not_match_its_target(deterministic: bool, device: str):
    backend = get_backend(device)
    ones = functools.partial(np.ones, dtype=np.float32)
    ids = np.array([0, 3, 1], dtype=np.int32)
    for target, indices, rows, error, message in (
        (ones((4, 5)), ids, ones((3, 4)), ValueError, r"target has the shape \(4, 5\), but .* ask for \(4, 4\)"),
        (ones((4, 5)), ids, ones((2, 5)), ValueError, r"indices has the shape \(3,\), but .* ask for \(2,\)"),
        (ones((4, 5)), ids[:, None], ones((3, 5)), ValueError, r"indices has the shape \(3, 1\)"),
        (ones((4, 5), dtype=np.float64), ids, ones((3, 5)), TypeError, r"target is (torch\.)?float64 beside"),
        (
            ones((4, 5)),
            ids.astype(np.float32),
            ones((3, 5)),
            TypeError,
            r"indices must be integers, not (torch\.)?float32",
        ),
    ):
        arguments = on_device(backend, (target, indices, rows))
        with pytest.raises(error, match=f"^scatter_add: .*{message}"):
            backend.scatter_add(*arguments, deterministic=deterministic)


def test_the_guards_see_a_twin_that_writes_beyond_an_array():
    backend = GuardedNumpyBackend()
    array = backend.empty((3, 4), np.float32)
    beyond = np.lib.stride_tricks.as_strided(array, (4, 4), writeable=True)
    backend.assert_nothing_was_written_beside_an_array()
    beyond[3, 0] = 1.0
    with pytest.raises(AssertionError):
        backend.assert_nothing_was_written_beside_an_array()


def test_a_twin_without_checks_is_found_out():
    """A negative control: a twin that reads its bias by address, whatever its length."""

    def careless(backend: Backend, x: np.ndarray, bias: np.ndarray) -> np.ndarray:
        read = np.lib.stride_tricks.as_strided(bias, (x.shape[1],), (bias.strides[0],))
        return DEFINITIONS["bias_relu_forward"](backend, x, read)

    class Careless(GuardedNumpyBackend):
        twins: Mapping[str, Any] = {"bias_relu_forward": careless}

    arguments = np.ones((3, 4), np.float32), np.ones(3, np.float32)
    with pytest.raises(AssertionError, match="was computed, though the definition says"):
        _assert_refused_or_right(Careless(), "bias_relu_forward", arguments)
