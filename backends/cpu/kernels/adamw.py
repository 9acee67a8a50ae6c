"""AdamW in one pass over the flat arrays, with the clipping factor folded in."""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from backends import checks
from backends.base import Array, Backend
from backends.cpu.kernels.jit import elementwise, parallel

_BLOCK = 1 << 14  # elements that a thread updates at a time


@elementwise
def _update_block(p, g, m, v, factors):
    scale, beta1, rest1, beta2, rest2, correction, epsilon, decay, step_size = factors
    for i in range(p.shape[0]):
        gradient = g[i] * scale
        first = m[i] * beta1 + gradient * rest1
        second = v[i] * beta2 + gradient * gradient * rest2
        m[i] = first
        v[i] = second
        p[i] = p[i] * decay - step_size * (first / (np.sqrt(second) * correction + epsilon))


@parallel
def _update(p, g, m, v, factors):
    size = p.shape[0]
    for block in prange((size + _BLOCK - 1) // _BLOCK):
        start, end = block * _BLOCK, min(size, (block + 1) * _BLOCK)
        _update_block(p[start:end], g[start:end], m[start:end], v[start:end], factors)


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
    """One AdamW step, in place."""
    dtype, shape = parameters.dtype, parameters.shape
    checks.check_vector("adamw_update", "parameters", parameters)
    moments = ("first_moment", first_moment, shape), ("second_moment", second_moment, shape)
    checks.check_arrays(
        "adamw_update", dtype, ("gradients", gradients, shape), *moments, ("gradient_scale", gradient_scale, ())
    )
    scalar = dtype.type
    factors = (
        float(gradient_scale),
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        1.0 / math.sqrt(1.0 - beta2**step),
        epsilon,
        1.0 - learning_rate * weight_decay,
        learning_rate / (1.0 - beta1**step),
    )
    _update(parameters, gradients, first_moment, second_moment, tuple(scalar(factor) for factor in factors))
