"""Sentence embeddings equal their definition, come in the order of the texts, and follow the folder's files."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minibert import MiniBERT
from minibert.commands.embed import main
from minibert.commands.input_lines import read_lines
from minibert.data.tokenizer import Tokenizer, build_wordpiece
from minibert.errors import InferenceError
from minibert.inference.embedding import EmbeddingWarning, SentenceEmbedder
from minibert.inference.pooling import SentencePooling
from tests.support.small_bert import CONFIG

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "ran", "on", "mat", "a", "##s"]
TEXTS = ["the cat sat on the mat", "dog", "", "a dog ran", "the cats ran", "dog"]
SCRIPT = Path(__file__).parents[2] / "scripts" / "embed.py"


def save(folder: Path, **modules: dict | None) -> Path:
    """Write a folder of sentence-transformers; `modules` maps the last word of a step's type to its file's content."""
    config = replace(CONFIG, vocab_size=len(WORDS), max_position_embeddings=8)
    MiniBERT(config, heads=("pooler",), seed=3).save_pretrained(folder)
    Tokenizer(build_wordpiece({word: id_ for id_, word in enumerate(WORDS)})).save(folder, 8)
    steps = []
    for number, (kind, content) in enumerate(modules.items()):
        path = "" if kind == "Transformer" else f"{number}_{kind}"
        steps.append({"idx": number, "path": path, "type": f"sentence_transformers.models.{kind}"})
        if content is not None:
            (folder / path).mkdir(exist_ok=True)
            name = "sentence_bert_config.json" if kind == "Transformer" else "config.json"
            (folder / path / name).write_text(json.dumps(content))
    if modules:
        (folder / "modules.json").write_text(json.dumps(steps))
    return folder


MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "word_embedding_dimension": 12}
CLS = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "model", Transformer={"max_seq_length": 7}, Pooling=MEAN, Normalize=None)


def one_by_one(folder: Path, pooling: str, normalize: bool, longest: int = 8) -> np.ndarray:
    """Compute the vectors by their definition: every text alone, without padding, from the hidden states."""
    model, tokenizer = MiniBERT.from_pretrained(folder, heads=()), Tokenizer.load(folder)
    vectors = []
    for text in TEXTS:
        ids = [tokenizer.cls_id, *tokenizer.encode(text)[: longest - 2], tokenizer.sep_id]
        hidden = model.encode([ids])[0]
        vector = hidden.mean(axis=0) if pooling == "mean" else hidden[0]
        vectors.append(vector / np.linalg.norm(vector) if normalize else vector)
    return np.stack(vectors)


@pytest.mark.parametrize(
    ("batch_tokens", "batches"),
    [
        (7, [(1, 4), (1, 4), (1, 4), (1, 4), (1, 3)]),
        (8, [(2, 4), (2, 4), (1, 3)]),  # two texts of 4 tokens fill a batch exactly
        (11, [(2, 4), (2, 4), (1, 3)]),
        (12, [(3, 4), (2, 4)]),
        (19, [(4, 4), (1, 3)]),
        (20, [(5, 4)]),
    ],
)
def test_a_batch_holds_as_many_tokens_as_are_allowed_and_no_more(folder, batch_tokens, batches, monkeypatch):
    embedder = SentenceEmbedder.load(folder, batch_tokens=batch_tokens)
    shapes, encode = [], embedder.model.encode

    def noted(ids: np.ndarray, *arguments: object, **named: object) -> np.ndarray:
        shapes.append(np.shape(ids))
        return encode(ids, *arguments, **named)

    monkeypatch.setattr(embedder.model, "encode", noted)
    embedder.embed(["the", "the cat", "a dog", "dog ran", "the mat"])  # 3 or 4 tokens, with [CLS] and [SEP]
    assert shapes == batches


@pytest.mark.parametrize("batch_tokens", [1, 12, 1000])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [False, True])
def test_every_text_gets_its_own_vector_however_it_is_batched(folder, pooling, normalize, batch_tokens):
    embedder = SentenceEmbedder.load(folder, pooling=pooling, normalize=normalize, batch_tokens=batch_tokens)
    with pytest.warns(EmbeddingWarning, match="1 of 6 texts have more than 7 tokens"):
        vectors = embedder.embed(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, one_by_one(folder, pooling, normalize, 7), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(vectors[1], vectors[5], rtol=1e-6, atol=1e-7)  # the same text


@pytest.mark.filterwarnings("ignore::minibert.model.PrecisionWarning")  # where there are no instructions
@pytest.mark.filterwarnings("ignore::minibert.inference.embedding.EmbeddingWarning")  # one text is cut
def test_vectors_in_other_precisions_are_near_to_those_in_float32(folder, tmp_path, capsys):
    found = {}
    for precision in ("float32", "bfloat16", "int8"):
        output = tmp_path / f"{precision}.npy"
        (tmp_path / "lines.txt").write_text("\n".join(filter(None, TEXTS)))
        words = [str(tmp_path / "lines.txt"), "--model", str(folder), "--precision", precision, "--output", str(output)]
        assert main(words) == 0
        found[precision] = np.load(output)
        np.testing.assert_allclose(np.linalg.norm(found[precision], axis=1), 1.0, rtol=1e-5)
    for precision, least in (("bfloat16", 0.9995), ("int8", 0.995)):
        assert not np.array_equal(found[precision], found["float32"])
        assert (found[precision] * found["float32"]).sum(axis=1).min() > least


def test_padding_is_neither_computed_nor_batched_with_long_texts(folder, monkeypatch):
    embedder = SentenceEmbedder.load(folder, batch_tokens=12)
    rows: list[int] = []
    linear = embedder.model.kernels.linear_forward
    monkeypatch.setattr(
        embedder.model.kernels,
        "linear_forward",
        lambda x, *rest: (rows.append(x.shape[0]), linear(x, *rest))[1],
    )
    with pytest.warns(EmbeddingWarning):
        embedder.embed(TEXTS)
    real = 7 + 3 + 2 + 5 + 6 + 3  # tokens of the texts, [CLS] and [SEP] included
    assert sum(rows) == real * CONFIG.num_hidden_layers * 4  # four linear layers in each


def test_the_folders_own_files_say_how(tmp_path):
    assert SentencePooling.read(save(tmp_path / "plain")) == SentencePooling("mean", False, None, False)
    both = save(tmp_path / "st", Transformer={"max_seq_length": 5, "do_lower_case": True}, Pooling=CLS, Normalize=None)
    assert SentencePooling.read(both) == SentencePooling("cls", True, 5, True)
    assert SentencePooling.read(save(tmp_path / "new", Pooling={"pooling_mode": "cls"})).pooling == "cls"


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (
            {"Pooling": {"pooling_mode_max_tokens": True}},
            r"0_Pooling/config\.json asks for the pooling pooling_mode_max_tokens",
        ),
        (
            {"Pooling": {**MEAN, "pooling_mode_cls_token": True}},
            "pooling mean and cls; Mini-BERT computes exactly one of",
        ),
        ({"Pooling": {}}, "asks for the pooling none"),
        ({"Dense": {}}, r"modules\.json: Mini-BERT does not compute the step Dense"),
        ({"Transformer": {"max_seq_length": 2}}, "at least 3 tokens"),
        ({"Transformer": {"max_seq_length": "128"}}, r"sentence_bert_config\.json: max_seq_length must be a whole"),
        ({"Transformer": {"do_lower_case": 1}}, r"sentence_bert_config\.json: do_lower_case must be true or false"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(tmp_path, modules, message):
    with pytest.raises(InferenceError, match=message):
        SentenceEmbedder.load(save(tmp_path / "model", **modules))


def with_prompt(folder: Path, name: str = "q", **pooling: bool) -> Path:
    save(folder, Transformer=None, Pooling={**MEAN, **pooling})
    content = {"prompts": {"q": "a dog ", "none": ""}, "default_prompt_name": name}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(content))
    return folder


def test_the_prompt_of_the_folder_is_put_before_every_text(tmp_path):
    embedder = SentenceEmbedder.load(with_prompt(tmp_path / "model", include_prompt=True))
    assert embedder.pooling.prompt == "a dog "
    plain = SentenceEmbedder(embedder.model, embedder.tokenizer)
    np.testing.assert_array_equal(embedder.embed(["ran", "sat"]), plain.embed(["a dog ran", "a dog sat"]))


def test_a_prompt_that_cannot_be_computed_is_refused(tmp_path):
    with pytest.raises(InferenceError, match=r"leaves out the tokens of the prompt 'a dog ' \(include_prompt\)"):
        SentencePooling.read(with_prompt(tmp_path / "left out", include_prompt=False))
    with pytest.raises(InferenceError, match=r"default_prompt_name is 'p', but the prompts have no text of that name"):
        SentencePooling.read(with_prompt(tmp_path / "unknown", "p"))
    assert SentencePooling.read(with_prompt(tmp_path / "empty", "none", include_prompt=False)).prompt == ""


def test_the_tokenizers_files_say_how_much_is_read_where_no_others_do(tmp_path):
    folder = save(tmp_path / "model", Transformer={}, Pooling=MEAN)
    for length, read in ((6, 6), (10**30, 8), (100, 8)):
        Tokenizer.load(folder).save(folder, length)
        assert SentenceEmbedder.load(folder).max_length == read
    Tokenizer.load(folder).save(folder, 2)
    with pytest.raises(InferenceError, match="at least 3 tokens"):
        SentenceEmbedder.load(folder)


def test_vectors_that_are_not_finite_are_no_result(folder):
    embedder = SentenceEmbedder.load(folder)
    embedder.model.parameters["token_embeddings"][WORDS.index("cat")] = np.nan
    embedder.embed(["dog"])
    with pytest.raises(InferenceError, match="the vector of 'the cat' is not finite"):
        embedder.embed(["dog", "the cat"])


def test_damaged_descriptions_are_named(folder):
    (folder / "modules.json").write_text("{}")
    with pytest.raises(InferenceError, match=r"modules\.json must hold a list of steps"):
        SentencePooling.read(folder)
    (folder / "modules.json").write_text("[")
    with pytest.raises(InferenceError, match=r"modules\.json is not valid JSON"):
        SentencePooling.read(folder)


# --- the command -----------------------------------------------------------------------------------------------


reports_cut_texts = pytest.mark.filterwarnings("default::minibert.inference.embedding.EmbeddingWarning")


@reports_cut_texts
def test_a_file_becomes_an_array_in_the_order_of_its_lines(folder, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    output = tmp_path / "vectors.npy"
    assert main(["--model", str(folder), str(tmp_path / "texts.txt"), "--output", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "warning: 1 of 6 texts have more than 7 tokens; the tokens after that were not read\n"
    np.testing.assert_allclose(np.load(output), one_by_one(folder, "mean", True, 7), rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "texts.txt", "vectors.npy"]


def test_standard_input_becomes_json_lines_that_lose_nothing(folder, monkeypatch, capsys):
    texts = ['"dog"', "a dog\tran", "é"]
    stream = io.TextIOWrapper(io.BytesIO("\n".join(texts).encode()), encoding="ascii")
    monkeypatch.setattr(sys, "stdin", stream)
    assert main(["--model", str(folder), "--kernels", "reference"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == texts
    vectors = np.array([line["embedding"] for line in lines], dtype=np.float32)
    expected = SentenceEmbedder.load(folder, kernels="reference").embed(texts)
    np.testing.assert_array_equal(vectors, expected)


def test_a_pipe_gives_the_lines_that_the_file_gives(folder, tmp_path, monkeypatch, capsys):
    content = "\ufeffthe\rcat\ndog\r\n\n\x0ba\u2028dog\x85ran\nmat\r".encode()
    texts = ["the\rcat", "dog", "", "\x0ba\u2028dog\x85ran", "mat"]
    (tmp_path / "texts.txt").write_bytes(content)
    for source in (str(tmp_path / "texts.txt"), "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
        assert main(["--model", str(folder), source]) == 0
        assert [json.loads(line)["text"] for line in capsys.readouterr().out.split("\n")[:-1]] == texts


def test_a_byte_order_mark_alone_is_no_text(tmp_path):
    (tmp_path / "texts.txt").write_bytes(b"\xef\xbb\xbf")
    assert list(read_lines(str(tmp_path / "texts.txt"))) == []


def test_no_text_is_no_vector(folder, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    for name, read in (("none.npy", np.load), ("none.jsonl", lambda path: path.read_text())):
        assert main(["--model", str(folder), str(tmp_path / "empty.txt"), "--output", str(tmp_path / name)]) == 0
        assert len(read(tmp_path / name)) == 0


@reports_cut_texts
def test_many_texts_are_taken_chunk_by_chunk(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("minibert.commands.embed._CHUNK", 4)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    output = tmp_path / "vectors.npy"
    assert main(["--model", str(folder), str(tmp_path / "texts.txt"), "--output", str(output), "--pooling", "cls"]) == 0
    np.testing.assert_allclose(np.load(output), one_by_one(folder, "cls", True, 7), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "vectors.txt"], "write to a file that ends in .npy or .jsonl"),
        (["--batch-tokens", "0"], "--batch-tokens must be at least 1"),
        (["absent.txt"], "absent.txt: No such file"),
        (["--pooling", "max"], "--pooling must be one of mean, cls, not 'max'"),
        (["--text", "hi", "absent.txt"], "give texts by --text or the file absent.txt, not both"),
        (["--text", "a\udcff"], "this is not Unicode text: 'a\\udcff'"),
        (["absent.txt", "--output", "no/where.npy"], "--output no/where.npy: there is no folder no"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, capsys, arguments, message):
    try:
        status = main(["--model", str(folder), *arguments])
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_an_output_that_is_a_folder_is_named_before_anything_is_read(folder, tmp_path, capsys):
    (tmp_path / "vectors.npy").mkdir()
    assert main(["--model", str(folder), "absent.txt", "--output", str(tmp_path / "vectors.npy")]) == 2
    assert "vectors.npy is a folder; write to a file" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_ends_it_quietly(folder):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(SCRIPT), "--model", str(folder), "--text", "dog"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_text_that_is_not_utf8_is_named_with_its_place(folder, tmp_path, capsys):
    (tmp_path / "texts.txt").write_bytes(b"dog\n\xff\n")
    assert main(["--model", str(folder), str(tmp_path / "texts.txt")]) == 2
    assert "texts.txt, line 2: this is not UTF-8" in capsys.readouterr().err


def test_a_sentence_is_embedded_without_importing_what_it_does_not_need(folder):
    heavy = {"scipy", "rich", "matplotlib", "numba", "array_api_strict", "torch", "mpi4py"}
    code = (
        "import sys; from minibert.commands.embed import main; "
        f"main(['--model', {str(folder)!r}, '--text', 'the cat']); "
        f"print(sorted({{name.split('.')[0] for name in sys.modules}} & {heavy!r}), "
        "'minibert.data.corpus' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] False"


def test_the_script_runs_from_anywhere(folder, tmp_path):
    command = [sys.executable, "-W", "error", str(SCRIPT), "--model", str(folder), "--text", "dog", "--text", "cat"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["dog", "cat"]
