"""Describe what the bits of a session depend on, and say what has changed since the session before.

The description is a line of the run's log. A resumed run reads the last one and tells the user what is different now.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from typing import Any

from minibert.model import MiniBERT
from minibert.training.preparation import Data
from minibert.training.settings import Settings

_VARIABLES = ("NUMBA_NUM_THREADS", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_DISABLE_JIT")
"""Environment variables that decide how kernels are compiled and divided among threads."""

_ROUNDING = "equal up to rounding, not bit for bit"


def describe(settings: Settings, model: MiniBERT, data: Data) -> dict[str, Any]:
    """Describe a session for the log: everything that its bits depend on."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "minibert": version("minibert"),
        "python": platform.python_version(),
        "device": model.backend.description(),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "kernels": list(model.kernels.twins),
        "precision": model.precision,
        "settings": settings.to_dict(),
        "model": model.config.to_dict(),
        "parameters": model.parameters.layout.size,
        "training_tokens": data.tokenized.train.number_of_tokens,
        "evaluation_tokens": data.tokenized.evaluation.number_of_tokens,
        "tokenizer": data.tokenizer.fingerprint(),
        "corpus": data.tokenized.fingerprint,
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for everything that changes the bits of a run.

    Args:
        before: the description of the last session, read from the log; logs of earlier versions lack some fields.
        now: the description of this session.
    """
    if before.get("device") not in (None, now["device"]):
        yield f"so far it was computed by {before['device']}, now by {now['device']}: {_ROUNDING}"
    precision = before.get("precision", "float32") if before else now["precision"]
    if precision != now["precision"]:
        yield (
            f"so far its matrix products were computed in {precision}, now in {now['precision']}: the losses will be "
            "about the same, not bit for bit"
        )
    if "kernels" in before and set(before["kernels"]) != set(now["kernels"]):
        counts = len(before["kernels"]), len(now["kernels"])
        yield f"so far {counts[0]} operations had faster versions on this device, now {counts[1]} have: {_ROUNDING}"
    accumulate = before.get("settings", {}).get("accumulate", now["settings"]["accumulate"])
    if accumulate != now["settings"]["accumulate"]:
        yield (
            f"so far a step had {accumulate} micro-batches (--accumulate), now {now['settings']['accumulate']}: "
            f"{_ROUNDING}"
        )
    if "environment" in before:
        for name in _VARIABLES:
            values = [description["environment"].get(name, "not set") for description in (before, now)]
            if values[0] != values[1]:
                yield f"so far {name} was {values[0]}, now it is {values[1]}: {_ROUNDING}"
