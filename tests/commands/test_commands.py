"""The command lines: what they print, what they leave behind, and how they fail."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minibert import MiniBERT, MiniBERTConfig
from minibert.commands import evaluate as evaluate_command
from minibert.commands import fill_mask as fill_mask_command
from minibert.commands import train as train_command
from minibert.commands.screen import PlainScreen
from minibert.options import flag
from minibert.training.log import METRICS_FILE, read_history
from minibert.training.trainer import Trainer
from tests.support.small_run import SMALL, losses, of_kind, write_text

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "animals.txt")


def options(corpus, output, /, **changes):
    """The command line of a small run."""
    values = {**SMALL, "corpus": corpus, "output": output, **changes}
    return [str(word) for name, value in values.items() for word in (flag(name), value)]


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """The output folder of a finished run. Copy it before changing it."""
    output = tmp_path_factory.mktemp("trained") / "run"
    assert train_command.main(options(corpus, output)) == 0
    return output


@pytest.fixture
def copied(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def assert_one_error(capsys, status, *words):
    """The command failed with one line that holds the words, and no traceback."""
    captured = capsys.readouterr()
    assert status == 2
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert "Traceback" not in captured.out


# --- train ---------------------------------------------------------------------------------------------------


def test_training_ends_with_results_examples_and_what_to_try_next(corpus, tmp_path, capsys):
    output = tmp_path / "run"
    assert train_command.main(options(corpus, output)) == 0
    text = capsys.readouterr().out
    for words in (
        "evaluation loss", "unigram baseline", "nats above the unigram baseline", "perplexity", "accuracy",
        "speed", "peak memory", "[MASK]", "hidden word", "scripts/fill_mask.py --model", "scripts/evaluate.py --model",
    ):  # fmt: skip
        assert words in text
    assert "step 2: loss" in text  # a plain line, as this is no terminal
    assert "\x1b" not in text


@pytest.mark.parametrize(("name", "value"), [("weight_decay", 5.0), ("clip_norm", 1e-3)])
def test_the_options_of_the_optimizer_reach_it(trained, corpus, tmp_path, name, value):
    assert train_command.main(options(corpus, tmp_path / "run", **{name: value})) == 0
    found, usual = (losses(read_history(output / METRICS_FILE)) for output in (tmp_path / "run", trained))
    assert len(found) == len(usual) > 1
    assert found[-1] != usual[-1]


def test_without_an_output_a_new_folder_below_runs_is_made(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = options(corpus, "unused", steps=1)
    at = arguments.index("--output")
    assert train_command.main(arguments[:at] + arguments[at + 2 :]) == 0
    (output,) = [path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")]
    assert (output / "model.safetensors").exists()


def test_ctrl_c_saves_a_checkpoint_and_says_how_to_go_on(corpus, tmp_path, capsys, monkeypatch):
    whole, output = tmp_path / "whole", tmp_path / "run"
    assert train_command.main(options(corpus, whole, report_every=1, dropout=0.1)) == 0
    capsys.readouterr()

    def press_ctrl_c(display, step, loss, tokens_per_second):
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(PlainScreen, "report", press_ctrl_c)
        assert train_command.main(options(corpus, output, report_every=1, dropout=0.1)) == 130
    assert signal.getsignal(signal.SIGINT) is before
    captured = capsys.readouterr()
    assert "finishing this step" in captured.err
    assert f"--output {output} --resume" in captured.out
    assert (output / "checkpoints" / "step-00000003").is_dir()
    assert not (output / "model.safetensors").exists()

    assert fill_mask_command.main(["--model", str(output), "the [MASK] fox"]) == 2
    assert "is not finished" in capsys.readouterr().err

    assert train_command.main(["--output", str(output), "--resume"]) == 0
    assert "so far it was computed by" not in capsys.readouterr().out
    assert losses(read_history(output / METRICS_FILE)) == losses(read_history(whole / METRICS_FILE))
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_resume_on_another_device_or_with_other_threads_says_so(copied, capsys):
    metrics = copied / METRICS_FILE
    first, *rest = metrics.read_text(encoding="utf-8").splitlines()
    before = {**json.loads(first), "device": "CPU, NumPy 1.0, 64 threads"}
    metrics.write_text("\n".join([json.dumps(before), *rest]) + "\n", encoding="utf-8")
    assert train_command.main(["--output", str(copied), "--resume", "--steps", str(SMALL["steps"] + 1)]) == 0
    assert "so far it was computed by CPU, NumPy 1.0, 64 threads, now by" in capsys.readouterr().out


def test_a_resume_in_another_precision_says_so(copied, capsys):
    """This processor may be slow in bfloat16, which is then a warning."""
    more = ["--steps", str(SMALL["steps"] + 1)]
    resume = ["--output", str(copied), "--resume", "--precision"]
    assert train_command.main([*resume, "bfloat16", *more]) == 0
    assert "so far its matrix products were computed in float32, now in bfloat16" in capsys.readouterr().out
    history = read_history(copied / METRICS_FILE)
    assert [line["precision"] for line in history if line["kind"] in ("run", "resumed")] == ["float32", "bfloat16"]
    assert of_kind(history, "resumed")[-1]["settings"]["precision"] == "bfloat16"
    assert train_command.main([*resume, "bfloat16", *more]) == 0
    assert "its matrix products" not in capsys.readouterr().out


def test_a_run_from_before_the_precision_was_a_setting_is_resumed_in_float32(copied, capsys):
    (state,) = (copied / "checkpoints").glob("*/state.json")
    content = json.loads(state.read_text(encoding="utf-8"))
    del content["settings"]["precision"], content["state_sha256"]
    state.write_text(json.dumps(content), encoding="utf-8")
    metrics = copied / METRICS_FILE
    first, *rest = metrics.read_text(encoding="utf-8").splitlines()
    before = {name: value for name, value in json.loads(first).items() if name != "precision"}
    metrics.write_text("\n".join([json.dumps(before), *rest]) + "\n", encoding="utf-8")
    assert train_command.main(["--output", str(copied), "--resume", "--steps", str(SMALL["steps"] + 1)]) == 0
    assert of_kind(read_history(metrics), "resumed")[-1]["precision"] == "float32"
    assert "its matrix products" not in capsys.readouterr().out


def test_ctrl_c_before_the_training_begins_ends_at_once(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PlainScreen, "preparing", lambda *_: signal.raise_signal(signal.SIGINT))
    assert train_command.main(options(corpus, tmp_path / "run")) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert not (tmp_path / "run").exists()


def test_a_second_ctrl_c_ends_at_once(corpus, tmp_path, capsys, monkeypatch):
    def press_ctrl_c_twice(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(PlainScreen, "report", press_ctrl_c_twice)
    assert train_command.main(options(corpus, tmp_path / "run")) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted"


def test_a_loss_that_is_not_finite_has_its_own_exit_status(corpus, tmp_path, capsys):
    assert train_command.main(options(corpus, tmp_path / "run", learning_rate=1e30)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the loss is nan at step ")
    assert "--learning-rate" in line


def test_running_out_of_memory_is_one_line_with_a_remedy(corpus, tmp_path, capsys, monkeypatch):
    def out_of_memory(*_: object) -> None:
        raise MemoryError("Unable to allocate 64 GiB")

    monkeypatch.setattr(Trainer, "step", out_of_memory)
    assert train_command.main(options(corpus, tmp_path / "run")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory (Unable to allocate 64 GiB)")
    assert "--accumulate" in line


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preset": "huge"}, ["--preset", "tiny, mini, small, medium, base"]),
        ({"seq_length": 600}, ["--seq-length 600", "512"]),
        ({"batch_size": "many"}, ["--batch-size", "many"]),
        ({"learning_rate": "-1"}, ["--learning-rate"]),
        ({"minutes": 1}, ["--steps and --minutes"]),
        ({"device": "tpu"}, ["tpu", "cuda"]),
        ({"corpus": "nowhere.txt"}, ["nowhere.txt"]),
        ({"batch_size": 100_000}, ["100000", "smaller batch"]),
        ({"vocab_size": 3}, ["vocabulary of 3 tokens is too small"]),
        ({"colour": "red"}, ["--colour"]),
    ],
)
def test_bad_options_end_training_with_one_line_before_anything_is_written(corpus, tmp_path, capsys, changes, words):
    output = tmp_path / "run"
    with pytest.raises(SystemExit) as error:
        sys.exit(train_command.main(options(corpus, output, **changes)))
    assert_one_error(capsys, error.value.code, *words)
    assert not output.exists()


def test_a_gpu_that_is_not_there_is_one_line(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    status = train_command.main(options(corpus, tmp_path / "run", device="cuda"))
    assert_one_error(capsys, status, "CuPy", "--device cpu")


@pytest.mark.parametrize(
    ("content", "words"), [(b"", ["no text"]), (b"caf\xe9", ["byte 3", "UTF-8"]), (b"one\n", ["more text"])]
)
def test_a_corpus_that_cannot_be_used_is_one_line(tmp_path, capsys, content, words):
    (tmp_path / "text.txt").write_bytes(content)
    status = train_command.main(options(tmp_path / "text.txt", tmp_path / "run"))
    assert_one_error(capsys, status, *words)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_and_a_run_that_is_not_there_are_one_line(trained, corpus, tmp_path, capsys):
    assert_one_error(capsys, train_command.main(options(corpus, trained)), str(trained), "--resume")
    (tmp_path / "notes.txt").write_text("mine")
    status = train_command.main(["--output", str(tmp_path), "--resume"])
    assert_one_error(capsys, status, "no run to resume")
    assert_one_error(capsys, train_command.main(["--resume"]), "--output")
    status = train_command.main(["--output", str(trained), "--resume", "--seed", "4"])
    assert_one_error(capsys, status, "--seed is 0 in this run, not 4")


def test_an_output_that_cannot_be_written_is_one_line(corpus, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status = train_command.main(options(corpus, tmp_path / "file" / "run", cache_dir=tmp_path / "cache"))
    assert_one_error(capsys, status, "file/run")


# --- evaluate ------------------------------------------------------------------------------------------------


def test_evaluating_a_run_gives_the_figures_it_ended_with(trained, capsys):
    capsys.readouterr()
    assert evaluate_command.main(["--model", str(trained), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures.pop("share_of_held_out_text") == 1.0
    (result,) = of_kind(read_history(trained / METRICS_FILE), "result")
    assert figures == {name: result[name] for name in figures}
    assert figures["predictions"] > 50


def test_an_evaluation_says_what_share_of_the_text_it_measured(trained, capsys):
    for count, share in ((100_000, ""), (64, "% of")):
        assert evaluate_command.main(["--model", str(trained), "--evaluation-tokens", str(count)]) == 0
        title = " ".join(capsys.readouterr().out.partition("evaluation loss")[0].split())
        assert f"{share} the held-out part of" in title
        assert ("%" in title) == bool(share)
    assert evaluate_command.main(["--model", str(trained), "--evaluation-tokens", "64", "--json"]) == 0
    assert 0.0 < json.loads(capsys.readouterr().out)["share_of_held_out_text"] < 0.5


def test_another_text_another_length_and_another_precision_may_be_evaluated(trained, tmp_path, capsys):
    text = write_text(tmp_path / "other.txt", seed=5)
    arguments = ["--model", str(trained), "--corpus", str(text), "--seq-length", "32", "--dtype", "float64"]
    assert evaluate_command.main([*arguments, "--cache-dir", str(tmp_path / "cache")]) == 0
    assert "unigram baseline" in capsys.readouterr().out


def test_a_model_may_be_used_in_bfloat16(trained, capsys):
    losses = {}
    for precision in ("float32", "bfloat16"):
        arguments = ["--model", str(trained), "--precision", precision]
        assert evaluate_command.main([*arguments, "--json"]) == 0
        losses[precision] = json.loads(capsys.readouterr().out)["loss"]
        assert fill_mask_command.main([*arguments, "the red fox eats [MASK]."]) == 0
        assert "probability" in capsys.readouterr().out
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=1e-2)
    assert losses["bfloat16"] != losses["float32"]


def test_a_model_may_be_used_in_int8_and_not_trained_in_it(trained, corpus, tmp_path, capsys):
    losses = {}
    for precision in ("float32", "int8"):
        arguments = ["--model", str(trained), "--precision", precision]
        assert evaluate_command.main([*arguments, "--json"]) == 0
        losses[precision] = json.loads(capsys.readouterr().out)["loss"]
        assert fill_mask_command.main([*arguments, "the red fox eats [MASK]."]) == 0
        assert "probability" in capsys.readouterr().out
    assert losses["int8"] == pytest.approx(losses["float32"], rel=2e-2)
    assert losses["int8"] != losses["float32"]
    status = train_command.main(options(corpus, tmp_path / "run", precision="int8"))
    assert_one_error(capsys, status, "--precision must be one of float32, bfloat16, auto, not 'int8'")


def test_only_a_model_that_was_trained_on_next_sentences_is_asked_about_them(trained, corpus, tmp_path, capsys):
    """The others have such a head too, as it was drawn at random: its figures would look like figures."""
    capsys.readouterr()
    arguments = ["--objective", "mlm+nsp", "--seq-length", "32", "--json"]
    status = evaluate_command.main(["--model", str(trained), *arguments])
    assert_one_error(capsys, status, str(trained), "never trained", "--objective mlm")

    pairs = tmp_path / "pairs"
    assert train_command.main(options(corpus, pairs, objective="mlm+nsp", seq_length=32)) == 0
    capsys.readouterr()
    assert evaluate_command.main(["--model", str(pairs), *arguments]) == 0
    assert "next_sentence_accuracy" in json.loads(capsys.readouterr().out)

    (pairs / METRICS_FILE).unlink()  # as in a folder from elsewhere, of whose training nothing is known
    assert evaluate_command.main(["--model", str(pairs), "--corpus", str(corpus), *arguments]) == 0
    assert "next_sentence_accuracy" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objective", "clm"], ["--objective", "mlm+nsp"]),
        (["--seq-length", "999"], ["--seq-length 999", "512"]),
        (["--seq-length", "1"], ["at least 3 tokens"]),
        (["--seq-length", "0"], ["at least 3 tokens, not 0"]),
        (["--seq-length", "-8"], ["at least 3 tokens, not -8"]),
        (["--corpus", "nowhere.txt"], ["nowhere.txt"]),
        (["--dtype", "float16"], ["--dtype", "float64"]),
        (["--device", "tpu"], ["tpu"]),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_one_line(trained, capsys, arguments, words):
    capsys.readouterr()
    assert_one_error(capsys, evaluate_command.main(["--model", str(trained), *arguments]), *words)


# --- fill mask -----------------------------------------------------------------------------------------------


def test_every_mask_gets_its_table_of_candidates(trained, capsys):
    capsys.readouterr()
    arguments = ["--model", str(trained), "--top", "3", "the [MASK] fox eats [MASK] in the forest."]
    assert fill_mask_command.main(arguments) == 0
    text = capsys.readouterr().out
    assert "Mask 1 of 2" in text
    assert "Mask 2 of 2" in text
    assert text.count("%") == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [("the red fox", ["no [MASK]"]), ("[MASK] " + "fox " * 600, ["603 tokens", "512"]), ("", ["no [MASK]"])],
)
def test_a_text_that_cannot_be_filled_is_one_line(trained, capsys, text, words):
    capsys.readouterr()
    assert_one_error(capsys, fill_mask_command.main(["--model", str(trained), text]), *words)


def test_a_folder_without_a_model_or_a_vocabulary_is_one_line(trained, copied, tmp_path, capsys):
    capsys.readouterr()

    def fill(folder):
        return fill_mask_command.main(["--model", str(folder), "the [MASK] fox"])

    assert_one_error(capsys, fill(tmp_path / "nowhere"), "no folder", "nowhere")
    (tmp_path / "empty").mkdir()
    assert_one_error(capsys, fill(tmp_path / "empty"), "empty")
    (copied / "model.safetensors").write_bytes((trained / "model.safetensors").read_bytes()[:1000])
    assert_one_error(capsys, fill(copied), "model.safetensors")
    (copied / "model.safetensors").unlink()
    assert_one_error(capsys, fill(copied), "model.safetensors")
    for name in ("vocab.txt", "tokenizer.json"):
        (copied / name).unlink()
    assert_one_error(capsys, fill(copied), "vocab.txt")


def test_a_vocabulary_of_another_model_is_one_line(copied, capsys):
    capsys.readouterr()
    size = len((copied / "vocab.txt").read_text().splitlines())

    def fill(vocab_size):
        MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=vocab_size)).save_pretrained(copied)
        return fill_mask_command.main(["--model", str(copied), "the [MASK] fox"])

    assert_one_error(capsys, fill(size - 1), f"{size} tokens", f"the model has {size - 1}")
    assert_one_error(capsys, fill(size + 200), f"{size} tokens", f"the model has {size + 200}")
    assert fill(size + 11) == 0  # rounded up, as many tables are


# --- the scripts themselves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["train", "evaluate", "fill_mask"])
def test_each_script_runs_on_its_own_and_explains_itself(name, tmp_path):
    """From another folder, as a program, with warnings as errors."""
    command = [sys.executable, "-W", "error", str(SCRIPTS / f"{name}.py")]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "--device" in done.stdout
    assert "(default: cpu)" in " ".join(done.stdout.split())  # the help text may be wrapped there
    failed = subprocess.run([*command, "--nonsense"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.splitlines()) == 1


def test_filling_a_mask_does_not_wait_for_what_only_training_needs(trained):
    """It is typed again and again, so it must start fast."""
    code = (
        "import sys; from minibert.commands.fill_mask import main; "
        f"main(['--model', {str(trained)!r}, 'the [MASK] fox']); "
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'matplotlib', 'array_api_strict'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
