"""Recognise a loss that shows that a model learns nothing, and name the usual causes.

Two levels of the loss have a meaning, whatever the text. A model that finds all V tokens equally probable has the loss
ln V; so has a new model, about. A model that knows only how frequent each token is has the unigram baseline. Whatever
is learnt from the context takes the loss below the baseline.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from minibert.training.settings import Settings, default_learning_rate

_CLEARLY = 0.5  # nats above the baseline, or above ln V: more than chance
_STUCK = 0.02  # nats below the baseline are nothing that was learnt
_ORDINARY_RATES = 5.0  # times the default or less, and as a part of it


class LossWarning(NamedTuple):
    """A loss that shows that a model learns nothing.

    Attributes:
        kind: "diverged", "above" (the unigram baseline) or "stuck" (there).
        text: what was found, and its usual causes.
    """

    kind: str
    text: str


def diverged(loss: float, vocab_size: int, settings: Settings) -> LossWarning | None:
    """Describe a loss that is worse than that of a new model; None if it is not.

    Args:
        loss: a training loss or an evaluation loss, in nats; with next-sentence prediction, both tasks together.
        vocab_size: V.
        settings: of the run.
    """
    level = math.log(vocab_size) + (math.log(2.0) if settings.next_sentence else 0.0)
    if loss <= level + _CLEARLY:
        return None
    text = f"the training diverges: the loss {loss:,.1f} is above {level:.1f}, that of a model that guesses"
    return LossWarning("diverged", f"{text}. {_causes(settings, 'high')}")


def learnt_nothing(loss: float, unigram_loss: float, settings: Settings) -> LossWarning | None:
    """Describe an evaluation loss that is not below the unigram baseline; None if it is.

    Args:
        loss: the evaluation loss of masked tokens, in nats, late in a run.
        unigram_loss: the baseline on the same tokens.
        settings: of the run.
    """
    if loss > unigram_loss + _CLEARLY:
        kind, place, meaning = "above", "is far above", "it knows less than how frequent words are"
    elif loss > unigram_loss - _STUCK:
        kind, place, meaning = "stuck", "stays at", "it has learnt nothing from the context"
    else:
        return None
    text = (
        f"the evaluation loss of the model {place} the unigram baseline ({loss:,.2f} and {unigram_loss:.2f}): {meaning}"
    )
    return LossWarning(kind, f"{text}. {_causes(settings, '')}")


def _causes(settings: Settings, kind: str) -> str:
    """Name the usual causes.

    Args:
        settings: of the run.
        kind: "high" if only a rate that is too high can be the cause, otherwise "".
    """
    rate, usual = settings.learning_rate, default_learning_rate(settings.preset)
    assert rate is not None  # `Settings.__post_init__` has replaced None
    compared = f"--learning-rate {rate:g} ({usual:g} is usual for {settings.preset})"
    if kind == "high" or rate > _ORDINARY_RATES * usual:
        return f"The likely cause is the high {compared}; a longer --warmup helps, too"
    if rate < usual / _ORDINARY_RATES:
        return f"The likely cause is the low {compared}"
    return (
        f"Usual causes: too few steps or too small a --batch-size (now {settings.batch_size}), a {compared} that does "
        "not suit the model, or a text in which words cannot be told from their context"
    )
