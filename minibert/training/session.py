"""Starting a run, resuming one, and what is left in the output folder at the end."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from backends import get_backend
from minibert.commands.pictures import PLOT_FILE, draw_loss_curve
from minibert.commands.screen import Display, duration
from minibert.commands.tables import show_examples, show_results
from minibert.data.tokenizer import Tokenizer
from minibert.errors import TrainingError, explained
from minibert.inference.examples import fill_mask_examples
from minibert.model import MiniBERT
from minibert.optimizer import AdamW
from minibert.training.checkpoint import CHECKPOINTS_FOLDER, read_newest_state, restore
from minibert.training.log import METRICS_FILE, RunLog, read_history
from minibert.training.output_folder import FolderState, folder_state
from minibert.training.preparation import CACHE_FOLDER, Data, prepare_data
from minibert.training.run import BETAS, Outcome, Run
from minibert.training.settings import Settings

RUNS_FOLDER = Path("runs")

Interrupted = Callable[[], bool]


def new_output() -> Path:
    """The output folder of a run that was given none."""
    return RUNS_FOLDER / datetime.now().strftime("%Y-%m-%d-%H-%M-%S")


def start(
    settings: Settings,
    output: Path,
    display: Display,
    *,
    cache: Path | None = None,
    interrupted: Interrupted = lambda: False,
) -> Outcome:
    """Trains a new model.

    Args:
        settings: how.
        output: a new or empty folder, or that of a run which ended before its first checkpoint; everything of the
            run goes there.
        display: shows what happens.
        cache: for vocabularies and tokens; beside the output folder if None.
        interrupted: asked before every step; True ends the run with a checkpoint.

    Raises:
        TrainingError: the output folder is in use, or the loss is NaN.
        DataError: the corpus cannot be read.
        BackendError: a device that this machine does not have.
    """
    _refuse_used(output)
    with explained():
        backend = get_backend(settings.device)
    data = _prepare(settings, output, cache, display)
    with explained():
        config = settings.model_config(data.tokenizer.vocab_size)
        model = MiniBERT(config, backend=backend, dtype=settings.dtype, seed=settings.seed, kernels=settings.kernels)
        optimizer = _optimizer(model, settings)
    output.mkdir(parents=True, exist_ok=True)
    again = any(output.iterdir())
    with closing(RunLog(output / METRICS_FILE)) as log:
        _refuse_used(output)  # another process may have trained there since
        if again and folder_state(output, own_log_open=True) is FolderState.BEGUN_OR_RUNNING:
            raise TrainingError(
                f"{output} holds a run without a checkpoint, and this system cannot tell whether it is still going "
                "on: give another --output"
            )
        if again:
            display.message(f"the run in {output} ended before its first checkpoint: starting again in its place")
        log.write("run", started=_now(), **_description(settings, model, data))
        data.tokenizer.save(output, model_max_length=config.max_position_embeddings)
        return _train(settings, output, model, optimizer, data, log, display, 0.0, interrupted)


def resume(
    given: Mapping[str, Any],
    output: Path,
    display: Display,
    *,
    cache: Path | None = None,
    interrupted: Interrupted = lambda: False,
) -> Outcome:
    """Continues a run from its newest checkpoint, bit for bit where the device computes deterministically.

    Args:
        given: settings that the user asked for explicitly; see `Settings.resumed_with`.
        output: the run's folder.
        display: as in `start`.
        cache: as in `start`.
        interrupted: as in `start`.

    Raises:
        TrainingError: no run, a damaged checkpoint, contradicting settings, another corpus or vocabulary.
        DataError: the corpus or the vocabulary cannot be read.
        BackendError: a device that this machine does not have.
    """
    if folder_state(output) in (FolderState.BEGUN, FolderState.BEGUN_OR_RUNNING):
        raise TrainingError(
            f"the run in {output} ended before its first checkpoint, so there is nothing to resume: start it again, "
            "without --resume"
        )
    if not (output / CHECKPOINTS_FOLDER).is_dir():
        raise TrainingError(f"there is no run to resume in {output}: it has no folder {CHECKPOINTS_FOLDER}")
    path, progress = read_newest_state(output / CHECKPOINTS_FOLDER)
    settings = Settings.from_dict(progress.settings).resumed_with(given)
    if settings.steps is not None and settings.steps < progress.step:
        raise TrainingError(
            f"the run in {output} has taken {progress.step} steps already; --steps {settings.steps} is to be the "
            "total, those before the resume included: give a larger number"
        )
    with explained():
        backend = get_backend(settings.device)
    tokenizer = Tokenizer.load(output)
    if tokenizer.fingerprint() != progress.tokenizer:
        raise TrainingError(
            f"the vocabulary in {output} ({tokenizer.vocab_size} tokens) is not the one that the checkpoint "
            f"{path} was trained with; put the run's own vocab.txt and tokenizer.json back"
        )
    data = _prepare(settings, output, cache, display, tokenizer)
    if data.tokenized.fingerprint != progress.corpus:
        raise TrainingError(
            f"the text in {' '.join(settings.corpus)} is not the one that the checkpoint {path} was trained on (a "
            "file's path, size or time of change differs); put it back, or start another run in another --output"
        )
    with explained():
        model = MiniBERT(
            settings.model_config(tokenizer.vocab_size),
            backend=backend,
            dtype=settings.dtype,
            seed=settings.seed,
            kernels=settings.kernels,
            initialised=False,
        )
    optimizer = _optimizer(model, settings)
    restore(path, model, optimizer)
    display.message(f"resuming from {path} (step {progress.step}, {duration(progress.elapsed)} of training)")
    before, now = _last_device(output), model.backend.description()
    if before not in (None, now):
        display.message(f"so far it was computed by {before}, now by {now}: equal but for rounding, not bit for bit")
    with closing(RunLog(output / METRICS_FILE)) as log:
        log.write("resumed", step=progress.step, started=_now(), **_description(settings, model, data))
        return _train(settings, output, model, optimizer, data, log, display, progress.elapsed, interrupted)


def _refuse_used(output: Path) -> None:
    """That a run may be started in a folder without overwriting anything but what a new start makes anew."""
    if folder_state(output) in (FolderState.NEW, FolderState.BEGUN, FolderState.BEGUN_OR_RUNNING, FolderState.IN_USE):
        return
    what = "holds another run" if (output / METRICS_FILE).exists() else "is not an empty folder"
    raise TrainingError(
        f"{output} {what}, and nothing is overwritten: give another --output, or continue a run with --resume"
    )


def _last_device(output: Path) -> str | None:
    """What the run was last computed by: device, libraries and threads, all that its bits depend on."""
    try:
        history = read_history(output / METRICS_FILE)
    except OSError:  # gone: nothing is known, and nothing depends on it
        return None
    return next((entry.get("device") for entry in reversed(history) if entry["kind"] in ("run", "resumed")), None)


def _prepare(
    settings: Settings, output: Path, cache: Path | None, display: Display, tokenizer: Tokenizer | None = None
) -> Data:
    try:
        return prepare_data(settings, cache or output.parent / CACHE_FOLDER, tokenizer, display.preparing)
    finally:
        display.end()


def _optimizer(model: MiniBERT, settings: Settings) -> AdamW:
    return AdamW(model, betas=BETAS, weight_decay=settings.weight_decay, max_norm=settings.clip_norm)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _description(settings: Settings, model: MiniBERT, data: Data) -> dict[str, Any]:
    """What a run is, for the metrics."""
    return {
        "minibert": version("minibert"),
        "python": platform.python_version(),
        "device": model.backend.description(),
        "kernels": list(model.kernels.twins),
        "settings": settings.to_dict(),
        "model": model.config.to_dict(),
        "parameters": model.parameters.layout.size,
        "training_tokens": data.tokenized.train.number_of_tokens,
        "evaluation_tokens": data.tokenized.evaluation.number_of_tokens,
        "tokenizer": data.tokenizer.fingerprint(),
        "corpus": data.tokenized.fingerprint,
    }


def _train(
    settings: Settings,
    output: Path,
    model: MiniBERT,
    optimizer: AdamW,
    data: Data,
    log: RunLog,
    display: Display,
    elapsed: float,
    interrupted: Interrupted,
) -> Outcome:
    config = model.config
    display.message(
        f"{settings.preset}: {config.num_hidden_layers} layers, {config.hidden_size} wide, vocabulary "
        f"{config.vocab_size:,}, {model.parameters.layout.size / 1e6:.1f} M parameters, {settings.dtype}, "
        f"on {model.backend.description()}"
    )
    display.message(
        f"{' '.join(settings.corpus)}: {data.tokenized.train.number_of_tokens:,} tokens to train on, "
        f"{data.tokenized.evaluation.number_of_tokens:,} held out; {settings.batch_size} x {settings.seq_length} "
        f"tokens a step, {data.source.steps_per_epoch:,.0f} steps an epoch"
    )
    outcome = Run(settings, output, model, optimizer, data, log, display, elapsed, interrupted).train()
    if outcome.evaluation is not None:
        log.write(
            "result",
            step=outcome.step,
            elapsed=outcome.elapsed,
            tokens_per_second=outcome.tokens_per_second,
            peak_memory=model.backend.memory().peak,
            **outcome.evaluation.to_dict(),
        )
    if outcome.finished:
        _finish(output, model, data, display, outcome)
    else:
        display.message(
            f"interrupted after step {outcome.step}, which is saved. Continue with\n"
            f"  python scripts/train.py --output {output} --resume"
        )
    return outcome


def _finish(output: Path, model: MiniBERT, data: Data, display: Display, outcome: Outcome) -> None:
    """Saves the model and the loss curve, shows the results."""
    model.save_pretrained(output)
    drawn = draw_loss_curve(read_history(output / METRICS_FILE), output / PLOT_FILE)
    show_results(display.console, outcome, model.backend.memory().peak)
    examples = fill_mask_examples(model, data.tokenizer, data.tokenized.evaluation)
    show_examples(display.console, examples)
    if not drawn:
        display.message(f"{PLOT_FILE} was not drawn: Matplotlib is not installed (pip install '.[plot]')")
    display.message(f"The model, its vocabulary, the metrics and the loss curve are in {output}. Try next:")
    text = examples[0].text if examples else data.tokenizer.special_tokens["mask_token"]
    display.message(f"  python scripts/fill_mask.py --model {output} {shlex.quote(text)}")
    display.message(f"  python scripts/evaluate.py --model {output}")
