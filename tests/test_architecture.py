"""The house keeps its shape: which file may import what."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# text, files and figures are NumPy on the host; what BERT computes is not
HOST_SIDE = ("minibert/data/", "minibert/training/", "minibert/inference/", "minibert/finetuning/")
OUTER = ("minibert.training", "minibert.inference", "minibert.finetuning")


def imported_modules(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add("." * node.level + (node.module or ""))
    return modules


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def model_sources() -> list[Path]:
    """The files that say what BERT is."""
    return [path for path in sources("minibert") if not str(path.relative_to(ROOT)).startswith(HOST_SIDE)]


def top_level(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(path)}


def test_the_rule_has_files_to_look_at():
    names = {path.name for path in model_sources()}
    assert {"model.py", "gradients.py", "gradient_accumulator.py", "attention.py", "pretrained.py"} <= names


@pytest.mark.parametrize("path", model_sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_the_model_imports_an_array_library(path: Path):
    assert not top_level(path) & {"numpy", "cupy", "cupyx", "scipy", "torch", "array_api_strict"}


@pytest.mark.parametrize("path", model_sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_model_knows_nothing_of_training(path: Path):
    assert not {module for module in imported_modules(path) if module.startswith(OUTER)}


@pytest.mark.parametrize("path", sources("backends"), ids=lambda path: path.name)
def test_the_backends_know_nothing_of_bert(path: Path):
    assert "minibert" not in top_level(path)


@pytest.mark.parametrize("path", sources("minibert"), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_a_deep_learning_framework_or_a_script(path: Path):
    assert not top_level(path) & {"torch", "transformers", "jax", "tensorflow", "scripts"}


def test_an_import_inside_a_function_is_seen(tmp_path: Path):
    path = tmp_path / "sneaky.py"
    path.write_text("def f():\n    from numpy import linalg\n    import cupy.cuda\n", encoding="utf-8")
    assert imported_modules(path) == {"numpy", "cupy.cuda"}
