"""MiniBERTGradients: the backward pass of BERT, by hand, in the reverse order of `minibert/model.py`.

Each function here differentiates the function of the same name in `minibert/model.py`, and quotes the forward
lines that it undoes. `dx` is the gradient of the loss with respect to `x`. docs/gradients.md derives every formula.

Losses and gradients are sums over predictions, divided once by the total number of predictions. For a micro-batch
the caller passes the totals of the whole step. The gradients of the micro-batches then add up to the gradient of
the whole batch, however the batch was split.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from backends import Array, get_backend
from backends.base import NO_INT8_GRADIENTS
from minibert.cache import AttentionCache, Cache, ClassifierCache, FeedForwardCache, LayerCache, PoolerCache
from minibert.config import SINGLE_LABEL
from minibert.inputs import Inputs, host_integers
from minibert.model import KEY_VALUE, QUERY_KEY_VALUE, MiniBERT, split_columns
from minibert.parameters import NamedArrays, head_of

_HOST = get_backend("cpu").xp  # labels are checked on the host

IGNORED = -100
"""The label of a position that is not predicted (any negative label is)."""


P = ParamSpec("P")
T = TypeVar("T")


def _one_thread_at_a_time(
    method: Callable[Concatenate[MiniBERTGradients, P], T],
) -> Callable[Concatenate[MiniBERTGradients, P], T]:
    """Let a method raise a RuntimeError while another thread is in it: both would write to the same gradients."""

    @functools.wraps(method)
    def guarded(self: MiniBERTGradients, /, *arguments: P.args, **keywords: P.kwargs) -> T:
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError(
                "another thread is computing with this MiniBERTGradients, and both would write to its gradients: make "
                "one for each thread"
            )
        try:
            return method(self, *arguments, **keywords)
        finally:
            self._in_use.release()

    return guarded


class MiniBERTGradients:
    """Computes the gradients of a model's loss, in pretraining or in classification.

    One object serves one thread at a time, since every call overwrites its gradients. Several threads may compute with
    one model, each with an object of its own.

    Args:
        model: the loss is differentiated with respect to this model's parameters.

    Attributes:
        gradients: mapping from parameter name to gradient; `gradients.flat` holds all of them in one array. Each
            call of `backward` overwrites them.
        masked_language_model_loss, next_sentence_loss: 0-d arrays, the two parts of the last loss.

    Raises:
        ValueError: the model computes in int8.
    """

    def __init__(self, model: MiniBERT) -> None:
        if model.precision == "int8":
            raise ValueError(NO_INT8_GRADIENTS)
        self.model = model
        self._in_use = threading.Lock()
        self.gradients = NamedArrays.zeros_like(model.parameters)
        zero = model.backend.xp.zeros((), dtype=model.dtype, device=model.backend.device)
        self.masked_language_model_loss: Array = zero
        self.next_sentence_loss: Array = zero

    @_one_thread_at_a_time
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
            cache: from `MiniBERT.forward`, of the same model. Neither the parameters nor the logits have been changed
                since; that is not checked.
            labels: (B, T) token ids, -100 where nothing is predicted. If the forward pass was given
                `prediction_positions`: (M,), one for each of these positions.
            next_sentence_labels: (B,), 0 if segment B follows A, 1 if it is random, -100 to leave a sequence out;
                None to leave the next-sentence loss out.
            total_predictions: divides the loss of the predictions; None for the number of predictions in `labels`.
            total_sequences: divides the next-sentence loss; None for the number of labels that are not negative.

        Returns:
            The loss, a 0-d array on the device. Without any prediction the loss and all gradients are zero.

        Raises:
            ValueError: labels of another shape, outside the vocabulary, or where nothing was computed; a cache
                from another model's forward pass; a negative total.
            TypeError: labels or a total are not integers.
            RuntimeError: another thread is computing with this object.
        """
        self._check_cache(cache)
        total_predictions = _checked_total(total_predictions, "total_predictions")
        total_sequences = _checked_total(total_sequences, "total_sequences")
        dlogits, self.masked_language_model_loss = self._masked_language_model_loss(cache, labels, total_predictions)
        dhidden = self._masked_language_model_head(cache, dlogits)
        del dlogits  # (M, V): its memory is free for the layers below
        dnext_sentence_logits, self.next_sentence_loss = self._next_sentence_loss(
            cache, next_sentence_labels, total_sequences
        )
        self._next_sentence_head(cache, dnext_sentence_logits, dhidden)
        self._zero("classifier")
        self._encoder(cache, dhidden)
        return self.masked_language_model_loss + self.next_sentence_loss

    @_one_thread_at_a_time
    def backward_classification(self, cache: Cache, labels: Any, *, total_sequences: int | None = None) -> Array:
        """Compute the loss of classified sequences and its gradient with respect to every parameter.

        loss = sum of the sequences' cross-entropies / total_sequences

        Args:
            cache: from `MiniBERT.classify`, of the same model. Neither the parameters nor the logits have been changed
                since; that is not checked.
            labels: (B,), the number of each sequence's class; -100 to leave a sequence out.
            total_sequences: divides the loss; None for the number of labelled sequences.

        Returns:
            The loss, a 0-d array on the device.

        Raises:
            ValueError: labels of another shape or outside the classes; the cache has no classifier, or holds
                nothing for the backward pass; a negative total.
            TypeError: labels or the total are not integers.
            RuntimeError: another thread is computing with this object.
        """
        self._check_cache(cache)
        total_sequences = _checked_total(total_sequences, "total_sequences")
        model, classifier, pooler = self.model, cache.classifier, cache.pooler
        if classifier is None or pooler is None or not cache.layers:
            raise ValueError("the gradient of a classification needs the cache of MiniBERT.classify(for_backward=True)")
        classes = len(model.config.labels)
        if classes < 2 or model.config.problem_type not in (None, SINGLE_LABEL):
            raise ValueError(
                f"the loss needs one correct label out of several, but this classifier has {classes} labels and the "
                f"problem_type {model.config.problem_type!r}"
            )
        host_labels = self._check_labels(labels, (cache.inputs.batch_size,), classes, "labels")
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
            raise ValueError("the cache is from another model's forward pass: pass the cache of this model")

    def _zero(self, *heads: str) -> None:
        """Set the gradients of these heads to zero: no loss depends on them."""
        for name, gradient in self.gradients.items():
            if head_of(name) in heads:
                gradient[...] = 0.0

    # --- losses -----------------------------------------------------------------------------------------------

    def _masked_language_model_loss(
        self, cache: Cache, labels: Any, total_predictions: int | None
    ) -> tuple[Array, Array]:
        """Return the gradient of the logits (M, V), and the loss."""
        if cache.head is None:
            raise ValueError("the gradient of the pretraining loss needs the cache of MiniBERT.forward")
        return self._cross_entropy(cache.head.logits, self._label_rows(cache, labels), total_predictions)

    def _next_sentence_loss(
        self, cache: Cache, next_sentence_labels: Any, total_sequences: int | None
    ) -> tuple[Array | None, Array]:
        """Return the gradient of the next-sentence logits (B, 2), or None without labels, and the loss."""
        model = self.model
        if next_sentence_labels is None:
            return None, model.backend.xp.zeros((), dtype=model.dtype, device=model.backend.device)
        if cache.next_sentence_logits is None:
            raise ValueError("next_sentence_labels were given, but the forward pass had next_sentence=False")
        labels = self._check_labels(next_sentence_labels, (cache.inputs.batch_size,), 2, "next_sentence_labels")
        return self._cross_entropy(cache.next_sentence_logits, labels, total_sequences)

    def _cross_entropy(self, logits: Array, host_labels: Array, total: int | None) -> tuple[Array, Array]:
        """Return (dlogits (M, V), loss) for logits (M, V) and host labels (M,)."""
        backend, kernels = self.model.backend, self.model.kernels
        if total is None:
            total = _count(host_labels >= 0)
        scale = 1.0 / max(total, 1)  # without predictions the sum is 0 already
        host_labels = _HOST.clip(host_labels, IGNORED, None)  # a very negative label must not wrap around in 32 bits
        labels = backend.asarray(host_labels, dtype=backend.xp.int32)
        losses, dlogits = kernels.cross_entropy_backward(logits, labels, scale)
        return dlogits, backend.xp.sum(losses) * scale

    def _check_labels(self, labels: Any, shape: tuple[int, ...], classes: int, what: str) -> Array:
        """Return the labels on the host, after checking that all are below `classes`."""
        host = host_integers(self.model.backend, labels, what)
        if host.shape != shape:
            raise ValueError(f"{what} must have the shape {shape}, not {host.shape}")
        if bool(_HOST.any(host >= classes)):
            largest = int(_HOST.max(host))
            raise ValueError(
                f"{what} contains {largest}, but labels must be below {classes} (negative ones are ignored)"
            )
        return host

    def _label_rows(self, cache: Cache, labels: Any) -> Array:
        """Return the labels on the host, one for each row of logits: (M,)."""
        inputs = cache.inputs
        vocabulary = self.model.config.vocab_size
        if inputs.host_prediction_positions is not None:
            return self._check_labels(labels, inputs.host_prediction_positions.shape, vocabulary, "labels")
        host = self._check_labels(labels, (inputs.batch_size, inputs.seq_length), vocabulary, "labels")
        rows = _HOST.take(_HOST.reshape(host, (-1,)), inputs.host_last_positions)  # (M,)
        if _count(rows >= 0) != _count(host >= 0):
            raise ValueError(
                "labels ask for a prediction at padding, which unpad=True left out; set these labels to -100"
            )
        return rows

    # --- heads ------------------------------------------------------------------------------------------------

    def _masked_language_model_head(self, cache: Cache, dlogits: Array) -> Array:
        """Return the gradient of the last layer's output (Nq, H), given the gradient of the logits (M, V)."""
        head = cache.head
        assert head is not None
        p, d, kernels = self.model.parameters, self.gradients, self.model.kernels
        # logits = normalised @ token_embeddings.T + bias: the tied decoder's part of the gradient is written
        # here; `_embeddings` adds the other part
        dnormalised = kernels.linear_backward(
            dlogits, head.normalised, p["token_embeddings"], d["token_embeddings"], d["mlm.bias"]
        )  # (M, H)
        # normalised = layer_norm(activated)
        dactivated = kernels.layer_norm_backward(
            dnormalised,
            head.activated,
            p["mlm.layer_norm.weight"],
            head.statistics,
            d["mlm.layer_norm.weight"],
            d["mlm.layer_norm.bias"],
        )
        # activated = activation(dense + dense.bias)
        activation_backward = kernels.activation_backward(self.model.config.hidden_act)
        ddense, _ = activation_backward(dactivated, head.dense, p["mlm.dense.bias"], d["mlm.dense.bias"])
        # dense = x @ dense.weight.T
        dx = kernels.linear_backward(ddense, head.x, p["mlm.dense.weight"], d["mlm.dense.weight"])  # (M, H)
        # x = hidden[prediction_rows]
        rows = cache.inputs.prediction_rows
        if rows is None:  # all of them
            return dx
        dhidden = self.model.backend.xp.zeros_like(cache.hidden_rows[-1])  # (Nq, H)
        kernels.embedding_backward(dx, (rows,), (dhidden,))
        return dhidden

    def _next_sentence_head(self, cache: Cache, dlogits: Array | None, dhidden: Array) -> None:
        """Add the next-sentence head's part to dhidden (Nq, H), in place."""
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
        """Add the classifier's part to dhidden (Nq, H), in place."""
        p, d, kernels = self.model.parameters, self.gradients, self.model.kernels
        assert cache.pooler is not None
        # logits = x @ weight.T + bias
        dx = kernels.linear_backward(
            dlogits, classifier.x, p["classifier.weight"], d["classifier.weight"], d["classifier.bias"]
        )
        # x = dropout(pooled)
        self._pooler(cache, cache.pooler, kernels.dropout_backward(dx, classifier.dropout), dhidden)

    def _pooler(self, cache: Cache, pooler: PoolerCache, doutput: Array, dhidden: Array) -> None:
        """Add the pooler's part to dhidden (Nq, H), in place, given the gradient of the pooled output (B, H)."""
        p, d, kernels = self.model.parameters, self.gradients, self.model.kernels
        # output = tanh(dense)
        ddense = doutput * (1.0 - pooler.output * pooler.output)
        # dense = x @ weight.T + bias
        dx = kernels.linear_backward(ddense, pooler.x, p["pooler.weight"], d["pooler.weight"], d["pooler.bias"])
        # x = hidden[first_token_rows]
        kernels.embedding_backward(dx, (cache.inputs.first_token_rows,), (dhidden,))

    # --- encoder ----------------------------------------------------------------------------------------------

    def _encoder(self, cache: Cache, dhidden: Array) -> None:
        """Write the gradients of the encoder's parameters, given the gradient of the last hidden states (Nq, H)."""
        for n in reversed(range(len(cache.layers))):
            dhidden = self._layer(n, dhidden, cache.layers[n], cache.inputs)
        self._embeddings(cache, dhidden)

    def _layer(self, n: int, dy: Array, layer: LayerCache, inputs: Inputs) -> Array:
        """Return the gradient of the input (N, H) of encoder layer n, given the gradient of its output (Nq, H)."""
        dattention_output = self._feed_forward(n, dy, layer.feed_forward)  # (Nq, H)
        return self._attention(n, dattention_output, layer.attention, inputs)  # (N, H)

    def _feed_forward(self, n: int, dy: Array, cache: FeedForwardCache) -> Array:
        """Return dx (Nq, H) of the feed-forward half of layer n, given dy (Nq, H)."""
        p, d, kernels = self.model.parameters, self.gradients, self.model.kernels
        name = f"layers.{n}"
        # y = layer_norm(x + dropout(intermediate @ output.weight.T + output.bias))
        doutput, dx = kernels.dropout_add_layer_norm_backward(
            dy,
            cache.total,
            cache.statistics,
            p[f"{name}.output.layer_norm.weight"],
            cache.output_dropout,
            d[f"{name}.output.bias"],
            d[f"{name}.output.layer_norm.weight"],
            d[f"{name}.output.layer_norm.bias"],
        )  # both (Nq, H)
        # intermediate = activation(intermediate_input + intermediate.bias)
        activation_backward = kernels.activation_backward(self.model.config.hidden_act)
        dintermediate_input, intermediate = activation_backward(
            kernels.linear_backward_input(doutput, p[f"{name}.output.weight"]),
            cache.intermediate_input,
            p[f"{name}.intermediate.bias"],
            d[f"{name}.intermediate.bias"],
        )  # both (Nq, I)
        kernels.linear_backward_weight(doutput, intermediate, d[f"{name}.output.weight"])
        del doutput, intermediate  # their memory is free for what follows
        # intermediate_input = x @ intermediate.weight.T
        return kernels.linear_backward(
            dintermediate_input,
            cache.x,
            p[f"{name}.intermediate.weight"],
            d[f"{name}.intermediate.weight"],
            add_to=dx,
        )

    def _attention(self, n: int, dy: Array, cache: AttentionCache, inputs: Inputs) -> Array:
        """Return dx (N, H) of the attention half of layer n, given dy (Nq, H)."""
        p, d, kernels, backend = self.model.parameters, self.gradients, self.model.kernels, self.model.backend
        name = f"layers.{n}.attention"
        # y = layer_norm(query_x + dropout(context @ output.weight.T + output.bias))
        dprojected, dquery_x = kernels.dropout_add_layer_norm_backward(
            dy,
            cache.total,
            cache.statistics,
            p[f"{name}.layer_norm.weight"],
            cache.output_dropout,
            d[f"{name}.output.bias"],
            d[f"{name}.layer_norm.weight"],
            d[f"{name}.layer_norm.bias"],
        )  # both (Nq, H)
        dcontext = kernels.linear_backward(
            dprojected, cache.context, p[f"{name}.output.weight"], d[f"{name}.output.weight"]
        )  # (Nq, H)

        # context = attention(queries, keys, values); the gradients stand side by side, as the projections do
        pruned = cache.query_x is not cache.x
        parts = KEY_VALUE if pruned else QUERY_KEY_VALUE
        dpacked = backend.empty((cache.x.shape[0], len(parts) * dcontext.shape[1]), dcontext.dtype)  # (N, 2H or 3H)
        if pruned:
            dqueries = backend.xp.empty_like(dcontext)  # (Nq, H)
            dkeys, dvalues = split_columns(dpacked, 2)  # views (N, H)
        else:
            dqueries, dkeys, dvalues = split_columns(dpacked, 3)  # views (N, H)
        kernels.attention_backward(
            dcontext,
            cache.queries,
            cache.keys,
            cache.values,
            cache.saved,
            cache.layout,
            cache.weights_dropout,
            dqueries,
            dkeys,
            dvalues,
        )

        # packed = x @ weights.T + biases
        dx = kernels.linear_backward(
            dpacked,
            cache.x,
            p.packed(name, parts, "weight"),
            d.packed(name, parts, "weight"),
            d.packed(name, parts, "bias"),
            add_to=None if pruned else dquery_x,
        )  # (N, H)
        if not pruned:
            return dx
        # queries = query_x @ query.weight.T + query.bias
        dquery_x = kernels.linear_backward(
            dqueries,
            cache.query_x,
            p[f"{name}.query.weight"],
            d[f"{name}.query.weight"],
            d[f"{name}.query.bias"],
            add_to=dquery_x,
        )  # (Nq, H)
        # query_x = x[last_rows]
        kernels.embedding_backward(dquery_x, (inputs.last_rows,), (dx,))
        return dx

    def _embeddings(self, cache: Cache, dy: Array) -> None:
        """Write the gradients of the three tables and the layer norm, given the gradient of the embeddings (N, H)."""
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
        )  # (N, H)
        # total = token_embeddings[ids] + position_embeddings[positions] + token_type_embeddings[token_types]; the
        # gradient of the token embeddings already holds the tied decoder's part
        d["position_embeddings"][...] = 0.0
        d["token_type_embeddings"][...] = 0.0
        kernels.embedding_backward(
            dtotal,
            (inputs.token_ids, inputs.position_ids, inputs.token_type_ids),
            (d["token_embeddings"], d["position_embeddings"], d["token_type_embeddings"]),
        )


def _count(condition: Array) -> int:
    """Return how many entries of a host array are True."""
    return int(_HOST.sum(_HOST.astype(condition, _HOST.int64)))


def _checked_total(total: int | None, what: str) -> int | None:
    """Return the number that divides a loss as a Python integer.

    Raises:
        ValueError: it is negative.
        TypeError: it is no integer.
    """
    if total is None:
        return None
    if isinstance(total, bool):
        raise TypeError(f"{what} must be an integer, not {total}")
    if operator.index(total) < 0:
        raise ValueError(f"the loss is divided by {what}, 0 or more, not by {total}")
    return operator.index(total)
