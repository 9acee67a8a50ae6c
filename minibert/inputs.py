"""Prepare a batch for the model: check it on the host, choose the rows to compute, move it to the device once.

Every error in a batch is found here, before any transfer, because a GPU wraps an id that is out of range without
an error. The rows to compute are chosen here too: with `unpad`, padding gets no row; with `prediction_positions`,
the last layer computes only the positions that the heads read.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from array_api_compat import is_array_api_obj, is_numpy_array

from backends import Array, Backend, get_backend
from minibert.config import MiniBERTConfig
from minibert.errors import brief
from minibert.ops import AttentionLayout, score_bound
from minibert.rows import Rows

_HOST = get_backend("cpu")


@dataclass(frozen=True)
class Inputs:
    """A batch on the device. Every layer computes N rows, but a pruned last layer only Nq.

    Attributes:
        batch_size: B.
        seq_length: T.
        token_ids, position_ids, token_type_ids: (N,) int32, the ids of every row.
        row_numbers: (N,) uint32, the number of every row, unique within a training step; dropout masks depend on it.
        attention: which query may attend to which key, in every layer but the last.
        pruned: True if the last layer computes fewer than N rows.
        last_rows: (Nq,) int32, the rows that a pruned last layer computes; None if it computes all.
        last_attention: which query may attend to which key in the last layer.
        last_row_numbers: (Nq,) uint32, the numbers of the last layer's rows.
        prediction_rows: (M,) int32, the rows of the last layer that get logits; None if all do.
        first_token_rows: (B,) int32, the rows of the last layer that the pooler reads; None without the pooler.
        host_positions: (N,) int64 on the host, the flat position b * T + t of every row.
        host_last_positions: (Nq,) int64 on the host, the flat position of every row of the last layer.
        host_prediction_positions: (M,) int64 on the host; None if logits were asked for at every position.
    """

    batch_size: int
    seq_length: int
    token_ids: Array
    position_ids: Array
    token_type_ids: Array
    row_numbers: Array
    attention: AttentionLayout
    pruned: bool
    last_rows: Array | None
    last_attention: AttentionLayout
    last_row_numbers: Array
    prediction_rows: Array | None
    first_token_rows: Array | None
    host_positions: Array
    host_last_positions: Array
    host_prediction_positions: Array | None


def host_integers(backend: Backend, values: Any, what: str, *, bools: bool = False) -> Array:
    """Return integers on the host, from lists, NumPy arrays or arrays of the backend.

    Args:
        backend: where `values` may live.
        values: integers of any shape.
        what: the argument's name, for the error message.
        bools: also accept truth values, as in a mask.

    Raises:
        TypeError: the values are not integers.
        ValueError: the lists have different lengths.
    """
    xp = _HOST.xp
    on_device = is_array_api_obj(values) and not is_numpy_array(values)
    try:
        array = backend.to_numpy(values) if on_device else _HOST.asarray(values)
    except ValueError as error:  # NumPy calls lists of different lengths "inhomogeneous"
        raise ValueError(
            f"{what} must be a full rectangle of numbers: fill shorter sequences up with the padding id, and set "
            "attention_mask to 0 there"
        ) from error
    if array.size == 0 and isinstance(values, list | tuple):  # an empty list has no dtype of its own
        array = xp.zeros(array.shape, dtype=xp.int64)
    if not xp.isdtype(array.dtype, "integral") and not (bools and xp.isdtype(array.dtype, "bool")):
        raise TypeError(f"{what} must be integers, not {array.dtype}")
    return array


def _check_range(array: Array, size: int, what: str, of: str) -> None:
    xp = _HOST.xp
    wrong = (array < 0) | (array >= size)
    if bool(xp.any(wrong)):
        where = [int(index[0]) for index in xp.nonzero(wrong)]
        value = int(array[tuple(where)])
        raise ValueError(f"{what}{where} is {value}, but {of} has {size} entries, numbered from 0 to {size - 1}")


def _check_batch(
    config: MiniBERTConfig, backend: Backend, input_ids: Any, attention_mask: Any, token_type_ids: Any
) -> tuple[Array, Array, Array]:
    """Return ids, mask (bool) and token types, each (B, T) on the host."""
    xp = _HOST.xp
    ids = host_integers(backend, input_ids, "input_ids")
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(
            f"input_ids must have the shape (batch, sequence length), both at least 1, not {ids.shape}; "
            "wrap a single sequence as [ids]"
        )
    if ids.shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"the sequences are {ids.shape[1]} tokens long, but this model was made with "
            f"max_position_embeddings = {config.max_position_embeddings}; shorten or split them"
        )
    _check_range(ids, config.vocab_size, "input_ids", "the vocabulary")
    mask = xp.ones(ids.shape, dtype=xp.bool)
    if attention_mask is not None:
        mask = host_integers(backend, attention_mask, "attention_mask", bools=True)
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask has the shape {mask.shape}, input_ids {ids.shape}; give one 1 (token) or 0 (padding) "
                "for every id"
            )
        if bool(xp.any((mask != 0) & (mask != 1))):
            raise ValueError("attention_mask must contain only 1 (token) and 0 (padding)")
        mask = mask != 0
    token_types = xp.zeros(ids.shape, dtype=xp.int32)
    if token_type_ids is not None:
        token_types = host_integers(backend, token_type_ids, "token_type_ids")
        if token_types.shape != ids.shape:
            raise ValueError(
                f"token_type_ids has the shape {token_types.shape}, input_ids {ids.shape}; they must agree"
            )
        _check_range(token_types, config.type_vocab_size, "token_type_ids", "the table of token types")
    return ids, mask, token_types


def _check_positions(backend: Backend, prediction_positions: Any, total: int) -> Array:
    xp = _HOST.xp
    positions = xp.astype(host_integers(backend, prediction_positions, "prediction_positions"), xp.int64)
    if positions.ndim != 1:
        raise ValueError(f"prediction_positions must be one list of flat positions b * T + t, not {positions.shape}")
    _check_range(positions, total, "prediction_positions", "the batch")
    if bool(xp.any(positions[1:] <= positions[:-1])):
        raise ValueError("prediction_positions must increase, each position at most once")
    return positions


def prepare_inputs(
    config: MiniBERTConfig,
    backend: Backend,
    dtype: Any,
    input_ids: Any,
    attention_mask: Any,
    token_type_ids: Any,
    prediction_positions: Any,
    *,
    pooler: bool,
    first_sequence: int,
    unpad: bool,
) -> Inputs:
    """Check a batch on the host, choose the rows to compute, and move everything to the device in one transfer.

    Args:
        config: the model's configuration.
        backend: where to move the batch.
        dtype: the dtype of the attention mask on the device.
        input_ids: as in `MiniBERT.forward`.
        attention_mask: as in `MiniBERT.forward`.
        token_type_ids: as in `MiniBERT.forward`.
        prediction_positions: as in `MiniBERT.forward`.
        pooler: True if the pooler will read the first position of every sequence.
        first_sequence: as in `MiniBERT.forward`.
        unpad: as in `MiniBERT.forward`.

    Raises:
        ValueError, TypeError: the batch does not fit this model; the message says what is wrong and where.
    """
    xp = _HOST.xp
    first_sequence = operator.index(first_sequence)
    if not 0 <= first_sequence < 2**32:
        raise ValueError(f"first_sequence counts the sequences of a step from 0; got {brief(first_sequence)}")
    ids, mask, token_types = _check_batch(config, backend, input_ids, attention_mask, token_type_ids)
    batch, length = ids.shape
    predicted = None
    if prediction_positions is not None:
        predicted = _check_positions(backend, prediction_positions, batch * length)
    positions = _positions_to_compute(mask, predicted, unpad)  # (N,)
    last_positions = _positions_of_last_layer(positions, predicted, batch, length, pooler)  # (Nq,)
    pruned = last_positions.shape[0] != positions.shape[0]

    def int32(array: Array) -> Array:
        return xp.astype(array, xp.int32)

    def take_rows(array: Array) -> Array:  # (B, T) -> (N,)
        return int32(xp.take(xp.reshape(array, (-1,)), positions))

    def row_numbers(flat_positions: Array) -> Array:
        sequence, position = flat_positions // length, flat_positions % length
        number = (first_sequence + sequence) * config.max_position_embeddings + position
        return xp.astype(number % 2**32, xp.uint32)

    host = {
        "token_ids": take_rows(ids),
        "position_ids": int32(positions % length),
        "token_type_ids": take_rows(token_types),
        "row_numbers": row_numbers(positions),
    }
    keys = Rows.index_arrays(batch, length, positions)
    host |= {f"keys.{name}": array for name, array in keys.items()}
    query_slots, queries = length, keys
    if pruned:
        query_slots, slot_of_row = _pack_slots(last_positions, batch, length)
        queries = Rows.index_arrays(batch, query_slots, slot_of_row)
        host |= {f"queries.{name}": array for name, array in queries.items()}
        host["last_row_numbers"] = row_numbers(last_positions)
        host["last_rows"] = int32(xp.searchsorted(positions, last_positions))
    if predicted is not None and predicted.shape != last_positions.shape:
        host["prediction_rows"] = int32(xp.searchsorted(last_positions, predicted))
    if pooler:
        host["first_token_rows"] = int32(xp.searchsorted(last_positions, xp.arange(batch) * length))
    if not bool(xp.all(mask)):
        excluded = -2.0 * score_bound(backend.xp, dtype)
        floats = xp.float64 if dtype == backend.xp.float64 else xp.float32
        host["mask"] = xp.astype(xp.where(mask, 0.0, excluded)[:, None, None, :], floats)  # (B, 1, 1, T)
    device = backend.upload(host)

    def rows_on_device(side: str, slots: int, names: Iterable[str]) -> Rows:
        return Rows(batch, slots, **{name: device[f"{side}.{name}"] for name in names})

    key_rows = rows_on_device("keys", length, keys)
    attention = AttentionLayout(key_rows, key_rows, device.get("mask"), config.num_attention_heads)
    last_attention = attention
    if pruned:
        last_attention = replace(attention, queries=rows_on_device("queries", query_slots, queries))
    return Inputs(
        batch_size=batch,
        seq_length=length,
        token_ids=device["token_ids"],
        position_ids=device["position_ids"],
        token_type_ids=device["token_type_ids"],
        row_numbers=device["row_numbers"],
        attention=attention,
        pruned=pruned,
        last_rows=device.get("last_rows"),
        last_attention=last_attention,
        last_row_numbers=device.get("last_row_numbers", device["row_numbers"]),
        prediction_rows=device.get("prediction_rows"),
        first_token_rows=device.get("first_token_rows"),
        host_positions=positions,
        host_last_positions=last_positions,
        host_prediction_positions=predicted,
    )


def _positions_to_compute(mask: Array, predicted: Array | None, unpad: bool) -> Array:
    """Return the flat positions (N,) that get a row: with `unpad`, only tokens and positions that a head reads."""
    xp = _HOST.xp
    needed = xp.ones_like(mask)
    if unpad:
        needed = xp.asarray(mask, copy=True)
        needed[:, 0] = True  # the pooler reads every sequence's first position
        if predicted is not None:
            xp.reshape(needed, (-1,))[predicted] = True
    (positions,) = xp.nonzero(xp.reshape(needed, (-1,)))
    return positions


def _positions_of_last_layer(positions: Array, predicted: Array | None, batch: int, length: int, pooler: bool) -> Array:
    """Return the flat positions (Nq,) that the heads read, the only ones that the last layer computes."""
    xp = _HOST.xp
    if predicted is None:
        return positions
    read = xp.zeros(batch * length, dtype=xp.bool)
    read[predicted] = True
    if pooler:
        read[xp.arange(batch) * length] = True
    (last_positions,) = xp.nonzero(read)
    return last_positions


def _pack_slots(positions: Array, batch: int, length: int) -> tuple[int, Array]:
    """Give every sequence as many slots as the sequence with the most positions needs.

    Returns:
        The slots of a sequence, and (Nq,) the slot of every position.
    """
    xp = _HOST.xp
    sequences = positions // length
    starts = xp.searchsorted(sequences, xp.arange(batch + 1))  # (B + 1,) first row of every sequence
    slots = max(1, int(xp.max(starts[1:] - starts[:-1])))
    place = xp.arange(positions.shape[0]) - xp.take(starts, sequences)
    return slots, sequences * slots + place
