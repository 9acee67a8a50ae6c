"""Rows and slots: the two shapes in which a batch of tokens is held.

Linear layers and layer norms work on *rows* (N, H), one for each token that is computed. Attention works on *slots*
(B, S, H): every sequence has the same number of slots, and some may be empty. If no slot is empty, rows and slots
are the same memory. So padding is left out by giving it no row, and a pruned last layer has rows only where its output
is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import device

from backends import Array, Backend, get_backend

_HOST = get_backend("cpu").xp


@dataclass(frozen=True)
class Rows:
    """The slot that each row fills, and its sequence.

    Attributes:
        sequences: B.
        slots: S, slots per sequence.
        slot_of_row: (N,) int32, sequence * S + slot; None if row i is slot i for every i.
        row_of_slot: (B * S,) int32, N for an empty slot; None if row i is slot i for every i.
    """

    sequences: int
    slots: int
    slot_of_row: Array | None = None
    row_of_slot: Array | None = None

    @classmethod
    def at(cls, backend: Backend, sequences: int, slots: int, slot_of_row: Array) -> Rows:
        """Make the rows that fill the given slots.

        Args:
            backend: where the index arrays will live.
            sequences: B.
            slots: S.
            slot_of_row: (N,) on the host, increasing.
        """
        return cls(sequences, slots, **backend.upload(cls.index_arrays(sequences, slots, slot_of_row)))

    @staticmethod
    def index_arrays(sequences: int, slots: int, slot_of_row: Array) -> dict[str, Array]:
        """Return both index arrays by attribute name, on the host; {} if row i is slot i. Arguments: see `at`."""
        number, total = slot_of_row.shape[0], sequences * slots
        if number == total:
            return {}
        row_of_slot = _HOST.full(total, number, dtype=_HOST.int32)
        row_of_slot[slot_of_row] = _HOST.arange(number, dtype=_HOST.int32)
        return {"slot_of_row": _HOST.astype(slot_of_row, _HOST.int32), "row_of_slot": row_of_slot}


def to_slots(xp: Any, x: Array, rows: Rows) -> Array:
    """Move rows to their slots: (N, C) -> (B, S, C); empty slots are zero."""
    shape = (rows.sequences, rows.slots, x.shape[1])
    if rows.row_of_slot is not None:
        empty = xp.zeros((1, x.shape[1]), dtype=x.dtype, device=device(x))
        x = xp.concat((x, empty), axis=0)
        x = xp.take(x, rows.row_of_slot, axis=0)
    return xp.reshape(x, shape)


def from_slots(xp: Any, x: Array, rows: Rows) -> Array:
    """Move slots to their rows: (B, S, C) -> (N, C)."""
    x = xp.reshape(x, (rows.sequences * rows.slots, x.shape[2]))
    return x if rows.slot_of_row is None else xp.take(x, rows.slot_of_row, axis=0)
