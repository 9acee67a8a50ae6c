"""The norm of all gradients, which clipping needs."""

from __future__ import annotations

from backends import Array, Backend


def squared_norm(backend: Backend, x: Array) -> Array:
    """The sum of the squares of x (P,), a 0-d array on the device: nobody waits."""
    return backend.xp.vecdot(x, x)
