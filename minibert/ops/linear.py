"""The linear layer and its gradient."""

from __future__ import annotations

from backends import Array, Backend


def linear_forward(backend: Backend, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """y = x @ weight.T + bias: (N, in), (out, in), (out,) -> (N, out)."""
    y = x @ weight.T
    return y if bias is None else y + bias


def linear_backward(
    backend: Backend,
    dy: Array,
    x: Array,
    weight: Array,
    dweight: Array,
    dbias: Array | None = None,
    add_to: Array | None = None,
) -> Array:
    """Writes dweight (out, in) and dbias (out,); returns dx (N, in). Both functions below in one."""
    linear_backward_weight(backend, dy, x, dweight, dbias)
    return linear_backward_input(backend, dy, weight, add_to)


def linear_backward_weight(backend: Backend, dy: Array, x: Array, dweight: Array, dbias: Array | None = None) -> None:
    """Writes dweight (out, in) and dbias (out,)."""
    # y = x @ weight.T + bias
    dweight[...] = dy.T @ x
    if dbias is not None:
        dbias[...] = backend.xp.sum(dy, axis=0)


def linear_backward_input(backend: Backend, dy: Array, weight: Array, add_to: Array | None = None) -> Array:
    """Returns dx (N, in).

    With `add_to` (N, in), another part of the gradient of x, dx is added to it in place and it is returned: a
    matrix product adds for nothing.
    """
    # y = x @ weight.T + bias
    dx = dy @ weight
    if add_to is None:
        return dx
    add_to += dx
    return add_to
