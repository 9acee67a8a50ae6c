"""BERT by hand: model, gradients and training, for every library of the Python Array API standard.

from minibert import MiniBERT, MiniBERTGradients

model = MiniBERT()
logits, cache = model.forward(input_ids, attention_mask)
loss = MiniBERTGradients(model).backward(cache, labels)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minibert.config import MiniBERTConfig
    from minibert.gradient_accumulator import GradientAccumulator
    from minibert.gradients import MiniBERTGradients
    from minibert.model import MiniBERT
    from minibert.ops import stable_softmax
    from minibert.optimizer import AdamW

__all__ = ["AdamW", "GradientAccumulator", "MiniBERT", "MiniBERTConfig", "MiniBERTGradients", "stable_softmax"]

_MODULE_OF = {
    "AdamW": "optimizer",
    "GradientAccumulator": "gradient_accumulator",
    "MiniBERT": "model",
    "MiniBERTConfig": "config",
    "MiniBERTGradients": "gradients",
    "stable_softmax": "ops",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used.

    So a command can answer before NumPy is loaded, and `python -m minibert.gradient_accumulator` does not load its
    module twice.
    """
    if name in _MODULE_OF:
        return getattr(import_module(f"minibert.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, although they are imported only when they are first used."""
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
