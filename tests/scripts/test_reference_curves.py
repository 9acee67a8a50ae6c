"""The script that trains the reference curves records every seed and every variant, and draws what it recorded."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("reference_curves", ROOT / "scripts" / "reference_curves.py")
assert spec is not None
assert spec.loader is not None
reference_curves = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference_curves)


def test_a_record_has_every_seed_of_the_default_and_every_variant(monkeypatch: pytest.MonkeyPatch):
    trained = []

    def train(options: str, seed: int, steps: int, threads: int, cache: Path):
        trained.append((options, seed, steps, threads))
        return {"steps": [1], "losses": [2.0], "baseline": 3.0}

    monkeypatch.setattr(reference_curves, "train", train)
    found = reference_curves.record(steps=40, threads=1)
    assert [run["seed"] for run in found["runs"] if run["name"] == "default"] == list(reference_curves.SEEDS)
    assert [run["name"] for run in found["runs"][len(reference_curves.SEEDS) :]] == list(reference_curves.VARIANTS)[1:]
    assert trained[-1] == ("--initializer-range 0.02", 0, 40, 1)


def test_the_record_in_the_documentation_is_of_these_runs_and_can_be_drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    found = json.loads(reference_curves.RECORD.read_text(encoding="utf-8"))
    assert {run["name"]: run["options"] for run in found["runs"]} == reference_curves.VARIANTS
    monkeypatch.setattr(reference_curves, "PICTURE", tmp_path / "curves.png")
    reference_curves.draw(found)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
