"""Checkpoint folders in Hugging Face's format: written, read back bit for bit, and refused when damaged."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minibert import MiniBERT, MiniBERTGradients
from minibert.errors import PretrainedError
from minibert.huggingface.pretrained import PretrainedWarning, hugging_face_name
from minibert.parameters import CLASSIFICATION_HEADS, Layout
from tests.support.small_bert import CONFIG, INPUT_IDS, small_bert


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_bert(dtype="float32").save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def rewrite(folder: Path, change) -> None:
    """Change the tensors of a folder: `change` gets and returns name -> array."""
    path = folder / "model.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in change(load_file(path)).items()}, path)


def rewrite_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same_parameters(one: MiniBERT, other: MiniBERT) -> bool:
    return bool((one.parameters.flat == other.parameters.flat).all())


def test_a_model_comes_back_bit_for_bit(folder: Path):
    back = MiniBERT.from_pretrained(folder)
    assert back.config == CONFIG
    assert back.absent_heads == ()
    assert same_parameters(back, small_bert(dtype="float32"))


def test_the_names_are_those_of_bert_for_pretraining(folder: Path):
    names = set(load_file(folder / "model.safetensors"))
    assert names == {hugging_face_name(name) for name in Layout.of(CONFIG).shapes}
    assert {
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.LayerNorm.bias",
        "bert.encoder.layer.1.attention.self.key.weight",
        "bert.encoder.layer.0.attention.output.dense.bias",
        "bert.encoder.layer.0.attention.output.LayerNorm.weight",
        "bert.encoder.layer.0.intermediate.dense.weight",
        "bert.encoder.layer.1.output.LayerNorm.weight",
        "bert.pooler.dense.weight",
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.seq_relationship.bias",
    } <= names
    assert not names & {"cls.predictions.decoder.weight"}  # tied: stored once


def test_old_names_a_stored_decoder_and_buffers_are_understood(folder: Path):
    def older(tensors):
        renamed = {
            re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", name)): value
            for name, value in tensors.items()
        }
        renamed["cls.predictions.decoder.bias"] = renamed.pop("cls.predictions.bias")
        renamed["cls.predictions.decoder.weight"] = renamed["bert.embeddings.word_embeddings.weight"]
        renamed["bert.embeddings.position_ids"] = np.arange(9)[None, :]
        return renamed

    rewrite(folder, older)
    with pytest.warns(
        PretrainedWarning, match=r"ignored constants that BERT computes: bert\.embeddings\.position_ids"
    ) as warned:
        model = MiniBERT.from_pretrained(folder)
    assert len(warned) == 1
    assert same_parameters(model, small_bert(dtype="float32"))


def test_a_bare_encoder_is_read_without_its_prefix_and_its_heads_are_drawn(folder: Path):
    rewrite(
        folder,
        lambda tensors: {name.removeprefix("bert."): v for name, v in tensors.items() if name.startswith("bert.")},
    )
    with pytest.warns(
        PretrainedWarning, match="no masked-language-model head and no next-sentence head: .* drawn at random"
    ) as warned:
        model = MiniBERT.from_pretrained(folder)
    assert model.absent_heads == ("mlm", "next_sentence")
    assert warned[0].filename == __file__  # the line that asked for the model
    expected = small_bert(dtype="float32").forward(INPUT_IDS)[1]
    np.testing.assert_array_equal(model.forward(INPUT_IDS)[1].pooled_output, expected.pooled_output)


def test_unknown_tensors_are_ignored_and_reported_once(folder: Path):
    rewrite(folder, lambda tensors: {**tensors, "qa_outputs.weight": np.ones((2, 12), np.float32)})
    with pytest.warns(
        PretrainedWarning, match=r"ignored tensors that BERT does not have: qa_outputs\.weight"
    ) as warned:
        model = MiniBERT.from_pretrained(folder)
    assert len(warned) == 1
    assert same_parameters(model, small_bert(dtype="float32"))


def test_shards_are_put_together(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        shard = f"model-0000{number + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same_parameters(MiniBERT.from_pretrained(folder), small_bert(dtype="float32"))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weight_map, "../elsewhere.safetensors")}))
    with pytest.raises(PretrainedError, match="shards must lie in the folder"):
        MiniBERT.from_pretrained(folder)
    index.write_text(json.dumps({"weight_map": weight_map}))
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(PretrainedError, match=r"model-00002-of-00002\.safetensors is missing"):
        MiniBERT.from_pretrained(folder)


def test_float16_weights_are_converted(folder: Path):
    rewrite(folder, lambda tensors: {name: value.astype(np.float16) for name, value in tensors.items()})
    expected = small_bert(dtype="float32").parameters.flat.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(MiniBERT.from_pretrained(folder).parameters.flat, expected)


def test_bfloat16_weights_are_converted(folder: Path):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    header, data = {}, b""
    for name, value in tensors.items():
        halves = (np.ascontiguousarray(value).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(halves)],
        }
        data += halves
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    flat = small_bert(dtype="float32").parameters.flat
    expected = (flat.view(np.uint32) >> 16 << 16).view(np.float32)
    np.testing.assert_array_equal(MiniBERT.from_pretrained(folder).parameters.flat, expected)


def test_saving_again_replaces_the_files_and_leaves_nothing_else(folder: Path):
    model = MiniBERT.from_pretrained(folder)
    model.parameters.flat[...] = 1.0
    model.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (MiniBERT.from_pretrained(folder).parameters.flat == 1.0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"hidden_act": "swish"}, "hidden_act must be one of"),
        ({"num_attention_heads": 5}, r"hidden_size \(12\) must be divisible"),
        ({"vocab_size": 24}, r"word_embeddings.weight has the shape \(23, 12\), but config.json asks for \(24, 12\)"),
        (
            {"num_hidden_layers": 1},
            r"the tensor bert\.encoder\.layer\.1\.\S+ belongs to layer 1, .*num_hidden_layers = 1",
        ),
        ({"num_hidden_layers": True}, "num_hidden_layers must be an integer"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps must be a number"),
        ({"architectures": 5}, "architectures must be a list of names, not 5"),
        ({"num_hidden_layers": 3}, r"the tensor bert\.encoder\.layer\.2\.\S+ is missing, like all of its layer"),
        ({"vocab_size": "many"}, "vocab_size"),
    ],
)
def test_a_config_that_is_no_bert_or_contradicts_the_weights_is_named(changes, message, folder: Path):
    rewrite_config(folder, **changes)
    with pytest.raises(PretrainedError, match=message):
        MiniBERT.from_pretrained(folder)


def test_a_missing_tensor_is_named(folder: Path):
    name = "bert.encoder.layer.0.output.dense.weight"
    rewrite(folder, lambda tensors: {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(PretrainedError, match=f"the tensor {re.escape(name)} is missing"):
        MiniBERT.from_pretrained(folder)


def test_an_untied_decoder_is_refused(folder: Path):
    other = np.ones((23, 12), np.float32)
    rewrite(folder, lambda tensors: {**tensors, "cls.predictions.decoder.weight": other})
    with pytest.raises(
        PretrainedError, match=r"decoder\.weight differs from bert\.embeddings\.word_embeddings\.weight"
    ):
        MiniBERT.from_pretrained(folder)


def test_two_biases_of_the_decoder_must_be_one(folder: Path):
    def twice(other):
        return lambda tensors: {**tensors, "cls.predictions.decoder.bias": tensors["cls.predictions.bias"] + other}

    rewrite(folder, twice(0.0))
    assert same_parameters(MiniBERT.from_pretrained(folder), small_bert(dtype="float32"))
    rewrite(folder, twice(1.0))
    with pytest.raises(PretrainedError, match=r"decoder\.bias differs from cls\.predictions\.bias"):
        MiniBERT.from_pretrained(folder)


def test_two_names_of_one_parameter_must_hold_the_same(folder: Path):
    name = "bert.embeddings.LayerNorm.weight"

    def twice(other):
        return lambda tensors: {**tensors, "embeddings.LayerNorm.gamma": tensors[name] + other}

    rewrite(folder, twice(0.0))
    assert same_parameters(MiniBERT.from_pretrained(folder), small_bert(dtype="float32"))
    rewrite(folder, twice(1.0))
    with pytest.raises(PretrainedError, match="are two names of one parameter, but their values differ"):
        MiniBERT.from_pretrained(folder)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named_with_their_tensor(folder: Path, wrong: float):
    def spoil(tensors):
        tensors["bert.encoder.layer.1.output.dense.bias"][3] = wrong
        return tensors

    rewrite(folder, spoil)
    with pytest.raises(PretrainedError, match=r"the tensor bert\.encoder\.layer\.1\.output\.dense\.bias has numbers"):
        MiniBERT.from_pretrained(folder)


def test_null_is_the_default_and_other_names_of_an_activation_are_known(folder: Path):
    rewrite_config(
        folder, pad_token_id=None, position_embedding_type=None, is_decoder=None, hidden_act="gelu_pytorch_tanh"
    )
    config = MiniBERT.from_pretrained(folder).config
    assert (config.pad_token_id, config.hidden_act) == (0, "gelu_new")


def test_a_truncated_file_is_named(folder: Path):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PretrainedError, match=r"model\.safetensors is damaged"):
        MiniBERT.from_pretrained(folder)


def test_pickles_are_refused_with_the_way_to_convert_them(folder: Path):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PretrainedError, match=r"only as a pickle .*\bBertForPreTraining\.from_pretrained"):
        MiniBERT.from_pretrained(folder)
    (folder / "pytorch_model.bin").rename(folder / "training_args.bin")
    (folder / "tf_model.h5").write_bytes(b"")
    with pytest.raises(PretrainedError, match=r"has no model\.safetensors; Mini-BERT does not read tf_model\.h5"):
        MiniBERT.from_pretrained(folder)


def test_folders_that_are_no_checkpoint_are_named(tmp_path: Path):
    with pytest.raises(PretrainedError, match="absent is not a folder"):
        MiniBERT.from_pretrained(tmp_path / "absent")
    with pytest.raises(PretrainedError, match=r"it has no config\.json"):
        MiniBERT.from_pretrained(tmp_path)
    for damaged in ("{", "[" * 100_000, "9" * 5000):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(PretrainedError, match="not valid JSON"):
            MiniBERT.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_named(name: str, folder: Path):
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(PretrainedError, match=rf"{re.escape(name)} cannot be read"):
        MiniBERT.from_pretrained(folder)


# --- classifiers, and heads that are asked for -------------------------------------------------------------------


@pytest.fixture
def classifier_folder(tmp_path: Path) -> Path:
    model = MiniBERT(replace(CONFIG, labels=("ham", "spam", "eggs")), heads=CLASSIFICATION_HEADS, seed=4)
    model.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_a_classifier_comes_back_with_its_labels_bit_for_bit(classifier_folder: Path):
    fields = json.loads((classifier_folder / "config.json").read_text())
    assert fields["architectures"] == ["BertForSequenceClassification"]
    assert fields["id2label"] == {"0": "ham", "1": "spam", "2": "eggs"}
    assert fields["label2id"] == {"ham": 0, "spam": 1, "eggs": 2}
    assert "labels" not in fields
    names = set(load_file(classifier_folder / "model.safetensors"))
    assert {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight"} <= names
    assert not {name for name in names if name.startswith("cls.")}
    back = MiniBERT.from_pretrained(classifier_folder)
    assert back.heads == CLASSIFICATION_HEADS
    assert back.config.labels == ("ham", "spam", "eggs")
    assert same_parameters(back, MiniBERT(back.config, heads=CLASSIFICATION_HEADS, seed=4))


def test_classes_without_names_are_called_as_hugging_face_calls_them(classifier_folder: Path):
    rewrite_config(classifier_folder, id2label=None, num_labels=3)
    assert MiniBERT.from_pretrained(classifier_folder).config.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    rewrite_config(classifier_folder, num_labels=2)
    with pytest.raises(PretrainedError, match=r"classifier\.weight has the shape \(3, 12\), but config\.json asks"):
        MiniBERT.from_pretrained(classifier_folder)
    rewrite_config(classifier_folder, id2label={"1": "a", "2": "b", "3": "c"})
    with pytest.raises(PretrainedError, match="id2label must number the classes 0, 1, 2"):
        MiniBERT.from_pretrained(classifier_folder)


def test_a_new_classifier_is_put_on_any_encoder_and_its_seed_decides_it(folder: Path):
    labels = ["no", "yes"]
    one, again, other = (
        MiniBERT.from_pretrained(folder, heads=CLASSIFICATION_HEADS, labels=labels, seed=seed) for seed in (1, 1, 2)
    )
    assert one.config.labels == ("no", "yes")
    assert one.absent_heads == ("classifier",)
    assert same_parameters(one, again)
    for name in one.parameters:
        same = (one.parameters[name] == other.parameters[name]).all()
        assert same == (name != "classifier.weight"), name
    trained = small_bert(dtype="float32").parameters
    np.testing.assert_array_equal(one.parameters["pooler.weight"], trained["pooler.weight"])


def test_a_stored_classifier_is_kept_for_its_own_labels_and_replaced_for_others(classifier_folder: Path):
    stored = MiniBERT.from_pretrained(classifier_folder)
    arguments = {"heads": CLASSIFICATION_HEADS, "seed": 4}
    same = MiniBERT.from_pretrained(classifier_folder, labels=["ham", "spam", "eggs"], **arguments)
    assert same.absent_heads == ()
    assert same_parameters(same, stored)
    new = MiniBERT.from_pretrained(classifier_folder, labels=["ham", "eggs"], **arguments)
    assert new.absent_heads == ("classifier",)
    assert new.parameters["classifier.weight"].shape == (2, 12)


def test_a_classifier_is_known_without_its_architecture_or_by_a_class_of_its_own(classifier_folder: Path):
    stored = MiniBERT.from_pretrained(classifier_folder)
    for architectures in (None, ["OurBertForSequenceClassification"]):
        rewrite_config(classifier_folder, architectures=architectures)
        assert same_parameters(MiniBERT.from_pretrained(classifier_folder), stored)


def test_the_problem_type_is_kept_and_only_single_labels_are_trained(classifier_folder: Path, tmp_path: Path):
    rewrite_config(classifier_folder, problem_type="multi_label_classification")
    model = MiniBERT.from_pretrained(classifier_folder)
    model.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["problem_type"] == "multi_label_classification"
    _, cache = model.classify(INPUT_IDS)
    with pytest.raises(ValueError, match="the loss needs one correct label out of several"):
        MiniBERTGradients(model).backward_classification(cache, [0] * len(INPUT_IDS))

    one = MiniBERT(replace(CONFIG, labels=("score",)), heads=CLASSIFICATION_HEADS, seed=4)
    one.save_pretrained(tmp_path / "regression")
    assert "problem_type" not in json.loads((tmp_path / "regression" / "config.json").read_text())
    relabelled = MiniBERT.from_pretrained(classifier_folder, heads=CLASSIFICATION_HEADS, labels=["a", "b"])
    assert relabelled.config.problem_type is None


def test_the_architecture_follows_from_the_heads(tmp_path: Path):
    expected = {
        ("mlm", "pooler", "next_sentence"): "BertForPreTraining",
        ("pooler", "next_sentence"): "BertForNextSentencePrediction",
        ("mlm",): "BertForMaskedLM",
        ("pooler",): "BertModel",
    }
    for heads, name in expected.items():
        MiniBERT(CONFIG, heads=heads).save_pretrained(tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text())["architectures"] == [name]


def test_heads_that_are_not_asked_for_are_neither_read_nor_missed(folder: Path, classifier_folder: Path):
    for each in (folder, classifier_folder):
        bare = MiniBERT.from_pretrained(each, heads=())
        assert bare.heads == bare.absent_heads == ()
    with pytest.raises(PretrainedError, match="a classifier needs the names of its classes"):
        MiniBERT.from_pretrained(folder, heads=CLASSIFICATION_HEADS)


def test_a_token_classifier_is_not_mistaken_for_a_classifier_of_sequences(classifier_folder: Path):
    rewrite_config(classifier_folder, architectures=["BertForTokenClassification"])
    with pytest.warns(PretrainedWarning) as warned:
        model = MiniBERT.from_pretrained(classifier_folder)
    assert [str(each.message).split(": ", 1)[1] for each in warned] == [
        "the missing parameters are drawn at random",
        "ignored tensors that BERT does not have: classifier.bias, classifier.weight",
    ]
    assert model.heads == ("mlm", "pooler", "next_sentence")


def test_a_head_that_is_there_in_part_is_damage(classifier_folder: Path):
    rewrite(classifier_folder, lambda tensors: {k: v for k, v in tensors.items() if k != "classifier.bias"})
    with pytest.raises(PretrainedError, match=r"model\.safetensors: the tensor classifier\.bias is missing"):
        MiniBERT.from_pretrained(classifier_folder)


def test_weights_that_are_not_floating_point_are_named(folder: Path):
    name = "bert.pooler.dense.bias"
    rewrite(folder, lambda tensors: {**tensors, name: np.ones(12, np.int8)})
    with pytest.raises(PretrainedError, match=rf"model\.safetensors: the tensor {re.escape(name)} is stored as I8"):
        MiniBERT.from_pretrained(folder)


def test_an_index_that_promises_what_its_shard_lacks_is_named(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    name = "bert.pooler.dense.bias"
    (folder / "model.safetensors").unlink()
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "a.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = rf"a\.safetensors: the tensor {re.escape(name)} is missing, but model\.safetensors\.index\.json says"
    with pytest.raises(PretrainedError, match=message):
        MiniBERT.from_pretrained(folder)
