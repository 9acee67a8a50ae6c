"""One step of AdamW."""

from __future__ import annotations

import math

from backends import Array, Backend


def adamw_update(
    backend: Backend,
    parameters: Array,
    gradients: Array,
    first_moment: Array,
    second_moment: Array,
    gradient_scale: Array,
    learning_rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    step: int,
) -> None:
    """One AdamW step (Loshchilov & Hutter 2017, algorithm 2), in place.

    Args:
        backend: where the arrays live.
        parameters: (P,), changed.
        gradients: (P,), left alone.
        first_moment: (P,), changed.
        second_moment: (P,), changed.
        gradient_scale: 0-d array that multiplies the gradients (clipping); on the device, so that nobody waits.
        learning_rate: of this step.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the square root of the second moment.
        weight_decay: decoupled, multiplied by the learning rate.
        step: 1 for the first.
    """
    xp = backend.xp
    gradients = gradients * gradient_scale
    first_moment *= beta1
    first_moment += (1.0 - beta1) * gradients
    second_moment *= beta2
    second_moment += (1.0 - beta2) * (gradients * gradients)
    denominator = xp.sqrt(second_moment) * (1.0 / math.sqrt(1.0 - beta2**step)) + epsilon
    parameters *= 1.0 - learning_rate * weight_decay
    parameters -= (learning_rate / (1.0 - beta1**step)) * (first_moment / denominator)
