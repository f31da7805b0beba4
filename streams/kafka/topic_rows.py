"""Records of a topic as rows of a table: the fields of the topic's schema, and where in Kafka each record is.

    kafka_partition, kafka_offset     the place of the record
    kafka_timestamp_ms                Kafka's own time of it, epoch milliseconds UTC; 0 if the broker set none

No row holds an e-mail address. The column of a declared e-mail field has the keyed hash of each address, and that of
its domain the hash of the domain (features/history/declared_columns.py). A text that is no address gives 0.

An archive holds such tables (streams/archive/files.py). A direct read of a topic returns the same tables
(streams/archive/topic_history.py), so later steps need not know where the rows came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
from confluent_kafka import Consumer

from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.schemas.avro import Decoder, SchemaIds, topic_schema
from paywarden.schemas.errors import InvalidEvent
from paywarden.schemas.payment_fields import TABLE_ALONE, EmailDomain, Form, PaymentFields
from paywarden.streams.kafka.admin import (
    make_admin,
    offsets_at,
    partitions_of,
    stable_end_offsets,
    watermarks,
    written_end_offsets,
)
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.reading import Record, make_consumer, records_between
from paywarden.streams.kafka.topic_identity import topic_ids

PARTITION, OFFSET, TIMESTAMP = "kafka_partition", "kafka_offset", "kafka_timestamp_ms"
# Decoded records are Python objects, ten times as large as their rows. At most this many exist at once.
_PACK_COUNT = 10_000
_KINDS = {
    "string": pa.string(),
    "long": pa.int64(),
    "int": pa.int32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "bytes": pa.binary(),
}


class Undecoded(NamedTuple):
    """A record that the topic's schema cannot decode, and why. The record is still on the topic."""

    partition: int
    offset: int
    timestamp_ms: int
    reason: str

    def __str__(self) -> str:
        return f"partition {self.partition}, offset {self.offset}: {self.reason}"


@dataclass(frozen=True)
class TopicRows:
    """Records of a topic as rows: `table` has the columns of `rows_schema`, in reading order."""

    table: pa.Table
    undecoded: tuple[Undecoded, ...]


def rows_schema(topic: str, fields: PaymentFields = TABLE_ALONE, columns: Sequence[str] | None = None) -> pa.Schema:
    """Returns the columns of a topic's rows: its fields with their Avro types, then the place in Kafka.

    `fields` are those of a payment. `columns`: only these, in this order; None for all.
    """
    whole = _rows_schema(topic, fields if topic == "payments" else TABLE_ALONE)
    return whole if columns is None else pa.schema([whole.field(name) for name in columns])


@cache
def _rows_schema(topic: str, fields: PaymentFields) -> pa.Schema:
    columns = list(_column_type(topic_schema(topic, fields), {})[0])
    hashed = hashed_fields(fields)
    columns = [pa.field(column.name, pa.int64()) if column.name in hashed else column for column in columns]
    columns += [pa.field(domain, pa.int64()) for domains in hashed.values() for domain in domains]
    places = [(PARTITION, pa.int32()), (OFFSET, pa.int64()), (TIMESTAMP, pa.int64())]
    return pa.schema([*columns, *(pa.field(name, kind, nullable=False) for name, kind in places)])


def hashed_fields(fields: PaymentFields) -> dict[str, tuple[str, ...]]:
    """Returns the names of e-mail fields, whose columns hold hashes, each with the names of its domains."""
    domains = [one for one in fields.derived if isinstance(one, EmailDomain)]
    return {
        field.name: tuple(domain.name for domain in domains if domain.of == field.name)
        for field in fields.declared
        if field.form is Form.EMAIL
    }


def _column_type(kind: Any, named: dict[str, pa.DataType]) -> tuple[pa.DataType, bool]:
    """Returns the Arrow type for an Avro type, and whether it may be null. `named`: those of records before it."""
    if isinstance(kind, list):
        (other,) = [branch for branch in kind if branch != "null"]
        return _column_type(other, named)[0], True
    if isinstance(kind, dict) and kind["type"] == "record":
        fields = [pa.field(field["name"], *_column_type(field["type"], named)) for field in kind["fields"]]
        named[kind["name"]] = pa.struct(fields)
        return named[kind["name"]], False
    if isinstance(kind, dict) and kind["type"] == "array":
        return pa.list_(_column_type(kind["items"], named)[0]), False
    # A dict is an enum; another name is that of a record or an enum before it.
    return (pa.string() if isinstance(kind, dict) else _KINDS.get(kind, named.get(kind, pa.string()))), False


class RowBuilder:
    """Collects records of one topic until the caller takes them as rows."""

    def __init__(
        self,
        topic: str,
        ids: SchemaIds,
        fields: PaymentFields = TABLE_ALONE,
        key: IdentityKey = LAPTOP_KEY,
        columns: Sequence[str] | None = None,
    ) -> None:
        """`fields` are those of a payment, and `key` makes the hashes of e-mail addresses.

        `columns` are the only ones that rows have; None for all.
        """
        self.topic = topic
        self._schema, self._decoder = rows_schema(topic, fields, columns), Decoder(topic, ids)
        self._fields, self._key = fields, key
        self._hashed = hashed_fields(fields) if topic == "payments" else {}
        self._start()

    def _start(self) -> None:
        self._loose: list[dict[str, Any]] = []
        self._packed: list[pa.RecordBatch] = []
        self._undecoded: list[Undecoded] = []
        self.count = 0
        """How many records were added since the last `take`, undecodable ones included."""

    def add(self, record: Record) -> None:
        """Add a record. Raises TemporaryFailure when its schema could not be looked up."""
        try:
            row = self._decoder.decode(_present(record.value))
        except InvalidEvent as error:
            self._undecoded.append(Undecoded(record.partition, record.offset, record.timestamp_ms, str(error)))
        else:
            self._hash_emails(row)
            row[PARTITION], row[OFFSET], row[TIMESTAMP] = record.partition, record.offset, record.timestamp_ms
            self._loose.append(row)
            if len(self._loose) >= _PACK_COUNT:
                self._pack()
        self.count += 1

    def _hash_emails(self, row: dict[str, Any]) -> None:
        """Replace e-mail addresses by their hashes, and add those of their domains."""
        for name, domains in self._hashed.items():
            text = row[name]
            if text is None:
                continue
            is_right = self._fields.by_name[name].is_right(text)
            row[name] = self._key.of(text.lower()) if is_right else 0
            row |= {domain: self._key.of(text.rpartition("@")[2].lower()) for domain in domains if is_right}

    def take(self) -> TopicRows:
        """Returns the records added since the last call."""
        self._pack()
        rows = TopicRows(pa.Table.from_batches(self._packed, self._schema), tuple(self._undecoded))
        self._start()
        return rows

    def _pack(self) -> None:
        if self._loose:
            self._packed.append(pa.RecordBatch.from_pylist(self._loose, self._schema))
            self._loose = []


def _present(value: bytes | None) -> bytes:
    if value is None:
        raise InvalidEvent("the record has no value")
    return value


class TopicSource(Protocol):
    """A topic that is read by ranges of offsets."""

    def topic_id(self) -> str:
        """Returns the id of the topic; "" if the cluster gives none."""

    def ranges(self, since_ms: int | None, until_ms: int | None) -> dict[int, range]:
        """Returns by partition the offsets that arrived from `since_ms` to before `until_ms`, up to the present end."""

    def begin(self, partition: int) -> int:
        """Returns the first offset that the partition still holds."""

    def end(self, partition: int) -> int:
        """Returns the offset after the last record; 0 for a partition that the topic does not have."""

    def records(self, partition: int, offsets: range) -> Iterator[list[Record]]:
        """Yields the records at these offsets, in order, in batches."""


class KafkaTopic:
    """A TopicSource on Kafka: joins no group, commits nothing, sees committed records only. `close` it."""

    def __init__(self, kafka: KafkaSettings, name: str) -> None:
        """`name` has no deployment prefix. Raises BrokerUnavailable, or Misconfigured if the topic does not exist."""
        self._kafka, self._name, self._topic = kafka, name, kafka.topic(name)
        self.name = self._topic
        partitions_of(kafka, name)
        self._admin = make_admin(kafka)
        self._consumer: Consumer = make_consumer(kafka, group_id="paywarden-archive")

    def topic_id(self) -> str:
        """See TopicSource. Raises BrokerUnavailable."""
        return topic_ids(self._admin, [self._topic])[self._topic]

    def ranges(self, since_ms: int | None, until_ms: int | None) -> dict[int, range]:
        """See TopicSource. Raises BrokerUnavailable."""
        # The ends come first. Later records belong to the next reading, or a live topic would have no end. Only
        # committed records count: nothing behind an open transaction can be read yet.
        ends = stable_end_offsets(self._admin, self._topic, partitions_of(self._kafka, self._name))
        firsts = {partition: self.begin(partition) for partition in ends}
        if since_ms is not None:
            firsts = offsets_at(self._consumer, self._topic, ends, since_ms)
        stops = ends if until_ms is None else offsets_at(self._consumer, self._topic, ends, until_ms)
        return {partition: range(firsts[partition], min(stops[partition], end)) for partition, end in ends.items()}

    def begin(self, partition: int) -> int:
        """See TopicSource. Raises BrokerUnavailable."""
        return watermarks(self._consumer, self._topic, partition)[0]

    def end(self, partition: int) -> int:
        """See TopicSource. Raises BrokerUnavailable."""
        if partition not in partitions_of(self._kafka, self._name):
            return 0
        return watermarks(self._consumer, self._topic, partition)[1]

    def records(self, partition: int, offsets: range) -> Iterator[list[Record]]:
        """See TopicSource. Raises BrokerUnavailable."""
        return records_between(self._consumer, self._topic, partition, offsets)

    def held(self, before: Mapping[int, int]) -> int:
        """Returns how many offsets wait for the end of transactions that are left open. Raises BrokerUnavailable.

        `before`: where each partition could be read to a while ago. One that can be read no further than that, and has
        more, is held up.
        """
        written = written_end_offsets(self._admin, self._topic, list(before))
        readable = stable_end_offsets(self._admin, self._topic, list(before))
        return sum(max(0, written[number] - end) for number, end in readable.items() if end == before[number])

    def close(self) -> None:
        self._consumer.close()


def read_topic(
    kafka: KafkaSettings,
    builder: RowBuilder,
    *,
    since_ms: int | None,
    until_ms: int | None,
    progress: Callable[[int, int], object] = lambda _count, _total: None,
) -> TopicRows:
    """Returns the records that reached the builder's topic in a range of Kafka's own times, up to its present end.

    The rows come partition by partition, each in the order of offsets. `progress` gets the number of records read and
    of all records. Raises BrokerUnavailable, Misconfigured, TemporaryFailure.
    """
    with closing(KafkaTopic(kafka, builder.topic)) as source:
        ranges = source.ranges(since_ms, until_ms)
        total = sum(map(len, ranges.values()))
        for partition, offsets in sorted(ranges.items()):
            for records in source.records(partition, offsets):
                for record in records:
                    builder.add(record)
                progress(builder.count, total)
    return builder.take()
