"""The payments of a batch by column, and their new records in the store, which one compiled loop encodes.

    payments = PaymentColumns(…)
    payments[3]                       the fourth payment as a PaymentEvent, made when someone asks
    payments.records(layout)          for each payment the bytes of its PaymentRecord, as protobuf writes them

A batch has hundreds of payments, and nearly all are new. They go from the decoder to the store and into frames as
columns. A payment that the store knows is joined one by one (streams/profiles/events.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from paywarden.features.kernel.layout import I64, U8
from paywarden.features.kernel.toolkit.jit import compiled, inlined
from paywarden.features.kernel.toolkit.varint import varint_size, write_varint

RECORD_PREFIX = b"payment:"
"""The beginning of the store keys of payments' records, before the payment's id."""
# PaymentRecord's fields as protobuf tags them: number << 3 | wire type.
_SOURCE_TAG, _OFFSET_TAG, _KEYS_TAG, _ATTRIBUTES_TAG = 1 << 3, 2 << 3, 5 << 3 | 2, 7 << 3 | 2
_BESIDE_TAG, _BESIDE_FIELDS_TAG = 9 << 3 | 1, 10 << 3 | 5
_VARINT_BYTES_MAX = 10
# Everything but keys and codes: five tags, three varints and the two fixed numbers.
_HEAD_BYTES_MAX = 5 + 3 * _VARINT_BYTES_MAX + 8 + 4


class Position(NamedTuple):
    """The origin of an event: `source` is one number for topic and partition."""

    source: int
    offset: int


class PaymentEvent(NamedTuple):
    """A payment in the form that profiles need. `attributes`: its row (features/catalogue/attributes.py).

    `keys`: the store key for each kind of entity, empty if the payment has none. `arrived_ms`: its arrival on Kafka.
    """

    position: Position
    payment_id: str
    attributes: Sequence[int]
    keys: tuple[bytes, ...]
    arrived_ms: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class PaymentColumns(Sequence[PaymentEvent]):
    """Payments in the order of their records.

    `record_keys`: the store key of each payment's record. `sources`, `offsets`, `arrived_ms`: shape (payments,), int64.
    `rows`: shape (payments, row width), int64. `keys`: for each kind of entity, the store key of each payment's entity,
    empty for none.
    """

    record_keys: list[bytes]
    sources: NDArray[np.int64]
    offsets: NDArray[np.int64]
    arrived_ms: NDArray[np.int64]
    rows: NDArray[np.int64]
    keys: list[list[bytes]]

    def __len__(self) -> int:
        return len(self.record_keys)

    @overload
    def __getitem__(self, number: int) -> PaymentEvent: ...

    @overload
    def __getitem__(self, number: slice) -> list[PaymentEvent]: ...

    def __getitem__(self, number: int | slice) -> PaymentEvent | list[PaymentEvent]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        return PaymentEvent(
            Position(int(self.sources[number]), int(self.offsets[number])),
            self.record_keys[number].removeprefix(RECORD_PREFIX).decode(),
            self.rows[number].tolist(),
            tuple([column[number] for column in self.keys]),
            int(self.arrived_ms[number]),
        )

    def chosen(self, is_chosen: NDArray[np.bool_]) -> PaymentColumns:
        """Returns the payments where `is_chosen`, shape (payments,), is True."""
        numbers = np.flatnonzero(is_chosen).tolist()
        return PaymentColumns(
            [self.record_keys[number] for number in numbers],
            self.sources[is_chosen],
            self.offsets[is_chosen],
            self.arrived_ms[is_chosen],
            self.rows[is_chosen],
            [[column[number] for number in numbers] for column in self.keys],
        )

    def records(
        self, columns: Sequence[int], beside: NDArray[np.uint64] | None = None, beside_fields: int = 0
    ) -> list[bytes]:
        """Returns the bytes of each payment's PaymentRecord, as a new payment has it.

        `columns`: the columns of the row whose codes a record holds, in its order. `beside`: shape (payments,), the
        number of that name in each record; `beside_fields` what it is made of, 0 for none.
        """
        entities, count = len(self.keys), len(self)
        if not count:
            return []
        flat = list(itertools.chain.from_iterable(zip(*self.keys, strict=True)))
        key_bounds = np.zeros(len(flat) + 1, dtype=np.int64)
        np.cumsum(np.fromiter(map(len, flat), np.int64, len(flat)), out=key_bounds[1:])
        key_data = np.frombuffer(bytearray(b"".join(flat)), dtype=np.uint8)
        others = _HEAD_BYTES_MAX + _VARINT_BYTES_MAX * len(columns) + entities * (1 + _VARINT_BYTES_MAX)
        out = np.empty(len(key_data) + others * count, dtype=np.uint8)
        bounds = np.zeros(count + 1, dtype=np.int64)
        numbers = np.zeros(count, dtype=np.int64) if beside is None else beside.view(np.int64)
        _encode_records(
            self.sources, self.offsets, self.rows, np.array(columns, dtype=np.int64), key_data, key_bounds, entities,
            numbers, beside_fields, out, bounds,
        )  # fmt: skip
        ends = bounds.tolist()
        data = out[: ends[-1]].tobytes()
        return [data[begin:end] for begin, end in itertools.pairwise(ends)]


@inlined
def _write_fixed(out: U8, at: int, number: int, size: int) -> int:
    """Write a number in `size` bytes, the lowest first; returns the end position."""
    for _ in range(size):
        out[at] = number & 255
        number >>= 8
        at += 1
    return at


@compiled()
def _encode_records(
    sources: I64,
    offsets: I64,
    rows: I64,
    columns: I64,
    key_data: U8,
    key_bounds: I64,
    entities: int,
    beside: I64,
    beside_fields: int,
    out: U8,
    bounds: I64,
) -> None:
    """Write the records one after the other: record i is out[bounds[i] : bounds[i + 1]].

    A field that is 0 is not written. Key k of payment i is that of entry i * entities + k of `key_bounds`.
    """
    at = 0
    for number in range(len(sources)):
        if sources[number] != 0:
            out[at] = _SOURCE_TAG
            at = write_varint(out, at + 1, sources[number])
        if offsets[number] != 0:
            out[at] = _OFFSET_TAG
            at = write_varint(out, at + 1, offsets[number])
        for entry in range(number * entities, (number + 1) * entities):
            begin, end = key_bounds[entry], key_bounds[entry + 1]
            out[at] = _KEYS_TAG
            at = write_varint(out, at + 1, end - begin)
            for place in range(begin, end):
                out[at] = key_data[place]
                at += 1
        if len(columns) > 0:
            size = 0
            for place in range(len(columns)):
                size += varint_size(rows[number, columns[place]])
            out[at] = _ATTRIBUTES_TAG
            at = write_varint(out, at + 1, size)
            for place in range(len(columns)):
                at = write_varint(out, at, rows[number, columns[place]])
        if beside[number] != 0 and beside_fields != 0:
            out[at] = _BESIDE_TAG
            at = _write_fixed(out, at + 1, beside[number], 8)
        if beside_fields != 0:
            out[at] = _BESIDE_FIELDS_TAG
            at = _write_fixed(out, at + 1, beside_fields, 4)
        bounds[number + 1] = at


def warm_up() -> None:
    """Compile or load the loop, so that no payment waits for it."""
    one = np.zeros(1, dtype=np.int64)
    PaymentColumns([b""], one, one, one, one.reshape(1, 1), [[b"card:c"]]).records([0])
