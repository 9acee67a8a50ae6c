"""Fast twins for the NumPy backend, compiled by Numba: operation name -> a faster function of the same meaning.

Each module has the name of the module in `minibert/ops/` whose operations it computes, and uses the same names for the
same things. docs/performance.md says what each twin saves. This package is imported on first use of a twin, since
importing Numba takes time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numba import __version__ as version

from backends.cpu.kernels.activations import (
    bias_gelu_backward,
    bias_gelu_forward,
    bias_gelu_new_backward,
    bias_gelu_new_forward,
    bias_relu_backward,
    bias_relu_forward,
)
from backends.cpu.kernels.adamw import adamw_update
from backends.cpu.kernels.attention import attention_backward, attention_forward
from backends.cpu.kernels.bfloat16 import has_bfloat16
from backends.cpu.kernels.cross_entropy import cross_entropy_backward, cross_entropy_forward
from backends.cpu.kernels.dropout import dropout_backward, dropout_forward
from backends.cpu.kernels.embedding import embedding_backward, embedding_forward
from backends.cpu.kernels.int8 import has_int8
from backends.cpu.kernels.layer_norm import (
    dropout_add_layer_norm_backward,
    dropout_add_layer_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
)
from backends.cpu.kernels.linear import linear_backward, linear_backward_input, linear_backward_weight, linear_forward
from backends.cpu.kernels.sums import squared_norm

__all__ = [
    "TWINS",
    "adamw_update",
    "attention_backward",
    "attention_forward",
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
    "embedding_backward",
    "embedding_forward",
    "has_bfloat16",
    "has_int8",
    "layer_norm_backward",
    "layer_norm_forward",
    "linear_backward",
    "linear_backward_input",
    "linear_backward_weight",
    "linear_forward",
    "squared_norm",
    "version",
]

TWINS: Mapping[str, Callable[..., Any]] = {
    "adamw_update": adamw_update,
    "attention_backward": attention_backward,
    "attention_forward": attention_forward,
    "bias_gelu_backward": bias_gelu_backward,
    "bias_gelu_forward": bias_gelu_forward,
    "bias_gelu_new_backward": bias_gelu_new_backward,
    "bias_gelu_new_forward": bias_gelu_new_forward,
    "bias_relu_backward": bias_relu_backward,
    "bias_relu_forward": bias_relu_forward,
    "cross_entropy_backward": cross_entropy_backward,
    "cross_entropy_forward": cross_entropy_forward,
    "dropout_add_layer_norm_backward": dropout_add_layer_norm_backward,
    "dropout_add_layer_norm_forward": dropout_add_layer_norm_forward,
    "dropout_backward": dropout_backward,
    "dropout_forward": dropout_forward,
    "embedding_backward": embedding_backward,
    "embedding_forward": embedding_forward,
    "layer_norm_backward": layer_norm_backward,
    "layer_norm_forward": layer_norm_forward,
    "linear_backward": linear_backward,
    "linear_backward_input": linear_backward_input,
    "linear_backward_weight": linear_backward_weight,
    "linear_forward": linear_forward,
    "squared_norm": squared_norm,
}
