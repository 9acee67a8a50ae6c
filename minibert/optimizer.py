"""AdamW over the flat parameters, clipping by the global norm, and BERT's learning-rate schedule."""

from __future__ import annotations

import math

from backends import Array
from minibert.model import MiniBERT
from minibert.parameters import NamedArrays

_NORM_EPSILON = 1e-6  # keeps the clipping factor finite for zero gradients


def linear_schedule(progress: float, warmup: float) -> float:
    """Return BERT's learning-rate factor, which rises from 0 to 1 during the warm-up and then falls linearly to 0.

    Args:
        progress: the share of the training that is done, from 0 to 1.
        warmup: the share that is warm-up, from 0 to below 1.

    Returns:
        The factor on the peak learning rate, from 0 to 1.
    """
    if progress < warmup:
        return progress / warmup
    return max(0.0, (1.0 - progress) / (1.0 - warmup))


def clipping_scale(model: MiniBERT, gradients: NamedArrays, max_norm: float) -> tuple[Array, Array]:
    """Return the global norm of the gradients, and the factor that scales it down to at most `max_norm`.

    Pascanu et al. 2013 (arXiv:1211.5063), algorithm 1. Both are 0-d arrays on the device: no host synchronisation.
    """
    xp = model.backend.xp
    norm = xp.sqrt(model.kernels.squared_norm(gradients.flat))
    return norm, xp.minimum(max_norm / (norm + _NORM_EPSILON), xp.ones_like(norm))


class AdamW:
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), without decay on biases and layer norms, as in BERT.

    Args:
        model: the model to train.
        betas: decay rates of the first and the second moment.
        epsilon: added to the square root of the second moment; 1e-6 as in BERT.
        weight_decay: multiplied by the learning rate; 0.01 as in BERT.
        max_norm: gradients with a larger global norm are scaled down to this norm; 1.0 as in BERT.

    Attributes:
        first_moment, second_moment: arrays with the layout of the parameters.
        steps: the number of steps taken.

    Raises:
        ValueError: a number is outside its range.
    """

    def __init__(
        self,
        model: MiniBERT,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-6,
        weight_decay: float = 0.01,
        max_norm: float = 1.0,
    ) -> None:
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas must be at least 0 and below 1, not {betas}")
        if not (0.0 < epsilon < math.inf and 0.0 <= weight_decay < math.inf and max_norm > 0.0):
            raise ValueError(
                "epsilon and max_norm must be positive, weight_decay at least 0, all but max_norm finite, not "
                f"{epsilon}, {max_norm} and {weight_decay}"
            )
        self.model = model
        self.betas = betas
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.max_norm = max_norm
        self.first_moment = NamedArrays.zeros_like(model.parameters)
        self.second_moment = NamedArrays.zeros_like(model.parameters)
        self.steps = 0

    def step(self, gradients: NamedArrays, learning_rate: float) -> Array:
        """Clip the gradients and update the parameters, in place.

        Args:
            gradients: the gradients of the whole batch; not changed.
            learning_rate: the learning rate of this step.

        Returns:
            The global norm of the gradients before clipping, a 0-d array on the device.

        Raises:
            ValueError: the gradients belong to another model, or the learning rate is negative, infinite or NaN.
            TypeError: the gradients have another dtype than the parameters.
        """
        self._check_gradients(gradients)
        if not 0.0 <= learning_rate < math.inf:
            raise ValueError(f"the learning rate must be at least 0 and finite, not {learning_rate}")
        self.steps += 1
        norm, gradient_scale = clipping_scale(self.model, gradients, self.max_norm)
        parameters, first, second = self.model.parameters, self.first_moment, self.second_moment
        decayed = parameters.decayed, gradients.decayed, first.decayed, second.decayed
        others = parameters.others, gradients.others, first.others, second.others
        beta1, beta2 = self.betas
        for arrays, weight_decay in ((decayed, self.weight_decay), (others, 0.0)):
            self.model.kernels.adamw_update(
                *arrays, gradient_scale, learning_rate, beta1, beta2, self.epsilon, weight_decay, self.steps
            )
        return norm

    def _check_gradients(self, gradients: NamedArrays) -> None:
        """Refuse gradients of another layout: they would train the wrong parameters, or be read beyond their end."""
        own, given = self.model.parameters, gradients
        if given.layout != own.layout:
            shapes, others = own.layout.shapes, given.layout.shapes
            name = next((name for name in {**shapes, **others} if shapes.get(name) != others.get(name)), "their order")
            raise ValueError(
                f"the gradients are of another model: {name} has the shape {others.get(name)} there and "
                f"{shapes.get(name)} here (None means that there is no such parameter)"
            )
        if given.flat.dtype != own.flat.dtype:
            raise TypeError(
                f"the gradients are {given.flat.dtype}, but the parameters are {own.flat.dtype}; both need one dtype"
            )
