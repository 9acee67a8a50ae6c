"""The output of a run: a model that learnt something, metrics, and nothing overwritten."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest

from minibert.commands.pictures import draw_loss_curve
from minibert.errors import CacheWarning, TrainingError
from minibert.inference.examples import fill_mask_examples
from minibert.inference.fill_mask import fill_mask
from minibert.inference.loading import load_model
from minibert.training.log import METRICS_FILE, RunLog, damaged_lines, read_history
from minibert.training.preparation import CACHE_FOLDER, prepare_data
from minibert.training.session import resume
from tests.support.small_run import display, losses, of_kind, run, small_settings, write_text


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "animals.txt")


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory, request):
    """A run that had time to learn: its folder and metrics."""
    output = tmp_path_factory.mktemp("trained") / "run"
    device = request.config.getoption("--device")
    history = run(
        corpus, output, steps=160, batch_size=32, evaluate_every=60, seed=1, initializer_range=0.1, device=device
    )
    return output, history


# --- the model ------------------------------------------------------------------------------------------------


def test_a_trained_model_knows_more_than_how_frequent_words_are(trained):
    _, history = trained
    first, *_, last = of_kind(history, "evaluation")
    assert last["loss"] < first["loss"]
    assert last["below_unigram"] > 1.0
    assert last["below_unigram"] == pytest.approx(last["unigram_loss"] - last["loss"])
    assert last["perplexity"] == pytest.approx(math.exp(last["loss"]))


def test_the_saved_model_fills_masks_with_what_it_learnt(trained):
    output, _ = trained
    model, tokenizer = load_model(output)
    (colours,) = fill_mask(model, tokenizer, "the [MASK] goose eats grains in the garden.", top=3)
    assert colours[0].token == "white"
    assert colours[0].probability >= colours[1].probability >= colours[2].probability > 0.0
    (places,) = fill_mask(model, tokenizer, "the red fox eats berries in the [MASK].", top=1)
    assert [place.token for place in places] == ["forest"]
    both = fill_mask(model, tokenizer, "the [MASK] fox eats berries in the [MASK].", top=2)
    assert [len(candidates) for candidates in both] == [2, 2]


def test_a_model_without_a_mask_to_fill_or_with_too_long_a_text_is_an_error(trained):
    model, tokenizer = load_model(trained[0])
    with pytest.raises(TrainingError, match=r"there is no \[MASK\] in the text"):
        fill_mask(model, tokenizer, "the red fox")
    with pytest.raises(TrainingError, match=r"the text has 603 tokens.*at most 512"):
        fill_mask(model, tokenizer, "[MASK] " + "fox " * 600)
    with pytest.raises(TrainingError, match="must be at least 1"):
        fill_mask(model, tokenizer, "[MASK]", top=0)


# --- what is written ------------------------------------------------------------------------------------------


def test_the_output_folder_holds_the_model_the_vocabulary_and_what_happened(trained):
    output, _ = trained
    names = {path.name for path in output.iterdir()}
    assert names >= {
        "config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json",
        "metrics.jsonl", "checkpoints",
    }  # fmt: skip


def test_metrics_are_json_lines_that_describe_the_run_and_every_report(trained):
    output, history = trained
    lines = [json.loads(line) for line in (output / METRICS_FILE).read_text().splitlines()]
    assert lines == history
    assert lines[0]["kind"] == "run"
    assert lines[0]["settings"]["steps"] == 160
    assert {"device", "model", "parameters", "tokenizer", "corpus", "training_tokens"} <= set(lines[0])
    kinds = Counter(line["kind"] for line in lines)
    assert kinds == {"run": 1, "train": 80, "evaluation": 3, "result": 1}
    report = of_kind(lines, "train")[-1]
    assert set(report) == {
        "kind", "step", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "elapsed", "memory",
    }  # fmt: skip
    assert report["step"] == 160


def test_nan_never_reaches_the_metrics(tmp_path):
    log = RunLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write("train", loss=math.nan)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_metrics_line_cut_short_by_a_crash_is_dropped_when_the_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "run"}\n{"kind": "train", "st')
    log = RunLog(path)
    log.write("train", step=2)
    log.close()
    assert path.read_text() == '{"kind": "run"}\n{"kind": "train", "step": 2}\n'


@pytest.mark.parametrize(
    "bad",
    [b"\x00\xff\xfe", b'{"kand": "train"}', b"[1]", b'{"kind": "train", "step": 4, "lors": 1.0}', b'{"kind": 1}', b"["],
    ids=["not text", "no kind", "no object", "no loss", "kind of a number", "cut short"],
)
def test_a_damaged_line_of_the_metrics_does_not_count_and_blocks_no_resume(corpus, tmp_path, bad):
    output = tmp_path / "run"
    whole = run(corpus, output, steps=4, stop_after=3)
    lines = (output / METRICS_FILE).read_bytes().splitlines()
    (output / METRICS_FILE).write_bytes(b"\n".join([lines[0], bad, *lines[1:]]) + b"\n")
    assert read_history(output / METRICS_FILE) == whole
    assert damaged_lines(output / METRICS_FILE) == [2]
    screen = display()
    with resume({}, output, screen) as resumed:
        resumed.train()
    assert "metrics.jsonl has damaged lines, which do not count: 2\n" in screen.console.file.getvalue()
    assert draw_loss_curve(read_history(output / METRICS_FILE), tmp_path / "curve.png")


def test_steps_done_twice_count_once_in_the_history(tmp_path):
    log = RunLog(tmp_path / "metrics.jsonl")
    for kind, step in (("run", None), ("train", 2), ("train", 4), ("resumed", 2), ("train", 3)):
        log.write(kind, loss=1.0, **({} if step is None else {"step": step}))
    log.close()
    history = read_history(tmp_path / "metrics.jsonl")
    assert [(entry["kind"], entry.get("step")) for entry in history] == [
        ("run", None), ("train", 2), ("resumed", 2), ("train", 3),
    ]  # fmt: skip


def test_an_output_folder_in_use_is_left_alone(corpus, trained, tmp_path):
    output, _ = trained
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    with pytest.raises(TrainingError, match=r"holds another run \(finished; other --steps, .*\).*--resume"):
        run(corpus, output)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="not an empty folder"):
        run(corpus, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_second_run_finds_vocabulary_and_tokens_of_the_first(corpus, tmp_path, monkeypatch):
    run(corpus, tmp_path / "first", steps=1)
    made = sorted(path.name for path in (tmp_path / CACHE_FOLDER).iterdir())
    assert [name.split("-")[0] for name in made] == [".content", "tokens", "vocabulary"]

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr("minibert.training.preparation.train_tokenizer", forbidden)
    monkeypatch.setattr("minibert.data.token_file._tokenize", forbidden)
    assert losses(run(corpus, tmp_path / "second", steps=1, seed=3))
    assert sorted(path.name for path in (tmp_path / CACHE_FOLDER).iterdir()) == made


@pytest.mark.parametrize("damage", ["empty", "missing", "one bit"])
def test_a_damaged_vocabulary_in_the_cache_is_made_again(corpus, tmp_path, damage):
    before = prepare_data(small_settings(corpus), tmp_path).tokenizer.fingerprint()
    (folder,) = tmp_path.glob("vocabulary-*")
    path = folder / "vocab.txt"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(b"" if damage == "empty" else content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.warns(CacheWarning, match=r"vocab\.txt is .*: the vocabulary is made again"):
        assert prepare_data(small_settings(corpus), tmp_path).tokenizer.fingerprint() == before
    prepare_data(small_settings(corpus), tmp_path)


def test_examples_hide_a_whole_word_of_held_out_sentences(trained, corpus):
    output, _ = trained
    model, tokenizer = load_model(output)
    data = prepare_data(small_settings(corpus), output.parent / CACHE_FOLDER, tokenizer)
    examples = fill_mask_examples(model, tokenizer, data.tokenized.evaluation, count=3, top=2)
    assert len(examples) == 3
    for example in examples:
        assert example.text.count("[MASK]") == 1
        assert example.answer.isalpha()
        assert len(example.candidates) == 2
