"""Return the lists of the documentation that follow from the code: commands, options, twins, files of the core."""

from __future__ import annotations

import importlib
import re

from benchmarks.report import table

from documents.files import ROOT, first_sentence, link
from minibert.commands.parser import options_table

CORE = (
    "minibert/config.py",
    "minibert/parameters.py",
    "minibert/random_bits.py",
    "minibert/inputs.py",
    "minibert/rows.py",
    "minibert/kernels.py",
    "minibert/ops",
    "minibert/cache.py",
    "minibert/model.py",
    "minibert/gradients.py",
    "minibert/gradient_accumulator.py",
    "minibert/optimizer.py",
)
"""The files that can be read in an afternoon, in the order in which to read them: what BERT is, and how it learns."""


def core(page: str) -> str:
    """Return the files of the core with their lines, and the sum.

    Lines are rounded to tens, so that not every small change of the core changes the documentation.

    Args:
        page: the page that shows the table, for its links.
    """
    rows, total = [], 0
    for name in CORE:
        path = ROOT / name
        files = sorted(path.glob("*.py")) if path.is_dir() else [path]
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        total += lines
        what = first_sentence(path / "__init__.py" if path.is_dir() else path)
        many = f" ({len(files)} files)" if path.is_dir() else ""
        rows.append((link(name, page) + many, f"{round(lines, -1):,}", what))
    rows.append(("together", f"{round(total, -1):,}", ""))
    return table(("file", "lines, rounded", "content"), rows)


def make_targets() -> str:
    """Return the targets of the Makefile with the words of `make help`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^(\w+) := (\S+)$", makefile, re.MULTILINE))
    rows = []
    for target, words in re.findall(r'^\t@echo "(make [\w-]+) +(.+)"$', makefile, re.MULTILINE):
        rows.append((f"`{target}`", re.sub(r"\$\((\w+)\)", lambda match: f"`{variables[match[1]]}`", words)))
    return table(("command", "what it does"), rows)


def scripts(page: str) -> str:
    """Return the scripts with the first sentence of their docstrings.

    Args:
        page: the page that shows the table, for its links.
    """
    rows = [
        (link(f"scripts/{path.name}", page), first_sentence(path)) for path in sorted((ROOT / "scripts").glob("*.py"))
    ]
    return table(("command", "what it does"), rows)


def options(command: str) -> str:
    """Return the options of a command with their defaults and help texts, then the notes at the end of `--help`.

    Args:
        command: a module of `minibert.commands` that has a function `build_parser`.
    """
    parser = importlib.import_module(f"minibert.commands.{command}").build_parser()
    notes = f"\n\n```text\n{parser.epilog}\n```" if parser.epilog else ""
    return options_table(parser) + notes


def twins(page: str) -> str:
    """Return every operation with the backends that have a faster twin of it.

    Args:
        page: the page that shows the table, for its links.
    """
    from backends.cpu.kernels import TWINS as NUMBA_TWINS
    from backends.cpu.twins import NUMPY_TWINS
    from backends.cuda.twins import TWINS as CUDA_TWINS
    from minibert.ops import DEFINITIONS

    above = "../" * page.count("/")
    rows = []
    for name, definition in sorted(DEFINITIONS.items()):
        file = definition.__module__.replace(".", "/") + ".py"
        has = ("twin" if name in table_ else "" for table_ in (NUMPY_TWINS, NUMBA_TWINS, CUDA_TWINS))
        rows.append((f"[`{name}`]({above}{file})", *has))
    return table(("operation", "NumPy", "Numba", "CUDA"), rows)
