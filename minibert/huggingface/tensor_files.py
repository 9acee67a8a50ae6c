"""Read the JSON and safetensors files of a checkpoint folder; every error names the file and the tensor.

The `safetensors` library checks a file when it is opened. The tensors are then views of the memory-mapped file, so
weights are copied only once, from the file to the parameters of the model.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from backends import Array, get_backend
from minibert.errors import PretrainedError, brief
from minibert.reading import open_file, read_bytes

WEIGHTS_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"

CHECKSUMS = "minibert.crc32"
"""The key of the checksums in the metadata of a safetensors file."""
Shape = tuple[int, ...]

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # safetensors' name -> NumPy's


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        PretrainedError: the file is missing, cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(read_bytes(path))
    except FileNotFoundError:
        raise PretrainedError(f"{path.parent} is not a checkpoint folder: it has no {path.name}") from None
    except OSError as error:  # a folder of that name, or no right to read it
        raise PretrainedError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number too long or a nesting too deep
        raise PretrainedError(f"{path} is not valid JSON ({error}); download or write it again") from error
    if not isinstance(content, dict):
        raise PretrainedError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


class TensorFile(Mapping[str, Array]):
    """The tensors of one safetensors file, by name, as read-only views on the host.

    Attributes:
        path: where the file lies.

    Raises:
        PretrainedError: the file is missing, damaged or cannot be read; on access to a tensor, its dtype is not one of
            float64, float32, float16 and bfloat16, or its checksum differs from the one that `checksums_of` recorded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_file(path) as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            with safe_open(path, framework="numpy"):  # checks the header and that nothing is cut off
                pass
        except FileNotFoundError:
            raise PretrainedError(f"{path} is missing, but {INDEX_FILE} names it; download it again") from None
        except SafetensorError as error:
            why = brief(str(error), 300, quoted=False)
            raise PretrainedError(f"{path} is damaged or not safetensors ({why}); download it again") from error
        except OSError as error:  # a folder of that name, or no right to read it
            raise PretrainedError(f"{path} cannot be read: {error.strerror or error}") from error
        except ValueError as error:  # an empty file, or a name that no file can have
            raise PretrainedError(f"{path} is damaged or not safetensors ({error}); download it again") from error
        header_size = int.from_bytes(self._mapped[:8], "little")
        self._start = 8 + header_size
        self._entries: dict[str, dict[str, Any]] = json.loads(self._mapped[8 : self._start])
        metadata = self._entries.pop("__metadata__", {})
        self._checksums = _read_checksums(path, metadata.get(CHECKSUMS), self._entries.keys())

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor, without reading it."""
        return tuple(self._entries[name]["shape"])

    def __getitem__(self, name: str) -> Array:
        """Return a tensor in its stored dtype; bfloat16, which NumPy lacks, becomes float32."""
        xp = get_backend("cpu").xp
        entry = self._entries[name]
        if entry["dtype"] not in _DTYPES:
            raise PretrainedError(
                f"{self.path}: the tensor {brief(name, quoted=False)} is stored as {entry['dtype']}; weights must be "
                f"one of {', '.join(_DTYPES)}"
            )
        count, offset = math.prod(entry["shape"]), self._start + entry["data_offsets"][0]
        if count == 0:
            return xp.zeros(tuple(entry["shape"]), dtype=xp.float32)
        if name in self._checksums:
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            if _checksum(memoryview(self._mapped)[offset : offset + size]) != self._checksums.pop(name):
                raise PretrainedError(
                    f"{self.path} is damaged: the tensor {name} does not have the checksum that it was saved "
                    "with; save or download the file again"
                )
        values = xp.frombuffer(self._mapped, dtype=_DTYPES[entry["dtype"]], count=count, offset=offset)
        if entry["dtype"] == "BF16":  # the bits of a bfloat16 are the upper half of a float32's
            values = (xp.astype(values, xp.uint32) << 16).view(xp.float32)
        return xp.reshape(values, tuple(entry["shape"]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def checksums_of(tensors: Mapping[str, Array]) -> dict[str, str]:
    """Return metadata for the header of a safetensors file: the CRC-32 of every tensor, which `TensorFile` checks.

    Args:
        tensors: host arrays, by name.
    """
    checksums = {name: _checksum(tensor.tobytes()) for name, tensor in tensors.items()}
    return {CHECKSUMS: json.dumps(checksums, separators=(",", ":"))}


def _read_checksums(path: Path, text: str | None, names: Collection[str]) -> dict[str, str]:
    """Read the metadata that `checksums_of` has made; empty for files of other programs, which have none.

    Raises:
        PretrainedError: the metadata are damaged.
    """
    if text is None:
        return {}
    try:
        checksums = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise PretrainedError(f"{path} is damaged: its checksums cannot be read ({error}); save it again") from error
    if checksums.keys() != names:
        raise PretrainedError(f"{path} is damaged: its checksums belong to other tensors; save or download it again")
    return checksums


def _checksum(content: bytes | memoryview) -> str:
    return f"{zlib.crc32(content):08x}"


class StoredTensors(Mapping[str, Array]):
    """All tensors of a checkpoint folder, from a single file or from shards.

    A folder of shards also has a single file if a model was saved into it later. The single file is read then, as in
    `transformers`.

    Attributes:
        listing: the file that lists the tensors: the index of the shards, or the single file.

    Raises:
        PretrainedError: the folder has no weights or only pickled ones; a file is damaged or missing.
    """

    def __init__(self, folder: Path) -> None:
        self._opened: dict[Path, TensorFile] = {}
        self.listing = folder / WEIGHTS_FILE
        if not self.listing.exists() and (folder / INDEX_FILE).exists():
            self.listing = folder / INDEX_FILE
            weight_map = read_json(self.listing).get("weight_map")
            if not isinstance(weight_map, dict):
                raise PretrainedError(
                    f"{self.listing} has no weight_map, which maps tensors to files; download it again"
                )
            for name, file in weight_map.items():
                shown = brief(name, quoted=False)
                if Path(str(file)).name != file:
                    raise PretrainedError(
                        f"{self.listing}: {shown} is said to be in {brief(file)}; all shards must lie "
                        "in the folder itself"
                    )
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
        """Return the path of the file that holds a tensor."""
        return self._files[name]

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor; only the header of its file is read."""
        return self._file_with(name).shape(name)

    def __getitem__(self, name: str) -> Array:
        return self._file_with(name)[name]

    def _file_with(self, name: str) -> TensorFile:
        file = self._open(self._files[name])
        if name not in file:
            raise PretrainedError(
                f"{file.path}: the tensor {brief(name, quoted=False)} is missing, but {INDEX_FILE} says it is there"
            )
        return file

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def shards_of(folder: Path) -> list[Path]:
    """Return the index of a folder's shards and the shards that it names; an empty list without an index.

    The index comes first in the list. So a caller that removes the files in this order never leaves an index that names
    a missing file. Files outside the folder are left out.
    """
    index = folder / INDEX_FILE
    if not index.exists():
        return []
    try:
        weight_map = read_json(index).get("weight_map")
    except PretrainedError:  # a damaged index: remove it, and no shards
        weight_map = None
    named = {str(file) for file in weight_map.values()} if isinstance(weight_map, dict) else set()
    in_folder = {file for file in named if Path(file).name == file and file.endswith(".safetensors")}
    return [index, *(folder / file for file in sorted(in_folder - {WEIGHTS_FILE}))]


_OTHER_FORMATS = ("*.h5", "*.msgpack", "*.ckpt.index", "*.safetensors", "*.onnx", "*.gguf")
_CLASS = re.compile(r"Bert(For\w+|Model)")


def _no_weights(folder: Path) -> str:
    """Return the error message for a folder without safetensors: what is there instead, and how to convert it."""
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if not pickles:
        others = sorted(path.name for pattern in _OTHER_FORMATS for path in folder.glob(pattern))
        found = f"; Mini-BERT does not read {', '.join(others)}" if others else ""
        return f"{folder} is not a checkpoint folder: it has no {WEIGHTS_FILE}{found}"
    # convert with the class that was saved: `AutoModel` would drop the heads
    named = read_json(folder / "config.json").get("architectures") or ["AutoModel"]
    cls = str(named[0]) if isinstance(named, list) and _CLASS.fullmatch(str(named[0])) else "AutoModel"
    target = f"{folder}-safetensors"
    return (
        f"{folder} has its weights only as a pickle ({', '.join(pickles)}). Loading a pickle can run any code, so "
        "Mini-BERT does not load it. If you trust it, convert it where transformers and PyTorch are installed: "
        f'python -c "import transformers as t; t.{cls}.from_pretrained({str(folder)!r}).save_pretrained({target!r}); '
        f't.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({target!r})"'
    )
