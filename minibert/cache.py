"""What the forward pass leaves for the backward pass, and for a curious reader.

Internally activations are rows (see `minibert.rows`); the properties show them per sequence and position, as
in the papers: `cache.hidden_states[2]` is (B, T, H), `cache.layers[0].attention_weights` is (B, A, T, T).
Positions that were not computed (left-out padding, the pruned last layer) show as zeros.
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
    """Of the embeddings; rows (N, H)."""

    total: Array  # the sum of the three embeddings
    statistics: tuple[Array, Array]  # of its layer norm
    dropout: Dropout | None


@dataclass
class LayerCache:
    """Of one encoder layer. `x` has N rows; everything from the queries on has Nq (N unless pruned).

    Attributes (rows):
        x: (N, H), the layer's input; `query_x` (Nq, H) its rows that become queries.
        queries, keys, values: (Nq or N, H), the projections.
        context: (Nq, H), the weighted values of all attention heads side by side.
        attention_total: (Nq, H), residual + attention output, before the layer norm.
        attention_output: (Nq, H), after it.
        intermediate_input: (Nq, I), before bias and activation; what follows them is computed again.
        output_total: (Nq, H), residual + feed-forward output, before the layer norm.
    """

    backend: Backend
    layout: AttentionLayout
    host_query_positions: Array  # (Nq,) on the host, the flat position b * T + t of every query
    x: Array
    query_x: Array
    queries: Array
    keys: Array
    values: Array
    context: Array
    saved_attention: Array
    attention_total: Array
    attention_statistics: tuple[Array, Array]
    attention_output: Array
    intermediate_input: Array
    output_total: Array
    output_statistics: tuple[Array, Array]
    attention_dropout: Dropout | None
    attention_output_dropout: Dropout | None
    output_dropout: Dropout | None

    @property
    def attention_weights(self) -> Array:
        """(B, A, T, T): how much every query (third axis) attends to every key (last axis), before dropout."""
        xp, queries = self.backend.xp, self.layout.queries
        weights = attention_weights(self.backend, self.queries, self.keys, self.layout)  # (B, A, slots, T)
        batch, attention_heads, slots, length = weights.shape
        if queries.row_of_slot is None:
            return weights  # every position is a query
        weights = xp.reshape(xp.permute_dims(weights, (0, 2, 1, 3)), (batch, slots, attention_heads * length))
        rows = from_slots(xp, weights, queries)  # (Nq, A T)
        weights = to_slots(xp, rows, Rows.at(self.backend, batch, length, self.host_query_positions))  # (B, T, A T)
        return xp.permute_dims(xp.reshape(weights, (batch, length, attention_heads, length)), (0, 2, 1, 3))


@dataclass
class HeadCache:
    """Of the masked-language-model head; M rows."""

    x: Array  # (M, H), the final hidden states at the predicted positions
    dense: Array  # (M, H), before bias and activation
    activated: Array  # (M, H), after them
    statistics: tuple[Array, Array]
    normalised: Array  # (M, H), after the layer norm
    logits: Array  # (M, V)


@dataclass
class PoolerCache:
    """Of the pooler; B rows."""

    x: Array  # (B, H), the final hidden states at the first positions
    output: Array  # (B, H), tanh of the dense layer


@dataclass
class ClassifierCache:
    """Of the classifier; B rows."""

    x: Array  # (B, H), the pooled output after dropout
    dropout: Dropout | None
    logits: Array  # (B, C)


@dataclass
class Cache:
    """Everything that one forward pass computed.

    Attributes:
        inputs: the batch as the model saw it.
        layers: one `LayerCache` per encoder layer; none if there will be no backward pass.
        next_sentence_logits: (B, 2): column 0 for "B follows A", column 1 for "B is random"; None where not asked
            for.
    """

    backend: Backend
    parameters: NamedArrays  # of the model; the backward pass makes sure that it differentiates the same
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
        """(B, H), the pooler's output; None where nothing that reads it was asked for."""
        return None if self.pooler is None else self.pooler.output

    def per_position(self, x: Array) -> Array:
        """(Nq, C) rows of the last layer -> (B, T, C)."""
        return self._per_position(x, self.inputs.host_last_positions)

    def _per_position(self, x: Array, host_positions: Array) -> Array:
        rows = Rows.at(self.backend, self.inputs.batch_size, self.inputs.seq_length, host_positions)
        return to_slots(self.backend.xp, x, rows)
