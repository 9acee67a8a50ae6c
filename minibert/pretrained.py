"""Hugging Face checkpoints in and out: `config.json` and `model.safetensors` of a BERT.

Read are the files that `transformers` and its users have written over the years: with or without the `bert.`
prefix, with `gamma` and `beta` of old checkpoints, in one file or in shards, in float16 or bfloat16, with any
of the heads missing. Written is what `BertForPreTraining.from_pretrained` loads. What cannot be computed
exactly is refused by name; pickles are refused altogether.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from backends import Array, get_backend
from minibert.config import MiniBERTConfig
from minibert.files import write_tensors, write_text
from minibert.model import MiniBERT
from minibert.parameters import Layout, initialise

CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE = "config.json", "model.safetensors", "model.safetensors.index.json"

_ROOTS = {  # the first words of a name: ours -> theirs
    "token_embeddings": "bert.embeddings.word_embeddings.weight",
    "position_embeddings": "bert.embeddings.position_embeddings.weight",
    "token_type_embeddings": "bert.embeddings.token_type_embeddings.weight",
    "embeddings.layer_norm": "bert.embeddings.LayerNorm",
    "mlm.dense": "cls.predictions.transform.dense",
    "mlm.layer_norm": "cls.predictions.transform.LayerNorm",
    "mlm.bias": "cls.predictions.bias",
    "pooler": "bert.pooler.dense",
    "next_sentence": "cls.seq_relationship",
}
_IN_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.layer_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output.layer_norm": "output.LayerNorm",
}
_HEADS = {"mlm": "masked-language-model head", "pooler": "pooler", "next_sentence": "next-sentence head"}
_BUFFERS = re.compile(r"(^|\.)(position_ids|token_type_ids)$")  # constants that old versions stored as well
_DECODER_WEIGHT, _DECODER_BIAS = "cls.predictions.decoder.weight", "cls.predictions.decoder.bias"


class PretrainedError(ValueError):
    """A folder that is no BERT checkpoint, a damaged one, or one that cannot be computed exactly."""


class PretrainedWarning(UserWarning):
    """Something in a checkpoint was left alone, or something was missing and drawn afresh."""


def hugging_face_name(name: str) -> str:
    """What Hugging Face's `BertForPreTraining` calls a parameter: `mlm.bias` -> `cls.predictions.bias`."""
    if name in _ROOTS:
        return _ROOTS[name]
    root, kind = name.rsplit(".", 1)
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", root):
        return f"bert.encoder.layer.{match[1]}.{_IN_LAYER[match[2]]}.{kind}"
    return f"{_ROOTS[root]}.{kind}"


def _canonical_name(stored: str) -> str:
    """The current name of a tensor that an older or bare checkpoint calls otherwise."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", stored)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    if re.match(r"(embeddings|encoder|pooler)\.", name):
        name = f"bert.{name}"
    return name


# --- reading -------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        PretrainedError: the file is missing, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PretrainedError(f"{path.parent} is no checkpoint folder: it has no {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PretrainedError(f"{path} is not valid JSON ({error}); fetch or write it again") from error
    if not isinstance(content, dict):
        raise PretrainedError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def read_config(folder: Path) -> MiniBERTConfig:
    """The model's sizes, from `config.json`.

    Raises:
        PretrainedError: no BERT, or one that Mini-BERT does not compute exactly.
    """
    path = folder / CONFIG_FILE
    fields = read_json(path)
    if fields.get("model_type", "bert") != "bert":
        raise PretrainedError(f"{path}: model_type is {fields['model_type']!r}; Mini-BERT is BERT and nothing else")
    for name, only in (
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("add_cross_attention", False),
    ):
        if fields.get(name, only) != only:
            raise PretrainedError(f"{path}: {name} is {fields[name]!r}; Mini-BERT computes {only!r} only")
    missing = [name for name in ("vocab_size", "hidden_size", "num_hidden_layers") if name not in fields]
    if missing:
        raise PretrainedError(f"{path}: {', '.join(missing)} is missing; this is no BERT's config")
    try:
        return MiniBERTConfig.from_dict({**_HUGGING_FACE_DEFAULTS, **fields})
    except (TypeError, ValueError) as error:
        raise PretrainedError(f"{path}: {error}") from error


_HUGGING_FACE_DEFAULTS = {"num_attention_heads": 12, "intermediate_size": 3072}  # where they differ from ours


def _weight_files(folder: Path) -> dict[str, Path]:
    """Stored tensor name -> the file that holds it."""
    if (folder / INDEX_FILE).exists():
        index = folder / INDEX_FILE
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise PretrainedError(f"{index} has no weight_map")
        return {name: folder / file for name, file in weight_map.items()}
    if not (folder / WEIGHTS_FILE).exists():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        if pickles:
            raise PretrainedError(
                f"{folder} has its weights only as a pickle ({', '.join(pickles)}). Loading a pickle can run any "
                "code, so Mini-BERT does not. Convert it where you trust it, with transformers: "
                f"AutoModel.from_pretrained({str(folder)!r}).save_pretrained(..., safe_serialization=True)"
            )
        raise PretrainedError(f"{folder} is no checkpoint folder: it has no {WEIGHTS_FILE}")
    return dict.fromkeys(_read_names(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise PretrainedError(f"{path} is missing, but {INDEX_FILE} names it; fetch it again") from None
    except SafetensorError as error:
        raise PretrainedError(f"{path} is damaged or not safetensors ({error}); fetch it again") from error


def _read_names(path: Path) -> Iterable[str]:
    with _open(path) as file:
        return list(file.keys())


def _read_tensor(file: Any, path: Path, name: str) -> Array:
    """A tensor on the host; bfloat16, which NumPy lacks, as float32."""
    xp = get_backend("cpu").xp
    part = file.get_slice(name)
    if part.get_dtype() != "BF16":
        return file.get_tensor(name)
    return _read_bfloat16(xp, path, name, part.get_shape())


def _read_bfloat16(xp: Any, path: Path, name: str, shape: list[int]) -> Array:
    """The bits of a bfloat16 are the upper half of a float32's."""
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        begin, _ = json.loads(file.read(header_size))[name]["data_offsets"]
        file.seek(8 + header_size + begin)
        halves = xp.frombuffer(file.read(2 * math.prod(shape)), dtype="<u2")
    return xp.reshape((xp.astype(halves, xp.uint32) << 16).view(xp.float32), tuple(shape))


def from_pretrained(
    folder: str | os.PathLike[str], *, device: str = "cpu", dtype: str = "float32", kernels: str = "auto"
) -> MiniBERT:
    """A model from a folder in Hugging Face's format.

    Args:
        folder: with `config.json` and `model.safetensors` (or its shards and their index).
        device: "cpu", "cuda" or "cuda:N".
        dtype: "float32" or "float64"; the stored weights are converted.
        kernels: see `MiniBERT`.

    Raises:
        PretrainedError: the folder is no BERT, is damaged, or contradicts itself; names file and tensor.

    Warns:
        PretrainedWarning: heads that the folder lacks are drawn afresh; tensors that BERT lacks are left alone.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise PretrainedError(f"{folder} is not a folder")
    config = read_config(folder)
    files = _weight_files(folder)
    stored = {_canonical_name(name): name for name in files}
    layout = Layout.of(config)
    names = {name: hugging_face_name(name) for name in layout.shapes}
    if names["mlm.bias"] not in stored and _DECODER_BIAS in stored:
        names["mlm.bias"] = _DECODER_BIAS
    missing = {name for name, theirs in names.items() if theirs not in stored}
    absent_heads = _absent_heads(layout.shapes, missing)
    if broken := sorted(name for name in missing if _head_of(name) not in absent_heads):
        raise PretrainedError(f"{folder}: the tensor {names[broken[0]]} is missing ({len(broken)} in all)")

    model = MiniBERT(config, backend=device, dtype=dtype, kernels=kernels, initialised=False)
    if absent_heads:
        initialise(model.parameters, config, model.backend, model.seed)
    with _OpenFiles() as opened:
        for name in layout.shapes:
            if name in missing:
                continue
            path = files[stored[names[name]]]
            tensor = _read_tensor(opened[path], path, stored[names[name]])
            if tensor.shape != layout.shapes[name]:
                raise PretrainedError(
                    f"{path}: the tensor {stored[names[name]]} has the shape {tensor.shape}, but {CONFIG_FILE} "
                    f"asks for {layout.shapes[name]}"
                )
            model.parameters[name][...] = model.backend.asarray(tensor, dtype=model.dtype)
        if _DECODER_WEIGHT in stored:
            path = files[stored[_DECODER_WEIGHT]]
            _check_tied(model, path, _read_tensor(opened[path], path, stored[_DECODER_WEIGHT]))

    known = {*names.values(), _DECODER_WEIGHT, _DECODER_BIAS}
    unknown = sorted(name for canonical, name in stored.items() if canonical not in known and not _BUFFERS.search(name))
    _report(folder, absent_heads, unknown)
    model.absent_heads = absent_heads
    return model


class _OpenFiles(dict[Path, Any]):
    """Opens each weight file when its first tensor is read, and closes all of them together."""

    def __enter__(self) -> _OpenFiles:
        return self

    def __missing__(self, path: Path) -> Any:
        self[path] = _open(path).__enter__()
        return self[path]

    def __exit__(self, *exception: object) -> None:
        for file in self.values():
            file.__exit__(*exception)


def _head_of(name: str) -> str:
    return name.split(".")[0]


def _absent_heads(names: Iterable[str], missing: set[str]) -> tuple[str, ...]:
    """The heads of which no parameter is stored; a head that is there in part is damage instead."""
    return tuple(head for head in _HEADS if all(name in missing for name in names if _head_of(name) == head))


def _check_tied(model: MiniBERT, path: Path, decoder: Array) -> None:
    xp = get_backend("cpu").xp
    embeddings = model.backend.to_numpy(model.parameters["token_embeddings"])
    if decoder.shape != embeddings.shape or not bool(xp.all(xp.astype(decoder, embeddings.dtype) == embeddings)):
        raise PretrainedError(
            f"{path}: {_DECODER_WEIGHT} differs from the token embeddings; in BERT the two are one matrix, and "
            "Mini-BERT has no place for a second"
        )


def _report(folder: Path, absent_heads: tuple[str, ...], unknown: list[str]) -> None:
    if absent_heads:
        heads = " and ".join(_HEADS[head] for head in absent_heads)
        warnings.warn(f"{folder} has no {heads}: drawn at random", PretrainedWarning, stacklevel=4)
    if unknown:
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        warnings.warn(f"{folder}: left alone, unknown to BERT: {shown}", PretrainedWarning, stacklevel=4)


# --- writing -------------------------------------------------------------------------------------------------


def save_pretrained(model: MiniBERT, folder: str | os.PathLike[str]) -> None:
    """Write `config.json` and `model.safetensors` as `BertForPreTraining` reads them; creates the folder.

    Each file is written beside its place and renamed into it, so a crash leaves the old one whole. The
    tokenizer's files are saved by `minibert.data.Tokenizer.save`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = "float64" if model.dtype == model.backend.xp.float64 else "float32"
    fields = {
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        **model.config.to_dict(),
        "position_embedding_type": "absolute",
        "torch_dtype": dtype,
        "use_cache": True,
    }
    write_text(folder / CONFIG_FILE, json.dumps(fields, indent=2) + "\n")
    host = {hugging_face_name(name): model.backend.to_numpy(view) for name, view in model.parameters.items()}
    write_tensors(folder / WEIGHTS_FILE, host, {"format": "pt"})
