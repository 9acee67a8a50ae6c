"""The cache: the arrays that the forward pass saves, for the backward pass and for users to inspect.

Activations are saved as rows (see `minibert.rows`). The properties show them per sequence and position, as the
papers do: `cache.hidden_states[2]` is (B, T, H), `cache.layers[0].attention_weights` is (B, A, T, T). Positions
that were not computed (padding that was left out, the pruned last layer) show as zeros.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from backends import Array, Backend
from minibert.inputs import Inputs
from minibert.ops import AttentionLayout, Dropout, attention_weights
from minibert.parameters import NamedArrays
from minibert.rows import Rows, from_slots, to_slots


@dataclass
class EmbeddingsCache:
    """Saved by the embeddings.

    Attributes:
        total: (N, H), the sum of the three embeddings.
        statistics: mean and inverse deviation of every row of `total`, each (N, 1).
        dropout: the dropout of the output; None without dropout.
    """

    total: Array
    statistics: tuple[Array, Array]
    dropout: Dropout | None


@dataclass
class AttentionCache:
    """Saved by the attention half of a layer.

    There are N rows of keys and values, and Nq rows of queries. Nq is N, except in a pruned last layer.

    Attributes:
        layout: which query may attend to which key.
        x: (N, H), the layer's input.
        query_x: (Nq, H), the rows of `x` that become queries.
        queries, keys, values: (Nq or N, H), the projections.
        saved: what `attention_forward` saved for its backward pass.
        context: (Nq, H), the weighted values of all attention heads side by side.
        total: (Nq, H), residual + projected context, before the layer norm.
        statistics: mean and inverse deviation of every row of `total`, each (Nq, 1).
        weights_dropout: the dropout of the attention weights; None without dropout.
        output_dropout: the dropout of the projected context; None without dropout.
    """

    layout: AttentionLayout
    x: Array
    query_x: Array
    queries: Array
    keys: Array
    values: Array
    saved: Array
    context: Array
    total: Array
    statistics: tuple[Array, Array]
    weights_dropout: Dropout | None
    output_dropout: Dropout | None


@dataclass
class FeedForwardCache:
    """Saved by the feed-forward half of a layer.

    Attributes:
        x: (Nq, H), the output of the attention half.
        intermediate_input: (Nq, I), before bias and activation. The backward pass computes the activation again,
            because keeping it would cost the largest array of a step.
        total: (Nq, H), residual + feed-forward output, before the layer norm.
        statistics: mean and inverse deviation of every row of `total`, each (Nq, 1).
        output_dropout: the dropout of the feed-forward output; None without dropout.
    """

    x: Array
    intermediate_input: Array
    total: Array
    statistics: tuple[Array, Array]
    output_dropout: Dropout | None


@dataclass
class LayerCache:
    """Saved by one encoder layer, in two halves.

    Attributes:
        backend: where the arrays live.
        host_query_positions: (Nq,) int64 on the host, the flat position b * T + t of every query.
        attention: the attention half.
        feed_forward: the feed-forward half.
    """

    backend: Backend
    host_query_positions: Array
    attention: AttentionCache
    feed_forward: FeedForwardCache

    @property
    def attention_weights(self) -> Array:
        """(B, A, T, T): how much every query (third axis) attends to every key (last axis), before dropout."""
        xp, layout = self.backend.xp, self.attention.layout
        weights = attention_weights(self.backend, self.attention.queries, self.attention.keys, layout)
        batch, attention_heads, slots, length = weights.shape  # (B, A, Q, T)
        if layout.queries.row_of_slot is None:
            return weights  # every position is a query
        weights = xp.permute_dims(weights, (0, 2, 1, 3))  # (B, Q, A, T)
        weights = xp.reshape(weights, (batch, slots, attention_heads * length))  # (B, Q, A T)
        rows = from_slots(xp, weights, layout.queries)  # (Nq, A T)
        positions = Rows.at(self.backend, batch, length, self.host_query_positions)
        weights = to_slots(xp, rows, positions)  # (B, T, A T)
        weights = xp.reshape(weights, (batch, length, attention_heads, length))  # (B, T, A, T)
        return xp.permute_dims(weights, (0, 2, 1, 3))  # (B, A, T, T)


@dataclass
class HeadCache:
    """Saved by the masked-language-model head.

    Attributes:
        x: (M, H), the final hidden states at the predicted positions.
        dense: (M, H), before bias and activation.
        activated: (M, H), after bias and activation.
        statistics: mean and inverse deviation of every row of `activated`, each (M, 1).
        normalised: (M, H), after the layer norm.
        logits: (M, V).
    """

    x: Array
    dense: Array
    activated: Array
    statistics: tuple[Array, Array]
    normalised: Array
    logits: Array


@dataclass
class PoolerCache:
    """Saved by the pooler.

    Attributes:
        x: (B, H), the final hidden states at the first positions.
        output: (B, H), tanh of the dense layer.
    """

    x: Array
    output: Array


@dataclass
class ClassifierCache:
    """Saved by the classifier.

    Attributes:
        x: (B, H), the pooled output after dropout.
        dropout: the dropout of the pooled output; None without dropout.
        logits: (B, C).
    """

    x: Array
    dropout: Dropout | None
    logits: Array


@dataclass
class Cache:
    """Everything that one forward pass saved.

    Attributes:
        backend: where the arrays live.
        parameters: the model's parameters. The backward pass refuses a cache of other parameters.
        inputs: the batch as the model saw it.
        embeddings: saved by the embeddings.
        hidden_rows: L + 1 arrays: the embeddings (N, H), then the output of every layer, (N, H) or (Nq, H). Without a
            backward pass, only the last array is kept.
        layers: one `LayerCache` per encoder layer; empty if there will be no backward pass.
        head: saved by the masked-language-model head; None if it was not computed.
        pooler: saved by the pooler; None if it was not computed.
        next_sentence_logits: (B, 2), column 0 for "B follows A", column 1 for "B is random"; None if they were not
            computed.
        classifier: saved by the classifier; None if it was not computed.
    """

    backend: Backend
    parameters: NamedArrays
    inputs: Inputs
    embeddings: EmbeddingsCache
    hidden_rows: list[Array] = field(default_factory=list)
    layers: list[LayerCache] = field(default_factory=list)
    head: HeadCache | None = None
    pooler: PoolerCache | None = None
    next_sentence_logits: Array | None = None
    classifier: ClassifierCache | None = None

    @property
    def hidden_states(self) -> tuple[Array, ...]:
        """L + 1 arrays (B, T, H): the embeddings, then the output of every layer."""
        earlier = [self._per_position(rows, self.inputs.host_positions) for rows in self.hidden_rows[:-1]]
        return (*earlier, self.per_position(self.hidden_rows[-1]))

    @property
    def pooled_output(self) -> Array | None:
        """(B, H), the pooler's output; None if the pooler was not computed."""
        return None if self.pooler is None else self.pooler.output

    def per_position(self, x: Array) -> Array:
        """Show rows of the last layer (Nq, C) per sequence and position: (B, T, C)."""
        return self._per_position(x, self.inputs.host_last_positions)

    def _per_position(self, x: Array, host_positions: Array) -> Array:
        rows = Rows.at(self.backend, self.inputs.batch_size, self.inputs.seq_length, host_positions)
        return to_slots(self.backend.xp, x, rows)
