"""BERT by hand: model, gradients and training, for every library of the Python Array API standard.

from minibert import MiniBERT, MiniBERTGradients

model = MiniBERT()
logits, cache = model.forward(input_ids, attention_mask)
loss = MiniBERTGradients(model).backward(cache, labels)
"""

from typing import TYPE_CHECKING

from minibert.config import MiniBERTConfig
from minibert.gradients import MiniBERTGradients
from minibert.model import MiniBERT
from minibert.ops import stable_softmax
from minibert.optimizer import AdamW

if TYPE_CHECKING:
    from minibert.gradient_accumulator import GradientAccumulator

__all__ = ["AdamW", "GradientAccumulator", "MiniBERT", "MiniBERTConfig", "MiniBERTGradients", "stable_softmax"]


def __getattr__(name: str) -> object:
    """Import GradientAccumulator when it is first used, so that its module can also be run with `python -m`."""
    if name == "GradientAccumulator":
        from minibert import gradient_accumulator

        return gradient_accumulator.GradientAccumulator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
