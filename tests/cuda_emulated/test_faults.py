"""The tests of the kernels find every fault that is planted in the CUDA source. Otherwise they might see nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends import Backend, get_backend
from backends.cuda import launch
from tests.cuda_emulated.kernel_cases import assert_twins_agree, attention_case, row_cases
from tests.model.test_infinities import (
    assert_infinite_logits_show_in_the_loss_only,
    assert_infinite_scores_share_the_weight,
)
from tests.support.emulated_cuda.compiler import ORDERS, EmulationError
from tests.support.emulated_cuda.device import DeviceError
from tests.support.emulated_cuda.functions import RawKernel

ROOT = Path(__file__).parents[2]
SOURCE = launch.source()

_BARRIER = "__syncthreads();"
_SUM = "dbias_sum = sum_over_lanes(dbias_sum);"
_ROWS = (
    "row < rows; row += gridDim.y) {\n        long long i = (long long)row * columns + column;\n        real u = load(x"
)
_NEXT = "column < columns; column += WARP) exponential_sum +="
_CLIP = "        score = clip(score, bound);\n"
_MAXIMUM = "real clipped_maximum = maximum > (real)bound ? (real)bound : maximum;"

FAULTS = {
    "no barrier before the lanes of a column are added": (f"{_BARRIER}\n        if (lane", "\n        if (lane"),
    "a lane left out of the sum": ("other < lanes; other", "other < lanes - 1; other"),
    "no barrier after the previous sum of lanes": (f"{_BARRIER}  // the previous sum", "  //"),
    "no barrier before the warps of a block are added": (f"{_BARRIER}\n    value = of", "\n    value = of"),
    "no barrier after the previous sum of a block": (f"{_BARRIER}  // the previous result", "  //"),
    "no barrier in splitting heads": (f"{_BARRIER}\n    if (!turned)", "\n    if (!turned)"),
    "no barrier in merging heads": (f"{_BARRIER}\n    }}\n    for (int i", "\n    }\n    for (int i"),
    "a barrier that some threads miss": (_SUM, f"if (column < columns) {_SUM}"),
    "a shuffle that some lanes miss": ("squares += centred * centred", "squares += warp_sum(centred * centred)"),
    "a warp's sum without its last step": ("distance > 0; distance /= 2) value", "distance > 1; distance /= 2) value"),
    "one column too many": (
        "(column >= columns) return;\n    real bias_j",
        "(column > columns) return;\n    real bias_j",
    ),
    "one row too many": (_ROWS, _ROWS.replace("row < rows", "row <= rows")),
    "one row too few": (
        "row += blockDim.y)\n            dbias_sum += load(dy",
        "row += blockDim.y)\n            if (row < rows - 1) dbias_sum += load(dy",
    ),
    "one number too many in AdamW": ("    if (i >= size) return;", "    if (i > size) return;"),
    "a run of equal ids cut short": ("i < count && indices", "i < count - 1 && indices"),
    "a column of the softmax left out": (f"int column = lane; {_NEXT}", f"int column = lane + 1; {_NEXT}"),
    "another random constant": ("0x846ca68bu", "0x846ca68du"),
    "dropout where it is to be kept": (">= threshold", "> ~threshold"),
    "the mask of another sequence": (
        "mask += row / slots / attention_heads",
        "mask += row / slots % attention_heads",
    ),
    "the weights left out where nothing is dropped": ("store(dropped_weights, i, weight);", ";"),
    "the activation without its argument": ("*y = u * cumulative_u;", "*y = cumulative_u;"),
    "a loss where nothing is predicted": ("if (label < 0) return 0;", "if (label < -1) return 0;"),
    "infinite scores that are not held within bounds": (_CLIP + "        store(weights", "        store(weights"),
    "the largest logit not held within bounds": (_MAXIMUM, "real clipped_maximum = maximum;"),
    "tiles larger than the shared memory": ("[TILE + 1])shared_memory;  //", "[TILE + 9])shared_memory;  //"),
}
"""Description of the fault -> (right source, wrong source)."""


def _cases():
    yield from row_cases(37, 100, seed=0)
    yield from row_cases(3, 300, seed=1)
    for variant in ("masked", "dropped", "unpadded", "pruned"):
        yield attention_case(3, 37, 2, 33, variant, seed=2)


def _compare_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Backend = get_backend("cuda")  # compiles anew
    for order in ORDERS:
        monkeypatch.setattr(RawKernel, "order", order)
        for case in _cases():
            assert_twins_agree(case, "float32", backend)
        assert_infinite_scores_share_the_weight(backend, "auto", "float32")
        assert_infinite_logits_show_in_the_loss_only(backend, "auto", "float32")


def test_the_docs_count_the_faults():
    assert f"{len(FAULTS)} planted faults" in (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")


def test_without_a_fault_everything_agrees(monkeypatch: pytest.MonkeyPatch):
    _compare_everything(monkeypatch)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_out(fault: str, monkeypatch: pytest.MonkeyPatch):
    right, wrong = FAULTS[fault]
    assert SOURCE.count(right) >= 1, "the fault does not fit the source any more"
    monkeypatch.setattr(launch, "source", lambda: SOURCE.replace(right, wrong, 1))
    with pytest.raises((AssertionError, EmulationError, DeviceError)):
        _compare_everything(monkeypatch)


def test_too_little_shared_memory_is_found_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "_REAL_BYTES", 2)
    with pytest.raises(EmulationError, match="of shared memory was written"):
        _compare_everything(monkeypatch)


def test_an_argument_of_another_type_is_found_out(monkeypatch: pytest.MonkeyPatch):
    import numpy as np

    from backends.cuda import twins

    monkeypatch.setattr(twins, "int32", np.int64)
    with pytest.raises(EmulationError, match="takes arguments of the types"):
        _compare_everything(monkeypatch)
