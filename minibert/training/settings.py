"""The settings of a training run: declared with their options, checked, saved in every checkpoint.

A resumed run keeps all its settings except those in `FREE_TO_CHANGE`, which may change.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minibert.config import PRESETS, MiniBERTConfig
from minibert.data.batch_source import OBJECTIVES
from minibert.data.masking import MaskingRule
from minibert.errors import TrainingError
from minibert.options import (
    BELOW_ONE,
    DEVICE,
    DTYPE,
    KERNELS,
    NOT_NEGATIVE,
    POSITIVE,
    PRECISION,
    SEED,
    Check,
    at_least,
    check_options,
    flag,
    option,
    options_of,
    shown,
)
from minibert.training.budget import Budget

RUN, MODEL, TASK, OPTIMIZER = "the run", "the model", "the task", "the optimizer"
INTERVALS = "intervals, in steps"

_DEFAULT_MINUTES = 2.5
_BASE_INITIALIZER_RANGE, _BASE_HIDDEN_SIZE = 0.02, 768  # of BERT-base
_TINY_LEARNING_RATE, _TINY_HIDDEN_SIZE = 2e-3, 128  # found by trial on the standard library's documentation
_SHARE_OF_TOKENS = Check("above 0 and at most 1", lambda value: 0.0 < value <= 1.0)


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Every field is an option of `scripts/train.py`, declared here with its default.

    The defaults make a small BERT from the documentation of Python's standard library in a few minutes. `minutes`,
    `learning_rate` and `initializer_range` are None by default; `__post_init__` then replaces None by the value that
    the option's `default_text` describes.

    Raises:
        TrainingError: a value is not accepted; the message names the option.
    """

    # the run
    corpus: tuple[str, ...] = option(
        ("stdlib",),
        "text to train on: one or more files, folders or globs; stdlib is the documentation of Python's own library",
        metavar="TEXT",
        group=RUN,
        may_change=True,  # the same text may lie in another place
    )
    encoding: str = option("utf-8", "encoding of the text files, such as latin-1 or utf-16", metavar="NAME", group=RUN)
    skip_damaged: bool = option(
        False,
        "leave out lines and files that are damaged or in another encoding, and count them, instead of ending with an "
        "error",
        group=RUN,
    )
    steps: int | None = option(
        None,
        "train for N optimizer steps; on a CPU, such a run can be repeated bit for bit",
        metavar="N",
        default_text="as many as --minutes allows",
        check=at_least(1),
        group=RUN,
        may_change=True,
    )
    minutes: float | None = option(
        None,
        "train for M minutes, evaluations not counted",
        metavar="M",
        default_text=f"{_DEFAULT_MINUTES:g}, unless --steps is given",
        check=POSITIVE,
        group=RUN,
        may_change=True,
    )
    seed: int = option(
        0,
        "seed of all random numbers: initial parameters, order of the sequences, masks and dropout",
        metavar="N",
        check=SEED,
        group=RUN,
    )

    # the computation
    device: str = DEVICE.field(may_change=True)
    kernels: str = KERNELS.field(may_change=True)
    precision: str = PRECISION.field(may_change=True)
    dtype: str = DTYPE.field()

    # the model
    preset: str = option("tiny", "size of the model", choices=PRESETS, group=MODEL)
    vocab_size: int = option(
        4096,
        "number of tokens in the vocabulary; a small text may give fewer",
        metavar="V",
        check=at_least(1),
        group=MODEL,
    )
    cased: bool = option(
        False, "distinguish upper and lower case; otherwise text is made lower case and loses its accents", group=MODEL
    )
    dropout: float = option(
        0.0,
        "dropout probability of hidden states and attention weights; use 0.1 for more than a few epochs",
        metavar="P",
        check=BELOW_ONE,
        group=MODEL,
    )
    initializer_range: float | None = option(
        None,
        "standard deviation of the initial weights",
        metavar="S",
        # a narrow model begins with activations of the same size as BERT-base, whose H is 768 and whose value is 0.02
        default_text="0.02 * sqrt(768 / H) for hidden size H; BERT-base has 0.02",
        check=POSITIVE,
        group=MODEL,
    )

    # the task
    objective: str = option(
        "mlm",
        "mlm: predict masked tokens; mlm+nsp: also predict whether the second segment follows the first, as in BERT",
        choices=OBJECTIVES,
        group=TASK,
    )
    seq_length: int = option(64, "number of tokens in a sequence", metavar="T", group=TASK)
    # BERT predicts 15% of the tokens. A model learns more from the same computation when it predicts more (Wettig et
    # al., "Should you mask 15% in masked language modeling?", EACL 2023), which matters in a short run.
    mask_probability: float = option(
        0.4,
        "share of the tokens to predict in training; evaluations always predict 15%",
        metavar="P",
        check=_SHARE_OF_TOKENS,
        group=TASK,
    )
    whole_word_masking: bool = option(False, "mask whole words instead of word pieces", group=TASK)

    evaluation_tokens: int = option(
        65_536,
        "evaluate on at most N tokens of the held-out text, spread evenly over it",
        metavar="N",
        check=at_least(1),
        group=TASK,
        may_change=True,
    )

    # the optimizer
    batch_size: int = option(
        8,
        "number of sequences in an optimizer step, all micro-batches together; use more for longer runs",
        metavar="B",
        check=at_least(1),
        group=OPTIMIZER,
    )
    accumulate: int = option(
        1,
        "split every step into N micro-batches; needs less memory, and the result is the same up to rounding",
        metavar="N",
        check=at_least(1),
        group=OPTIMIZER,
        may_change=True,
    )
    learning_rate: float | None = option(
        None,
        "highest learning rate, reached at the end of the warm-up",
        metavar="R",
        default_text="2e-3 * 128 / H for hidden size H; 2e-3 for tiny",
        check=POSITIVE,
        group=OPTIMIZER,
        may_change=True,
    )
    warmup: float = option(
        0.1,
        "share of the training during which the learning rate rises; it falls afterwards",
        metavar="SHARE",
        check=BELOW_ONE,
        group=OPTIMIZER,
    )
    weight_decay: float = option(
        0.01,
        "weight decay of AdamW; it does not apply to biases and layer norms",
        metavar="W",
        check=NOT_NEGATIVE,
        group=OPTIMIZER,
    )
    clip_norm: float = option(
        1.0,
        "largest global norm of the gradients; gradients with a larger norm are scaled down to this norm",
        metavar="N",
        check=POSITIVE,
        group=OPTIMIZER,
    )

    non_finite: str = option(
        "stop",
        "at a loss or gradient that is NaN or infinite; stop: end the run; skip: leave this step out and go on, up to "
        "ten times in a row; this waits for the device at every step",
        choices=("stop", "skip"),
        group=OPTIMIZER,
        may_change=True,
    )

    # intervals, in steps
    report_every: int = option(
        50, "write a line of metrics every N steps", metavar="N", check=at_least(1), group=INTERVALS, may_change=True
    )
    evaluate_every: int = option(
        500,
        "evaluate on the held-out text every N steps",
        metavar="N",
        check=at_least(1),
        group=INTERVALS,
        may_change=True,
    )
    checkpoint_every: int = option(
        500, "save a checkpoint every N steps", metavar="N", check=at_least(1), group=INTERVALS, may_change=True
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.steps is not None and self.minutes is not None:
            raise TrainingError("--steps and --minutes both say when to stop: give one of them")
        if self.accumulate > self.batch_size:
            raise TrainingError(
                f"--accumulate {self.accumulate} splits a step into more micro-batches than --batch-size "
                f"{self.batch_size} has sequences"
            )
        sizes = MiniBERTConfig.preset(self.preset)
        if self.seq_length > sizes.max_position_embeddings:
            raise TrainingError(
                f"--seq-length {self.seq_length} is too long: the model reads at most "
                f"{sizes.max_position_embeddings} tokens; give a smaller number"
            )
        shortest = 8 if self.next_sentence else 4  # room for the special tokens and for one token to predict
        if self.seq_length < shortest:
            raise TrainingError(f"--seq-length must be at least {shortest}, not {self.seq_length}")
        if self.steps is None and self.minutes is None:
            object.__setattr__(self, "minutes", _DEFAULT_MINUTES)
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", default_learning_rate(self.preset))
        if self.initializer_range is None:
            scaled = _BASE_INITIALIZER_RANGE * math.sqrt(_BASE_HIDDEN_SIZE / sizes.hidden_size)
            object.__setattr__(self, "initializer_range", scaled)

    @property
    def next_sentence(self) -> bool:
        """True if next-sentence prediction is part of the objective."""
        return self.objective == "mlm+nsp"

    def model_config(self, vocab_size: int) -> MiniBERTConfig:
        """Return the config of the model to train.

        Args:
            vocab_size: number of tokens that the tokenizer has; it may be smaller than `self.vocab_size`.
        """
        return MiniBERTConfig.preset(
            self.preset,
            vocab_size=vocab_size,
            initializer_range=self.initializer_range,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
        )

    def budget(self) -> Budget:
        """Return the length of the run."""
        return Budget(self.steps, None if self.minutes is None else 60.0 * self.minutes)

    def masking_rule(self) -> MaskingRule:
        """Return the rule by which training sequences are masked."""
        return MaskingRule(probability=self.mask_probability, whole_word=self.whole_word_masking)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as values that JSON can hold."""
        return {**dataclasses.asdict(self), "corpus": list(self.corpus)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Settings:
        """Return the settings that `to_dict` has written.

        Raises:
            TrainingError: there are fields that this version does not know, for example from a later version.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := set(fields) - known:
            raise TrainingError(f"this run has settings that this version does not know: {', '.join(sorted(unknown))}")
        return cls(**{**fields, "corpus": tuple(fields["corpus"])})

    def resumed_with(self, given: Mapping[str, Any]) -> Settings:
        """Return the settings of this run with the changes that a resume asks for.

        `steps` and `minutes` replace each other.

        Args:
            given: the settings that were given on the command line, by name.

        Raises:
            TrainingError: a setting that is not in `FREE_TO_CHANGE` was given another value.
        """
        contradictions = [
            f"{flag(name)} is {shown(getattr(self, name))} in this run, not {shown(value)}"
            for name, value in given.items()
            if name not in FREE_TO_CHANGE and value != getattr(self, name)
        ]
        if contradictions:
            allowed = ", ".join(sorted(map(flag, FREE_TO_CHANGE)))
            raise TrainingError(
                f"cannot resume: {'; '.join(contradictions)}. A resumed run keeps its settings: leave these options "
                f"out, or start a new run in another --output. Free to change: {allowed}"
            )
        changes = dict(given)
        if "steps" in changes:
            changes["minutes"] = None
        elif "minutes" in changes:
            changes["steps"] = None
        return dataclasses.replace(self, **changes)


def default_learning_rate(preset: str) -> float:
    """Return the learning rate of a run that is given none; wide models get lower rates."""
    return _TINY_LEARNING_RATE * _TINY_HIDDEN_SIZE / MiniBERTConfig.preset(preset).hidden_size


FREE_TO_CHANGE = tuple(name for name, declared in options_of(Settings).items() if declared.may_change)
"""The settings that may differ when a run is resumed. All others stay as they were when the run was started."""
