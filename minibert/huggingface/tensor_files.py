"""JSON and safetensors of a checkpoint folder, read: memory-mapped, and with errors that name file and tensor.

The `safetensors` library checks a file when it is opened; the tensors are then views of the mapped file, so that
weights are copied once, from the file to where the model keeps them.
"""

from __future__ import annotations

import json
import math
import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from backends import Array, get_backend
from minibert.errors import PretrainedError

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # how safetensors and NumPy call them


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        PretrainedError: the file is missing, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PretrainedError(f"{path.parent} is no checkpoint folder: it has no {path.name}") from None
    except OSError as error:  # a folder of that name, or no right to read it
        raise PretrainedError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, a number or a nesting beyond all measure
        raise PretrainedError(f"{path} is not valid JSON ({error}); fetch or write it again") from error
    if not isinstance(content, dict):
        raise PretrainedError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


class TensorFile(Mapping[str, Array]):
    """The tensors of one safetensors file, by name, as read-only views on the host.

    Attributes:
        path: of the file.

    Raises:
        PretrainedError: no such file, or a damaged one; on access, a dtype that weights do not have.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="numpy"):  # checks the header and that nothing is cut off
                pass
            with path.open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise PretrainedError(f"{path} is missing, but {INDEX_FILE} names it; fetch it again") from None
        except SafetensorError as error:
            raise PretrainedError(f"{path} is damaged or not safetensors ({error}); fetch it again") from error
        except (OSError, ValueError) as error:  # a folder of that name, no right to read it, an empty file
            raise PretrainedError(f"{path} cannot be read: {error}") from error
        header_size = int.from_bytes(self._mapped[:8], "little")
        self._start = 8 + header_size
        self._entries: dict[str, dict[str, Any]] = json.loads(self._mapped[8 : self._start])
        self._entries.pop("__metadata__", None)

    def __getitem__(self, name: str) -> Array:
        """float32, float64 or float16 as stored; bfloat16, which NumPy lacks, as float32."""
        xp = get_backend("cpu").xp
        entry = self._entries[name]
        if entry["dtype"] not in _DTYPES:
            raise PretrainedError(
                f"{self.path}: the tensor {name} is stored as {entry['dtype']}; weights must be one of "
                f"{', '.join(_DTYPES)}"
            )
        count, offset = math.prod(entry["shape"]), self._start + entry["data_offsets"][0]
        if count == 0:
            return xp.zeros(tuple(entry["shape"]), dtype=xp.float32)
        values = xp.frombuffer(self._mapped, dtype=_DTYPES[entry["dtype"]], count=count, offset=offset)
        if entry["dtype"] == "BF16":  # the bits of a bfloat16 are the upper half of a float32's
            values = (xp.astype(values, xp.uint32) << 16).view(xp.float32)
        return xp.reshape(values, tuple(entry["shape"]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


class StoredTensors(Mapping[str, Array]):
    """All tensors of a checkpoint folder, in one file or in shards; the one file if there are both.

    So does transformers, and there are both where a single file was saved into a folder of shards.

    Attributes:
        listing: the file that lists the tensors: the index of the shards, or the one file.

    Raises:
        PretrainedError: no weights, only pickled ones, a damaged or missing file.
    """

    def __init__(self, folder: Path) -> None:
        self._opened: dict[Path, TensorFile] = {}
        self.listing = folder / WEIGHTS_FILE
        if not self.listing.exists() and (folder / INDEX_FILE).exists():
            self.listing = folder / INDEX_FILE
            weight_map = read_json(self.listing).get("weight_map")
            if not isinstance(weight_map, dict):
                raise PretrainedError(f"{self.listing} has no weight_map")
            for name, file in weight_map.items():
                if Path(str(file)).name != file:
                    raise PretrainedError(f"{self.listing}: {name} is said to be in {file!r}; shards lie in the folder")
            self._files: dict[str, Path] = {name: folder / file for name, file in weight_map.items()}
            return
        if not self.listing.exists():
            raise PretrainedError(_no_weights(folder))
        self._files = dict.fromkeys(self._open(self.listing), self.listing)

    def _open(self, path: Path) -> TensorFile:
        if path not in self._opened:
            self._opened[path] = TensorFile(path)
        return self._opened[path]

    def file_of(self, name: str) -> Path:
        """Which file holds a tensor."""
        return self._files[name]

    def __getitem__(self, name: str) -> Array:
        file = self._open(self._files[name])
        if name not in file:
            raise PretrainedError(f"{file.path}: the tensor {name} is missing, but {INDEX_FILE} says it is there")
        return file[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def shards_of(folder: Path) -> list[Path]:
    """The index of a folder's shards, and the shards in the folder that it names; nothing where there is no index.

    The index comes first: removed in this order, it never names what is gone.
    """
    index = folder / INDEX_FILE
    if not index.exists():
        return []
    try:
        weight_map = read_json(index).get("weight_map")
    except PretrainedError:  # it names nothing that could be told
        weight_map = None
    named = {str(file) for file in weight_map.values()} if isinstance(weight_map, dict) else set()
    in_folder = {file for file in named if Path(file).name == file and file.endswith(".safetensors")}
    return [index, *(folder / file for file in sorted(in_folder - {WEIGHTS_FILE}))]


_OTHER_FORMATS = ("*.h5", "*.msgpack", "*.ckpt.index", "*.safetensors", "*.onnx", "*.gguf")
_CLASS = re.compile(r"Bert(For\w+|Model)")


def _no_weights(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if not pickles:
        others = sorted(path.name for pattern in _OTHER_FORMATS for path in folder.glob(pattern))
        found = f"; {', '.join(others)} is not what is read" if others else ""
        return f"{folder} is no checkpoint folder: it has no {WEIGHTS_FILE}{found}"
    # `AutoModel` would leave the heads behind, so the class must be the one that was saved
    named = read_json(folder / "config.json").get("architectures") or ["AutoModel"]
    cls = str(named[0]) if isinstance(named, list) and _CLASS.fullmatch(str(named[0])) else "AutoModel"
    target = f"{folder}-safetensors"
    return (
        f"{folder} has its weights only as a pickle ({', '.join(pickles)}). Loading a pickle can run any code, so "
        "Mini-BERT does not. If you trust it, convert it where transformers and PyTorch are installed: "
        f'python -c "import transformers as t; t.{cls}.from_pretrained({str(folder)!r}).save_pretrained({target!r}); '
        f't.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({target!r})"'
    )
