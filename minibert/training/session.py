"""Start a run, or resume one from its newest checkpoint.

A session is the part of a run that one process computes. `start` and `resume` check the output folder, prepare the
text and the model, open the run's log and hand out a `Run`, which trains:

    with resume({}, output, display) as run:
        outcome = run.train()

The log stays open, and the folder locked against other processes, until the end of the `with` block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from backends import get_backend
from minibert.data.corpus import Corpus
from minibert.data.token_file import is_text_of
from minibert.data.tokenizer import Tokenizer
from minibert.errors import DataError, TrainingError, explained
from minibert.model import MiniBERT
from minibert.optimizer import AdamW
from minibert.options import flag
from minibert.training.checkpoint import CHECKPOINTS_FOLDER, find_newest, restore, set_aside
from minibert.training.display import Display, duration
from minibert.training.log import (
    METRICS_FILE,
    RunLog,
    damaged_lines,
    in_use_error,
    read_history,
    read_run_description,
)
from minibert.training.output_folder import FolderState, folder_state, remove_leftovers
from minibert.training.preparation import CACHE_FOLDER, Data, corpus_of, prepare_data
from minibert.training.provenance import changes, describe
from minibert.training.run import Run
from minibert.training.settings import Settings

RUNS_FOLDER = Path("runs")

BETAS = (0.9, 0.98)
"""AdamW's decay rates, as in RoBERTa (Liu et al. 2019, section 3.1). BERT's second one, 0.999, averages over more
steps than a short run has."""


def new_output() -> Path:
    """Return the output folder for a run without `--output`: runs/<date and time>."""
    return RUNS_FOLDER / datetime.now().strftime("%Y-%m-%d-%H-%M-%S")


@contextmanager
def start(settings: Settings, output: Path, display: Display, *, cache: Path | None = None) -> Iterator[Run]:
    """Start a new run.

    Args:
        settings: how to train.
        output: a new or empty folder, or the folder of a run that ended before its first checkpoint. Everything that
            the run writes goes there.
        display: receives what the run reports.
        cache: the folder for vocabularies and tokens; None for a folder beside `output`.

    Raises:
        TrainingError: the output folder holds something else, or the settings do not fit each other.
        DataError: the corpus cannot be read.
        BackendError: the device does not exist.
    """
    _check_may_start(folder_state(output), output, settings)
    with explained():
        backend = get_backend(settings.device)
    data = _prepare(settings, output, cache, display)
    with explained():
        config = settings.model_config(data.tokenizer.vocab_size)
        model = MiniBERT(
            config,
            backend=backend,
            dtype=settings.dtype,
            seed=settings.seed,
            kernels=settings.kernels,
            precision=settings.precision,
        )
        optimizer = _make_optimizer(model, settings)
    output.mkdir(parents=True, exist_ok=True)
    with _opened_log(output, display) as log:
        state = folder_state(output, own_log_open=True)  # another process may have trained here since the first check
        _check_may_start(state, output, settings)
        if state is FolderState.BEGUN:
            display.message(f"the run in {output} ended before its first checkpoint: starting again in its place")
        log.write("run", **describe(settings, model, data))
        data.tokenizer.save(output, model_max_length=config.max_position_embeddings)
        yield Run(settings, output, model, optimizer, data, log, display)


def settings_to_start(given: Mapping[str, Any], output: Path) -> Settings | None:
    """Return the settings of a run to start in place of a resume; None if there may be something to resume.

    There is nothing to resume in a new folder, and where a run ended before its first checkpoint. The latter keeps its
    settings, as a resumed run does.

    Args:
        given: the settings that the user gave explicitly.
        output: the output folder.

    Raises:
        TrainingError: the given settings are not accepted, or contradict those of the run.
    """
    state = folder_state(output)
    if state not in (FolderState.NEW, FolderState.BEGUN):
        return None
    written = read_run_description(output).get("settings")
    return Settings(**given) if written is None else Settings.from_dict(written).resumed_with(given)


@contextmanager
def resume(given: Mapping[str, Any], output: Path, display: Display, *, cache: Path | None = None) -> Iterator[Run]:
    """Resume a run from its newest checkpoint, bit for bit if the device computes deterministically.

    Args:
        given: the settings that the user gave explicitly; see `Settings.resumed_with`.
        output: the run's output folder.
        display: receives what the run reports.
        cache: the folder for vocabularies and tokens; None for a folder beside `output`.

    Raises:
        TrainingError: there is no run to resume, all its checkpoints are damaged, a given setting contradicts it, or
            the corpus or the vocabulary has changed.
        DataError: the corpus or the vocabulary cannot be read.
        BackendError: the device does not exist.
    """
    _check_may_resume(folder_state(output), output)
    found = find_newest(output / CHECKPOINTS_FOLDER)
    path, state = found.path, found.state
    for _, damage in found.damaged:
        display.message(f"{damage}: going on from the checkpoint before it, of step {state.step}")
    settings = Settings.from_dict(state.settings).resumed_with(given)
    minutes = settings.minutes
    if minutes is not None and minutes != state.settings.get("minutes") and 60.0 * minutes < state.elapsed:
        raise TrainingError(
            f"the run in {output} has been trained for {duration(state.elapsed)} already, and --minutes {minutes:g} is "
            "the total, the time before the resume included: give a larger number"
        )
    if settings.steps is not None and settings.steps < state.step:
        raise TrainingError(
            f"the run in {output} has taken {state.step} steps already, and --steps {settings.steps} is the "
            "total, those before the resume included: give a larger number"
        )
    with explained():
        backend = get_backend(settings.device)
    cache_folder = cache or output.parent / CACHE_FOLDER
    tokenizer = _load_tokenizer(output, state.tokenizer, cache_folder, display)
    corpus = corpus_of(settings)
    if not is_text_of(corpus, tokenizer, cache_folder, state.corpus):
        raise TrainingError(
            f"the text in {' '.join(settings.corpus)} is not the one that the checkpoint {path} was trained on"
            f"{_difference(state.corpus_bytes, corpus.number_of_bytes())}; put it back, or start another run in "
            "another --output"
        )
    data = _prepare(settings, output, cache, display, tokenizer, corpus)
    with explained():
        model = MiniBERT(
            settings.model_config(tokenizer.vocab_size),
            backend=backend,
            dtype=settings.dtype,
            seed=settings.seed,
            kernels=settings.kernels,
            precision=settings.precision,
            initialised=False,
        )
    optimizer = _make_optimizer(model, settings)
    restore(path, model, optimizer)
    if settings.budget().exhausted(state.step, state.elapsed):
        display.message(
            f"the run in {output} has had all its training ({state.step} steps in {duration(state.elapsed)}). Its "
            f"results are written again; a larger {'--minutes' if settings.steps is None else '--steps'} trains on"
        )
    else:
        display.message(f"resuming from {path} (step {state.step}, {duration(state.elapsed)} of training)")
    history, bad = _history(output)
    if bad:
        numbers = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        display.message(f"{METRICS_FILE} has damaged lines, which do not count: {numbers}")
    sessions = [line for line in history if line["kind"] in ("run", "resumed")]
    description = describe(settings, model, data)
    for change in changes(sessions[-1] if sessions else {}, description):
        display.message(change)
    with _opened_log(output, display) as log:
        tokenizer.save(output, model_max_length=model.config.max_position_embeddings)
        for damaged, _ in found.damaged:
            display.message(
                f"the damaged checkpoint was renamed to {set_aside(damaged)}; delete it if you do not need it"
            )
        log.write("resumed", step=state.step, **description)
        yield Run(settings, output, model, optimizer, data, log, display, state.elapsed)


@contextmanager
def _opened_log(output: Path, display: Display) -> Iterator[RunLog]:
    """Open the log of a run, and clear up what a killed session left. Say it if lines could not be written."""
    log = RunLog(output / METRICS_FILE)
    try:
        remove_leftovers(output)
        yield log
    finally:
        log.close()
        if log.failure is not None:
            display.message(f"the last lines of {output / METRICS_FILE} could not be written: {log.failure}")


def _check_may_start(state: FolderState, output: Path, settings: Settings) -> None:
    """Refuse a folder in which a new run would overwrite something.

    Raises:
        TrainingError: the folder is neither new nor left by a run without a checkpoint.
    """
    if state is FolderState.IN_USE:
        raise in_use_error(output)
    if state is FolderState.BEGUN_OR_RUNNING:
        raise TrainingError(
            f"{output} holds a run without a checkpoint, and this system cannot tell whether it is still going "
            "on: give another --output"
        )
    if state in (FolderState.RESUMABLE, FolderState.FINISHED):
        raise TrainingError(
            f"{output} holds {_described(output, state, settings)}, and nothing is overwritten: give another --output, "
            "or continue that run with --resume"
        )
    if state is FolderState.FOREIGN:
        raise TrainingError(f"{output} is not an empty folder, and nothing is overwritten: give another --output")


def _described(output: Path, state: FolderState, settings: Settings) -> str:
    """Describe the run in a folder, beside the settings of a run that was to be started there."""
    written = read_run_description(output).get("settings", {})
    new = settings.to_dict()
    different = [flag(name) for name, value in new.items() if written.get(name, value) != value]
    kind = "another run" if different or not written else "a run with the same settings"
    end = "finished" if state is FolderState.FINISHED else "interrupted"
    return f"{kind} ({end}{'; other ' + ', '.join(different) if different else ''})"


def _check_may_resume(state: FolderState, output: Path) -> None:
    """Refuse a folder without a run that can be resumed.

    Raises:
        TrainingError: the folder holds no run with a checkpoint, or another process is training there.
    """
    if state is FolderState.IN_USE:
        raise in_use_error(output)
    if state in (FolderState.BEGUN, FolderState.BEGUN_OR_RUNNING):
        raise TrainingError(
            f"the run in {output} ended before its first checkpoint, so there is nothing to resume: start it again, "
            "without --resume"
        )
    if state in (FolderState.NEW, FolderState.FOREIGN):
        raise TrainingError(
            f"there is no run to resume in {output}: it holds no checkpoint; give the --output of a run that was "
            "interrupted or finished"
        )


def _load_tokenizer(output: Path, fingerprint: str, cache: Path, display: Display) -> Tokenizer:
    """Load the tokenizer of a run. If its files are damaged, write them again from the cache.

    Raises:
        TrainingError: the files are damaged or belong to another vocabulary, and the cache does not have the right one.
    """
    try:
        tokenizer = Tokenizer.load(output)
        if tokenizer.fingerprint() == fingerprint:
            return tokenizer
        damage = f"the vocabulary in {output} ({tokenizer.vocab_size} tokens) is not the one that the run began with"
    except DataError as error:
        damage = str(error)
    for folder in sorted(cache.glob("vocabulary-*")):
        with contextlib.suppress(DataError):
            tokenizer = Tokenizer.load(folder)
            if tokenizer.fingerprint() == fingerprint:
                display.message(f"{damage}: its files are written again from {folder}")
                return tokenizer
    raise TrainingError(f"{damage}; put the run's own vocab.txt and tokenizer.json back")


def _difference(before: int | None, now: int) -> str:
    """Describe in what way a text differs from the one before, from the sizes of both in bytes."""
    if before is None:
        return ""
    if now == before:
        return f": it still has {now:,} bytes, but other content"
    return f": it has {'grown' if now > before else 'shrunk'} from {before:,} to {now:,} bytes"


def _history(output: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Read the log of a run and the numbers of its damaged lines; nothing if the log is gone."""
    log = output / METRICS_FILE
    return (read_history(log), damaged_lines(log)) if log.exists() else ([], [])


def _prepare(
    settings: Settings,
    output: Path,
    cache: Path | None,
    display: Display,
    tokenizer: Tokenizer | None = None,
    corpus: Corpus | None = None,
) -> Data:
    """Prepare the data of a run and show the progress. A resumed run passes its tokenizer and its open text."""
    folder = cache or output.parent / CACHE_FOLDER
    try:
        return prepare_data(settings, folder, tokenizer, display.preparing, corpus)
    finally:
        display.end()


def _make_optimizer(model: MiniBERT, settings: Settings) -> AdamW:
    return AdamW(model, betas=BETAS, weight_decay=settings.weight_decay, max_norm=settings.clip_norm)
