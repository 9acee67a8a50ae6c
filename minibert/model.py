"""MiniBERT: the forward pass of BERT (Devlin et al. 2018, arXiv:1810.04805), with its heads.

    embeddings -> layer norm -> dropout
    L times:   attention    -> dropout -> + residual -> layer norm
               feed-forward -> dropout -> + residual -> layer norm
    masked-language-model head on every (or every predicted) position; pooler and next-sentence head,
    or a classifier on the pooler instead

The order of the residual and the layer norm is BERT's own ("post-layer-norm"). The gradients of all this
are in `minibert/gradients.py`, function by function.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from os import PathLike
from typing import Any

from backends import Array, Backend, get_backend
from minibert.cache import Cache, ClassifierCache, EmbeddingsCache, HeadCache, LayerCache, PoolerCache
from minibert.config import MiniBERTConfig
from minibert.inputs import Inputs, prepare_inputs
from minibert.kernels import Kernels
from minibert.ops import Dropout
from minibert.parameters import PRETRAINING_HEADS, Layout, NamedArrays, checked_heads, initialise
from minibert.random_bits import Stream, derive_key

QKV = ("query", "key", "value")


class Site(IntEnum):
    """Where in a layer dropout is applied; part of the key of its random bits."""

    EMBEDDINGS = 0
    ATTENTION_WEIGHTS = 1
    ATTENTION_OUTPUT = 2
    OUTPUT = 3
    POOLED_OUTPUT = 4


class MiniBERT:
    """BERT: an encoder, and on it the heads for masked words, for the next sentence and for classes.

    Args:
        config: the sizes; BERT-Mini's if None.
        backend: where to compute: a `Backend` or the name of a device ("cpu", "cuda", "cuda:1").
        dtype: "float32" or "float64".
        seed: of the initial parameters and of dropout.
        kernels: "auto" uses the backend's fast twins, "reference" the definitions only.
        initialised: False leaves all parameters zero, for loading a checkpoint.
        heads: what stands on the encoder, from `minibert.parameters.HEADS`; BERT's pretraining heads unless
            given. A classifier tells the classes `config.labels` apart.

    Attributes:
        heads: as given, in a fixed order.
        parameters: mapping from name to writable array; `parameters.flat` is all of them.
        absent_heads: heads ("mlm", "pooler", "next_sentence") that the loaded checkpoint lacked, and that are
            therefore untrained.

    Raises:
        ValueError: an unknown dtype, device or kind of kernels; heads that do not go together.
        BackendError: a device that this machine does not have.
    """

    def __init__(
        self,
        config: MiniBERTConfig | None = None,
        *,
        backend: Backend | str = "cpu",
        dtype: str = "float32",
        seed: int = 0,
        kernels: str = "auto",
        initialised: bool = True,
        heads: Iterable[str] = PRETRAINING_HEADS,
    ) -> None:
        self.config = MiniBERTConfig() if config is None else config
        self.backend = get_backend(backend)
        self.dtype = self.backend.dtype(dtype)
        self.seed = seed
        self.kernels = Kernels(self.backend, kernels)
        self.heads = checked_heads(heads, self.config)
        self.parameters = NamedArrays.zeros(Layout.of(self.config, self.heads), self.backend, self.dtype)
        if initialised:
            initialise(self.parameters, self.config, self.backend, seed)
        self.absent_heads: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        device: Backend | str = "cpu",
        dtype: str = "float32",
        kernels: str = "auto",
        heads: Iterable[str] | None = None,
        labels: Sequence[str] | None = None,
        seed: int = 0,
    ) -> MiniBERT:
        """Load a model from a folder in Hugging Face's format.

        Args:
            folder: with `config.json` and `model.safetensors` (or its shards and their index).
            device: "cpu", "cuda" or "cuda:N", or a `Backend`.
            dtype: "float32" or "float64"; the stored weights are converted.
            kernels: as for the class.
            heads: the heads to have, from `minibert.parameters.HEADS`; other stored heads are not read. None: pooler
                and classifier of a `BertForSequenceClassification`, otherwise the pretraining heads.
            labels: the classes of a new classifier. It replaces a stored one, unless that has the same labels.
            seed: of the heads that the folder lacks, and of dropout.

        Raises:
            NoClassifierError: a classifier without labels is asked for, and the folder has none.
            PretrainedError: the folder holds no BERT, is damaged, or contradicts itself; names file and tensor.

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
    ) -> tuple[Array, Cache]:
        """Compute logits for the masked tokens.

        Args:
            input_ids: (B, T) integers from 0 to V - 1; lists, NumPy arrays or arrays of the backend.
            attention_mask: (B, T), 1 for a token, 0 for padding; None for all tokens. It is added to the
                attention scores before the softmax, so no position attends to padding.
            token_type_ids: (B, T), the segment of every token; None for all 0.
            prediction_positions: increasing flat positions b * T + t, M of them: compute logits there only,
                and the last layer only there (and at the first positions, for the next-sentence head).
            next_sentence: whether to compute the pooler and the next-sentence logits (in the cache).
            dropout_step: number of the training step, which dropout depends on; None for no dropout.
            first_sequence: number of the first sequence within that step; micro-batches of one step pass
                different numbers, and then draw the same dropout as the whole batch would.
            unpad: leave padding out of all computation but attention; its logits and hidden states are zero.

        Returns:
            logits (B, T, V), or (M, V) with `prediction_positions`; and the cache for the backward pass.

        Raises:
            ValueError: ids outside the tables, too long a sequence, shapes that do not fit; a model without the
                heads.
            TypeError: ids that are not integers.
        """
        self._require("mlm", *(("next_sentence",) if next_sentence else ()))
        inputs = self._inputs(
            input_ids,
            attention_mask,
            token_type_ids,
            prediction_positions,
            pooler=next_sentence,
            first_sequence=first_sequence,
            unpad=unpad,
        )
        cache = self._encoder(inputs, dropout_step)
        hidden = cache.hidden_rows[-1]
        if inputs.first_token_rows is not None:
            cache.pooler = self._pooler(hidden, inputs.first_token_rows)
            cache.next_sentence_logits = self.kernels.linear_forward(
                cache.pooler.output, self.parameters["next_sentence.weight"], self.parameters["next_sentence.bias"]
            )  # (B, 2)
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

        Only the first position is read, so the last layer computes that one only.

        Args:
            input_ids: (B, T), as in `forward`, like all arguments but the last.
            attention_mask: (B, T).
            token_type_ids: (B, T).
            dropout_step: number of the training step.
            first_sequence: number of the first sequence within that step.
            unpad: leave padding out of all computation but attention.
            for_backward: False lets go of what only the backward pass needs, layer by layer.

        Returns:
            logits (B, C), in the order of `config.labels`; and the cache for the backward pass.

        Raises:
            ValueError, TypeError: as `forward`.
        """
        self._require("classifier")
        inputs = self._inputs(
            input_ids, attention_mask, token_type_ids, [], pooler=True, first_sequence=first_sequence, unpad=unpad
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
        """Compute the last layer's hidden states and nothing else, keeping nothing for a backward pass.

        Args:
            input_ids: (B, T), as in `forward`, like all arguments but `first_only`.
            attention_mask: (B, T).
            token_type_ids: (B, T).
            first_only: compute the last layer at every sequence's first position only.
            unpad: leave padding out of all computation but attention; its hidden states are zero.

        Returns:
            hidden states (B, T, H), or (B, H) with `first_only`.

        Raises:
            ValueError, TypeError: as `forward`.
        """
        inputs = self._inputs(
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

    def _inputs(self, *batch: Any, **choices: Any) -> Inputs:
        """The batch, checked and on the device; arguments as for `prepare_inputs`."""
        return prepare_inputs(self.config, self.backend, self.dtype, *batch, **choices)

    def _require(self, *heads: str) -> None:
        if missing := [head for head in heads if head not in self.heads]:
            has = ", ".join(self.heads) or "none"
            raise ValueError(f"this model lacks the head {missing[0]}; its heads are: {has}")

    def _encoder(self, inputs: Inputs, step: int | None, for_backward: bool = True) -> Cache:
        """Embeddings and all layers; the cache holds the last hidden states only unless `for_backward`."""
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

    def _dropout(
        self, probability: float, step: int | None, layer: int, site: Site, row_numbers: Array
    ) -> Dropout | None:
        if step is None or probability == 0.0:
            return None
        if step < 0:
            raise ValueError(f"dropout_step is the number of a training step, 0 or more, not {step}")
        return Dropout(probability, derive_key(self.seed, Stream.DROPOUT, step, layer, site), row_numbers)

    def _embeddings(self, inputs: Inputs, step: int | None) -> tuple[Array, EmbeddingsCache]:
        p, config = self.parameters, self.config
        total = self.kernels.embedding_forward(
            (p["token_embeddings"], p["position_embeddings"], p["token_type_embeddings"]),
            (inputs.token_ids, inputs.position_ids, inputs.token_type_ids),
        )  # (N, H)
        normalised, statistics = self.kernels.layer_norm_forward(
            total, p["embeddings.layer_norm.weight"], p["embeddings.layer_norm.bias"], config.layer_norm_eps
        )
        dropout = self._dropout(config.hidden_dropout_prob, step, 0, Site.EMBEDDINGS, inputs.row_numbers)
        return self.kernels.dropout_forward(normalised, dropout), EmbeddingsCache(total, statistics, dropout)

    def _layer(self, n: int, x: Array, inputs: Inputs, step: int | None) -> tuple[Array, LayerCache]:
        """One encoder layer: (N, H) -> (N, H), or (Nq, H) in a pruned last layer."""
        p, config, kernels, width = self.parameters, self.config, self.kernels, self.config.hidden_size
        pruned = inputs.pruned and n == config.num_hidden_layers - 1
        layout = inputs.last_attention if pruned else inputs.attention
        row_numbers = inputs.last_row_numbers if pruned else inputs.row_numbers
        attention = f"layers.{n}.attention"

        if pruned:  # queries of few rows, keys and values of all
            query_x = kernels.embedding_forward((x,), (inputs.last_rows,))  # (Nq, H)
            queries = kernels.linear_forward(query_x, p[f"{attention}.query.weight"], p[f"{attention}.query.bias"])
            packed = kernels.linear_forward(
                x, p.packed(attention, QKV[1:], "weight"), p.packed(attention, QKV[1:], "bias")
            )  # (N, 2H)
            keys, values = packed[:, :width], packed[:, width:]
        else:
            query_x = x
            packed = kernels.linear_forward(
                x, p.packed(attention, QKV, "weight"), p.packed(attention, QKV, "bias")
            )  # (N, 3H)
            queries, keys, values = packed[:, :width], packed[:, width : 2 * width], packed[:, 2 * width :]
        attention_dropout = self._dropout(
            config.attention_probs_dropout_prob, step, n, Site.ATTENTION_WEIGHTS, row_numbers
        )
        context, saved = kernels.attention_forward(queries, keys, values, layout, attention_dropout)  # (Nq, H)

        attention_output_dropout = self._dropout(
            config.hidden_dropout_prob, step, n, Site.ATTENTION_OUTPUT, row_numbers
        )
        attention_output, attention_total, attention_statistics = kernels.dropout_add_layer_norm_forward(
            kernels.linear_forward(context, p[f"{attention}.output.weight"]),
            p[f"{attention}.output.bias"],
            query_x,
            p[f"{attention}.layer_norm.weight"],
            p[f"{attention}.layer_norm.bias"],
            config.layer_norm_eps,
            attention_output_dropout,
        )  # (Nq, H)

        intermediate_input = kernels.linear_forward(attention_output, p[f"layers.{n}.intermediate.weight"])  # (Nq, I)
        intermediate_bias = p[f"layers.{n}.intermediate.bias"]
        output_dropout = self._dropout(config.hidden_dropout_prob, step, n, Site.OUTPUT, row_numbers)
        y, output_total, output_statistics = kernels.dropout_add_layer_norm_forward(
            # the backward pass computes the activation again: it is not kept
            kernels.linear_forward(
                self._activation(intermediate_input, intermediate_bias), p[f"layers.{n}.output.weight"]
            ),
            p[f"layers.{n}.output.bias"],
            attention_output,
            p[f"layers.{n}.output.layer_norm.weight"],
            p[f"layers.{n}.output.layer_norm.bias"],
            config.layer_norm_eps,
            output_dropout,
        )  # (Nq, H)
        return y, LayerCache(
            backend=self.backend,
            layout=layout,
            host_query_positions=inputs.host_last_positions if pruned else inputs.host_positions,
            x=x,
            query_x=query_x,
            queries=queries,
            keys=keys,
            values=values,
            context=context,
            saved_attention=saved,
            attention_total=attention_total,
            attention_statistics=attention_statistics,
            attention_output=attention_output,
            intermediate_input=intermediate_input,
            output_total=output_total,
            output_statistics=output_statistics,
            attention_dropout=attention_dropout,
            attention_output_dropout=attention_output_dropout,
            output_dropout=output_dropout,
        )

    def _activation(self, x: Array, bias: Array) -> Array:
        return getattr(self.kernels, f"bias_{self.config.hidden_act}_forward")(x, bias)

    def _masked_language_model_head(self, hidden: Array, rows: Array | None) -> HeadCache:
        """Dense, activation, layer norm, then the decoder: the token embeddings again, with a bias."""
        p, kernels = self.parameters, self.kernels
        x = hidden if rows is None else kernels.embedding_forward((hidden,), (rows,))  # (M, H)
        dense = kernels.linear_forward(x, p["mlm.dense.weight"])
        activated = self._activation(dense, p["mlm.dense.bias"])
        normalised, statistics = kernels.layer_norm_forward(
            activated, p["mlm.layer_norm.weight"], p["mlm.layer_norm.bias"], self.config.layer_norm_eps
        )
        logits = kernels.linear_forward(normalised, p["token_embeddings"], p["mlm.bias"])  # (M, V)
        return HeadCache(x, dense, activated, statistics, normalised, logits)

    def _pooler(self, hidden: Array, rows: Array) -> PoolerCache:
        """tanh(dense) of every sequence's first position."""
        p, kernels, xp = self.parameters, self.kernels, self.backend.xp
        x = xp.take(hidden, rows, axis=0)  # (B, H)
        return PoolerCache(x, xp.tanh(kernels.linear_forward(x, p["pooler.weight"], p["pooler.bias"])))

    def _classifier(self, pooled: Array, inputs: Inputs, step: int | None) -> ClassifierCache:
        """Dropout of the pooled output, then the logits of the classes."""
        p, config, kernels = self.parameters, self.config, self.kernels
        probability = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        # the last layer has one row for every sequence here, in their order
        dropout = self._dropout(
            probability, step, config.num_hidden_layers, Site.POOLED_OUTPUT, inputs.last_row_numbers
        )
        x = kernels.dropout_forward(pooled, dropout)  # (B, H)
        return ClassifierCache(x, dropout, kernels.linear_forward(x, p["classifier.weight"], p["classifier.bias"]))
