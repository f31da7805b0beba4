"""Producers with explicit options, and a sender that loses no record unnoticed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException, Message, Producer

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.kafka.client import MESSAGE_BYTES_MAX, KafkaSettings, compressing, named_options, reason_of

# A broker limits the compressed size of a record, a client the uncompressed size. A record of megabytes may have come
# in as kilobytes, and its dead letter must go out the same way. This is less than a producer's queue holds: a larger
# record would wait for room in the queue without end.
UNPACKED_BYTES_MAX = 200_000_000


def make_producer(
    settings: KafkaSettings,
    *,
    linger_ms: int,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    only_failures: bool = False,
    compression: str | None = None,
) -> Producer:
    """Returns an idempotent producer: it sends each record once and in order, and retries until the broker has it.

    With `only_failures` it calls back only for records that failed, which halves the cost of sending. `compression`
    replaces the setting's. Raises Misconfigured for options that the client refuses.
    """
    options = {
        **_shared_options(settings, linger_ms),
        # No timeout for a record. Callers limit the records in flight, and stop reading at the limit.
        "message.timeout.ms": 0,
        "delivery.report.only.error": only_failures,
        **compressing(compression or settings.compression),
        # A dead letter holds a whole record of another topic and adds fields.
        "message.max.bytes": message_bytes_max,
    }
    with named_options():
        return Producer(options)


def make_transactional_producer(
    settings: KafkaSettings, transactional_id: str, *, linger_ms: int, transaction_timeout_ms: int
) -> Producer:
    """Like `make_producer`, for transactions. A transaction fails if the broker has not taken its records in time."""
    options = {
        **_shared_options(settings, linger_ms),
        "transactional.id": transactional_id,
        "transaction.timeout.ms": transaction_timeout_ms,
        "delivery.report.only.error": True,
        **compressing(settings.compression),
        "message.max.bytes": MESSAGE_BYTES_MAX,
    }
    with named_options():
        return Producer(options)


def _shared_options(settings: KafkaSettings, linger_ms: int) -> dict[str, Any]:
    return {
        **settings.connection(),
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": linger_ms,
        "queue.buffering.max.messages": 200_000,
        "queue.buffering.max.kbytes": 256 * 1024,
        # The partitioner of the Java clients, so that all producers send a key to the same partition.
        "partitioner": "murmur2_random",
    }


# Pairs of name and value, in order. A name may occur more than once.
RecordHeaders: TypeAlias = Sequence[tuple[str, bytes | None]]


class Sender:
    """Sends records, and says when the broker has them all: no record is lost unnoticed."""

    def __init__(self, settings: KafkaSettings, *, linger_ms: int) -> None:
        self._settings, self._linger_ms = settings, linger_ms
        # Producers by topic, and by compression and whether they tell offsets: librdkafka has one compression for a
        # producer, and calls back for all of its records or for none that it has sent. Made at first use.
        self._of_topics: dict[str, Producer] = {}
        self._producers: dict[tuple[str, bool], Producer] = {}
        self._making = threading.Lock()
        # For records that only fit when compressed. Made when first needed: its buffers grow with the larger limit.
        self._large: Producer | None = None
        self._failure: KafkaError | None = None

    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        partition: int = -1,
        headers: RecordHeaders = (),
        on_refused: Callable[[KafkaError], object] | None = None,
        on_sent: Callable[[int, int], object] | None = None,
    ) -> None:
        """Queue one record; wait while the queue is full. Raises BrokerUnavailable when it cannot be queued.

        With `on_refused`, the sender calls it for a record that Kafka refuses, and the other records go on. With
        `on_sent`, it calls that once the broker has the record, within `flush` or `poll`: with the record's offset, and
        with the broker's time of it in epoch milliseconds, or 0 if the topic has the producers' times. Give it for all
        records of a topic or for none: the two ways have producers of their own, and keep no common order.
        """
        if on_sent is not None:
            on_delivery = self._noting(on_sent)
        else:
            on_delivery = self._on_delivery if on_refused is None else _telling(on_refused)
        pairs: list[tuple[str, str | bytes | None]] | None = list(headers) if headers else None
        producer = self._of_topics.get(topic) or self._producer_of(topic, tells_offsets=on_sent is not None)
        while True:
            try:
                producer.produce(topic, value, key=key, partition=partition, on_delivery=on_delivery, headers=pairs)
            except BufferError:
                producer.poll(0.1)
            except KafkaException as error:
                if producer is not self._large and error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    producer = self._large_producer()
                elif on_refused is None:
                    raise BrokerUnavailable(f"Kafka cannot take a record for {topic}: {reason_of(error)}") from error
                else:
                    on_refused(error.args[0])
                    return
            else:
                return

    def send_many(
        self,
        topic: str,
        values: Sequence[bytes],
        *,
        keys: Sequence[bytes],
        on_refused: Callable[[KafkaError], object],
    ) -> None:
        """Like `send` of each value with its key, in order, at less CPU time for each."""
        on_delivery = _telling(on_refused)
        produce = (self._of_topics.get(topic) or self._producer_of(topic, tells_offsets=False)).produce
        for value, key in zip(values, keys, strict=True):
            try:
                produce(topic, value, key, -1, on_delivery)
            except (BufferError, KafkaException):
                self.send(topic, value, key=key, on_refused=on_refused)

    def poll(self) -> None:
        """Let the client process the broker's answers."""
        for producer in tuple(self._producers.values()):
            producer.poll(0)

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has every record. Raises BrokerUnavailable after `timeout_s`, or if it refused one."""
        left = sum(producer.flush(timeout_s) for producer in tuple(self._producers.values()))
        if self._large is not None:
            left += self._large.flush(timeout_s)
        if self._failure is not None:
            raise BrokerUnavailable(f"Kafka refused a record: {self._failure.str()}")
        if left:
            raise BrokerUnavailable(f"Kafka did not take {left} records in {timeout_s:g} s")

    def _producer_of(self, topic: str, *, tells_offsets: bool) -> Producer:
        compression = self._settings.compression_of(topic)
        kind = compression, tells_offsets
        with self._making:
            if kind not in self._producers:
                self._producers[kind] = make_producer(
                    self._settings, linger_ms=self._linger_ms, only_failures=not tells_offsets, compression=compression
                )
            self._of_topics[topic] = self._producers[kind]
        return self._of_topics[topic]

    def _large_producer(self) -> Producer:
        if self._large is None:
            # No broker takes a record of this size uncompressed.
            compression = "gzip" if self._settings.compression == "none" else None
            self._large = make_producer(
                self._settings, linger_ms=0, message_bytes_max=UNPACKED_BYTES_MAX, compression=compression
            )
        return self._large

    def _on_delivery(self, error: KafkaError | None, _: Message) -> None:
        if error is not None and self._failure is None:
            self._failure = error

    def _noting(self, on_sent: Callable[[int, int], object]) -> Callable[[KafkaError | None, Message], None]:
        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._on_delivery(error, message)
            elif (offset := message.offset()) is not None:
                kind, time_ms = message.timestamp()
                on_sent(offset, time_ms if kind == TIMESTAMP_LOG_APPEND_TIME else 0)

        return on_delivery


def _telling(on_refused: Callable[[KafkaError], object]) -> Callable[[KafkaError | None, Message], None]:
    def on_delivery(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            on_refused(error)

    return on_delivery
