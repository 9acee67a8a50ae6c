"""Take an AdamW step, clipping included, in one pass over the flat arrays."""

from __future__ import annotations

import numpy as np
from numba import prange

from backends import checks
from backends.base import Array, Backend, adamw_factors
from backends.cpu.kernels.jit import elementwise, parallel

_BLOCK = 1 << 14  # elements that a thread updates at a time


@elementwise
def _update_block(parameters, gradients, first_moment, second_moment, factors):
    gradient_scale, beta1, rest1, beta2, rest2, epsilon, step_size, root_correction, decay = factors
    for i in range(parameters.shape[0]):
        gradient = gradients[i] * gradient_scale
        first = first_moment[i] * beta1 + gradient * rest1
        second = second_moment[i] * beta2 + gradient * gradient * rest2
        first_moment[i] = first
        second_moment[i] = second
        denominator = np.sqrt(second) * root_correction + epsilon
        parameters[i] = parameters[i] * decay - step_size * (first / denominator)


@parallel
def _update(parameters, gradients, first_moment, second_moment, factors):
    size = parameters.shape[0]
    for block in prange((size + _BLOCK - 1) // _BLOCK):
        start, end = block * _BLOCK, min(size, (block + 1) * _BLOCK)
        _update_block(
            parameters[start:end], gradients[start:end], first_moment[start:end], second_moment[start:end], factors
        )


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
    """Take one AdamW step, in place. Raises the errors of `checks`."""
    dtype, shape = parameters.dtype, parameters.shape
    checks.check_vector("adamw_update", "parameters", parameters)
    moments = ("first_moment", first_moment, shape), ("second_moment", second_moment, shape)
    checks.check_arrays(
        "adamw_update", dtype, ("gradients", gradients, shape), *moments, ("gradient_scale", gradient_scale, ())
    )
    scalar = dtype.type
    derived = adamw_factors(learning_rate, beta1, beta2, weight_decay, step)
    factors = float(gradient_scale), beta1, 1.0 - beta1, beta2, 1.0 - beta2, epsilon, *derived
    _update(parameters, gradients, first_moment, second_moment, tuple(scalar(factor) for factor in factors))
