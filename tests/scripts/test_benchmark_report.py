"""The tables of a training step lead with the lowest ratio, and compare with Mini-BERT in both precisions."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.comparison import largest_difference
from benchmarks.report import losses_table, lowest_first, memory_table, operations_table, ratios_to, steps_table


def party(ratios: list[float], **more: Any) -> dict[str, Any]:
    figures = {"seconds": 0.1, "tokens_per_second": 1000.0, "gflops": 5.0}
    return {**figures, "ratios": ratios, "processor_ratios": ratios, **more}


RESULT = {
    "name": "L1",
    "parties": {
        "minibert": party([1.0, 1.0, 1.0], operations={"linear_forward": 0.02}),
        "minibert-bfloat16": party([0.5, 0.5, 0.8], operations={"linear_forward": 0.01}, loss_difference=0.00123),
        "torch-bfloat16": party([1.0, 1.5, 0.8]),
    },
}


def test_the_lowest_number_comes_first():
    assert lowest_first([3.0, 1.0, 2.0]) == "1.00x (2.00x, 3.00x)"
    assert lowest_first([3.0, 1.0], "{:.0f}") == "1 (2, 3)"


def test_a_ratio_to_bfloat16_is_taken_within_a_round():
    assert ratios_to("minibert-bfloat16", "torch-bfloat16", RESULT) == pytest.approx([2.0, 3.0, 1.0])
    assert ratios_to("minibert-bfloat16", "minibert", RESULT) == pytest.approx([2.0, 2.0, 1.25])


def test_the_steps_are_compared_with_float32_and_with_bfloat16():
    header, _, ours, bfloat16, peer = steps_table([RESULT]).splitlines()
    assert "| time / Mini-BERT's in bfloat16 |" in header
    assert ours == "| L1 | minibert | 100 |  |  | 1.25x (2.00x, 2.00x) | 1,000 | 5 |"
    assert bfloat16 == "| L1 | minibert-bfloat16 | 100 | 0.50x (0.50x, 0.80x) | 0.50x (0.50x, 0.80x) |  | 1,000 | 5 |"
    assert "| 0.80x (1.00x, 1.50x) | 0.80x (1.00x, 1.50x) | 1.00x (2.00x, 3.00x) |" in peer


def test_without_bfloat16_the_table_has_no_column_for_it():
    parties = {name: figures for name, figures in RESULT["parties"].items() if name != "minibert-bfloat16"}
    header, *_ = steps_table([{"name": "L1", "parties": parties}]).splitlines()
    assert "bfloat16" not in header


def test_the_losses_of_a_precision_are_compared_with_the_same_work_in_float32():
    assert losses_table([RESULT]).splitlines()[2:] == ["| L1 | minibert-bfloat16 | minibert | 0.0012 |"]
    assert largest_difference([9.0, 8.0, 7.0], [9.0, 8.5, 6.9]) == 0.5
    with pytest.raises(ValueError, match="longer"):
        largest_difference([9.0], [9.0, 8.0])


def test_each_precision_has_its_operations():
    assert "| linear_forward | 10.0 | 100% |" in operations_table(RESULT, "minibert-bfloat16")
    assert "operation of L1, bfloat16" in operations_table(RESULT, "minibert-bfloat16")
    assert "| linear_forward | 20.0 | 100% |" in operations_table(RESULT)


def test_a_step_too_small_to_need_memory_has_no_ratio_of_memory():
    parties = {
        "minibert": party([1.0], peak_bytes=2_000_000, floor_bytes=1_000_000),
        "torch": party([1.0], peak_bytes=4_000_000, floor_bytes=4_000_000),
    }
    assert memory_table([{"name": "L1", "parties": parties}]).endswith("| L1 | torch | 4 | 4 | 0.50 | too small |")
