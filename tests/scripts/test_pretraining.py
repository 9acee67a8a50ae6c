"""scripts/benchmark.py pretraining gives all parties the same work, and compares times to the same loss."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import held_out, pretraining, report
from benchmarks.comparison import OURS, WorkerError
from benchmarks.work import Work
from documents import figures

from minibert.data.corpus import open_corpus
from minibert.data.tokenizer import Tokenizer, build_wordpiece
from minibert.training.preparation import Data, prepare_data
from minibert.training.settings import Settings

from .test_benchmark import load_script

WORK = Work(layers=2, hidden=128, vocabulary=300, batch=4, length=16, dropout=0.0, threads=1, steps=10)


def run(seconds: float, loss: float) -> dict[str, Any]:
    """The figures of a process whose loss fell from 8 in a straight line, evaluated ten times."""
    curve = [(seconds * share, 8 + (loss - 8) * share) for share in np.arange(1, 11) / 10]
    return {
        "seconds": seconds + 1,
        "processor_seconds": 150.0,
        "seconds_before_training": 2.0,
        "loss": loss,
        "curve": curve,
        "description": "CPU",
    }


def result(**runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A result with these runs of parties, the underscores in their names replaced."""
    return {
        "name": "L2 H128",
        "tolerance": pretraining.TOLERANCE,
        "parties": {
            party.replace("_", "-"): {
                "seconds": 100.0,
                "processor_seconds": 150.0,
                "seconds_before_training": 2.0,
                "loss": found[0]["loss"],
                **pretraining.compare_runs(runs[OURS], found),
                "runs": found,
            }
            for party, found in runs.items()
        },
    }


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Documents with different sentences, and sentences that occur in many of them."""
    words = [f"{a}{b}" for a in ("ba", "de", "fi", "go", "lu") for b in ("k", "m", "n", "r", "s", "t")]
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(80):
        sentences = [" ".join(rng.choice(words, rng.integers(4, 12))) + "." for _ in range(6)]
        sentences[rng.integers(6)] = "..."
        sentences[rng.integers(6)] = "The same again."
        documents.append("\n".join(sentences))
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("loss", "seconds"),
    [(7.0, 10.0), (6.0, 10.0), (5.5, 12.5), (5.0, 15.0), (4.5, 30.0), (4.0, 40.0)],
    ids=["before the first", "at the first", "between two", "at the second", "after a rise", "at the last"],
)
def test_the_time_to_a_loss_lies_on_the_straight_line_between_two_evaluations(loss: float, seconds: float):
    curve = [(10.0, 6.0), (15.0, 5.0), (20.0, 5.0), (40.0, 4.0)]
    assert pretraining.seconds_to_loss(curve, loss) == pytest.approx(seconds)


def test_a_loss_that_was_never_reached_has_no_time():
    with pytest.raises(ValueError, match="no evaluation reached a loss of 3"):
        pretraining.seconds_to_loss([(10.0, 6.0), (20.0, 4.0)], 3.0)


def test_with_equal_losses_whole_processes_are_compared_round_by_round():
    compared = pretraining.compare_runs([run(99.0, 5.0), run(49.0, 5.0)], [run(399.0, 5.04), run(249.0, 4.99)])
    assert compared["same_loss"]
    assert compared["loss_difference"] == pytest.approx(0.015)
    assert compared["ratios"] == pytest.approx([4.0, 5.0])


@pytest.mark.parametrize(("ours", "theirs"), [(5.0, 5.5), (5.5, 5.0)])
def test_with_different_losses_the_times_to_the_higher_one_are_compared(ours: float, theirs: float):
    compared = pretraining.compare_runs([run(100.0, ours)], [run(300.0, theirs)])
    assert not compared["same_loss"]
    fraction = 2.5 / 3.0  # of the way from 8 to 5
    expected = 300.0 / (100.0 * fraction) if theirs > ours else 300.0 * fraction / 100.0
    assert compared["ratios"] == pytest.approx([expected])


def test_transformers_trains_on_exactly_what_minibert_trains_on(text: Path, tmp_path: Path):
    texts, data = held_out.write_texts(open_corpus([str(text)]), pretraining.settings_of(WORK, text, 0), tmp_path)

    def tokens(path: Path) -> list[int]:
        found: list[int] = []
        for document in open_corpus([str(path)]):
            found += [*data.tokenizer.encode(document.text), data.tokenizer.sep_id]
        return found

    assert tokens(texts.held_out) == data.tokenized.evaluation.tokens.tolist()
    assert sorted(tokens(texts.train)) == sorted(data.tokenized.train.tokens.tolist())
    assert tokens(texts.whole) == tokens(text)


def test_the_same_masked_tokens_are_evaluated_in_another_vocabulary(text: Path, tmp_path: Path):
    data = prepare_data(pretraining.settings_of(WORK, text, 0), tmp_path / "cache")
    ours = data.tokenizer
    frequent = int(data.tokenized.unigram_counts.argmax())
    absent = ours.id_to_token(frequent)
    names = [token for token in reversed(ours.tokens()) if token != absent]
    theirs = Tokenizer(build_wordpiece({token: id_ for id_, token in enumerate(names)}, {"do_lower_case": True}))
    counts = np.full(ours.vocab_size, 10)
    counts[frequent] = 1
    ids = held_out.translation(ours, theirs, counts)
    for batch in data.evaluation_batches():
        other = held_out.translated(batch, ids, theirs.unk_id)
        seen = [ours.id_to_token(id_) for id_ in batch.input_ids.reshape(-1)]
        expected = ["[UNK]" if token == absent else token for token in seen]
        assert [theirs.id_to_token(id_) for id_ in other.input_ids.reshape(-1)] == expected
        predicted = zip(batch.prediction_positions, map(ours.id_to_token, batch.labels), strict=True)
        found = zip(other.prediction_positions, map(theirs.id_to_token, other.labels), strict=True)
        assert list(found) == [(place, token) for place, token in predicted if token != absent]
    counts[frequent] = 100
    with pytest.raises(WorkerError, match="the vocabularies differ too much"):
        held_out.translation(ours, theirs, counts)


def test_a_text_that_changed_meanwhile_is_not_divided(text: Path, tmp_path: Path):
    data = prepare_data(pretraining.settings_of(WORK, text, 0), tmp_path / "cache")
    text.write_text("Another text.", encoding="utf-8")
    with pytest.raises(WorkerError, match="has changed meanwhile"):
        list(held_out.divide(open_corpus([str(text)]), data.tokenizer, data.tokenized))


def test_transformers_gets_the_settings_of_the_command(text: Path, tmp_path: Path):
    settings = pretraining.settings_of(dataclasses.replace(WORK, steps=200), text, 3)
    texts = held_out.Texts(text, text, text)
    task = pretraining.transformers_task(settings, texts, tmp_path, bfloat16=True, threads=1)
    assert json.loads(json.dumps(task))["config"]["hidden_size"] == 128
    shared = ("seed", "steps", "batch_size", "learning_rate", "weight_decay", "clip_norm", "mask_probability")
    assert {name: task[name] for name in shared} == {name: getattr(settings, name) for name in shared}
    assert (task["warmup_steps"], task["every"], task["bfloat16"]) == (20, 20, True)


def test_a_process_is_measured_from_the_text_to_the_evaluated_model(text: Path, tmp_path: Path):
    settings = pretraining.settings_of(WORK, text, 0)
    texts, data = held_out.write_texts(open_corpus([str(text)]), settings, tmp_path)
    settings = dataclasses.replace(settings, corpus=(str(texts.whole),))
    figures = pretraining.run_party("minibert-float32", settings, texts, data, 1, "no peer", tmp_path / "run")
    seconds, losses = zip(*figures["curve"], strict=True)
    assert len(losses) == pretraining.EVALUATIONS
    assert losses[-1] == pytest.approx(figures["loss"], abs=1e-5)
    assert 0.0 < figures["seconds_before_training"] < seconds[0]
    assert 0.5 < figures["processor_seconds"] < 60.0
    assert list(seconds) == sorted(seconds)
    assert seconds[-1] < figures["seconds"]
    assert figures["description"].endswith(", 1 thread, float32")


def test_every_party_warms_up_and_then_takes_turns_with_another_seed_in_every_round(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    calls = []

    def run_party(party: str, settings: Settings, texts: held_out.Texts, data: Data, threads: int, *_: Any) -> Any:
        assert texts.held_out.is_file()
        assert data.tokenized.evaluation.number_of_tokens > 0
        calls.append((party.removeprefix("minibert-"), settings.steps, settings.seed, threads))
        return run({OURS: 99.0, "transformers": 399.0}.get(party, 199.0), 5.0)

    monkeypatch.setattr(pretraining, "run_party", run_party)
    script = load_script()
    script.has_peers = lambda *_: True
    written, picture = tmp_path / "x.json", tmp_path / "x.png"
    words = ["pretraining", "--peers", "transformers", "--rounds", "2", "--steps", "20", "--threads", "1"]
    assert script.main([*words, "--corpus", str(text), "--json", str(written), "--chart", str(picture)]) == 0
    parties = [OURS, "float32", "transformers"]
    assert calls[:3] == [(party, 10, 0, 1) for party in parties]
    assert calls[3:6] == [(party, 20, 0, 1) for party in parties]
    assert calls[6:] == [(party, 20, 1, 1) for party in reversed(parties)]
    found = json.loads(written.read_text(encoding="utf-8"))["pretraining"]
    assert found["parties"]["transformers"]["ratios"] == [4.0, 4.0]
    assert found["text"]["characters"] == sum(len(document.text) for document in open_corpus([str(text)]))
    assert "| transformers | 400 | 150 | 2.0 | 5.000 | 4.00x |" in capsys.readouterr().out
    assert picture.stat().st_size > 1000


def test_without_accelerate_only_minibert_is_measured(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(pretraining, "run_party", lambda *_: run(99.0, 5.0))
    script = load_script()
    script.has_peers = lambda peer_python, packages: "accelerate" not in packages
    assert script.main(["pretraining", "--rounds", "1", "--steps", "10", "--corpus", str(text)]) == 0
    output = capsys.readouterr().out
    assert "so only Mini-BERT is measured" in output
    assert "| minibert-float32 | 100 |" in output
    assert "transformers |" not in output


def test_a_party_that_fails_is_named_with_its_last_line(text: Path, tmp_path: Path):
    peer = tmp_path / "python"
    peer.write_text("#!/bin/sh\necho first >&2; echo 'no module named accelerate' >&2; exit 1\n", encoding="utf-8")
    peer.chmod(0o755)
    settings = pretraining.settings_of(WORK, text, 0)
    texts, data = held_out.write_texts(open_corpus([str(text)]), settings, tmp_path)
    with pytest.raises(WorkerError, match=r"^transformers failed: no module named accelerate$"):
        pretraining.run_party("transformers", settings, texts, data, 1, str(peer), tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "15"], "--steps must be a multiple of 10"),
        (["--size", "L3,H128"], "train.py has no model of L3,H128; choose one of L2,H128, L4,H256"),
        (["--size", "L2,H128", "--size", "L4,H256"], "one --size at a time"),
        (["--peers", "torch"], "pretraining cannot compare with torch"),
    ],
)
def test_an_impossible_request_fails_before_anything_is_measured(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit, match="2"):
        load_script().main(["pretraining", *words])
    assert message in capsys.readouterr().err


def test_the_table_leads_with_the_lowest_ratio_and_the_notes_say_what_is_compared(
    monkeypatch: pytest.MonkeyPatch,
):
    ours = [run(99.0, 5.0), run(99.0, 5.0)]
    made = result(
        minibert=ours, transformers=[run(399.0, 5.0), run(499.0, 5.0)], transformers_bfloat16=[run(150.0, 5.5)] * 2
    )
    table = report.pretraining_table(made)
    assert "| transformers | 100 | 150 | 2.0 | 5.000 | 4.00x | 4.50x (4.00 to 5.00) |" in table.splitlines()
    assert "| minibert | 100 | 150 | 2.0 | 5.000 |  |  |" in table.splitlines()
    notes = report.pretraining_notes(made).splitlines()
    assert len(notes) == 2
    assert "within 0.05 nats, so the whole processes are compared" in notes[0]
    assert "`transformers-bfloat16` ended 0.500 nats above `minibert`, so the times to the higher" in notes[1]
    monkeypatch.setitem(figures.RECORD, "pretraining", {"pretraining": made})
    assert figures.pretraining() == "\n\n".join((table, "\n".join(notes)))
