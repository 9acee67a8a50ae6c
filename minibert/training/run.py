"""The training loop: steps, and what happens between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from minibert.commands.screen import Display
from minibert.data.prefetch import prefetch
from minibert.errors import NonFiniteError
from minibert.model import MiniBERT
from minibert.optimizer import AdamW, linear_schedule
from minibert.training.budget import Budget
from minibert.training.checkpoint import CHECKPOINTS_FOLDER, RunState, list_checkpoints, save_checkpoint
from minibert.training.evaluation import Evaluation, evaluate
from minibert.training.log import RunLog
from minibert.training.preparation import Data
from minibert.training.settings import Settings
from minibert.training.trainer import Trainer

BETAS = (0.9, 0.98)
"""Decay of AdamW's moments: RoBERTa's (Liu et al. 2019, section 3.1). BERT's second, 0.999, averages over more
steps than a short run has."""

_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        finished: False if it was interrupted; it can be resumed then.
        step: optimizer steps done.
        elapsed: seconds, all sessions together.
        tokens_per_second: of this session, evaluations and checkpoints left out.
        evaluation: of the final parameters; None if interrupted.
    """

    finished: bool
    step: int
    elapsed: float
    tokens_per_second: float
    evaluation: Evaluation | None


class Run:
    """A model, its data and its output folder, on the way from one step to the next.

    Args:
        settings: how to train.
        output: the run's folder; it exists.
        model: to train, fresh or restored.
        optimizer: of the model; `optimizer.steps` says how far the run is.
        data: what to train on.
        log: where the metrics go.
        display: what the person sees.
        elapsed: seconds of earlier sessions.
        interrupted: asked before every step; True ends the run with a checkpoint.
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
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        assert settings.learning_rate is not None  # filled in when the settings were made
        self.highest_rate = settings.learning_rate
        self.settings = settings
        self.checkpoints = output / CHECKPOINTS_FOLDER
        self.model = model
        self.optimizer = optimizer
        self.data = data
        self.log = log
        self.display = display
        self.interrupted = interrupted
        seconds = None if settings.minutes is None else 60.0 * settings.minutes
        self.budget = Budget(settings.steps, seconds)
        self.trainer = Trainer(model, optimizer, accumulate=settings.accumulate, dropout=settings.dropout > 0.0)
        self._elapsed_before = elapsed
        self._began = time.monotonic()
        self._interval_began = time.monotonic()
        self._learning_rate = 0.0
        self._tokens = 0
        self._busy_seconds = 0.0  # spent on steps, in this session
        self._saved_step = optimizer.steps if list_checkpoints(self.checkpoints) else -1

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.optimizer.steps

    @property
    def elapsed(self) -> float:
        """Seconds of training so far; what was before its first step and between sessions is left out."""
        return self._elapsed_before + time.monotonic() - self._began

    def train(self) -> Outcome:
        """Trains until the budget is spent or someone interrupts.

        Raises:
            NonFiniteError: the loss, a gradient or a parameter is NaN or infinite. Nothing of it was saved; the
                message says at which step and what to do.
        """
        try:
            self.display.preparing("warming up", 0)
            self.trainer.rehearse(self.data.source.training_batch(self.step))
            self._began = time.monotonic()
            self.display.begin(self.budget, self.step, self.elapsed)
            finished = self._loop()
            evaluation = self._evaluate() if finished else None
            self._save()
        except NonFiniteError as error:
            self.log.write("stopped", step=error.step, reason=str(error))
            raise NonFiniteError(f"{error}. {self._remedy()}", error.step) from None
        finally:
            self.display.end()
        speed = self._tokens / self._busy_seconds if self._tokens else 0.0
        return Outcome(finished, self.step, self.elapsed, speed, evaluation)

    def _loop(self) -> bool:
        """Takes steps; returns whether the budget is spent."""
        settings = self.settings
        last = None if settings.steps is None else settings.steps - 1
        with closing(prefetch(self.data.source.training_batch, self.step, last, _BATCHES_AHEAD)) as batches:
            self._interval_began = time.monotonic()
            while not self.budget.exhausted(self.step, self.elapsed):
                if self.interrupted():
                    return False
                progress = self.budget.progress(self.step, self.elapsed)
                self._learning_rate = self.highest_rate * linear_schedule(progress, settings.warmup)
                self.trainer.step(next(batches), self._learning_rate)
                self.display.advance(self.step, self.elapsed)
                if self.step % settings.report_every == 0:
                    self._report()
                last_step = self.budget.exhausted(self.step, self.elapsed)  # evaluated and saved after the loop
                if self.step % settings.evaluate_every == 0 and not last_step:
                    self._evaluate()
                if self.step % settings.checkpoint_every == 0 and not last_step:
                    self._save()
        return True

    def _report(self) -> None:
        """Fetches the figures since the last report, checks and records them."""
        if not self.trainer.pending:
            return
        figures = self.trainer.collect()
        now = time.monotonic()
        seconds, self._interval_began = now - self._interval_began, now
        self._tokens += figures.tokens
        self._busy_seconds += seconds
        loss, speed = float(figures.losses.mean()), figures.tokens / seconds
        memory = self.model.backend.memory()
        self.log.write(
            "train",
            step=self.step,
            loss=loss,
            learning_rate=self._learning_rate,
            gradient_norm=float(figures.gradient_norms.mean()),
            tokens_per_second=speed,
            elapsed=self.elapsed,
            memory=memory.used,
        )
        self.display.report(self.step, loss, speed)

    def _evaluate(self) -> Evaluation:
        self._report()
        self.trainer.check_parameters()
        evaluation = evaluate(self.model, self.data.evaluation_batches(), self.data.tokenized.unigram_counts)
        self.log.write("evaluation", step=self.step, elapsed=self.elapsed, **evaluation.to_dict())
        self.display.evaluated(self.step, evaluation)
        self._interval_began = time.monotonic()
        return evaluation

    def _save(self) -> None:
        """Writes a checkpoint of finite parameters, unless there is one of this step."""
        self._report()
        if self.step == self._saved_step:
            return
        self.trainer.check_parameters()
        progress = RunState(
            self.step,
            self.elapsed,
            self.settings.to_dict(),
            self.data.tokenizer.fingerprint(),
            self.data.tokenized.fingerprint,
        )
        save_checkpoint(self.checkpoints, self.model, self.optimizer, progress)
        self._saved_step = self.step
        self._interval_began = time.monotonic()

    def _remedy(self) -> str:
        settings = self.settings
        advice = f"a lower --learning-rate (it was {self.highest_rate:g}) usually helps"
        saved = list_checkpoints(self.checkpoints)
        if not saved:
            return (
                f"No checkpoint had been written yet. Start again, the same --output will do: {advice}, so do a longer "
                f"--warmup (it was {settings.warmup:g}) and a smaller --clip-norm (it was {settings.clip_norm:g})"
            )
        return (
            f"The last good checkpoint is kept: {saved[-1]}. {advice[0].upper()}{advice[1:]}: continue from there "
            f"with --output {self.checkpoints.parent} --resume --learning-rate {self.highest_rate / 2:g}"
        )
