"""Fine-tuning: labelled texts are read and split; a classifier is trained, saved, loaded and used."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minibert import AdamW, MiniBERT
from minibert.commands import classify as classify_command
from minibert.commands import embed as embed_command
from minibert.commands import finetune as finetune_command
from minibert.commands.confusion_matrix import confusion_table
from minibert.data.tokenizer import Tokenizer
from minibert.errors import TrainingError
from minibert.finetuning.finetune import FineTuning, finetune
from minibert.finetuning.labelled_texts import LabelledText, hold_out, labels_of, read_labelled_texts
from minibert.finetuning.scores import Scores
from minibert.finetuning.text_classifier import ClassificationWarning, TextClassifier
from minibert.parameters import CLASSIFICATION_HEADS
from tests.support.small_classifier import command, save_base, sentences, write_csv

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


# --- the command -----------------------------------------------------------------------------------------------


def test_a_classifier_is_trained_saved_and_used_again(base, tmp_path, capsys):
    output = tmp_path / "classifier"
    data = write_csv(tmp_path / "data.csv", sentences(120))
    assert (
        finetune_command.main(command(base, data, output, "--epochs", "12", "--patience", "5", "--max-length", "12"))
        == 0
    )
    text = capsys.readouterr().out
    assert "96 texts to train on, 24 to evaluate on, 2 classes" in text
    assert "true \\ predicted  animal  tool     F1" in text
    history = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [entry["kind"] for entry in history][-1] == "result"
    assert history[-1]["accuracy"] == 1.0
    assert history[-1]["macro_f1"] == 1.0
    assert history[-1]["confusion"] == [[16, 0], [0, 8]]
    assert (output / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "confusion_matrix.txt").read_text() in text

    # the classifier reads as many tokens as in training, and warns about longer texts
    assert json.loads((output / "tokenizer_config.json").read_text())["model_max_length"] == 12
    with pytest.warns(ClassificationWarning, match="1 of 2 texts have more than 12 tokens"):
        TextClassifier.load(output).encode(["the " * 10, "the " * 11])

    assert classify_command.main(["--model", str(output), "the old owl", "a saw"]) == 0
    predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["label"] for entry in predicted] == ["animal", "tool"]
    for entry in predicted:
        assert sum(entry["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
        assert max(entry["probabilities"], key=entry["probabilities"].get) == entry["label"]

    # it is a BERT like any other: it embeds texts, and another classifier can be trained from it
    assert embed_command.main(["--model", str(output), "--text", "the cat"]) == 0
    assert len(json.loads(capsys.readouterr().out)["embedding"]) == 32
    more = command(output, data, tmp_path / "again", "--epochs", "1")
    assert finetune_command.main(more) == 0


@pytest.mark.filterwarnings("ignore::minibert.model.PrecisionWarning")  # where there are no instructions
def test_a_classifier_may_be_trained_in_bfloat16_and_used_in_every_precision(base, tmp_path, capsys):
    data, output = write_csv(tmp_path / "data.csv", sentences(120)), tmp_path / "classifier"
    settings = ["--epochs", "12", "--patience", "5", "--precision", "bfloat16"]
    assert finetune_command.main(command(base, data, output, *settings)) == 0
    capsys.readouterr()
    probabilities = {}
    for precision in ("float32", "bfloat16", "int8"):
        assert classify_command.main(["--model", str(output), "--precision", precision, "the old owl", "a saw"]) == 0
        predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [entry["label"] for entry in predicted] == ["animal", "tool"]
        probabilities[precision] = [list(entry["probabilities"].values()) for entry in predicted]
    for precision in ("bfloat16", "int8"):
        assert probabilities[precision] != probabilities["float32"]
        np.testing.assert_allclose(probabilities[precision], probabilities["float32"], atol=0.05)
    status = finetune_command.main(command(base, data, tmp_path / "no", "--precision", "int8"))
    assert status != 0
    assert "--precision" in capsys.readouterr().err


def test_one_seed_gives_one_classifier(base, tmp_path, capsys):
    data = write_csv(tmp_path / "data.csv", sentences(40))
    folders = [tmp_path / name for name in ("one", "again", "other")]
    for folder, seed in zip(folders, ("5", "5", "6"), strict=True):
        assert finetune_command.main(command(base, data, folder, "--epochs", "2", "--seed", seed)) == 0
    one, again, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == again
    assert one != other
    capsys.readouterr()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--text-column", "text"], "data.csv, line 2: there is no column 'text'; this row has 'what', 'kind'"),
        (["--epochs", "0"], "--epochs must be at least 1, not 0"),
        (["--learning-rate", "inf"], "--learning-rate must be above 0 and finite, not inf"),
        (["--patience", "0"], "--patience must be at least 1, not 0"),
        (["--evaluation-share", "1"], "--evaluation-share must be between 0 and 1"),
        (["--max-length", "4"], "--max-length must be at least 8"),
        (["--data", "absent.csv"], "absent.csv: No such file"),
        (["--model", "absent"], "there is no folder absent"),
        (["--threads", "none"], "--threads: "),
    ],
)
def test_what_cannot_be_trained_is_one_line(base, tmp_path, capsys, more, message):
    data = write_csv(tmp_path / "data.csv", sentences(20))
    try:
        status = finetune_command.main(command(base, data, tmp_path / "out", *more))
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert not (tmp_path / "out").exists()
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_nothing_is_overwritten(base, tmp_path, capsys):
    data = write_csv(tmp_path / "data.csv", sentences(20))
    assert finetune_command.main(command(base, data, base)) == 2
    assert "is not an empty folder, and nothing is overwritten" in capsys.readouterr().err


def test_a_training_that_fails_leaves_nothing_in_the_way(base, tmp_path, capsys):
    data = write_csv(tmp_path / "data.csv", sentences(20))
    other = write_csv(tmp_path / "other.csv", [LabelledText("the cat", None, "mineral")])
    strange = tmp_path / "strange.jsonl"
    rows = [{"what": "the \ud800" if n == 3 else "the cat", "kind": n % 2} for n in range(20)]
    strange.write_text("\n".join(json.dumps(row) for row in rows))
    output = tmp_path / "out"
    for arguments, status, message in (
        (command(base, data, output, "--evaluation-data", str(other)), 2, "does not know the label 'mineral'"),
        (command(base, data, output, "--learning-rate", "1e30"), 1, "lower --learning-rate"),
        (
            command(base, strange, output),
            2,
            "line 4: 'what' holds half a surrogate pair, which is not a character ('the \\ud800'",
        ),
    ):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert finetune_command.main(arguments) == status
        assert message in capsys.readouterr().err
        assert not output.exists()
    output.mkdir()
    with np.errstate(all="ignore"):
        assert finetune_command.main(command(base, strange, output)) == 2
    assert list(output.iterdir()) == []


def test_a_folder_without_a_classifier_cannot_classify(base, capsys):
    assert classify_command.main(["--model", str(base), "the cat"]) == 2
    error = capsys.readouterr().err
    assert error == f"error: the model in {base} has no classifier; train one from it with scripts/finetune.py\n"


@pytest.mark.filterwarnings("default::minibert.huggingface.pretrained.PretrainedWarning")
def test_a_classifier_with_missing_weights_is_refused(base, capsys):
    MiniBERT.from_pretrained(base, heads=CLASSIFICATION_HEADS, labels=["a", "b"]).save_pretrained(base)
    tensors = load_file(base / "model.safetensors")
    bias = tensors.pop("classifier.bias")
    save_file(tensors, base / "model.safetensors")
    assert classify_command.main(["--model", str(base), "the cat"]) == 2
    assert "the tensor classifier.bias is missing" in capsys.readouterr().err
    del tensors["classifier.weight"]
    save_file(tensors, base / "model.safetensors")
    assert classify_command.main(["--model", str(base), "the cat"]) == 2
    assert "lack the classifier, and random weights predict nothing" in capsys.readouterr().err
    assert bias.shape == (2,)


def test_other_kinds_of_classifiers_are_refused(base, tmp_path, capsys):
    model = MiniBERT.from_pretrained(base, heads=CLASSIFICATION_HEADS, labels=["a", "b"])
    model.save_pretrained(base)
    fields = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**fields, "problem_type": "multi_label_classification"}))
    assert classify_command.main(["--model", str(base), "the cat"]) == 2
    assert (
        "does not predict one label out of several (problem_type 'multi_label_classification'"
        in capsys.readouterr().err
    )


def test_standard_input_is_classified_line_by_line(base, monkeypatch, capsys):
    MiniBERT.from_pretrained(base, heads=CLASSIFICATION_HEADS, labels=["a", "b"]).save_pretrained(base)
    for content in (b"the cat\na saw\n", b"\xef\xbb\xbfthe cat\r\na saw"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))
        assert classify_command.main(["--model", str(base)]) == 0
        assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["the cat", "a saw"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xffb\n"), encoding="utf-8"))
    assert classify_command.main(["--model", str(base)]) == 2
    assert capsys.readouterr().err.startswith("error: standard input, line 1: this is not UTF-8")
    assert classify_command.main(["--model", str(base), "a \udcff"]) == 2
    assert (
        capsys.readouterr().err
        == "error: this is not Unicode text: 'a \\udcff', at character 2; remove that character\n"
    )


def test_a_reader_that_has_seen_enough_ends_it_quietly(base):
    MiniBERT.from_pretrained(base, heads=CLASSIFICATION_HEADS, labels=["a", "b"]).save_pretrained(base)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(SCRIPTS / "classify.py"), "--model", str(base), "--threads", "1", "the cat"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("name", ["finetune", "classify"])
def test_each_script_explains_itself(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPTS / f"{name}.py"), "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert "--model DIR" in done.stdout


# --- its parts -------------------------------------------------------------------------------------------------


def classifier(base: Path, seed: int = 0) -> TextClassifier:
    labels = ["animal", "tool"]
    model = MiniBERT.from_pretrained(base, heads=CLASSIFICATION_HEADS, labels=labels, seed=seed)
    return TextClassifier(model, Tokenizer.load(base))


def test_training_stops_early_and_keeps_the_best_epoch(base):
    """The learning rate is so high that the model gets worse after a good start."""
    learner, epochs = classifier(base), []
    settings = FineTuning(epochs=30, learning_rate=0.02, patience=2, batch_size=8, warmup=0.3)
    best = finetune(learner, sentences(60), sentences(30, seed=1), settings, epochs.append).best
    assert len(epochs) < 30
    losses = [epoch.evaluation.loss for epoch in epochs]
    assert best.number == int(np.argmin(losses)) + 1 == len(epochs) - 2
    held_out = sentences(30, seed=1)
    probabilities = learner.probabilities(learner.encode([example.text for example in held_out]))
    classes = np.array([learner.labels.index(example.label) for example in held_out])
    assert Scores.of(learner.labels, probabilities, classes).loss == pytest.approx(best.evaluation.loss, rel=1e-6)


def test_every_epoch_has_all_texts_in_an_order_of_its_own(base, monkeypatch):
    learner, encoded, seen = classifier(base), [], []
    encode, arrays = learner.encode, learner.arrays
    monkeypatch.setattr(learner, "encode", lambda *texts: encoded.append(encode(*texts)) or encoded[-1])
    monkeypatch.setattr(learner, "arrays", lambda chosen: seen.extend(map(id, chosen)) or arrays(chosen))
    monkeypatch.setattr(learner, "probabilities", lambda held_out: np.full((len(held_out), 2), 0.5))
    finetune(learner, sentences(20), sentences(3), FineTuning(epochs=3, batch_size=8, patience=None))
    in_the_file = list(map(id, encoded[0]))
    orders = [seen[:20], seen[20:40], seen[40:]]
    assert [sorted(order) for order in orders] == [sorted(in_the_file)] * 3
    assert len(set(map(tuple, [in_the_file, *orders]))) == 4


def test_dropout_is_drawn_anew_in_every_step(base):
    """The learning rate is almost 0 and there is one text, so only dropout can make two epochs differ."""

    def losses(probability: float) -> list[float]:
        learner, epochs = classifier(base), []
        dropout = {"hidden_dropout_prob": probability, "attention_probs_dropout_prob": probability}
        config = replace(learner.model.config, **dropout)
        model = MiniBERT(config, heads=CLASSIFICATION_HEADS, seed=3)
        learner = TextClassifier(model, learner.tokenizer)
        settings = FineTuning(epochs=3, batch_size=8, learning_rate=1e-30, patience=None)
        finetune(learner, sentences(1) * 8, sentences(3), settings, epochs.append)
        return [epoch.training_loss for epoch in epochs]

    np.testing.assert_allclose(losses(0.0), losses(0.0)[0], rtol=1e-6)
    dropped = losses(0.5)
    assert min(abs(a - b) for a, b in combinations([*dropped, losses(0.0)[0]], 2)) > 1e-4


def test_an_evaluation_label_that_was_never_trained_is_named(base):
    with pytest.raises(TrainingError, match="does not know the label 'mineral'"):
        finetune(classifier(base), sentences(9), [LabelledText("the", None, "mineral")], FineTuning())


def test_no_step_has_a_learning_rate_of_zero(base, monkeypatch):
    rates: list[float] = []
    step = AdamW.step
    monkeypatch.setattr(AdamW, "step", lambda self, gradients, rate: (rates.append(rate), step(self, gradients, rate)))
    settings = FineTuning(epochs=2, batch_size=4, learning_rate=0.1, warmup=0.25, patience=None)
    finetune(classifier(base), sentences(8), sentences(3), settings)
    np.testing.assert_allclose(rates, [0.05, 0.1 * 0.625 / 0.75, 0.1 * 0.375 / 0.75, 0.1 * 0.125 / 0.75])
    learner = classifier(base)
    before = learner.model.parameters["classifier.weight"].copy()
    finetune(learner, sentences(8), sentences(3), FineTuning(epochs=1, batch_size=8, learning_rate=0.001))
    assert not np.array_equal(learner.model.parameters["classifier.weight"], before)


def test_texts_are_cut_and_pairs_lose_the_longer_part(base):
    learner = classifier(base)
    learner.max_length = 9
    with pytest.warns(ClassificationWarning, match="1 of 2 texts have more than 9 tokens"):
        single, _ = learner.encode(["the " * 20, "the"])
    assert len(single.ids) == 9
    assert single.token_types == [0] * 9
    word, sep = learner.tokenizer.token_to_id("the"), learner.tokenizer.sep_id
    cut = (9, 20, 20, (3, 3)), (9, 1, 20, (1, 5)), (9, 20, 1, (5, 1)), (8, 20, 20, (2, 3)), (8, 20, 19, (3, 2))
    for length, a, b, expected in cut:
        learner.max_length = length
        with pytest.warns(ClassificationWarning, match=f"1 of 1 texts have more than {length} tokens"):
            (pair,) = learner.encode(["the " * a], ["the " * b])
        assert pair.ids == [learner.tokenizer.cls_id, *[word] * expected[0], sep, *[word] * expected[1], sep]
        assert pair.token_types == [0] * (expected[0] + 2) + [1] * (expected[1] + 1)
    assert learner.encode(["the the"], ["the the"])[0].ids.count(word) == 4
    assert learner.encode(["the"], [""]) == learner.encode(["the"])


def test_probabilities_do_not_depend_on_the_batches(base, monkeypatch):
    learner = classifier(base)
    encoded = learner.encode([example.text for example in sentences(30)])
    together = learner.probabilities(encoded)
    monkeypatch.setattr("minibert.finetuning.text_classifier.BATCH_TOKENS", 20)
    np.testing.assert_allclose(learner.probabilities(encoded), together, rtol=1e-5)
    np.testing.assert_allclose(together.sum(axis=1), 1.0, rtol=1e-6)


def test_csv_and_json_lines_are_read_alike(tmp_path):
    write_csv(
        tmp_path / "a.csv", [LabelledText('a "quoted", text\nof two lines', None, "1"), LabelledText("é", None, "0")]
    )
    rows = [{"what": 'a "quoted", text\nof two lines', "kind": 1}, {"what": "é", "kind": 0}]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    one = read_labelled_texts(tmp_path / "a.csv", "what", "kind")
    assert one == read_labelled_texts(tmp_path / "a.jsonl", "what", "kind")
    assert read_labelled_texts(tmp_path / "a.csv", "what", "kind", "what")[1] == LabelledText("é", "é", "0")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", r"must be in a \.csv or \.jsonl file"),
        ("a.csv", "what,kind\n", "has no rows"),
        ("a.csv", "what,kind\nx,\n", "line 2: 'kind' is empty"),
        ("a.csv", "what, kind\nx,y\n", "line 2: there is no column 'kind'; this row has 'what', ' kind'"),
        ("a.csv", "what,kind\nhello, world, this,a\n", r"line 2: there are 4 fields, but 2 .*must stand in quotes"),
        ("a.csv", "what,kind\nx,y\nx\n", "line 3: there are 1 fields, but 2 column names; a comma is missing"),
        ("a.csv", 'what,kind\nx,"y\nx,y\n', "line 3: this is not CSV"),
        ("a.csv", "what,kind,kind\nx,y,z\n", "two columns are called 'kind'"),
        ("a.jsonl", '{"what": "x", "kind": 1}\n{', "line 2: this is not JSON"),
        ("a.jsonl", "[" * 100_000, "line 1: this is nested too deeply"),
        ("a.jsonl", "9" * 5000, "line 1: this is not JSON"),
        ("a.jsonl", '{"what": ["x"], "kind": 1}', "line 1: 'what' must be a string, not a list"),
        ("a.jsonl", '{"what": "x", "kind": {"a": 1}}', "line 1: 'kind' must be a string, not a dict"),
        ("a.jsonl", "[1]", "line 1: there must be an object, not a list"),
        ("a.jsonl", '{"kind": 1}', "line 1: there is no column 'what'; this row has 'kind'"),
    ],
)
def test_rows_that_cannot_be_read_are_named_with_their_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(TrainingError, match=message):
        read_labelled_texts(tmp_path / name, "what", "kind")


def test_a_cell_may_be_long(tmp_path):
    write_csv(tmp_path / "a.csv", [LabelledText("a " * 100_000, None, "1")])
    assert len(read_labelled_texts(tmp_path / "a.csv", "what", "kind")[0].text) == 200_000


def test_a_share_of_every_class_is_held_out():
    examples = sentences(90)
    train, held_out = hold_out(examples, 0.2, seed=0)
    assert sorted(map(repr, [*train, *held_out])) == sorted(map(repr, examples))
    assert [example.label for example in held_out].count("tool") == 6
    assert len(held_out) == 18
    assert hold_out(examples, 0.2, seed=0)[1] == held_out
    assert hold_out(examples, 0.2, seed=1)[1] != held_out
    with pytest.raises(TrainingError, match="2 texts are too few to hold 20% out"):
        hold_out([LabelledText("x", None, "a"), LabelledText("y", None, "b")], 0.2, seed=0)


def test_labels_that_are_numbers_are_sorted_by_value_and_one_label_is_too_few():
    assert labels_of([LabelledText("", None, label) for label in ("10", "9", "2")]) == ["2", "9", "10"]
    with pytest.raises(TrainingError, match="every text has the label 'a'"):
        labels_of([LabelledText("x", None, "a")])


def test_scores_equal_those_computed_by_hand():
    truth = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 0])
    scores = Scores.of(("a", "b", "c"), 0.1 + 0.7 * np.eye(3)[predicted], truth)
    assert scores.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert scores.accuracy == 0.5
    np.testing.assert_allclose(scores.f1, [4 / 7, 0.5, 0.0])
    assert scores.macro_f1 == pytest.approx((4 / 7 + 0.5) / 3)
    assert scores.loss == pytest.approx(-(3 * np.log(0.8) + 3 * np.log(0.1)) / 6)
    assert confusion_table(scores).splitlines()[1].split() == ["a", "2", "1", "0", "0.571"]
