"""The linear layer and its gradient.

The operands of the three matrix products are rounded to the backend's precision; biases and sums are not. The backward
functions compute the gradient as if rounding were the identity, from operands that are rounded again. In "int8" they
raise a ValueError, as there are no gradients.

The names are those of docs/gradients.md, section "Linear layers".
"""

from __future__ import annotations

from backends import Array, Backend
from minibert.ops.precision import check_gradients, int8_product, round_operands


def linear_forward(backend: Backend, x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return y = x @ weight.T + bias.

    Formula: docs/gradients.md#linear-layers

    Args:
        backend: where the arrays live.
        x: (N, in).
        weight: (out, in).
        bias: (out,), or None for no bias.

    Returns:
        y (N, out).
    """
    if backend.precision == "int8":
        y = int8_product(x, weight)  # (N, out)
    else:
        x, weight = round_operands(backend, x, weight)
        y = x @ weight.T  # (N, out)
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
    """Write dweight (out, in) and dbias (out,), and return dx (N, in): call the two functions below.

    Formula: docs/gradients.md#linear-layers
    """
    linear_backward_weight(backend, dy, x, dweight, dbias)
    return linear_backward_input(backend, dy, weight, add_to)


def linear_backward_weight(backend: Backend, dy: Array, x: Array, dweight: Array, dbias: Array | None = None) -> None:
    """Write dweight (out, in) and, unless it is None, dbias (out,), for dy (N, out) and x (N, in).

    Formula: docs/gradients.md#linear-layers
    """
    check_gradients(backend)
    # y = x @ weight.T + bias
    dy_operand, x = round_operands(backend, dy, x)
    dweight[...] = dy_operand.T @ x  # (out, in)
    if dbias is not None:
        dbias[...] = backend.xp.sum(dy, axis=0)  # (out,)


def linear_backward_input(backend: Backend, dy: Array, weight: Array, add_to: Array | None = None) -> Array:
    """Return dx (N, in) for dy (N, out).

    Formula: docs/gradients.md#linear-layers

    `add_to` (N, in) is another part of the gradient of x. If it is given, dx is added to it in place, and `add_to` is
    returned. In twins the matrix product itself does the addition, at no extra cost.
    """
    check_gradients(backend)
    # y = x @ weight.T + bias
    dy, weight = round_operands(backend, dy, weight)
    dx = dy @ weight  # (N, in)
    if add_to is None:
        return dx
    add_to += dx
    return add_to
