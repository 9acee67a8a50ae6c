"""The peers that the benchmark measures do the same work as one another."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from benchmarks.comparison import run_worker
from benchmarks.work import Work

WORK = Work(layers=2, hidden=128, vocabulary=500, batch=4, length=32, dropout=0.0, threads=1, steps=2)


def test_the_hand_tuned_peers_learn_what_transformers_learns():
    """All start from the same seed, without dropout. A peer that left something out would be unfairly fast."""
    losses = {
        party: run_worker(dataclasses.replace(WORK, party=party), sys.executable)["losses"]
        for party in ("transformers", "torch", "torch-pruned")
    }
    assert losses["transformers"][-1] < losses["transformers"][0]
    assert losses["torch"] == pytest.approx(losses["transformers"], rel=1e-5)
    assert losses["torch-pruned"] == pytest.approx(losses["transformers"], rel=1e-5)
