"""A few cases of every fuzz target, the same ones every time; `make fuzz` runs thousands, with limits."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.targets import TARGETS, Target, run_case

_SETTINGS = settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")  # cases may be large
@pytest.mark.parametrize("name", TARGETS)
def test_strange_input_succeeds_or_is_refused(name: str):
    target = TARGETS[name]
    outcomes = []

    @_SETTINGS
    @given(target.cases)
    def check(case: object) -> None:
        outcomes.append(run_case(target, case))

    check()
    assert len(outcomes) >= 40
    assert not all(outcomes)  # strange input is refused now and then


def test_a_fault_is_found():
    def fail(case: object) -> None:
        raise KeyError(case)

    with pytest.raises(KeyError):
        run_case(Target(TARGETS["labelled"].cases, fail), "case")

    def explain_at_length(case: object) -> None:
        raise ValueError("x" * 100_000)

    with pytest.raises(AssertionError, match="a message of 100000 characters"):
        run_case(Target(TARGETS["labelled"].cases, explain_at_length, (ValueError,)), "case")
