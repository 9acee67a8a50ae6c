"""BERT's mathematics: every operation and its gradient, in the functions of the Array API standard.

These functions are the definitions. A backend may have a faster twin of any function that takes a `backend`. A twin
has the name and the signature of its definition; `minibert/kernels.py` chooses between the two, and one test compares
every twin with its definition.

`x_forward` and `x_backward` stand together, and a backward quotes the forward line that it undoes. `dx` is the
gradient of the loss with respect to `x`. Gradients of parameters are written into arrays that the caller passes (views
of the flat gradient); gradients of activations are returned. docs/gradients.md has the derivations, and links each
formula to the lines that compute it. Every symbol there has the same name here, in the Numba twins
(backends/cpu/kernels) and in the CUDA kernels (backends/cuda).

Letters in the shapes: N rows (one per token), B sequences, T positions, Q query positions, A attention heads,
D size of an attention head, H hidden size, I intermediate size, V vocabulary, M predictions, P parameters.
"""

from collections.abc import Callable
from typing import Any

from backends.base import score_bound
from minibert.ops.accumulation import add_scaled
from minibert.ops.activations import (
    bias_gelu_backward,
    bias_gelu_forward,
    bias_gelu_new_backward,
    bias_gelu_new_forward,
    bias_relu_backward,
    bias_relu_forward,
)
from minibert.ops.adamw import adamw_update, squared_norm
from minibert.ops.attention import AttentionLayout, attention_backward, attention_forward, attention_weights
from minibert.ops.cross_entropy import cross_entropy_backward, cross_entropy_forward
from minibert.ops.dropout import Dropout, dropout_backward, dropout_forward, dropout_mask
from minibert.ops.embedding import embedding_backward, embedding_forward
from minibert.ops.layer_norm import (
    dropout_add_layer_norm_backward,
    dropout_add_layer_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
)
from minibert.ops.linear import linear_backward, linear_backward_input, linear_backward_weight, linear_forward
from minibert.ops.precision import quantise_inputs, quantise_weight, round_to_bfloat16
from minibert.ops.softmax import softmax_backward, stable_softmax

__all__ = [
    "adamw_update",
    "add_scaled",
    "attention_backward",
    "attention_forward",
    "attention_weights",
    "bias_gelu_backward",
    "bias_gelu_forward",
    "bias_gelu_new_backward",
    "bias_gelu_new_forward",
    "bias_relu_backward",
    "bias_relu_forward",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dropout_add_layer_norm_backward",
    "dropout_add_layer_norm_forward",
    "dropout_backward",
    "dropout_forward",
    "dropout_mask",
    "embedding_backward",
    "embedding_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward",
    "linear_backward_input",
    "linear_backward_weight",
    "linear_forward",
    "squared_norm",
]

DEFINITIONS: dict[str, Callable[..., Any]] = {name: globals()[name] for name in __all__}
"""Name -> definition of every operation that a backend may have a twin of."""

LINEAR = ("linear_backward", "linear_backward_input", "linear_backward_weight", "linear_forward")
PRODUCTS = ("attention_backward", "attention_forward", "attention_weights", *LINEAR)
"""The operations that multiply matrices, in the backend's precision; only LINEAR in the precision "int8"."""

__all__ += [
    "DEFINITIONS",
    "LINEAR",
    "PRODUCTS",
    "AttentionLayout",
    "Dropout",
    "quantise_inputs",
    "quantise_weight",
    "round_to_bfloat16",
    "score_bound",
    "softmax_backward",
    "stable_softmax",
]
