"""A folder with a whole model, in which a case replaces some files."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.strategies import RAW_JSON, as_json, damaged
from tests.support.small_classifier import save_base


@cache
def model_folder() -> Path:
    """Return a folder with a whole model; its files are put back after every case."""
    return save_base(Path(tempfile.mkdtemp(prefix="fuzz-model-")) / "bert")


@cache
def whole(name: str) -> bytes:
    """Return the content of a file of the model's folder, as it was saved."""
    return (model_folder() / name).read_bytes()


@contextlib.contextmanager
def with_files(files: dict[str, bytes | None]) -> Iterator[Path]:
    """Replace some files of the folder, or remove those that are None; put them back afterwards."""
    folder = model_folder()
    before = {name: (folder / name).read_bytes() if (folder / name).exists() else None for name in files}

    def write(contents: dict[str, bytes | None]) -> None:
        for name, content in contents.items():
            if content is None:
                (folder / name).unlink(missing_ok=True)
            else:
                (folder / name).write_bytes(content)

    try:
        write(files)
        yield folder
    finally:
        write(before)


def changed_json(name: str, changes: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[bytes]:
    """The content of a JSON file with other fields, damaged bytes, or something else."""
    fields = changes.map(lambda new: as_json({**json.loads(whole(name)), **new}))
    return st.one_of(fields, fields, st.deferred(lambda: damaged(whole(name))), st.sampled_from(RAW_JSON))
