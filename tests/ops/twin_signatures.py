"""Every twin beside its definition, for mypy: a twin whose signature differs fails `make lint` here.

Nothing runs this file. `tests/ops/test_twins.py` holds that it names every twin of every backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

from backends.cpu import kernels as numba
from backends.cpu import twins as numpy
from backends.cuda import attention as cuda_attention
from backends.cuda import twins as cuda
from minibert import ops

P = ParamSpec("P")
R = TypeVar("R")


class Definition(Generic[P, R]):
    """A definition, whose parameters and result every twin must have."""

    def __init__(self, definition: Callable[P, R]) -> None:
        """Fix the signature."""

    def has_twins(self, *twins: Callable[P, R]) -> None:
        """Accept functions of this signature only."""


Definition(ops.adamw_update).has_twins(numpy.adamw_update, numba.adamw_update, cuda.adamw_update)
Definition(ops.add_scaled).has_twins(cuda.add_scaled)
Definition(ops.attention_backward).has_twins(numba.attention_backward, cuda_attention.attention_backward)
Definition(ops.attention_forward).has_twins(numba.attention_forward, cuda_attention.attention_forward)
Definition(ops.attention_weights).has_twins(cuda_attention.attention_weights)
Definition(ops.bias_gelu_backward).has_twins(numba.bias_gelu_backward, cuda.bias_gelu_backward)
Definition(ops.bias_gelu_forward).has_twins(numba.bias_gelu_forward, cuda.bias_gelu_forward)
Definition(ops.bias_gelu_new_backward).has_twins(numba.bias_gelu_new_backward, cuda.bias_gelu_new_backward)
Definition(ops.bias_gelu_new_forward).has_twins(numba.bias_gelu_new_forward, cuda.bias_gelu_new_forward)
Definition(ops.bias_relu_backward).has_twins(numba.bias_relu_backward, cuda.bias_relu_backward)
Definition(ops.bias_relu_forward).has_twins(numba.bias_relu_forward, cuda.bias_relu_forward)
Definition(ops.cross_entropy_backward).has_twins(numba.cross_entropy_backward, cuda.cross_entropy_backward)
Definition(ops.cross_entropy_forward).has_twins(numba.cross_entropy_forward, cuda.cross_entropy_forward)
Definition(ops.dropout_add_layer_norm_backward).has_twins(
    numba.dropout_add_layer_norm_backward, cuda.dropout_add_layer_norm_backward
)
Definition(ops.dropout_add_layer_norm_forward).has_twins(
    numba.dropout_add_layer_norm_forward, cuda.dropout_add_layer_norm_forward
)
Definition(ops.dropout_backward).has_twins(numba.dropout_backward, cuda.dropout_backward)
Definition(ops.dropout_forward).has_twins(numba.dropout_forward, cuda.dropout_forward)
Definition(ops.embedding_backward).has_twins(numba.embedding_backward)
Definition(ops.embedding_forward).has_twins(numba.embedding_forward, cuda.embedding_forward)
Definition(ops.layer_norm_backward).has_twins(numba.layer_norm_backward, cuda.layer_norm_backward)
Definition(ops.layer_norm_forward).has_twins(numba.layer_norm_forward, cuda.layer_norm_forward)
Definition(ops.linear_backward).has_twins(numba.linear_backward, cuda.linear_backward)
Definition(ops.linear_backward_input).has_twins(numba.linear_backward_input, cuda.linear_backward_input)
Definition(ops.linear_backward_weight).has_twins(numba.linear_backward_weight, cuda.linear_backward_weight)
Definition(ops.linear_forward).has_twins(numba.linear_forward, cuda.linear_forward)
Definition(ops.squared_norm).has_twins(numba.squared_norm, cuda.squared_norm)
