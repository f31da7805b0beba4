"""Follow the topics of alerts: new records on drift-alerts, drift-acknowledgements and console-events.

Each has one partition. The feed reports its positions and stores none: a reader with a database keeps the offsets in
the transaction that keeps the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import Consumer, TopicPartition

from paywarden.schemas.avro import Decoder, SchemaIds
from paywarden.schemas.errors import BrokerUnavailable, InvalidEvent, TemporaryFailure
from paywarden.streams.alerts.alert_events import EVENTS_TOPIC, event_decoder
from paywarden.streams.alerts.alert_records import ACKNOWLEDGEMENTS_TOPIC, ALERTS_TOPIC
from paywarden.streams.kafka.admin import make_admin, require_broker, watermarks
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.reading import consume_when_there, make_consumer
from paywarden.streams.kafka.stalls.open_transactions import OpenTransactions
from paywarden.streams.kafka.topic_identity import IdentityWatch, topic_ids

FEED_TOPICS: Final = (ALERTS_TOPIC, ACKNOWLEDGEMENTS_TOPIC, EVENTS_TOPIC)
_BATCH = 500
_FIRST_S, _MORE_S = 0.5, 0.02
# librdkafka tells a lost broker by silence alone: after this long without an end the broker is asked.
_ASK_AFTER_READS = 6


@dataclass(frozen=True)
class FeedPosition:
    """The next offset of a topic. `identity` is the topic's id: a topic that was created again has another one."""

    identity: str
    next_offset: int


@dataclass(frozen=True)
class FeedRecord:
    """A record of one of the topics. `value` is None if it could not be decoded."""

    topic: str
    offset: int
    value: Mapping[str, Any] | None


@dataclass(frozen=True)
class FeedBatch:
    """The result of one read. `positions`: where each topic goes on. `is_at_end`: whether all has been read.

    `held`: the open transaction behind which records wait since `held_since_ms`; "" for none.
    """

    records: tuple[FeedRecord, ...] = ()
    positions: Mapping[str, FeedPosition] = field(default_factory=dict)
    is_at_end: bool = False
    held: str = ""
    held_since_ms: int = 0


class AlertFeed:
    """Reads the topics on Kafka. It joins no group and commits nothing. Not thread-safe; `close` it."""

    def __init__(self, kafka: KafkaSettings, ids: SchemaIds) -> None:
        """Talks to nobody yet."""
        self._kafka = kafka
        acknowledgements = Decoder(ACKNOWLEDGEMENTS_TOPIC, ids)
        decoders = {
            ALERTS_TOPIC: Decoder(ALERTS_TOPIC, ids),
            ACKNOWLEDGEMENTS_TOPIC: acknowledgements,
            EVENTS_TOPIC: event_decoder(ids),
        }
        self._topics = {kafka.topic(topic): topic for topic in FEED_TOPICS}
        self._decoders: dict[str, Decoder] = decoders
        self._consumer: Consumer | None = None
        self._positions: dict[str, FeedPosition] = {}
        self._ended: set[str] = set()
        self._silent_reads = 0
        self._transactions: OpenTransactions | None = None
        self._identities: IdentityWatch | None = None

    def start(self, known: Mapping[str, FeedPosition]) -> set[str]:
        """Begin where `known` says. Returns topics to read from the start: created again, or without the next record.

        Raises BrokerUnavailable, or Misconfigured for a topic that does not exist.
        """
        self.close()
        admin = make_admin(self._kafka)
        ids = topic_ids(admin, self._topics)
        self._transactions = OpenTransactions(admin, lambda: [(topic, 0) for topic in self._topics])
        self._identities = IdentityWatch(admin, self._topics)
        consumer = make_consumer(self._kafka, group_id="paywarden-console")
        self._consumer = consumer
        anew: set[str] = set()
        places = []
        for full_name, topic in self._topics.items():
            first, end = watermarks(consumer, full_name, 0)
            position = known.get(topic)
            if position is None or position.identity != ids[full_name] or position.next_offset > end:
                anew.add(topic)
                position = FeedPosition(ids[full_name], first)
            self._positions[topic] = FeedPosition(position.identity, max(first, position.next_offset))
            places.append(TopicPartition(full_name, 0, self._positions[topic].next_offset))
        consumer.assign(places)
        self._ended, self._silent_reads = set(), 0
        return anew

    def read(self) -> FeedBatch:
        """Returns the new records, after at most half a second. Raises BrokerUnavailable, TemporaryFailure."""
        assert self._consumer is not None, "start comes first"
        assert self._transactions is not None
        assert self._identities is not None
        # Where people act all the time there is never a silence.
        self._require_same(self._identities.look() or {})
        consumed = consume_when_there(self._consumer, _BATCH, _MORE_S, _FIRST_S)
        records = []
        for record in consumed.records:
            topic = self._topics[record.topic]
            records.append(FeedRecord(topic, record.offset, self._decoded(topic, record.value or b"")))
            self._positions[topic] = FeedPosition(self._positions[topic].identity, record.offset + 1)
            self._ended.discard(topic)
        for (full_name, _), end in consumed.ended.items():
            topic = self._topics[full_name]
            self._positions[topic] = FeedPosition(
                self._positions[topic].identity, max(end, self._positions[topic].next_offset)
            )
            self._ended.add(topic)
        self._listen(is_silent=not consumed.records and not consumed.ended)
        self._transactions.look()
        return FeedBatch(
            tuple(records),
            dict(self._positions),
            self._ended == set(FEED_TOPICS),
            self._transactions.line(),
            self._transactions.since_ms(),
        )

    def close(self) -> None:
        """Close the client."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None
            self._positions = {}

    def _listen(self, *, is_silent: bool) -> None:
        """Ask the broker after a while of silence, and whether the topics are still the same."""
        self._silent_reads = self._silent_reads + 1 if is_silent else 0
        if self._silent_reads < _ASK_AFTER_READS:
            return
        self._silent_reads = 0
        require_broker(self._kafka)
        self._require_same(topic_ids(make_admin(self._kafka), self._topics))

    def _require_same(self, ids: Mapping[str, str]) -> None:
        """Raise BrokerUnavailable if a topic is another one than was read. An id that is not known says nothing."""
        for full_name, topic_id in ids.items():
            if topic_id and topic_id != self._positions[self._topics[full_name]].identity:
                raise BrokerUnavailable(f"topic {full_name} was created again: it is read from its beginning")

    def _decoded(self, topic: str, value: bytes) -> Mapping[str, Any] | None:
        try:
            decoded: Mapping[str, Any] = self._decoders[topic].decode(value)
        except InvalidEvent:
            return None
        except TemporaryFailure:
            # Nothing of this batch was kept: it is read again.
            self.close()
            raise
        return decoded
