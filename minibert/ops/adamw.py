"""One step of AdamW, and the squared norm of the gradients, which clipping needs.

The names are those of docs/gradients.md, section "Clipping and AdamW".
"""

from __future__ import annotations

from backends import Array, Backend
from backends.base import adamw_factors


def squared_norm(backend: Backend, x: Array) -> Array:
    """Return the sum of the squares of x (P,) as a 0-d array on the device, without host synchronisation.

    Formula: docs/gradients.md#clipping-and-adamw
    """
    return backend.xp.vecdot(x, x)


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
    """Take one AdamW step in place (Loshchilov & Hutter 2017, algorithm 2).

    Formula: docs/gradients.md#clipping-and-adamw

    Args:
        backend: where the arrays live.
        parameters: (P,), changed.
        gradients: (P,), not changed.
        first_moment: (P,), changed.
        second_moment: (P,), changed.
        gradient_scale: 0-d array that multiplies the gradients (clipping). It stays on the device, so that the host
            need not wait for it.
        learning_rate: the learning rate of this step.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        epsilon: added to the square root of the second moment.
        weight_decay: decoupled; multiplied by the learning rate.
        step: the number of the step; the first is 1.
    """
    xp = backend.xp
    step_size, root_correction, decay = adamw_factors(learning_rate, beta1, beta2, weight_decay, step)
    gradients = gradients * gradient_scale
    first_moment *= beta1
    first_moment += (1.0 - beta1) * gradients
    second_moment *= beta2
    second_moment += (1.0 - beta2) * (gradients * gradients)
    denominator = xp.sqrt(second_moment) * root_correction + epsilon
    parameters *= decay
    parameters -= step_size * (first_moment / denominator)
