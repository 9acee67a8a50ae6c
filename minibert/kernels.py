"""Choose, for every operation, between its definition in `minibert/ops` and the backend's faster twin.

The model calls `kernels.layer_norm_backward(dy, x, ...)`. Each attribute below has the signature of its
definition without the backend, so a type checker knows the arguments and an editor jumps to the definition.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from backends import Array, Backend
from minibert import ops
from minibert.errors import brief

P = ParamSpec("P")
R = TypeVar("R")

ActivationForward = Callable[[Array, Array], Array]
ActivationBackward = Callable[[Array, Array, Array, Array], tuple[Array, Array]]

CHOICES = ("auto", "reference")


class Kernels:
    """The operations of `minibert.ops`, bound to a backend: `kernels.linear_forward(x, weight)`.

    Args:
        backend: where the arrays live, and whose twins are used.
        choice: "auto" takes the backend's twin of an operation where it has one, "reference" always takes the
            definition. Where the twins lack the backend's precision, "auto" takes the definitions of linear layers and,
            unless the precision is "int8", of attention.

    Attributes:
        choice: as given.
        twins: the names of the operations that are computed by a twin, sorted.

    Raises:
        ValueError: another choice, or the backend has a twin of an operation that does not exist.
    """

    def __init__(self, backend: Backend, choice: str = "auto") -> None:
        if choice not in CHOICES:
            raise ValueError(f"kernels must be one of {', '.join(CHOICES)}, not {brief(choice)}")
        twins = backend.twins if choice == "auto" else {}
        if not backend.twins_have_precision:
            lacking = ops.LINEAR if backend.precision == "int8" else ops.PRODUCTS
            twins = {name: twin for name, twin in twins.items() if name not in lacking}
        if unknown := set(twins) - set(ops.DEFINITIONS):
            raise ValueError(f"{backend.name} has twins of operations that minibert.ops lacks: {sorted(unknown)}")
        self.choice = choice
        self.twins = tuple(sorted(twins))
        self._backend = backend
        self._twins = twins

        self.adamw_update = self.bind(ops.adamw_update)
        self.add_scaled = self.bind(ops.add_scaled)
        self.attention_backward = self.bind(ops.attention_backward)
        self.attention_forward = self.bind(ops.attention_forward)
        self.attention_weights = self.bind(ops.attention_weights)
        self.bias_gelu_backward = self.bind(ops.bias_gelu_backward)
        self.bias_gelu_forward = self.bind(ops.bias_gelu_forward)
        self.bias_gelu_new_backward = self.bind(ops.bias_gelu_new_backward)
        self.bias_gelu_new_forward = self.bind(ops.bias_gelu_new_forward)
        self.bias_relu_backward = self.bind(ops.bias_relu_backward)
        self.bias_relu_forward = self.bind(ops.bias_relu_forward)
        self.cross_entropy_backward = self.bind(ops.cross_entropy_backward)
        self.cross_entropy_forward = self.bind(ops.cross_entropy_forward)
        self.dropout_add_layer_norm_backward = self.bind(ops.dropout_add_layer_norm_backward)
        self.dropout_add_layer_norm_forward = self.bind(ops.dropout_add_layer_norm_forward)
        self.dropout_backward = self.bind(ops.dropout_backward)
        self.dropout_forward = self.bind(ops.dropout_forward)
        self.dropout_mask = self.bind(ops.dropout_mask)
        self.embedding_backward = self.bind(ops.embedding_backward)
        self.embedding_forward = self.bind(ops.embedding_forward)
        self.layer_norm_backward = self.bind(ops.layer_norm_backward)
        self.layer_norm_forward = self.bind(ops.layer_norm_forward)
        self.linear_backward = self.bind(ops.linear_backward)
        self.linear_backward_input = self.bind(ops.linear_backward_input)
        self.linear_backward_weight = self.bind(ops.linear_backward_weight)
        self.linear_forward = self.bind(ops.linear_forward)
        self.squared_norm = self.bind(ops.squared_norm)

    def bind(self, definition: Callable[Concatenate[Backend, P], R]) -> Callable[P, R]:
        """Return the twin of a definition, or the definition itself, with the backend as its first argument."""
        return partial(self._twins.get(definition.__name__, definition), self._backend)

    def activation_forward(self, hidden_act: str) -> ActivationForward:
        """The operation y = activation(x + bias), for a value of `MiniBERTConfig.hidden_act`."""
        operations: dict[str, ActivationForward] = {
            "gelu": self.bias_gelu_forward,
            "gelu_new": self.bias_gelu_new_forward,
            "relu": self.bias_relu_forward,
        }
        return operations[hidden_act]

    def activation_backward(self, hidden_act: str) -> ActivationBackward:
        """The gradient of `activation_forward`: (dy, x, bias, dbias) -> (dx, y)."""
        operations: dict[str, ActivationBackward] = {
            "gelu": self.bias_gelu_backward,
            "gelu_new": self.bias_gelu_new_backward,
            "relu": self.bias_relu_backward,
        }
        return operations[hidden_act]
