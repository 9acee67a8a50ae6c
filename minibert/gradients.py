"""MiniBERTGradients: the backward pass of BERT, by hand, in the reverse order of `minibert/model.py`.

Each function here undoes the function of the same name there. The gradient of the loss with respect to `x`
is called `dx`. Derivations that take more than a line are in docs/gradients.md.

Losses and gradients are sums over predictions, divided once by their total number. For a micro-batch the
caller passes the totals of the whole step, and then the micro-batches' gradients simply add up to the
gradient of the whole batch, however it was split.
"""

from __future__ import annotations

from typing import Any

from backends import Array
from minibert.cache import Cache, ClassifierCache, LayerCache, PoolerCache
from minibert.config import SINGLE_LABEL
from minibert.inputs import host_integers
from minibert.model import QKV, MiniBERT
from minibert.parameters import NamedArrays, head_of

IGNORED = -100
"""The label of a position that is not predicted (any negative label is)."""


class MiniBERTGradients:
    """The gradients of a model's loss, in pretraining or in classification.

    Args:
        model: whose parameters to differentiate by.

    Attributes:
        gradients: mapping from parameter name to gradient; `gradients.flat` is all of them. `backward`
            overwrites them.
        masked_language_model_loss, next_sentence_loss: 0-d arrays, the two parts of the last loss.
    """

    def __init__(self, model: MiniBERT) -> None:
        self.model = model
        self.gradients = NamedArrays.zeros_like(model.parameters)
        zero = model.backend.xp.zeros((), dtype=model.dtype, device=model.backend.device)
        self.masked_language_model_loss: Array = zero
        self.next_sentence_loss: Array = zero

    def backward(
        self,
        cache: Cache,
        labels: Any,
        next_sentence_labels: Any = None,
        *,
        total_predictions: int | None = None,
        total_sequences: int | None = None,
    ) -> Array:
        """Compute the loss of a batch and its gradient with respect to every parameter.

        loss = sum of the predictions' cross-entropies / total_predictions
             + sum of the next-sentence cross-entropies / total_sequences

        Args:
            cache: from `MiniBERT.forward`, of the same model with the same parameters.
            labels: (B, T) token ids, -100 where nothing is predicted; (M,) if the forward pass was given
                `prediction_positions`.
            next_sentence_labels: (B,), 0 if segment B follows A, 1 if it is random, -100 to leave out; None
                to leave the next-sentence loss out.
            total_predictions: what to divide by; the number of predictions in `labels` if None.
            total_sequences: likewise for `next_sentence_labels`.

        Returns:
            The loss, a 0-d array on the device. Without any prediction the loss and all gradients are zero.

        Raises:
            ValueError: labels of another shape, outside the vocabulary, or where nothing was computed; a cache
                of another model.
        """
        self._check_cache(cache)
        dlogits, self.masked_language_model_loss = self._masked_language_model_loss(cache, labels, total_predictions)
        dhidden = self._head(cache, dlogits)
        del dlogits  # (M, V): its memory is free for the layers below
        dpooler, self.next_sentence_loss = self._next_sentence_loss(cache, next_sentence_labels, total_sequences)
        self._next_sentence(cache, dpooler, dhidden)
        self._zero("classifier")
        self._encoder(cache, dhidden)
        return self.masked_language_model_loss + self.next_sentence_loss

    def backward_classification(self, cache: Cache, labels: Any, *, total_sequences: int | None = None) -> Array:
        """Compute the loss of classified sequences and its gradient with respect to every parameter.

        loss = sum of the sequences' cross-entropies / total_sequences

        Args:
            cache: from `MiniBERT.classify`, of the same model with the same parameters.
            labels: (B,), the number of each sequence's class; -100 to leave it out.
            total_sequences: what to divide by; the number of labelled sequences if None.

        Returns:
            The loss, a 0-d array on the device.

        Raises:
            ValueError: labels of another shape or without a class; a forward pass without the classifier, or
                that kept nothing for the backward pass.
        """
        self._check_cache(cache)
        model, classifier, pooler = self.model, cache.classifier, cache.pooler
        if classifier is None or pooler is None or not cache.layers:
            raise ValueError("the gradient of a classification needs the cache of MiniBERT.classify(for_backward=True)")
        classes = len(model.config.labels)
        if classes < 2 or model.config.problem_type not in (None, SINGLE_LABEL):
            raise ValueError(
                f"the loss is that of one label out of several; this classifier has {classes} labels and the "
                f"problem_type {model.config.problem_type!r}"
            )
        host_labels = self._checked_labels(labels, (cache.inputs.batch_size,), classes, "labels")
        dlogits, loss = self._cross_entropy(classifier.logits, host_labels, total_sequences)
        dhidden = model.backend.xp.zeros_like(cache.hidden_rows[-1])  # (Nq, H)
        self._classifier(cache, classifier, dlogits, dhidden)
        self._zero("mlm", "next_sentence")
        self.masked_language_model_loss = self.next_sentence_loss = model.backend.xp.zeros_like(loss)
        self.gradients["token_embeddings"][...] = 0.0  # no tied decoder wrote its part
        self._encoder(cache, dhidden)
        return loss

    def _check_cache(self, cache: Cache) -> None:
        if cache.parameters is not self.model.parameters:
            raise ValueError("the cache is of another model's forward pass: give backward() this model's own")

    def _encoder(self, cache: Cache, dhidden: Array) -> None:
        """From the gradient of the last hidden states (Nq, H) to that of all the encoder's parameters."""
        for n in reversed(range(len(cache.layers))):
            dhidden = self._layer(n, dhidden, cache.layers[n], cache)
        self._embeddings(dhidden, cache)

    def _zero(self, *heads: str) -> None:
        """No loss depends on these heads."""
        for name, gradient in self.gradients.items():
            if head_of(name) in heads:
                gradient[...] = 0.0

    # --- losses ----------------------------------------------------------------------------------------------

    def _masked_language_model_loss(
        self, cache: Cache, labels: Any, total_predictions: int | None
    ) -> tuple[Array, Array]:
        """The gradient of the logits (M, V), and the loss."""
        if cache.head is None:
            raise ValueError("the gradient of the pretraining loss needs the cache of MiniBERT.forward")
        return self._cross_entropy(cache.head.logits, self._label_rows(cache, labels), total_predictions)

    def _next_sentence_loss(
        self, cache: Cache, next_sentence_labels: Any, total_sequences: int | None
    ) -> tuple[Array | None, Array]:
        """The gradient of the next-sentence logits (B, 2) or None, and the loss."""
        model = self.model
        if next_sentence_labels is None:
            return None, model.backend.xp.zeros((), dtype=model.dtype, device=model.backend.device)
        if cache.next_sentence_logits is None:
            raise ValueError("next_sentence_labels were given, but the forward pass had next_sentence=False")
        labels = self._checked_labels(next_sentence_labels, (cache.inputs.batch_size,), 2, "next_sentence_labels")
        return self._cross_entropy(cache.next_sentence_logits, labels, total_sequences)

    def _cross_entropy(self, logits: Array, host_labels: Array, total: int | None) -> tuple[Array, Array]:
        """Of host labels (M,): the gradient of the logits (M, V), and the loss."""
        backend, kernels = self.model.backend, self.model.kernels
        if total is None:
            total = int((host_labels >= 0).sum())
        if total < 0:
            raise ValueError(f"the total to divide by is a number of predictions, 0 or more, not {total}")
        scale = 1.0 / max(total, 1)  # no prediction, no loss
        host_labels = host_labels.clip(min=IGNORED)  # any negative one, and none may wrap around in 32 bits
        labels = backend.asarray(host_labels, dtype=backend.xp.int32)
        losses, dlogits = kernels.cross_entropy_backward(logits, labels, scale)
        return dlogits, backend.xp.sum(losses) * scale

    def _checked_labels(self, labels: Any, shape: tuple[int, ...], classes: int, what: str) -> Array:
        """The labels on the host, all below `classes`."""
        host = host_integers(self.model.backend, labels, what)
        if host.shape != shape:
            raise ValueError(f"{what} must have the shape {shape}, not {host.shape}")
        if bool((host >= classes).any()):
            raise ValueError(f"{what} contains {int(host.max())}, but must be below {classes} (negative: ignored)")
        return host

    def _label_rows(self, cache: Cache, labels: Any) -> Array:
        """(M,) labels on the host, one per row of logits."""
        inputs = cache.inputs
        vocabulary = self.model.config.vocab_size
        if inputs.host_prediction_positions is not None:
            return self._checked_labels(labels, inputs.host_prediction_positions.shape, vocabulary, "labels")
        host = self._checked_labels(labels, (inputs.batch_size, inputs.seq_length), vocabulary, "labels").reshape(-1)
        rows = host[inputs.host_last_positions]
        if int((rows >= 0).sum()) != int((host >= 0).sum()):
            raise ValueError("labels ask for a prediction at padding, which unpad=True left out")
        return rows

    # --- heads -----------------------------------------------------------------------------------------------

    def _activation(self, dy: Array, x: Array, bias: Array, dbias: Array) -> tuple[Array, Array]:
        """The gradient of x, in whose place dy is given up, and the activation's output again."""
        name = f"bias_{self.model.config.hidden_act}_backward"
        return getattr(self.model.kernels, name)(dy, x, bias, dbias)  # type: ignore[no-any-return]

    def _head(self, cache: Cache, dlogits: Array) -> Array:
        """From the gradient of the logits to that of the last layer's output, (Nq, H)."""
        head = cache.head
        assert head is not None
        p, d, kernels = self.model.parameters, self.gradients, self.model.kernels
        # logits = normalised @ token_embeddings.T + bias: the tied decoder's part of the gradient is written
        # here; `_embeddings` adds the other part
        dnormalised = kernels.linear_backward(
            dlogits, head.normalised, p["token_embeddings"], d["token_embeddings"], d["mlm.bias"]
        )
        dactivated = kernels.layer_norm_backward(
            dnormalised,
            head.activated,
            p["mlm.layer_norm.weight"],
            head.statistics,
            d["mlm.layer_norm.weight"],
            d["mlm.layer_norm.bias"],
        )
        ddense, _ = self._activation(dactivated, head.dense, p["mlm.dense.bias"], d["mlm.dense.bias"])
        dx = kernels.linear_backward(ddense, head.x, p["mlm.dense.weight"], d["mlm.dense.weight"])  # (M, H)
        # x = hidden[prediction_rows]
        return self._scattered(dx, cache.inputs.prediction_rows, cache.hidden_rows[-1])

    def _next_sentence(self, cache: Cache, dlogits: Array | None, dhidden: Array) -> None:
        """Adds the next-sentence head's part to dhidden (Nq, H), in place."""
        p, d, kernels = self.model.parameters, self.gradients, self.model.kernels
        if dlogits is None or cache.pooler is None:
            self._zero("pooler", "next_sentence")
            return
        # logits = pooled @ weight.T + bias
        doutput = kernels.linear_backward(
            dlogits, cache.pooler.output, p["next_sentence.weight"], d["next_sentence.weight"], d["next_sentence.bias"]
        )
        self._pooler(cache, cache.pooler, doutput, dhidden)

    def _classifier(self, cache: Cache, classifier: ClassifierCache, dlogits: Array, dhidden: Array) -> None:
        """Adds the classifier's part to dhidden (Nq, H), in place."""
        p, d, kernels = self.model.parameters, self.gradients, self.model.kernels
        assert cache.pooler is not None
        # logits = x @ weight.T + bias
        dx = kernels.linear_backward(
            dlogits, classifier.x, p["classifier.weight"], d["classifier.weight"], d["classifier.bias"]
        )
        # x = dropout(pooled)
        self._pooler(cache, cache.pooler, kernels.dropout_backward(dx, classifier.dropout), dhidden)

    def _pooler(self, cache: Cache, pooler: PoolerCache, doutput: Array, dhidden: Array) -> None:
        """From the gradient of the pooled output (B, H); adds the pooler's part to dhidden (Nq, H), in place."""
        p, d, kernels = self.model.parameters, self.gradients, self.model.kernels
        # output = tanh(dense)
        ddense = doutput * (1.0 - pooler.output * pooler.output)
        dx = kernels.linear_backward(ddense, pooler.x, p["pooler.weight"], d["pooler.weight"], d["pooler.bias"])
        # x = hidden[first_token_rows]
        kernels.embedding_backward(dx, (cache.inputs.first_token_rows,), (dhidden,))

    def _scattered(self, dx: Array, rows: Array | None, like: Array) -> Array:
        """The gradient of x = y[rows], with the shape of y; `rows` None means all of them."""
        if rows is None:
            return dx
        dy = self.model.backend.xp.zeros_like(like)
        self.model.kernels.embedding_backward(dx, (rows,), (dy,))
        return dy

    # --- encoder ---------------------------------------------------------------------------------------------

    def _layer(self, n: int, dy: Array, layer: LayerCache, cache: Cache) -> Array:
        """From the gradient of a layer's output (Nq, H) to that of its input (N, H)."""
        p, d, kernels, xp = self.model.parameters, self.gradients, self.model.kernels, self.model.backend.xp
        attention, feed_forward = f"layers.{n}.attention", f"layers.{n}"

        # y = layer_norm(attention_output + dropout(intermediate @ output.weight.T + output.bias))
        doutput, dattention_output = kernels.dropout_add_layer_norm_backward(
            dy,
            layer.output_total,
            layer.output_statistics,
            p[f"{feed_forward}.output.layer_norm.weight"],
            layer.output_dropout,
            d[f"{feed_forward}.output.bias"],
            d[f"{feed_forward}.output.layer_norm.weight"],
            d[f"{feed_forward}.output.layer_norm.bias"],
        )
        # intermediate = activation(attention_output @ intermediate.weight.T + intermediate.bias)
        dintermediate_input, intermediate = self._activation(
            kernels.linear_backward_input(doutput, p[f"{feed_forward}.output.weight"]),  # (Nq, I)
            layer.intermediate_input,
            p[f"{feed_forward}.intermediate.bias"],
            d[f"{feed_forward}.intermediate.bias"],
        )
        kernels.linear_backward_weight(doutput, intermediate, d[f"{feed_forward}.output.weight"])
        del doutput, intermediate  # their memory is free for what follows
        dattention_output = kernels.linear_backward(
            dintermediate_input,
            layer.attention_output,
            p[f"{feed_forward}.intermediate.weight"],
            d[f"{feed_forward}.intermediate.weight"],
            add_to=dattention_output,
        )  # (Nq, H)
        del dintermediate_input

        # attention_output = layer_norm(query_x + dropout(context @ output.weight.T + output.bias))
        dprojected, dquery_x = kernels.dropout_add_layer_norm_backward(
            dattention_output,
            layer.attention_total,
            layer.attention_statistics,
            p[f"{attention}.layer_norm.weight"],
            layer.attention_output_dropout,
            d[f"{attention}.output.bias"],
            d[f"{attention}.layer_norm.weight"],
            d[f"{attention}.layer_norm.bias"],
        )
        dcontext = kernels.linear_backward(
            dprojected, layer.context, p[f"{attention}.output.weight"], d[f"{attention}.output.weight"]
        )  # (Nq, H)

        # context = attention(queries, keys, values); the gradients go side by side, as the projections do
        pruned = layer.query_x is not layer.x
        width = self.model.config.hidden_size
        parts = QKV[1:] if pruned else QKV
        dpacked = self.model.backend.empty((layer.x.shape[0], width * len(parts)), dy.dtype)
        dqueries = xp.empty_like(dcontext) if pruned else dpacked[:, :width]
        kernels.attention_backward(
            dcontext,
            layer.queries,
            layer.keys,
            layer.values,
            layer.saved_attention,
            layer.layout,
            layer.attention_dropout,
            dqueries,
            dpacked[:, -2 * width : -width],
            dpacked[:, -width:],
        )
        # packed = x @ weights.T + biases
        dx = kernels.linear_backward(
            dpacked,
            layer.x,
            p.packed(attention, parts, "weight"),
            d.packed(attention, parts, "weight"),
            d.packed(attention, parts, "bias"),
            add_to=None if pruned else dquery_x,
        )  # (N, H)
        if not pruned:
            return dx
        # queries = query_x @ weight.T + bias; query_x = x[last_rows]
        dquery_x = kernels.linear_backward(
            dqueries,
            layer.query_x,
            p[f"{attention}.query.weight"],
            d[f"{attention}.query.weight"],
            d[f"{attention}.query.bias"],
            add_to=dquery_x,
        )
        kernels.embedding_backward(dquery_x, (cache.inputs.last_rows,), (dx,))
        return dx

    def _embeddings(self, dy: Array, cache: Cache) -> None:
        """From the gradient of the embeddings (N, H) to that of the three tables."""
        p, d, kernels = self.model.parameters, self.gradients, self.model.kernels
        embeddings, inputs = cache.embeddings, cache.inputs
        # y = dropout(layer_norm(total))
        dtotal = kernels.layer_norm_backward(
            kernels.dropout_backward(dy, embeddings.dropout),
            embeddings.total,
            p["embeddings.layer_norm.weight"],
            embeddings.statistics,
            d["embeddings.layer_norm.weight"],
            d["embeddings.layer_norm.bias"],
        )
        # total = token_embeddings[ids] + position_embeddings[positions] + token_type_embeddings[segments]; the
        # token embeddings already hold the tied decoder's part
        d["position_embeddings"][...] = 0.0
        d["token_type_embeddings"][...] = 0.0
        kernels.embedding_backward(
            dtotal,
            (inputs.token_ids, inputs.position_ids, inputs.token_type_ids),
            (d["token_embeddings"], d["position_embeddings"], d["token_type_embeddings"]),
        )
