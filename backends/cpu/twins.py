"""Fast twins for the NumPy backend: operation name -> a faster function of the same meaning.

The definition of every operation is in `minibert/ops/`, in the standard's own functions. A twin here may use all of
NumPy, as long as `tests/ops/test_twins.py` finds the same values, dtype and shape.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from backends import checks
from backends.base import Array, Backend, adamw_factors

_BLOCK = 1 << 15  # elements in a block: the seven arrays of an AdamW step then stay in a core's second-level cache


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
    """Take one AdamW step, block by block and without temporaries; the definition reads memory a dozen times as often.

    Raises:
        ValueError, TypeError: shapes or dtypes do not match.
    """
    operation, dtype = "adamw_update", parameters.dtype
    size = checks.check_vector(operation, "parameters", parameters)
    checks.check_arrays(
        operation,
        dtype,
        ("gradients", gradients, (size,)),
        ("first_moment", first_moment, (size,)),
        ("second_moment", second_moment, (size,)),
        ("gradient_scale", gradient_scale, ()),
    )
    gradient_scale = dtype.type(gradient_scale)
    step_size, root_correction, decay = adamw_factors(learning_rate, beta1, beta2, weight_decay, step)
    buffers = np.empty((2, min(_BLOCK, size)), dtype=dtype)
    for start in range(0, size, _BLOCK):
        block = slice(start, start + _BLOCK)
        p, m, v = parameters[block], first_moment[block], second_moment[block]
        g, scratch = buffers[0, : p.size], buffers[1, : p.size]
        np.multiply(gradients[block], gradient_scale, out=g)
        m *= beta1
        np.multiply(g, 1.0 - beta1, out=scratch)
        m += scratch
        np.multiply(g, g, out=g)
        g *= 1.0 - beta2
        v *= beta2
        v += g
        np.sqrt(v, out=g)
        g *= root_correction
        g += epsilon
        np.divide(m, g, out=g)
        g *= step_size
        p *= decay
        p -= g


NUMPY_TWINS: Mapping[str, Callable[..., Any]] = {"adamw_update": adamw_update}


@functools.cache
def numba_kernels() -> Any:
    """Return the package `backends.cpu.kernels`, or None where Numba is not installed.

    A broken installation (for instance a Numba that is too old for this NumPy) gives a warning, and then None.
    """
    if any(importlib.util.find_spec(name) is None for name in ("numba", "threadpoolctl")):
        return None
    try:
        return importlib.import_module("backends.cpu.kernels")
    # Numba raises RuntimeError where no folder can take its cache, and AttributeError where compiling is switched off
    except (ImportError, AttributeError, RuntimeError) as error:
        warnings.warn(
            f"Numba is installed but cannot be used ({error}), so training will be slower. Try pip install --upgrade "
            "'.[fast]'; if no folder is writable, set NUMBA_CACHE_DIR to one that is",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def twins() -> Mapping[str, Callable[..., Any]]:
    """Return Numba's twins where it is installed, otherwise those in plain NumPy."""
    kernels = numba_kernels()
    return NUMPY_TWINS if kernels is None else kernels.TWINS
