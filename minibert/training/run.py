"""The training loop: take steps, and report, evaluate and save between them.

`minibert.training.session` builds a `Run`; `Run.train` goes from its first step to the saved model.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibert.checksums import MODEL_FILES, write_checksums
from minibert.data.prefetch import prefetch
from minibert.errors import NonFiniteError, SavingError
from minibert.model import MiniBERT
from minibert.optimizer import AdamW, linear_schedule
from minibert.training.checkpoint import CHECKPOINTS_FOLDER, RunState, list_checkpoints
from minibert.training.display import Display
from minibert.training.evaluation import Evaluation, evaluate
from minibert.training.log import METRICS_FILE, RunLog
from minibert.training.loss_check import LossWarning, diverged, learnt_nothing
from minibert.training.preparation import Data
from minibert.training.saver import CheckpointSaver
from minibert.training.settings import Settings
from minibert.training.thread_choice import thread_choice
from minibert.training.trainer import Trainer

_LATE = 0.5  # from this share of a run on, a model should know more than how frequent words are
_BATCHES_AHEAD = 2  # prepared in the background while the model computes


@dataclass(frozen=True)
class Outcome:
    """The end of a session of a run.

    Attributes:
        step: optimizer steps taken.
        elapsed: seconds of training, all sessions together.
        tokens_per_second: speed of this session, without evaluations and checkpoints; 0.0 if it took no step.
        peak_memory: the most bytes in use at one time; None if the backend cannot tell.
        evaluation: of the final parameters; None if the run was interrupted.
        warning: says that the model has learnt nothing, and the usual causes; None if it has learnt something.
    """

    step: int
    elapsed: float
    tokens_per_second: float
    peak_memory: int | None
    evaluation: Evaluation | None
    warning: str | None = None

    @property
    def finished(self) -> bool:
        """False if the run was interrupted; then it can be resumed."""
        return self.evaluation is not None


class Run:
    """A run that is ready for its next step: a model, its data and its output folder.

    Args:
        settings: how to train.
        output: the run's output folder; it exists.
        model: the model to train, new or restored from a checkpoint.
        optimizer: the model's optimizer; `optimizer.steps` is the number of steps taken.
        data: the text to train on and to evaluate on.
        log: the run's log, open.
        display: receives what the run reports.
        elapsed: seconds of training in earlier sessions.
    """

    def __init__(
        self,
        settings: Settings,
        output: Path,
        model: MiniBERT,
        optimizer: AdamW,
        data: Data,
        log: RunLog,
        display: Display,
        elapsed: float = 0.0,
    ) -> None:
        assert settings.learning_rate is not None  # `Settings.__post_init__` has replaced None
        self.highest_rate = settings.learning_rate
        self.settings = settings
        self.output = output
        self.model = model
        self.optimizer = optimizer
        self.data = data
        self.log = log
        self.display = display
        self.budget = settings.budget()
        self.trainer = Trainer(
            model,
            optimizer,
            accumulate=settings.accumulate,
            dropout=settings.dropout > 0.0,
            skip_non_finite=settings.non_finite == "skip",
        )
        self._checkpoints = output / CHECKPOINTS_FOLDER
        saved_step = optimizer.steps if list_checkpoints(self._checkpoints) else None
        self._saver = CheckpointSaver(self._checkpoints, settings.checkpoint_every, display.message, saved_step)
        self._elapsed_before = elapsed
        self._began = time.monotonic()
        self._interval_began = time.monotonic()  # the interval from one report to the next
        self._learning_rate = 0.0
        self._tokens = 0  # processed in this session
        self._warned: set[str] = set()  # the kinds of warnings that were shown
        self._seconds_of_steps = 0.0  # in this session, without evaluations and checkpoints

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.optimizer.steps

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, without preparation, evaluations and the time between sessions."""
        return self._elapsed_before + time.monotonic() - self._began

    def train(self, interrupted: Callable[[], bool] = lambda: False) -> Outcome:
        """Train until the budget is exhausted, or until an interruption, and save the result.

        A run that reaches its end is evaluated, and its checkpoint, its result and its model are written. A run that
        is interrupted writes a checkpoint only.

        Args:
            interrupted: called before every step; True ends the session.

        Raises:
            NonFiniteError: the loss, a gradient or a parameter is NaN or infinite. No such value was saved. The
                message names the step and the remedy.
            SavingError: checkpoints or the model cannot be written. The checkpoints written before are complete.
        """
        self._introduce()
        try:
            self.display.preparing("warming up", 0)
            self.trainer.dry_run(self.data.source.training_batch(self.step))
            self._began = time.monotonic()
            self.display.begin(self.budget, self.step, self.elapsed)
            finished = self._take_steps(interrupted)
            evaluation = self._evaluate() if finished else None
            self._save_checkpoint(last=True)
        except NonFiniteError as error:
            self._log("stopped", step=error.step, reason=str(error))
            raise NonFiniteError(f"{error}. {self._remedy()}", error.step) from None
        finally:
            self.display.end()
        speed = self._tokens / self._seconds_of_steps if self._tokens else 0.0
        warning = None
        if evaluation is not None:
            warning = learnt_nothing(evaluation.loss, evaluation.unigram_loss, self.settings)
        outcome = Outcome(
            self.step,
            self.elapsed,
            speed,
            self.model.backend.memory().peak,
            evaluation,
            None if warning is None else warning.text,
        )
        if evaluation is not None:
            self._log(
                "result",
                step=outcome.step,
                elapsed=outcome.elapsed,
                tokens_per_second=outcome.tokens_per_second,
                peak_memory=outcome.peak_memory,
                **evaluation.to_dict(),
                **({} if outcome.warning is None else {"warning": outcome.warning}),
            )
            self._save_model()
        return outcome

    def _introduce(self) -> None:
        """Show the model and the text."""
        settings, config, tokenized = self.settings, self.model.config, self.data.tokenized
        self.display.message(
            f"{settings.preset}: {config.num_hidden_layers} layers, {config.hidden_size} wide, vocabulary "
            f"{config.vocab_size:,}, {self.model.parameters.layout.size / 1e6:.1f} M parameters, {settings.dtype}, "
            f"on {self.model.backend.description()}"
        )
        self.display.message(
            f"{' '.join(settings.corpus)}: {tokenized.train.number_of_tokens:,} tokens to train on, "
            f"{tokenized.evaluation.number_of_tokens:,} held out{self._share_evaluated()}; "
            f"{settings.batch_size} x {settings.seq_length} tokens a step, "
            f"{self.data.source.steps_per_epoch:,.0f} steps an epoch"
        )

    def _share_evaluated(self) -> str:
        """Say how much of the held-out text is evaluated; nothing if it is all of it."""
        sequences, measured = self.data.evaluation_sequences, self.data.evaluated_sequences()
        if measured == len(sequences):
            return ""
        return f" (evaluations measure {measured * sequences.seq_length:,} of them)"

    def _take_steps(self, interrupted: Callable[[], bool]) -> bool:
        """Take steps until the budget is exhausted (return True) or until an interruption (return False)."""
        settings = self.settings
        last = None if settings.steps is None else settings.steps - 1
        with (
            closing(prefetch(self.data.source.training_batch, self.step, last, _BATCHES_AHEAD)) as batches,
            closing(thread_choice(self.model)) as threads,
        ):
            self._interval_began = time.monotonic()
            while not self.budget.exhausted(self.step, self.elapsed):
                if interrupted():
                    return False
                position = self.budget.schedule_position(self.step, self.elapsed)
                self._learning_rate = self.highest_rate * linear_schedule(position, settings.warmup)
                threads.before_step()
                self.trainer.step(next(batches), self._learning_rate)
                self.display.advance(self.step, self.elapsed)
                if self.step % settings.report_every == 0:
                    self._report()
                # after the last step, `train` evaluates and saves
                is_last = self.budget.exhausted(self.step, self.elapsed)
                if self.step % settings.evaluate_every == 0 and not is_last:
                    self._evaluate()
                if self._saver.is_due(self.step) and not is_last:
                    self._save_checkpoint()
        return True

    def _report(self) -> None:
        """Fetch the figures of the steps since the last report, check that they are finite, log and show them."""
        for skipped in self.trainer.skipped:
            self._log("skipped", step=skipped.step, reason=skipped.reason)
            self.display.message(f"step {skipped.step} was skipped: {skipped.reason}")
        self.trainer.skipped.clear()
        if not self.trainer.pending:
            return
        figures = self.trainer.collect()
        now = time.monotonic()
        seconds, self._interval_began = now - self._interval_began, now
        self._tokens += figures.tokens
        self._seconds_of_steps += seconds
        loss, speed = float(figures.losses.mean()), figures.tokens / seconds
        self._log(
            "train",
            step=self.step,
            loss=loss,
            learning_rate=self._learning_rate,
            gradient_norm=float(figures.gradient_norms.mean()),
            tokens_per_second=speed,
            elapsed=self.elapsed,
            memory=self.model.backend.memory().used,
        )
        self.display.report(self.step, loss, speed)
        self._warn(diverged(loss, self.model.config.vocab_size, self.settings))

    def _evaluate(self) -> Evaluation:
        """Evaluate the parameters on the held-out text, log and show the figures."""
        self._report()
        self.trainer.check_parameters()
        began, total = time.monotonic(), self.data.evaluated_sequences()
        evaluation = evaluate(
            self.model,
            self.data.evaluation_batches(),
            self.data.tokenized.unigram_counts,
            lambda sequences: self.display.evaluating(self.step, sequences / total),
        )
        self._began += time.monotonic() - began  # an evaluation does not count as training
        self._log("evaluation", step=self.step, elapsed=self.elapsed, **evaluation.to_dict())
        self.display.evaluated(self.step, evaluation)
        if _LATE <= self.budget.share_done(self.step, self.elapsed) < 1.0:  # at the end, `Outcome` has it
            self._warn(learnt_nothing(evaluation.loss, evaluation.unigram_loss, self.settings))
        self._interval_began = time.monotonic()
        return evaluation

    def _warn(self, warning: LossWarning | None) -> None:
        """Show and log a warning, unless there was one of its kind in this session."""
        if warning is not None and warning.kind not in self._warned:
            self._warned.add(warning.kind)
            self._log("warning", step=self.step, text=warning.text)
            self.display.message(f"step {self.step}: {warning.text}")

    def _save_checkpoint(self, *, last: bool = False) -> None:
        """Write a checkpoint, unless there is one of this step already.

        Args:
            last: True if no training follows, so that the checkpoint must be written now.
        """
        self._report()
        if self._saver.is_saved(self.step):
            return
        self.trainer.check_parameters()
        state = RunState(
            step=self.step,
            elapsed=self.elapsed,
            settings=self.settings.to_dict(),
            tokenizer=self.data.tokenizer.fingerprint(),
            corpus=self.data.tokenized.fingerprint,
            corpus_bytes=self.data.corpus_bytes,
        )
        self._saver.save(self.model, self.optimizer, state, last=last)
        self._interval_began = time.monotonic()

    def _save_model(self) -> None:
        """Write the trained model."""
        try:
            self.model.save_pretrained(self.output)
            write_checksums(self.output, MODEL_FILES)
        except OSError as error:
            raise SavingError(
                f"the model cannot be written to {self.output}: {error.strerror or error}. Its last checkpoint is "
                f"complete: make it possible to write there, and --output {shlex.quote(str(self.output))} --resume "
                "writes the model"
            ) from error

    def _log(self, kind: str, **fields: Any) -> None:
        """Add a line to the log, and say it if lines cannot be written any more, or again."""
        before = self.log.failure
        self.log.write(kind, **fields)
        if self.log.failure is not None and before is None:
            self.display.message(
                f"{METRICS_FILE} cannot be written ({self.log.failure}): the training goes on, and keeps the lines in "
                "memory until they can be written"
            )
        if self.log.failure is None and before is not None:
            self.display.message(f"{METRICS_FILE} can be written again, and has all its lines")

    def _remedy(self) -> str:
        """Say how to go on after a loss, a gradient or a parameter that is not finite."""
        advice = f"a lower --learning-rate (it was {self.highest_rate:g}) usually helps"
        saved = list_checkpoints(self._checkpoints)
        if not saved:
            return (
                f"No checkpoint had been written yet. Start again, the same --output will do: {advice}, so do a longer "
                f"--warmup (it was {self.settings.warmup:g}) and a smaller --clip-norm (it was "
                f"{self.settings.clip_norm:g})"
            )
        return (
            f"The last good checkpoint is kept: {saved[-1]}. {advice[0].upper()}{advice[1:]}: continue from there "
            f"with --output {shlex.quote(str(self.output))} --resume --learning-rate {self.highest_rate / 2:g}"
        )
