"""Apply payments and outcomes to profiles. Pure functions: values in, values out, no Kafka, no store.

    1. read     the records of the payments from the store (`record_key`)
    2. join     `join`: make events of new and replayed payments, and of labels that outcomes change

  then in the process that owns the profile, which may be another one (streams/profiles/repartition.py):

    3. read     the profiles that the events touch
    4. apply    `apply`: update each touched profile once, with all of the batch's events for it

A fault: a crash after a part of a batch is written. A payment's record holds the Kafka offset it came from,
and a profile holds the offsets it contains. The same batch again therefore gives the same bytes.

Workers with different declarations of a payment's fields may share the topics while one replaces the other. A declared
field has its place by its number, in records and in rows. A missing field at the end is 0, and a surplus field is left
out.
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from paywarden.features import kernel
from paywarden.features.catalogue.attributes import KEYED, declared_column, identity_column, row_width
from paywarden.features.kernel.layout import TAG_MIN
from paywarden.features.profiles.engine import Events, FeatureEngine
from paywarden.features.profiles.payment_tags import MARK_DTYPE
from paywarden.schemas.payment_fields import DECLARED_MAX, TABLE_ALONE, Form, PaymentFields
from paywarden.schemas.proto.store_pb2 import LabelChange, PaymentRecord
from paywarden.streams.profiles.payment_columns import RECORD_PREFIX, PaymentColumns, PaymentEvent, Position

# Columns of an event's row: kind and weight (of a payment its tag, or 1), source and offset, arrival on Kafka,
# attributes of the payment.
KIND, WEIGHT, SOURCE, OFFSET, ARRIVED_MS, ATTRIBUTES_AT = range(6)
# A row has this many columns, and two more for each number of a declared field.
ROW_WIDTH = ATTRIBUTES_AT + kernel.ATTRIBUTE_COUNT
ROW_WIDTH_MAX = ROW_WIDTH + 2 * DECLARED_MAX
# The most codes of a payment's record: those of every payment, then one for each number of a declared field.
_CODES_MAX = kernel.CODE_COUNT + DECLARED_MAX
# The codes of `declined`: not known, no, yes.
_DECLINED_CODES = frozenset({0, 1, 2})

# A label changes once or twice. Without a bound the record of one payment could outgrow a store.
LABEL_CHANGES_MAX = 1_000
TOO_MANY_CHANGES = f"payment_id: the label of this payment has changed {LABEL_CHANGES_MAX} times"
UNREADABLE = "payment_id: the stored record of this payment cannot be read"
# The kinds of later records of a payment: "resent" is the same payment again, "changed" differs from the first record
# in more than `declined`, "declined" says more about whether the payment was declined. All are dropped except the last
# kind, which is applied. A record that differs in both counts as both.
LATER = RESENT, CHANGED, DECLINED_LATER = "resent", "changed", "declined"
# The amount in the reference currency is no field of a payment: the table of rates may have changed.
_NOT_COMPARED = (kernel.AMOUNT, kernel.DECLINED)
# The public code of an e-mail address says only that it is there, and that of a declared amount follows the rates.
_COMPARED_BESIDE = (Form.EMAIL, Form.MONEY)
_WORD = 2**64 - 1
# Odd: each step of RecordLayout.beside is one to one, so that one field that differs always shows.
_MULTIPLIER = 0x9E3779B97F4A7C15

# Added to the label in a change of `declined` if the payment had a label then, and profiles count labelled payments.
_HAS_LABEL = 2

# A profile stores topic and partition as one number. Payments have even numbers, outcomes odd ones.
_KINDS_OF_SOURCES = 2


def payments_source(partition: int) -> int:
    """Returns the source number of a partition of `payments`."""
    return _KINDS_OF_SOURCES * partition


def outcomes_source(partition: int) -> int:
    """Returns the source number of a partition of `outcomes`."""
    return _KINDS_OF_SOURCES * partition + 1


def source_name(source: int) -> str:
    """Returns the topic and partition of a source number, such as `payments/3`."""
    topic = "outcomes" if source % _KINDS_OF_SOURCES else "payments"
    return f"{topic}/{source // _KINDS_OF_SOURCES}"


class OutcomeEvent(NamedTuple):
    """An outcome of a payment: fraud or not."""

    position: Position
    payment_id: str
    is_fraud: bool
    arrived_ms: int = 0


class RecordLayout:
    """The columns of a payment's row that its record in the store holds.

    It holds public codes alone. For e-mail addresses and derived fields, 1 says that they are there. One number more,
    `beside`, tells whether a later record has the same addresses and the same declared amounts.
    """

    def __init__(self, fields: PaymentFields = TABLE_ALONE, *, counts_labels: bool = False) -> None:
        self.counts_labels = counts_labels
        """Whether a record keeps the first label of its payment whatever it says: profiles count labelled payments."""
        declared = [declared_column(number) for number in range(1, fields.number_max + 1)]
        self.width = row_width(fields)
        """How many numbers a payment's row has."""
        self.columns = [*range(kernel.CODE_COUNT), *declared]
        """The columns of the codes that a record holds, in its order."""
        self._codes_of = itemgetter(*self.columns)
        self.identities = {attribute.column: identity_column(attribute.column) for attribute in KEYED}
        """By column, the column of its identity; or, of a declared amount, of the amount in its own currency."""
        self.identities |= {column: column + 1 for column in declared}
        compared = [column for column in range(kernel.CODE_COUNT) if column not in _NOT_COMPARED]
        compared += [declared_column(field.number) for field in fields.declared if field.form is not Form.MONEY]
        self.compared = [(place, column) for place, column in enumerate(self.columns) if column in compared]
        """The place in a record, and the column, of each code that two records of one payment have in common."""
        untold = sorted(field.number for field in fields.declared if field.form in _COMPARED_BESIDE)
        self._beside = tuple(declared_column(number) + 1 for number in untold)
        self.beside_fields = zlib.crc32(",".join(map(str, untold)).encode()) | 1 if untold else 0
        """Which fields `beside` is made of, below 2**32; 0 for none."""

    def beside(self, row: Sequence[int]) -> int:
        """Returns a number of all that two records of one payment have in common and no code tells, below 2**64.

        Rows that differ in one such field never have the same number.
        """
        number = 0
        for column in self._beside:
            number = (number ^ row[column] & _WORD) * _MULTIPLIER & _WORD
        return number

    def besides(self, rows: NDArray[np.int64]) -> NDArray[np.uint64] | None:
        """Returns `beside` of each row, shape (rows,); None where no field needs it to be told apart."""
        if not self.beside_fields:
            return None
        numbers, multiplier = np.zeros(len(rows), dtype=np.uint64), np.uint64(_MULTIPLIER)
        for column in self._beside:
            numbers = (numbers ^ rows[:, column].astype(np.uint64)) * multiplier
        return numbers

    def codes_of(self, row: Sequence[int]) -> Sequence[int]:
        """Returns the codes that the record of a payment with this row holds."""
        return self._codes_of(row) if self.width > kernel.ATTRIBUTE_COUNT else row[: kernel.CODE_COUNT]

    def row_of(self, codes: Sequence[int]) -> list[int]:
        """Returns a payment's row without identities. A record of another declaration may have fewer codes."""
        row = [0] * self.width
        for column, code in zip(self.columns, codes, strict=False):
            row[column] = code
        return row


@dataclass(frozen=True, slots=True)
class EntityEvents:
    """Events of one kind of entity, in the order they were made.

    `keys`: the store key of each event's entity. `rows`: shape (events, at least ROW_WIDTH), int64.
    """

    keys: list[bytes]
    rows: NDArray[np.int64]


@dataclass
class Joined:
    """The effects of a batch. `orphans` are outcomes of unknown payments.

    `refused`: where events came from that a payment's record does not allow, with the reason.
    `later` counts the later records of payments that were known, by kind: LATER.

    `tag_of` gives the tag of a payment's id, which then stands in place of a payment's weight; None for no tags.
    """

    entity_count: int
    layout: RecordLayout = field(default_factory=RecordLayout)
    tag_of: Callable[[bytes], int] | None = None
    records: dict[bytes, bytes] = field(default_factory=dict)
    later: Counter[str] = field(default_factory=Counter)
    orphans: list[OutcomeEvent] = field(default_factory=list)
    refused: list[tuple[Position, str]] = field(default_factory=list)
    # The events in their order: parts with their rows and, for each kind of entity, their keys; then single ones.
    _parts: list[tuple[NDArray[np.int64], list[list[bytes]]]] = field(default_factory=list)
    _rows: list[list[int]] = field(default_factory=list)
    _keys: list[Sequence[bytes]] = field(default_factory=list)

    @property
    def duplicates(self) -> int:
        """Returns how many records were dropped, because another one had their payment_id."""
        return self.later[RESENT] + self.later[CHANGED]

    @property
    def rows(self) -> list[list[int]]:
        """Returns the row of each event."""
        rows: list[list[int]] = self._whole()[0].tolist()
        return rows

    def add(self, row: list[int], keys: Sequence[bytes]) -> None:
        """Add one event. `keys`: the store key for each kind of entity, empty for none."""
        self._rows.append(row)
        self._keys.append(keys)

    def add_part(self, rows: NDArray[np.int64], keys: list[list[bytes]]) -> None:
        """Add events. `rows`: shape (events, row width). `keys`: for each kind of entity, the key of each event."""
        self._end_singles()
        self._parts.append((rows, keys))

    def of_entities(self) -> list[EntityEvents]:
        """Returns the events by kind of entity."""
        rows, keys = self._whole()
        by_entity = []
        for column in keys:
            if all(column):
                by_entity.append(EntityEvents(column, rows))
            else:
                present = [number for number, key in enumerate(column) if key]
                by_entity.append(EntityEvents([column[number] for number in present], rows[present]))
        return by_entity

    def _end_singles(self) -> None:
        if self._rows:
            # A record of another catalogue may have more kinds of entities.
            columns = [[keys[entity] for keys in self._keys] for entity in range(self.entity_count)]
            self._parts.append((np.array(self._rows, dtype=np.int64), columns))
            self._rows, self._keys = [], []

    def _whole(self) -> tuple[NDArray[np.int64], list[list[bytes]]]:
        """Returns the rows of all events and, for each kind of entity, their keys."""
        self._end_singles()
        if len(self._parts) != 1:
            none = np.empty((0, ATTRIBUTES_AT + self.layout.width), dtype=np.int64)
            rows = np.concatenate([none, *(rows for rows, _ in self._parts)])
            columns = [
                list(itertools.chain.from_iterable(keys[entity] for _, keys in self._parts))
                for entity in range(self.entity_count)
            ]
            self._parts = [(rows, columns)]
        return self._parts[0]


@dataclass(frozen=True)
class ProfileUpdates:
    """The new state of each touched profile of one kind of entity.

    `arrived_ms`: when the newest event reached Kafka. `late` counts events that came too late for some of their tiles,
    `replayed` counts events that the profile contained already.

    `set_aside`: profiles that cannot be read, as they are stored with the events that wait for them; `newly_set_aside`
    of them were not so before. `restored` counts profiles that can be read again, and `waiting` events of this batch
    that wait. `no_room`: events for which there is no room.

    `named`: by key, the payments that these events have added to the profile, as MARK_DTYPE. A profile is left out if
    it may contain others that no change has named: an event was replayed, or had no tag.
    """

    profiles: dict[bytes, bytes]
    arrived_ms: int
    replayed: int
    late: int
    set_aside: dict[bytes, bytes] = field(default_factory=dict)
    newly_set_aside: int = 0
    restored: int = 0
    waiting: int = 0
    no_room: EntityEvents | None = None
    named: dict[bytes, bytes] = field(default_factory=dict)


_TABLE_ALONE = RecordLayout()


def record_key(payment_id: str) -> bytes:
    """Returns the store key of a payment's record."""
    return RECORD_PREFIX + payment_id.encode()


def join(
    payments: Sequence[PaymentEvent],
    outcomes: Sequence[OutcomeEvent],
    known: Mapping[bytes, bytes],
    entity_count: int,
    layout: RecordLayout = _TABLE_ALONE,
    tag_of: Callable[[bytes], int] | None = None,
) -> Joined:
    """Returns the events and changes of a batch. `known`: the stored records of these payments, by `record_key`."""
    joined = Joined(entity_count, layout, tag_of)
    try:
        records = {key: _stored_record(value) for key, value in known.items()}
    except DecodeError:
        payments, outcomes, records = _without_unreadable(payments, outcomes, known, joined)
    if isinstance(payments, PaymentColumns):
        _join_columns(payments, records, joined)
    else:
        for payment in payments:
            _join_payment(payment, records, joined)
    for outcome in outcomes:
        _join_outcome(outcome, records, joined)
    return joined


def _without_unreadable(
    payments: Sequence[PaymentEvent],
    outcomes: Sequence[OutcomeEvent],
    known: Mapping[bytes, bytes],
    joined: Joined,
) -> tuple[list[PaymentEvent], list[OutcomeEvent], dict[bytes, PaymentRecord]]:
    """Returns the events whose payments have a readable record or none, and these records. Refuses the others."""
    records = {}
    unreadable = set()
    for key, value in known.items():
        try:
            records[key] = _stored_record(value)
        except DecodeError:
            unreadable.add(key)
    events: list[PaymentEvent | OutcomeEvent] = [*payments, *outcomes]
    joined.refused += [(event.position, UNREADABLE) for event in events if record_key(event.payment_id) in unreadable]
    return (
        [payment for payment in payments if record_key(payment.payment_id) not in unreadable],
        [outcome for outcome in outcomes if record_key(outcome.payment_id) not in unreadable],
        records,
    )


def _stored_record(value: bytes) -> PaymentRecord:
    """Returns a stored record. Raises DecodeError for other bytes, and for a record that we cannot have written.

    We write codes of `declined` that there are, and labels that say fraud or not after all changes.
    """
    record = PaymentRecord.FromString(value)
    codes = {_declined_code(record, number) for number in range(len(record.declined_changes) + 1)}
    if not codes <= _DECLINED_CODES or sum(change.weight for change in record.label_changes) not in (0, 1):
        raise DecodeError(UNREADABLE)
    return record


def _join_columns(payments: PaymentColumns, records: dict[bytes, PaymentRecord], joined: Joined) -> None:
    """Join new payments together, a run of them at a time, and every other payment by itself. The order stays."""
    layout, keys = joined.layout, payments.record_keys
    encoded = payments.records(layout.columns, layout.besides(payments.rows), layout.beside_fields)
    rows = _event_rows(payments, joined.tag_of)
    if len(set(keys)) == len(keys) and records.keys().isdisjoint(keys):
        joined.records.update(zip(keys, encoded, strict=True))
        joined.add_part(rows, payments.keys)
        return
    begin = 0
    for number, key in enumerate(keys):
        if key not in records and key not in joined.records:
            joined.records[key] = encoded[number]
            continue
        joined.add_part(rows[begin:number], [column[begin:number] for column in payments.keys])
        begin = number + 1
        _join_payment(payments[number], records, joined)
    joined.add_part(rows[begin:], [column[begin:] for column in payments.keys])


def _event_rows(payments: PaymentColumns, tag_of: Callable[[bytes], int] | None) -> NDArray[np.int64]:
    """Returns the events' rows of payments that are new, shape (payments, ATTRIBUTES_AT + row width)."""
    rows = np.empty((len(payments), ATTRIBUTES_AT + payments.rows.shape[1]), dtype=np.int64)
    rows[:, KIND], rows[:, WEIGHT] = kernel.PAYMENT, 1
    if tag_of is not None:
        rows[:, WEIGHT] = [tag_of(key.removeprefix(RECORD_PREFIX)) for key in payments.record_keys]
    rows[:, SOURCE], rows[:, OFFSET] = payments.sources, payments.offsets
    rows[:, ARRIVED_MS], rows[:, ATTRIBUTES_AT:] = payments.arrived_ms, payments.rows
    return rows


def _record_of(key: bytes, records: dict[bytes, PaymentRecord], joined: Joined) -> PaymentRecord | None:
    """Returns the record of a payment, None for one that is not known. It may be new in this batch."""
    record = records.get(key)
    if record is None and key in joined.records:
        record = records[key] = PaymentRecord.FromString(joined.records[key])
    return record


def _join_payment(payment: PaymentEvent, records: dict[bytes, PaymentRecord], joined: Joined) -> None:
    key = record_key(payment.payment_id)
    position = payment.position
    record = _record_of(key, records, joined)
    if record is None:
        record = PaymentRecord(
            source=position.source,
            offset=position.offset,
            # Labels need no identities: nothing that a label changes takes them in.
            attributes=joined.layout.codes_of(payment.attributes),
            keys=[entity_key.decode() for entity_key in payment.keys],
        )
        if joined.layout.beside_fields:
            record.beside, record.beside_fields = joined.layout.beside(payment.attributes), joined.layout.beside_fields
        records[key] = record
        joined.records[key] = record.SerializeToString()
    elif (record.source, record.offset) != (position.source, position.offset):
        if len(record.attributes) > _CODES_MAX:
            joined.refused.append((position, UNREADABLE))
        else:
            _join_later(payment, key, record, joined)
        return
    tag = 1 if joined.tag_of is None else joined.tag_of(payment.payment_id.encode())
    row = [kernel.PAYMENT, tag, position.source, position.offset, payment.arrived_ms, *payment.attributes]
    joined.add(row, payment.keys)


def _join_later(payment: PaymentEvent, key: bytes, record: PaymentRecord, joined: Joined) -> None:
    """Apply `declined` of a later record; count it.

    The largest code of all records counts: declined, then not declined, then not known. Therefore their order does not
    matter. Everything else stays as the first record said.
    """
    position, declined = payment.position, payment.attributes[kernel.DECLINED]
    changes = record.declined_changes
    change = next((c for c in changes if (c.source, c.offset) == (position.source, position.offset)), None)
    before, layout = _declined_code(record, len(changes)), joined.layout
    if change is None and declined > before:
        label = sum(each.weight for each in record.label_changes)
        if layout.counts_labels and record.label_changes:
            label |= _HAS_LABEL
        change = changes.add(source=position.source, offset=position.offset, before=before, after=declined, label=label)
        joined.records[key] = record.SerializeToString()
    is_changed = not _is_same(payment, record, layout)
    if change is not None:
        joined.later[DECLINED_LATER] += 1
        weight = change.before | change.label << kernel.DECLINE_BITS
        attributes = _attributes(record, change.after, layout)
        # The record has no identities. The later record has those of the same texts.
        for column, identity in layout.identities.items():
            if payment.attributes[column] == attributes[column]:
                attributes[identity] = payment.attributes[identity]
        _add(joined, record, [kernel.DECLINE, weight, *position, payment.arrived_ms, *attributes])
    elif not is_changed:
        known = {_declined_code(record, number) for number in range(len(changes) + 1)}
        is_changed = declined not in known
    if is_changed:
        joined.later[CHANGED] += 1
    elif change is None:
        joined.later[RESENT] += 1


def _is_same(payment: PaymentEvent, record: PaymentRecord, layout: RecordLayout) -> bool:
    """Whether a later record has the fields of the first one, but for `declined`."""
    codes, row = record.attributes, payment.attributes
    known = len(codes)
    if any(row[column] != codes[place] for place, column in layout.compared if place < known):
        return False
    # A record of another declaration has a number of other fields, or none.
    if layout.beside_fields and record.beside_fields == layout.beside_fields and record.beside != layout.beside(row):
        return False
    # An earlier catalogue may have had other kinds of entities.
    return len(record.keys) != len(payment.keys) or list(record.keys) == [key.decode() for key in payment.keys]


def _declined_code(record: PaymentRecord, changes: int) -> int:
    """Returns the code of `declined` after a number of changes."""
    if changes:
        return record.declined_changes[changes - 1].after
    return record.attributes[kernel.DECLINED] if len(record.attributes) > kernel.DECLINED else 0


def _attributes(record: PaymentRecord, declined: int, layout: RecordLayout) -> list[int]:
    """Returns the payment's row with this code of `declined`."""
    row = layout.row_of(record.attributes)
    row[kernel.DECLINED] = declined
    return row


def _add(joined: Joined, record: PaymentRecord, row: list[int]) -> None:
    """Add an event of a payment that is in the store."""
    # A record from an older catalogue has fewer kinds of entities.
    unknown = [b""] * (joined.entity_count - len(record.keys))
    joined.add(row, [*(entity_key.encode() for entity_key in record.keys), *unknown])


def _join_outcome(outcome: OutcomeEvent, records: dict[bytes, PaymentRecord], joined: Joined) -> None:
    key = record_key(outcome.payment_id)
    record = _record_of(key, records, joined)
    if record is None:
        joined.orphans.append(outcome)
        return
    if len(record.attributes) > _CODES_MAX:
        joined.refused.append((outcome.position, UNREADABLE))
        return
    change = _change_of(outcome, record, joined.layout.counts_labels)
    if change is None:
        return
    if len(record.label_changes) > LABEL_CHANGES_MAX:
        del record.label_changes[-1]
        joined.refused.append((outcome.position, TOO_MANY_CHANGES))
        return
    joined.records[key] = record.SerializeToString()
    attributes = _attributes(record, _declined_code(record, change.declined_changes), joined.layout)
    is_counted = joined.layout.counts_labels and change == record.label_changes[0]
    weight = change.weight + kernel.FIRST_LABEL * is_counted
    _add(joined, record, [kernel.LABEL, weight, *outcome.position, outcome.arrived_ms, *attributes])


def _change_of(outcome: OutcomeEvent, record: PaymentRecord, counts_labels: bool) -> LabelChange | None:
    """Returns how this outcome changes the payment's label, None if it does not; adds a change to `record`.

    With `counts_labels`, the first label is a change, whatever it says.

    A replayed outcome must return its first result, for profiles that do not have it yet. Outcomes of one payment come
    from one partition in order, so an offset that is not above the last stored one is a replay.
    """
    position = outcome.position
    for change in record.label_changes:
        if change.source == position.source and position.offset <= change.offset:
            return change if position.offset == change.offset else None
    weight = int(outcome.is_fraud) - sum(change.weight for change in record.label_changes)
    if weight == 0 and not (counts_labels and not record.label_changes):
        return None
    declined_changes = len(record.declined_changes)
    return record.label_changes.add(
        source=position.source, offset=position.offset, weight=weight, declined_changes=declined_changes
    )


def apply(
    entity: int,
    events: EntityEvents,
    profiles: Mapping[bytes, bytes],
    engine: FeatureEngine,
    *,
    names_payments: bool = False,
) -> ProfileUpdates:
    """Returns the touched profiles of one kind of entity after the events. Raises UnreadableProfile.

    `names_payments`: whether to name the payments that are added.
    """
    if not events.keys:
        return ProfileUpdates({}, 0, replayed=0, late=0)
    numbers: dict[bytes, int] = {}
    codes = np.array([numbers.setdefault(key, len(numbers)) for key in events.keys])
    # A stable sort keeps the events of a profile in the order of each source's offsets.
    order = np.argsort(codes, kind="stable")
    groups = np.searchsorted(codes[order], np.arange(len(numbers) + 1)).astype(np.int64)
    columns = events.rows[order, :ATTRIBUTES_AT].T.copy()
    kernel_events = Events(
        groups=groups,
        kind=columns[KIND].astype(np.uint8),
        payment=order.astype(np.int64),
        weight=columns[WEIGHT],
        source=columns[SOURCE],
        offset=columns[OFFSET],
        row=np.full(len(order), -1, dtype=np.int64),
    )
    attributes = np.ascontiguousarray(_fitted(events.rows, ATTRIBUTES_AT + engine.plan.row_width)[:, ATTRIBUTES_AT:])
    states = [profiles.get(key) for key in numbers]
    result = engine.apply(entity, kernel_events, attributes, states, engine.new_slots(0))
    return ProfileUpdates(
        dict(zip(numbers, result.states, strict=True)),
        int(columns[ARRIVED_MS].max()),
        replayed=len(order) - int(result.applied.sum()),
        late=result.late,
        named=_named(numbers, columns, groups, result.applied) if names_payments else {},
    )


def _named(
    keys: Iterable[bytes], columns: NDArray[np.int64], groups: NDArray[np.int64], applied: NDArray[np.uint8]
) -> dict[bytes, bytes]:
    """Returns `ProfileUpdates.named`. Group g has the columns' entries from groups[g] to groups[g + 1].

    If a worker died between store and changelog, a profile contains payments that no change has named. The next worker
    then gets the same events again, and its first one for that profile is a replay.
    """
    is_payment = columns[KIND] == kernel.PAYMENT
    is_untold = (applied == 0) | (is_payment & (columns[WEIGHT] < TAG_MIN))
    marks = np.empty(len(is_payment), dtype=MARK_DTYPE)
    marks["tag"], marks["offset"], marks["source"] = columns[WEIGHT], columns[OFFSET], columns[SOURCE]
    told = np.add.reduceat(is_untold, groups[:-1]) == 0
    ends = np.concatenate(([0], np.cumsum(is_payment)))[groups] * MARK_DTYPE.itemsize
    data, bounds = marks[is_payment].tobytes(), itertools.pairwise(ends.tolist())
    return {
        key: data[begin:end] for key, is_told, (begin, end) in zip(keys, told.tolist(), bounds, strict=True) if is_told
    }


def merged(parts: Sequence[EntityEvents]) -> EntityEvents:
    """Returns the events of all parts, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    keys = list(itertools.chain.from_iterable(part.keys for part in parts))
    return EntityEvents(keys, joined_rows([part.rows for part in parts]))


def joined_rows(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Returns the rows of all parts as one array, as wide as the widest part and at least ROW_WIDTH."""
    width = max([ROW_WIDTH, *(part.shape[1] for part in parts)])
    return np.concatenate([_fitted(part, width) for part in parts] or [np.empty((0, width), dtype=np.int64)])


def _fitted(rows: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Returns rows with that many columns: further ones are left out, missing ones are 0."""
    if rows.shape[1] >= width:
        return rows[:, :width]
    return np.concatenate([rows, np.zeros((len(rows), width - rows.shape[1]), dtype=np.int64)], axis=1)
