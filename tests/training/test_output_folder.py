"""Every state that an output folder can be in, with real folders and a real second process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from minibert import MiniBERT, MiniBERTConfig
from minibert.errors import NonFiniteError, TrainingError
from minibert.training.log import METRICS_FILE, RunLog
from minibert.training.output_folder import FolderState, folder_state
from tests.support.small_run import go_on, run, write_text

without_locks = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no locks that can be asked about")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "animals.txt")


@pytest.fixture(scope="module")
def finished_run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Copy it before changing it."""
    output = tmp_path_factory.mktemp("finished") / "run"
    run(corpus, output, checkpoint_every=2)
    return output


@pytest.fixture
def finished(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "run")


@pytest.fixture
def begun(corpus: Path, tmp_path: Path) -> Path:
    """A run whose loss broke before its first checkpoint."""
    with pytest.raises(NonFiniteError):
        run(corpus, tmp_path / "run", learning_rate=1e30)
    return tmp_path / "run"


@contextmanager
def another_process_training_in(folder: Path) -> Iterator[None]:
    """A second process with the run's log open."""
    code = (
        "import sys; from pathlib import Path; from minibert.training.log import RunLog\n"
        "log = RunLog(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder / METRICS_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "open\n"
            yield
        finally:
            process.kill()


def test_a_folder_that_is_absent_or_empty_is_new(tmp_path: Path):
    assert folder_state(tmp_path / "absent") is FolderState.NEW
    assert folder_state(tmp_path) is FolderState.NEW


def test_a_run_that_broke_before_its_first_checkpoint_is_begun(begun: Path):
    assert folder_state(begun) is FolderState.BEGUN
    (begun / "checkpoints" / ".writing-2").mkdir(parents=True)  # killed while it wrote its first checkpoint
    (begun / "notes.txt").write_text("mine")
    assert folder_state(begun) is FolderState.BEGUN


def test_a_run_that_was_killed_before_its_first_line_is_begun(tmp_path: Path):
    (tmp_path / METRICS_FILE).touch()
    assert folder_state(tmp_path) is FolderState.BEGUN


def test_an_interrupted_run_is_resumable_and_then_finished(corpus: Path, tmp_path: Path):
    output = tmp_path / "run"
    run(corpus, output, stop_after=3)
    assert folder_state(output) is FolderState.RESUMABLE
    (output / METRICS_FILE).unlink()  # the checkpoint alone is enough
    assert folder_state(output) is FolderState.RESUMABLE
    go_on(output)
    assert folder_state(output) is FolderState.FINISHED


def test_a_finished_run_stays_finished_without_its_checkpoints_or_its_model(finished: Path):
    shutil.rmtree(finished / "checkpoints")
    assert folder_state(finished) is FolderState.FINISHED
    (finished / "config.json").unlink()
    assert folder_state(finished) is FolderState.FINISHED


@without_locks
@pytest.mark.parametrize("kind", ["begun", "finished", "empty log"])
def test_a_folder_in_which_another_process_trains_is_in_use_until_it_ends(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
):
    folder = tmp_path / "empty" if kind == "empty log" else request.getfixturevalue(kind)
    folder.mkdir(exist_ok=True)
    before = FolderState.BEGUN if kind == "empty log" else folder_state(folder)
    with another_process_training_in(folder):
        assert folder_state(folder) is FolderState.IN_USE
        with pytest.raises(TrainingError, match=f"another process is training in {folder}"):
            RunLog(folder / METRICS_FILE)
        assert folder_state(folder) is FolderState.IN_USE
    assert folder_state(folder) is before


def test_the_log_that_this_process_has_open_does_not_count_as_use_by_another(begun: Path, tmp_path: Path):
    with closing(RunLog(begun / METRICS_FILE)):
        assert folder_state(begun, own_log_open=True) is FolderState.BEGUN
    (tmp_path / "new").mkdir()
    with closing(RunLog(tmp_path / "new" / METRICS_FILE)):
        assert folder_state(tmp_path / "new", own_log_open=True) is FolderState.NEW


def test_where_there_are_no_locks_a_run_without_a_checkpoint_may_be_running(
    begun: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("minibert.training.log.lock_file", lambda *_, **__: False)
    assert folder_state(begun) is FolderState.BEGUN_OR_RUNNING
    with closing(RunLog(begun / METRICS_FILE)):
        assert folder_state(begun, own_log_open=True) is FolderState.BEGUN_OR_RUNNING
    assert folder_state(finished_run) is FolderState.FINISHED


@without_locks
def test_looking_at_a_folder_never_keeps_a_run_from_starting(begun: Path, monkeypatch: pytest.MonkeyPatch):
    """`folder_state` in another process holds a shared lock for a moment. Here the moment ends at the first wait."""
    import fcntl

    with open(begun / METRICS_FILE, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert folder_state(begun) is FolderState.BEGUN  # two may look at the same time
        monkeypatch.setattr("minibert.training.log.time.sleep", lambda seconds: fcntl.flock(file, fcntl.LOCK_UN))
        RunLog(begun / METRICS_FILE).close()


def hugging_face_model(folder: Path) -> None:
    MiniBERT(MiniBERTConfig.preset("tiny", vocab_size=50)).save_pretrained(folder)


def fine_tuned_model(folder: Path) -> None:
    hugging_face_model(folder)
    (folder / METRICS_FILE).write_text('{"kind": "epoch", "number": 1}\n{"kind": "result"}\n')


def model_in_the_place_of_a_run(folder: Path) -> None:
    hugging_face_model(folder)
    (folder / METRICS_FILE).write_text('{"kind": "run"}\n')


def empty_log_beside_a_file(folder: Path) -> None:
    (folder / METRICS_FILE).touch()
    (folder / "notes.txt").write_text("mine")


def log_that_is_not_text(folder: Path) -> None:
    (folder / METRICS_FILE).write_bytes(b'{"kind": "run"\xff')


def notes_in_the_log(folder: Path) -> None:
    (folder / METRICS_FILE).write_text("my notes, without an end of line")


def notes_among_the_checkpoints(folder: Path) -> None:
    (folder / METRICS_FILE).write_text('{"kind": "run"}\n')
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "notes.txt").write_text("mine")


def resumed_run_without_its_checkpoints(folder: Path) -> None:
    lines = [{"kind": "run"}, {"kind": "train", "step": 2}, {"kind": "resumed", "step": 2}]
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def empty_folder_of_checkpoints(folder: Path) -> None:
    (folder / "checkpoints").mkdir()


@pytest.mark.parametrize(
    "fill",
    [
        hugging_face_model, fine_tuned_model, model_in_the_place_of_a_run, empty_log_beside_a_file,
        log_that_is_not_text, notes_in_the_log, notes_among_the_checkpoints, resumed_run_without_its_checkpoints,
        empty_folder_of_checkpoints,
    ],
)  # fmt: skip
def test_everything_else_is_somebody_elses(tmp_path: Path, fill: Callable[[Path], None]):
    fill(tmp_path)
    assert folder_state(tmp_path) is FolderState.FOREIGN


def test_a_file_in_the_place_of_the_folder_is_somebody_elses(tmp_path: Path):
    (tmp_path / "run").write_text("mine")
    assert folder_state(tmp_path / "run") is FolderState.FOREIGN


def test_what_a_killed_save_left_is_removed_and_nothing_else(finished: Path):
    """Killed in `save_pretrained`: the names are those that it gives to files before they are complete."""
    leftovers = [".model.safetensors.a1b2c3d_", ".config.json.abcd1234", ".tmpJ3kX9z"]
    mine = [".notes", ".config.json.swp", "model.safetensors.old", ".tmp"]
    for name in (*leftovers, *mine):
        (finished / name).write_text("half of it")
    go_on(finished)
    left = {path.name for path in finished.iterdir()}
    assert left >= set(mine)
    assert not left & set(leftovers)
