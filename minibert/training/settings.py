"""All that decides how a run goes, in one place: checked, saved with every checkpoint, compared on resume."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minibert.config import PRESETS, MiniBERTConfig
from minibert.data.batch_source import OBJECTIVES
from minibert.data.masking import MaskingRule
from minibert.errors import TrainingError, explained

DTYPES = ("float32", "float64")

DEFAULT_MINUTES = 2.5

_BASE_INITIALIZER_RANGE, _BASE_HIDDEN_SIZE = 0.02, 768  # of BERT-base
_TINY_LEARNING_RATE, _TINY_HIDDEN_SIZE = 2e-3, 128  # found by trial on the standard library's documentation

FREE_TO_CHANGE = frozenset(
    {
        *("steps", "minutes", "learning_rate", "device", "kernels", "accumulate"),
        *("report_every", "evaluate_every", "checkpoint_every"),
    }
)
"""Settings that may differ when a run is resumed; all others are part of what the run is."""


@dataclass(frozen=True)
class Settings:
    """How to train; the defaults make a small BERT from Python's own documentation in minutes.

    Where None stands for "what suits the model", the value is filled in when the settings are made.

    Attributes:
        corpus: sources of text, see `minibert.data.corpus.CORPUS_HELP`.
        device: "cpu", "cuda" or "cuda:N".
        preset: one of `minibert.config.PRESETS`.
        objective: "mlm" (masked tokens), or "mlm+nsp" (and whether segment B follows A), as in BERT.
        seq_length: T, tokens in a sequence.
        batch_size: B, sequences in an optimizer step, on the whole.
        accumulate: into how many micro-batches a step is divided; less memory, the same result up to rounding.
        steps: how many optimizer steps to train, or None to go by `minutes`.
        minutes: how long to train, evaluations included, or None to go by `steps`.
        learning_rate: at the end of the warm-up, where it is highest; None for one that suits the width, which is
            2e-3 for tiny and goes down as 1 / H.
        warmup: the share of the training over which the learning rate rises.
        weight_decay: of AdamW.
        clip_norm: gradients with a larger global norm are scaled down to it.
        dropout: of hidden states and attention weights.
        initializer_range: standard deviation of fresh weights, or None for BERT-base's 0.02, scaled to the width
            so that a narrow model begins with activations of the same size: 0.02 * sqrt(768 / H).
        seed: of parameters, order, masks and dropout.
        vocab_size: V; a small corpus may get fewer tokens.
        cased: tell upper from lower case.
        mask_probability: the share of tokens to predict. BERT's is 0.15; a model learns more from the same
            computation when it predicts more (Wettig et al., "Should you mask 15% in masked language modeling?",
            EACL 2023), which counts in a short run. Evaluations always predict 15%.
        whole_word_masking: mask words instead of word pieces.
        dtype: "float32" or "float64".
        kernels: "auto" or "reference".
        report_every: steps between two lines of metrics.
        evaluate_every: steps between two evaluations.
        checkpoint_every: steps between two checkpoints.

    Raises:
        TrainingError: a value that makes no sense; the message names the option.
    """

    corpus: tuple[str, ...] = ("stdlib",)
    device: str = "cpu"
    preset: str = "tiny"
    objective: str = "mlm"
    seq_length: int = 64
    batch_size: int = 8
    accumulate: int = 1
    steps: int | None = None
    minutes: float | None = None
    learning_rate: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    dropout: float = 0.0
    initializer_range: float | None = None
    seed: int = 0
    vocab_size: int = 4096
    cased: bool = False
    mask_probability: float = 0.4
    whole_word_masking: bool = False
    dtype: str = "float32"
    kernels: str = "auto"
    report_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        self._require("preset", self.preset in PRESETS, f"one of {', '.join(PRESETS)}")
        hidden_size = MiniBERTConfig.preset(self.preset).hidden_size
        if self.steps is None and self.minutes is None:
            object.__setattr__(self, "minutes", DEFAULT_MINUTES)
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", _TINY_LEARNING_RATE * _TINY_HIDDEN_SIZE / hidden_size)
        if self.initializer_range is None:
            scaled = _BASE_INITIALIZER_RANGE * math.sqrt(_BASE_HIDDEN_SIZE / hidden_size)
            object.__setattr__(self, "initializer_range", scaled)
        if self.steps is not None and self.minutes is not None:
            raise TrainingError("--steps and --minutes both say when to stop: give one of them")
        for name in ("seq_length", "batch_size", "accumulate", "report_every", "evaluate_every", "checkpoint_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("steps", self.steps is None or self.steps >= 1, "at least 1")
        self._require("minutes", self.minutes is None or 0.0 < self.minutes < math.inf, "a positive number")
        for name in ("learning_rate", "clip_norm", "initializer_range"):
            self._require(name, 0.0 < getattr(self, name) < math.inf, "a positive number")
        self._require("weight_decay", 0.0 <= self.weight_decay < math.inf, "at least 0")
        self._require("warmup", 0.0 <= self.warmup < 1.0, "a share from 0 to below 1")
        self._require("dropout", 0.0 <= self.dropout < 1.0, "at least 0 and below 1")
        self._require("seed", 0 <= self.seed < 2**64, "from 0 to 2**64 - 1")
        for name, choices in (("objective", OBJECTIVES), ("dtype", DTYPES)):
            self._require(name, getattr(self, name) in choices, f"one of {', '.join(choices)}")
        self._require("kernels", self.kernels in ("auto", "reference"), "auto or reference")
        if self.accumulate > self.batch_size:
            raise TrainingError(
                f"--accumulate {self.accumulate} divides a step into more micro-batches than --batch-size "
                f"{self.batch_size} has sequences"
            )
        with explained():
            longest = self.model_config(self.vocab_size).max_position_embeddings
            self.masking_rule()
        if self.seq_length > longest:
            raise TrainingError(
                f"--seq-length {self.seq_length} is longer than the model's table of positions, which has "
                f"{longest} entries"
            )
        shortest = 8 if self.next_sentence else 4  # the special tokens and something to predict
        self._require("seq_length", self.seq_length >= shortest, f"at least {shortest}")

    def _require(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise TrainingError(f"{option(name)} must be {what}, not {getattr(self, name)!r}")

    @property
    def next_sentence(self) -> bool:
        """Whether next-sentence prediction is part of the objective."""
        return self.objective == "mlm+nsp"

    def model_config(self, vocab_size: int) -> MiniBERTConfig:
        """The model to train.

        Args:
            vocab_size: of the tokenizer; it may have come out smaller than `self.vocab_size`.
        """
        return MiniBERTConfig.preset(
            self.preset,
            vocab_size=vocab_size,
            initializer_range=self.initializer_range,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
        )

    def masking_rule(self) -> MaskingRule:
        """What is hidden from the model."""
        return MaskingRule(probability=self.mask_probability, whole_word=self.whole_word_masking)

    def to_dict(self) -> dict[str, Any]:
        """All settings, ready for JSON."""
        return {**dataclasses.asdict(self), "corpus": list(self.corpus)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Settings:
        """The inverse of `to_dict`; unknown fields, of a later version, are an error.

        Raises:
            TrainingError: fields that this version does not know.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(fields) - known:
            raise TrainingError(f"this run has settings that this version does not know: {', '.join(sorted(unknown))}")
        return cls(**{**fields, "corpus": tuple(fields["corpus"])})

    def resumed_with(self, given: Mapping[str, Any]) -> Settings:
        """The settings of this run with those that may change on resume replaced.

        Args:
            given: what the user asked for explicitly.

        Raises:
            TrainingError: something else was asked for than what the run was started with.
        """
        contradictions = [
            f"{option(name)} is {shown(getattr(self, name))} in this run, not {shown(value)}"
            for name, value in given.items()
            if name not in FREE_TO_CHANGE and value != getattr(self, name)
        ]
        if contradictions:
            allowed = ", ".join(sorted(map(option, FREE_TO_CHANGE)))
            raise TrainingError(
                f"cannot resume: {'; '.join(contradictions)}. A resumed run keeps its settings: leave these options "
                f"out, or start another run in another --output. Free to change: {allowed}"
            )
        changes = dict(given)
        if "steps" in changes:
            changes["minutes"] = None
        elif "minutes" in changes:
            changes["steps"] = None
        return dataclasses.replace(self, **changes)


def option(name: str) -> str:
    """How a setting is called on the command line."""
    return "--" + name.replace("_", "-")


def shown(value: Any) -> str:
    """A setting's value as one would type it."""
    return " ".join(value) if isinstance(value, tuple) else str(value)
