"""MiniBERT: the forward pass of BERT (Devlin et al. 2018, arXiv:1810.04805), with its heads.

    embeddings -> layer norm -> dropout
    L times:   attention    -> dropout -> + residual -> layer norm
               feed-forward -> dropout -> + residual -> layer norm
    masked-language-model head on every (or every predicted) position; pooler and next-sentence head,
    or a classifier on the pooler instead

The layer norm follows the residual sum, as in the original BERT ("post-layer-norm"). `minibert/gradients.py` has
the gradients, function by function.
"""

from __future__ import annotations

import functools
import math
import operator
import warnings
from collections.abc import Iterable, Sequence
from enum import IntEnum
from os import PathLike
from typing import Any

from backends import Array, Backend, get_backend
from minibert.cache import (
    AttentionCache,
    Cache,
    ClassifierCache,
    EmbeddingsCache,
    FeedForwardCache,
    HeadCache,
    LayerCache,
    PoolerCache,
)
from minibert.config import MiniBERTConfig
from minibert.inputs import Inputs, prepare_inputs
from minibert.kernels import Kernels
from minibert.ops import Dropout
from minibert.parameters import PRETRAINING_HEADS, Layout, NamedArrays, check_heads, initialise
from minibert.random_bits import Stream, derive_key

QUERY_KEY_VALUE, KEY_VALUE = ("query", "key", "value"), ("key", "value")
"""Projections of attention whose weights lie side by side, so that one product computes them all."""


class Site(IntEnum):
    """The places in a layer where dropout is applied; a place is part of the key of the random bits."""

    EMBEDDINGS = 0
    ATTENTION_WEIGHTS = 1
    ATTENTION_OUTPUT = 2
    OUTPUT = 3
    POOLED_OUTPUT = 4


class PrecisionWarning(UserWarning):
    """The precision that was asked for is slower here than float32."""


class MiniBERT:
    """A BERT: an encoder with heads for masked tokens, for the next sentence and for classes.

    Args:
        config: the sizes; None for those of BERT-Mini.
        backend: where to compute: a `Backend` or the name of a device ("cpu", "cuda:1", "torch").
        dtype: "float32" or "float64".
        seed: decides the initial parameters and dropout.
        kernels: "auto" uses the backend's fast twins, "reference" only the definitions in `minibert.ops`.
        precision: what matrix products round their operands to, in the forward and in the backward pass; these are the
            products of linear layers (the decoder included) and of attention. "float32": nothing is rounded.
            "bfloat16": operands are rounded to 8 bits, sums keep the dtype. "int8": for inference only. Linear layers
            quantise the rows of weights and inputs to 8 bits whenever they multiply them, so there is nothing to
            calibrate, and parameters may be changed at any time; attention is as in "float32". "auto": "bfloat16" if
            the device has fast instructions for it and `dtype` is "float32", otherwise "float32". Parameters,
            gradients and the optimizer's state keep their dtype.
        initialised: False leaves all parameters zero, for loading a checkpoint.
        heads: names from `minibert.parameters.HEADS`; BERT's pretraining heads by default. The classifier's
            classes are `config.labels`.

    Attributes:
        heads: as given, in the order of `minibert.parameters.HEADS`.
        precision: "float32", "bfloat16" or "int8": what "auto" has become.
        parameters: mapping from name to writable array; `parameters.flat` holds all of them in one array.
        absent_heads: heads that the loaded checkpoint lacked. They were drawn at random and are untrained.

    Raises:
        ValueError: the dtype, the device, `kernels` or the precision is unknown, the heads do not go together, or the
            seed is not from 0 to 2**64 - 1.
        TypeError: the seed is no integer.
        BackendError: this machine does not have the device.

    Warns:
        PrecisionWarning: "bfloat16" or "int8" was asked for where only the slow definitions can compute it; once in a
            process for each.
    """

    def __init__(
        self,
        config: MiniBERTConfig | None = None,
        *,
        backend: Backend | str = "cpu",
        dtype: str = "float32",
        seed: int = 0,
        kernels: str = "auto",
        precision: str = "float32",
        initialised: bool = True,
        heads: Iterable[str] = PRETRAINING_HEADS,
    ) -> None:
        self.config = MiniBERTConfig() if config is None else config
        backend = get_backend(backend)
        self.dtype = backend.dtype(dtype)
        self.backend = backend.with_precision(precision, dtype)
        self.precision = self.backend.precision
        if kernels == "auto" and not self.backend.twins_have_precision:
            _warn_of_slow_products(self.backend.name, self.precision, dtype)
        self.seed = operator.index(seed)
        self.kernels = Kernels(self.backend, kernels)
        self.heads = check_heads(heads, self.config)
        self.parameters = NamedArrays.zeros(Layout.of(self.config, self.heads), self.backend, self.dtype)
        if initialised:
            initialise(self.parameters, self.config, self.backend, self.seed)
        self.absent_heads: tuple[str, ...] = ()

    def __repr__(self) -> str:
        c, dtype = self.config, "float64" if self.dtype == self.backend.xp.float64 else "float32"
        number = sum(math.prod(shape) for shape in self.parameters.layout.shapes.values())
        return (
            f"MiniBERT({c.num_hidden_layers} layers, hidden size {c.hidden_size}, {c.num_attention_heads} attention "
            f"heads, intermediate size {c.intermediate_size}, vocabulary {c.vocab_size:,}; {number:,} parameters in "
            f"{dtype}; heads: {', '.join(self.heads) or 'none'}; device {self.backend.name}, "
            f"precision {self.precision}, kernels {self.kernels.choice})"
        )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        device: Backend | str = "cpu",
        dtype: str = "float32",
        kernels: str = "auto",
        precision: str = "float32",
        heads: Iterable[str] | None = None,
        labels: Sequence[str] | None = None,
        seed: int = 0,
    ) -> MiniBERT:
        """Load a model from a folder in Hugging Face's format.

        Args:
            folder: a folder with `config.json` and `model.safetensors` (or its shards and their index).
            device: the name of a device ("cpu", "cuda:1", "torch"), or a `Backend`.
            dtype: "float32" or "float64"; the stored weights are converted.
            kernels: as for the class.
            precision: as for the class.
            heads: the heads to have, from `minibert.parameters.HEADS`; other stored heads are not read. None: pooler
                and classifier of a `BertForSequenceClassification`, otherwise the pretraining heads.
            labels: the classes of a new classifier. It replaces a stored one, unless that has the same labels.
            seed: decides the parameters of heads that the folder lacks, and dropout.

        Raises:
            NoClassifierError: a classifier without labels is asked for, and the folder has none.
            PretrainedError: the folder holds no BERT, is damaged, or contradicts itself. The message names file and
                tensor.

        Warns:
            PretrainedWarning: heads that the folder lacks are drawn at random (a new classifier is not mentioned);
                tensors that BERT does not have are ignored.
        """
        from minibert.huggingface.pretrained import PretrainedModel

        pretrained = PretrainedModel.read(folder, heads, labels)
        model = cls(
            pretrained.config,
            backend=device,
            dtype=dtype,
            seed=seed,
            kernels=kernels,
            precision=precision,
            initialised=False,
            heads=pretrained.heads,
        )
        pretrained.copy_into(model.parameters, model.backend, seed)
        pretrained.warn(stacklevel=2)
        model.absent_heads = pretrained.absent_heads
        return model

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write a folder that Hugging Face's `transformers` loads: `config.json` and `model.safetensors`.

        A save that fails leaves the old model whole; see `minibert.huggingface.pretrained.write_pretrained`.

        Args:
            folder: where to write; it is created if it does not exist.

        Raises:
            OSError: the files cannot be written.
        """
        from minibert.huggingface.pretrained import write_pretrained

        dtype = "float64" if self.dtype == self.backend.xp.float64 else "float32"
        host = {name: self.backend.to_numpy(view) for name, view in self.parameters.items()}
        write_pretrained(folder, self.config, self.heads, host, dtype)

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        *,
        prediction_positions: Any = None,
        next_sentence: bool = True,
        dropout_step: int | None = None,
        first_sequence: int = 0,
        unpad: bool = False,
        for_backward: bool = True,
    ) -> tuple[Array, Cache]:
        """Compute logits for the masked tokens.

        Args:
            input_ids: (B, T) integers from 0 to V - 1; lists, NumPy arrays or arrays of the backend.
            attention_mask: (B, T), 1 for a token, 0 for padding; None for all tokens. It is added to the
                attention scores before the softmax, so no position attends to padding.
            token_type_ids: (B, T), the segment of every token; None for all 0.
            prediction_positions: M increasing flat positions b * T + t. Logits are computed only there. The last layer
                is computed only there too (and at the first positions, for the next-sentence head).
            next_sentence: also compute the pooler and the next-sentence logits (they are in the cache).
            dropout_step: number of the training step, which decides the dropout masks; None for no dropout.
            first_sequence: number of the first sequence within the step. Micro-batches of one step pass different
                numbers, and so draw the same dropout masks as the whole batch.
            unpad: compute no rows for padding, except in attention. Padding then has zero logits and hidden states.
            for_backward: False keeps nothing of the layers for a backward pass, which saves memory.

        Returns:
            logits (B, T, V), or (M, V) with `prediction_positions`; and the cache for the backward pass. The cache
            refers to these logits and to the parameters. So writing into the logits, or changing parameters before
            `MiniBERTGradients.backward`, gives gradients of no function: copy the logits first, and update afterwards.

        Raises:
            ValueError: ids are outside the tables, the sequences are too long, shapes do not fit each other, or this
                model lacks a head.
            TypeError: ids, `dropout_step` or `first_sequence` are not integers.
        """
        self._check_heads("mlm")
        if next_sentence:
            self._check_heads("next_sentence")
        inputs = prepare_inputs(
            self.config,
            self.backend,
            self.dtype,
            input_ids,
            attention_mask,
            token_type_ids,
            prediction_positions,
            pooler=next_sentence,
            first_sequence=first_sequence,
            unpad=unpad,
        )
        cache = self._encoder(inputs, dropout_step, for_backward)
        hidden = cache.hidden_rows[-1]
        if inputs.first_token_rows is not None:
            cache.pooler = self._pooler(hidden, inputs.first_token_rows)
            cache.next_sentence_logits = self._next_sentence_head(cache.pooler.output)  # (B, 2)
        cache.head = self._masked_language_model_head(hidden, inputs.prediction_rows)
        logits = cache.head.logits
        return (logits if prediction_positions is not None else cache.per_position(logits)), cache

    def classify(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        *,
        dropout_step: int | None = None,
        first_sequence: int = 0,
        unpad: bool = False,
        for_backward: bool = True,
    ) -> tuple[Array, Cache]:
        """Compute logits for the classes of whole sequences, from the pooled output.

        The pooler reads only the first position, so the last layer computes only that one.

        Args:
            input_ids: (B, T), as in `forward`, like all arguments but the last.
            attention_mask: (B, T).
            token_type_ids: (B, T).
            dropout_step: number of the training step.
            first_sequence: number of the first sequence within that step.
            unpad: compute no rows for padding, except in attention.
            for_backward: False keeps nothing for a backward pass, which saves memory.

        Returns:
            logits (B, C), in the order of `config.labels`; and the cache for the backward pass, which refers to these
            logits and to the parameters: as in `forward`, change neither before the backward pass.

        Raises:
            ValueError, TypeError: as `forward`.
        """
        self._check_heads("classifier")
        inputs = prepare_inputs(
            self.config,
            self.backend,
            self.dtype,
            input_ids,
            attention_mask,
            token_type_ids,
            [],
            pooler=True,
            first_sequence=first_sequence,
            unpad=unpad,
        )
        cache = self._encoder(inputs, dropout_step, for_backward)
        cache.pooler = self._pooler(cache.hidden_rows[-1], inputs.first_token_rows)
        cache.classifier = self._classifier(cache.pooler.output, inputs, dropout_step)
        return cache.classifier.logits, cache

    def encode(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        *,
        first_only: bool = False,
        unpad: bool = False,
    ) -> Array:
        """Compute the last layer's hidden states only; nothing is kept for a backward pass.

        Args:
            input_ids: (B, T), as in `forward`, like all arguments but `first_only`.
            attention_mask: (B, T).
            token_type_ids: (B, T).
            first_only: compute the last layer at every sequence's first position only.
            unpad: compute no rows for padding, except in attention. Padding then has zero hidden states.

        Returns:
            hidden states (B, T, H), or (B, H) with `first_only`.

        Raises:
            ValueError, TypeError: as `forward`.
        """
        inputs = prepare_inputs(
            self.config,
            self.backend,
            self.dtype,
            input_ids,
            attention_mask,
            token_type_ids,
            [] if first_only else None,
            pooler=first_only,
            first_sequence=0,
            unpad=unpad,
        )
        cache = self._encoder(inputs, None, for_backward=False)
        return cache.hidden_rows[-1] if first_only else cache.per_position(cache.hidden_rows[-1])

    def _check_heads(self, *heads: str) -> None:
        if missing := [head for head in heads if head not in self.heads]:
            has = ", ".join(self.heads) or "none"
            raise ValueError(f"this model lacks the head {missing[0]}; its heads are: {has}")

    # --- encoder: minibert/gradients.py has a function of the same name for each of these ---------------------

    def _encoder(self, inputs: Inputs, step: int | None, for_backward: bool = True) -> Cache:
        """Compute embeddings and all layers. Without `for_backward`, the cache holds the last hidden states only."""
        hidden, embeddings = self._embeddings(inputs, step)
        cache = Cache(self.backend, self.parameters, inputs, embeddings, [hidden])
        for n in range(self.config.num_hidden_layers):
            hidden, layer = self._layer(n, hidden, inputs, step)
            if for_backward:
                cache.hidden_rows.append(hidden)
                cache.layers.append(layer)
            else:
                cache.hidden_rows = [hidden]
        return cache

    def _embeddings(self, inputs: Inputs, step: int | None) -> tuple[Array, EmbeddingsCache]:
        """Return y = dropout(layer_norm(token + position + token type embeddings)): (N, H)."""
        p, config, kernels = self.parameters, self.config, self.kernels
        total = kernels.embedding_forward(
            (p["token_embeddings"], p["position_embeddings"], p["token_type_embeddings"]),
            (inputs.token_ids, inputs.position_ids, inputs.token_type_ids),
        )  # (N, H)
        normalised, statistics = kernels.layer_norm_forward(
            total, p["embeddings.layer_norm.weight"], p["embeddings.layer_norm.bias"], config.layer_norm_eps
        )
        dropout = self._dropout(config.hidden_dropout_prob, step, 0, Site.EMBEDDINGS, inputs.row_numbers)
        return kernels.dropout_forward(normalised, dropout), EmbeddingsCache(total, statistics, dropout)

    def _layer(self, n: int, x: Array, inputs: Inputs, step: int | None) -> tuple[Array, LayerCache]:
        """Compute encoder layer n: (N, H) -> (N, H), or (Nq, H) in a pruned last layer."""
        pruned = inputs.pruned and n == self.config.num_hidden_layers - 1
        attention_output, attention = self._attention(n, x, inputs, step, pruned)
        y, feed_forward = self._feed_forward(n, attention_output, inputs, step, pruned)
        positions = inputs.host_last_positions if pruned else inputs.host_positions
        return y, LayerCache(self.backend, positions, attention, feed_forward)

    def _attention(
        self, n: int, x: Array, inputs: Inputs, step: int | None, pruned: bool
    ) -> tuple[Array, AttentionCache]:
        """Return y = layer_norm(query_x + dropout(attention(x) @ output.weight.T + output.bias)): (N, H) -> (Nq, H)."""
        p, config, kernels = self.parameters, self.config, self.kernels
        name = f"layers.{n}.attention"
        row_numbers = inputs.last_row_numbers if pruned else inputs.row_numbers

        if pruned:  # few queries; keys and values of all rows
            layout, query_x = inputs.last_attention, kernels.embedding_forward((x,), (inputs.last_rows,))  # (Nq, H)
            queries = kernels.linear_forward(query_x, p[f"{name}.query.weight"], p[f"{name}.query.bias"])  # (Nq, H)
            packed = kernels.linear_forward(
                x, p.packed(name, KEY_VALUE, "weight"), p.packed(name, KEY_VALUE, "bias")
            )  # (N, 2H)
            keys, values = split_columns(packed, 2)  # views (N, H)
        else:
            layout, query_x = inputs.attention, x
            packed = kernels.linear_forward(
                x, p.packed(name, QUERY_KEY_VALUE, "weight"), p.packed(name, QUERY_KEY_VALUE, "bias")
            )  # (N, 3H)
            queries, keys, values = split_columns(packed, 3)  # views (N, H)

        weights_dropout = self._dropout(
            config.attention_probs_dropout_prob, step, n, Site.ATTENTION_WEIGHTS, row_numbers
        )
        context, saved = kernels.attention_forward(queries, keys, values, layout, weights_dropout)  # (Nq, H)
        output_dropout = self._dropout(config.hidden_dropout_prob, step, n, Site.ATTENTION_OUTPUT, row_numbers)
        y, total, statistics = kernels.dropout_add_layer_norm_forward(
            kernels.linear_forward(context, p[f"{name}.output.weight"]),
            p[f"{name}.output.bias"],
            query_x,
            p[f"{name}.layer_norm.weight"],
            p[f"{name}.layer_norm.bias"],
            config.layer_norm_eps,
            output_dropout,
        )  # (Nq, H)
        return y, AttentionCache(
            layout=layout,
            x=x,
            query_x=query_x,
            queries=queries,
            keys=keys,
            values=values,
            saved=saved,
            context=context,
            total=total,
            statistics=statistics,
            weights_dropout=weights_dropout,
            output_dropout=output_dropout,
        )

    def _feed_forward(
        self, n: int, x: Array, inputs: Inputs, step: int | None, pruned: bool
    ) -> tuple[Array, FeedForwardCache]:
        """Return y = layer_norm(x + dropout(activation(x @ intermediate.weight.T + ...) @ output.weight.T + ...))."""
        p, config, kernels = self.parameters, self.config, self.kernels
        name = f"layers.{n}"
        activation = kernels.activation_forward(config.hidden_act)
        row_numbers = inputs.last_row_numbers if pruned else inputs.row_numbers

        intermediate_input = kernels.linear_forward(x, p[f"{name}.intermediate.weight"])  # (Nq, I)
        output_dropout = self._dropout(config.hidden_dropout_prob, step, n, Site.OUTPUT, row_numbers)
        y, total, statistics = kernels.dropout_add_layer_norm_forward(
            # the backward pass computes the activation again, so it is not kept
            kernels.linear_forward(
                activation(intermediate_input, p[f"{name}.intermediate.bias"]), p[f"{name}.output.weight"]
            ),
            p[f"{name}.output.bias"],
            x,
            p[f"{name}.output.layer_norm.weight"],
            p[f"{name}.output.layer_norm.bias"],
            config.layer_norm_eps,
            output_dropout,
        )  # (Nq, H)
        return y, FeedForwardCache(x, intermediate_input, total, statistics, output_dropout)

    # --- heads ------------------------------------------------------------------------------------------------

    def _masked_language_model_head(self, hidden: Array, rows: Array | None) -> HeadCache:
        """Compute dense layer, activation, layer norm, and the decoder: the token embeddings again, with a bias."""
        p, config, kernels = self.parameters, self.config, self.kernels
        x = hidden if rows is None else kernels.embedding_forward((hidden,), (rows,))  # (M, H)
        dense = kernels.linear_forward(x, p["mlm.dense.weight"])
        activated = kernels.activation_forward(config.hidden_act)(dense, p["mlm.dense.bias"])
        normalised, statistics = kernels.layer_norm_forward(
            activated, p["mlm.layer_norm.weight"], p["mlm.layer_norm.bias"], config.layer_norm_eps
        )
        logits = kernels.linear_forward(normalised, p["token_embeddings"], p["mlm.bias"])  # (M, V)
        return HeadCache(x, dense, activated, statistics, normalised, logits)

    def _next_sentence_head(self, pooled: Array) -> Array:
        """Return logits = pooled @ weight.T + bias: (B, H) -> (B, 2)."""
        p = self.parameters
        return self.kernels.linear_forward(pooled, p["next_sentence.weight"], p["next_sentence.bias"])

    def _pooler(self, hidden: Array, rows: Array) -> PoolerCache:
        """Return output = tanh(dense(hidden[first_token_rows])): (B, H)."""
        p, kernels, xp = self.parameters, self.kernels, self.backend.xp
        x = xp.take(hidden, rows, axis=0)  # (B, H)
        return PoolerCache(x, xp.tanh(kernels.linear_forward(x, p["pooler.weight"], p["pooler.bias"])))

    def _classifier(self, pooled: Array, inputs: Inputs, step: int | None) -> ClassifierCache:
        """Return logits = dropout(pooled) @ weight.T + bias: (B, H) -> (B, C)."""
        p, config, kernels = self.parameters, self.config, self.kernels
        probability = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        # the last layer has one row for every sequence here, in the order of the sequences
        dropout = self._dropout(
            probability, step, config.num_hidden_layers, Site.POOLED_OUTPUT, inputs.last_row_numbers
        )
        x = kernels.dropout_forward(pooled, dropout)  # (B, H)
        return ClassifierCache(x, dropout, kernels.linear_forward(x, p["classifier.weight"], p["classifier.bias"]))

    def _dropout(
        self, probability: float, step: int | None, layer: int, site: Site, row_numbers: Array
    ) -> Dropout | None:
        """Return one use of dropout; None if the pass has no dropout step or the probability is 0."""
        if step is None or probability == 0.0:
            return None
        if operator.index(step) < 0:
            raise ValueError(f"dropout_step is the number of a training step, 0 or more, not {step}")
        return Dropout(probability, derive_key(self.seed, Stream.DROPOUT, step, layer, site), row_numbers)


def split_columns(x: Array, parts: int) -> tuple[Array, ...]:
    """Return views of equal width that lie side by side: (N, parts * C) -> `parts` times (N, C)."""
    width = x.shape[1] // parts
    return tuple(x[:, part * width : (part + 1) * width] for part in range(parts))


@functools.cache
def _warn_of_slow_products(device: str, precision: str, dtype: str) -> None:
    """Warn that linear layers use the definitions; once for each combination of arguments."""
    warnings.warn(
        f"there are no fast {precision} products on {device} for {dtype} parameters: linear layers will be slower than "
        'in float32. Use the precision "auto", which takes bfloat16 only where it is fast',
        PrecisionWarning,
        stacklevel=3,
    )
