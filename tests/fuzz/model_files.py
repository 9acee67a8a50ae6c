"""Cases of `config.json` and of the weights, and what is done with them."""

from __future__ import annotations

import json
import struct

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from minibert.inference.embedding import SentenceEmbedder
from minibert.inference.fill_mask import fill_mask
from minibert.inference.loading import load_model
from minibert.parameters import PRETRAINING_HEADS
from tests.fuzz.folders import changed_json, model_folder, whole, with_files
from tests.fuzz.strategies import ODD_FLOATS, RAW_JSON, as_json, changed_fields, damaged, texts, values


def use_model(files: dict[str, bytes | None]) -> None:
    """Load the model, predict a word, and embed a text; results must be finite."""
    with with_files(files) as folder:
        model, tokenizer = load_model(folder, kernels="reference", heads=PRETRAINING_HEADS)
        for candidates in fill_mask(model, tokenizer, "the [MASK] is old"):
            assert all(np.isfinite(each.probability) for each in candidates)
        assert np.isfinite(SentenceEmbedder(model, tokenizer).embed(["a cat", ""])).all()


CONFIG_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "labels",
    "max_position_embeddings", "type_vocab_size", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "layer_norm_eps", "hidden_act", "initializer_range", "pad_token_id", "classifier_dropout", "problem_type",
    "num_labels", "id2label", "architectures", "model_type", "is_decoder", "position_embedding_type",
)  # fmt: skip
_CLASSES = ({"0": "a", "1": "b"}, {"0": "a", "1": "a"}, {"9" * 5000: "a"})
_config_values = st.sampled_from([["BertForSequenceClassification"], *_CLASSES, "relu", "gelu_new", 18, 32])


def configs() -> st.SearchStrategy[dict[str, bytes | None]]:
    """A config.json with other fields, damaged bytes, or something else."""
    content = st.deferred(lambda: changed_json("config.json", changed_fields(CONFIG_FIELDS, _config_values)))
    return content.map(lambda data: {"config.json": data})


@st.composite
def tensor_files(draw: st.DrawFn) -> dict[str, bytes | None]:
    """A safetensors file with another header, other numbers or damaged bytes; or shards whose index is odd."""
    content = whole("model.safetensors")
    kind = draw(st.sampled_from(["header", "numbers", "bytes", "size", "index"]))
    if kind == "bytes":
        return {"model.safetensors": draw(damaged(content))}
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    name = draw(st.sampled_from(sorted(header)))
    if kind == "size":
        return {"model.safetensors": struct.pack("<Q", draw(st.integers(0, 2**64 - 1))) + content[8:]}
    if kind == "index":
        files = st.sampled_from(["kept.safetensors", "config.json", ".", "..", "", "a\0b", "vocab.txt"]) | values
        index = {"weight_map": {**dict.fromkeys(header, "kept.safetensors"), name: draw(files)}}
        written = draw(st.just(as_json(index)) | st.sampled_from(RAW_JSON) | values.map(as_json))
        return {"model.safetensors": None, "kept.safetensors": content, "model.safetensors.index.json": written}
    if kind == "numbers":
        tensors = {key: np.array(value) for key, value in load_file(model_folder() / "model.safetensors").items()}
        for _ in range(draw(st.integers(1, 4))):
            tensor = tensors[draw(st.sampled_from(sorted(tensors)))].reshape(-1)
            tensor[draw(st.integers(0, tensor.size - 1)) if draw(st.booleans()) else slice(None)] = draw(
                st.sampled_from([*ODD_FLOATS[:4], 3.4e38, -3.4e38, float("nan"), float("inf"), 0.0])
            )
        path = model_folder() / "changed"
        save_file(tensors, path)
        return {"model.safetensors": path.read_bytes()}
    entry = header.pop(name)
    if isinstance(entry, dict):
        entry.update(
            draw(changed_fields(("dtype", "shape", "data_offsets"), st.sampled_from(["F16", "BF16", "I64", [1]])))
        )
    digits = draw(st.sampled_from(["0", "7", "9" * 12, "9" * 5000, "\u0663", "-1"]))
    names = st.sampled_from(
        [name, f"bert.encoder.layer.{digits}.output.dense.bias", "classifier.weight", "LayerNorm.gamma"]
    )
    header[draw(names | texts)] = entry
    encoded = json.dumps(header).encode()
    return {"model.safetensors": struct.pack("<Q", len(encoded)) + encoded + data}
