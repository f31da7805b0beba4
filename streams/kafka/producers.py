"""Producers, with every option that matters spelled out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeAlias

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from paywarden.schemas.errors import BrokerUnavailable
from paywarden.streams.kafka.client import MESSAGE_BYTES_MAX, KafkaSettings, compressing, named_options, reason_of

# Brokers measure what is on the wire, clients what it unpacks to: a record of megabytes may have come in kilobytes, and
# its letter must go the same way. Under what a producer's queue holds, or it would wait for room for ever.
UNPACKED_BYTES_MAX = 200_000_000


def make_producer(
    settings: KafkaSettings,
    *,
    linger_ms: int,
    message_bytes_max: int = MESSAGE_BYTES_MAX,
    only_failures: bool = False,
    compression: str | None = None,
) -> Producer:
    """An idempotent producer: each record once and in order, retried until the broker has it.

    `only_failures`: callbacks are called for records that failed alone, which halves what sending costs.
    `compression`: another than the setting's.
    """
    options = {
        **settings.connection(),
        "enable.idempotence": True,
        "acks": "all",
        # Never give a record up: callers bound how many are under way, and stop reading when that is reached.
        "message.timeout.ms": 0,
        "linger.ms": linger_ms,
        "delivery.report.only.error": only_failures,
        **compressing(compression or settings.compression),
        # A dead letter holds a whole record of another topic, and more.
        "message.max.bytes": message_bytes_max,
        "queue.buffering.max.messages": 200_000,
        "queue.buffering.max.kbytes": 256 * 1024,
        # The Java clients' partitioner, so that all producers agree where a key lives.
        "partitioner": "murmur2_random",
    }
    with named_options():
        return Producer(options)


def make_transactional_producer(
    settings: KafkaSettings, transactional_id: str, *, linger_ms: int, transaction_timeout_ms: int
) -> Producer:
    """As `make_producer`, for transactions. Records that the broker does not take in the transaction's time fail it."""
    options = {
        **settings.connection(),
        "transactional.id": transactional_id,
        "transaction.timeout.ms": transaction_timeout_ms,
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": linger_ms,
        "delivery.report.only.error": True,
        **compressing(settings.compression),
        "message.max.bytes": MESSAGE_BYTES_MAX,
        "queue.buffering.max.messages": 200_000,
        "queue.buffering.max.kbytes": 256 * 1024,
        "partitioner": "murmur2_random",
    }
    with named_options():
        return Producer(options)


# Names and values in order; a name may come more than once.
RecordHeaders: TypeAlias = Sequence[tuple[str, bytes | None]]


class Sender:
    """Sends records and knows when the broker has them all: nothing that it was given is lost unseen."""

    def __init__(self, settings: KafkaSettings, *, linger_ms: int) -> None:
        self._settings, self._linger_ms = settings, linger_ms
        # By topic, and by how they compress: librdkafka compresses all topics of a producer alike. Made at first use.
        self._of_topics: dict[str, Producer] = {}
        self._producers: dict[str, Producer] = {}
        self._making = threading.Lock()
        # For what only packs small; made when it is first needed, since buffers grow with that limit.
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
    ) -> None:
        """Queue one record; waits while the queue is full. Raises BrokerUnavailable when it cannot be queued.

        With `on_refused`, a record that Kafka refuses for its own sake is told there and fails nothing else.
        """
        on_delivery = self._on_delivery if on_refused is None else _telling(on_refused)
        pairs: list[tuple[str, str | bytes | None]] | None = list(headers) if headers else None
        producer = self._of_topics.get(topic) or self._producer_of(topic)
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

    def poll(self) -> None:
        """Let the client work off what it has heard from the broker."""
        for producer in tuple(self._producers.values()):
            producer.poll(0)

    def flush(self, timeout_s: float) -> None:
        """Wait until the broker has everything. Raises BrokerUnavailable when it does not, or has refused some."""
        left = sum(producer.flush(timeout_s) for producer in tuple(self._producers.values()))
        if self._large is not None:
            left += self._large.flush(timeout_s)
        if self._failure is not None:
            raise BrokerUnavailable(f"Kafka refused a record: {self._failure.str()}")
        if left:
            raise BrokerUnavailable(f"Kafka did not take {left} records in {timeout_s:g} s")

    def _producer_of(self, topic: str) -> Producer:
        compression = self._settings.compression_of(topic)
        with self._making:
            if compression not in self._producers:
                self._producers[compression] = make_producer(
                    self._settings, linger_ms=self._linger_ms, only_failures=True, compression=compression
                )
            self._of_topics[topic] = self._producers[compression]
        return self._of_topics[topic]

    def _large_producer(self) -> Producer:
        if self._large is None:
            # Without compression no record of this size is ever taken.
            compression = "gzip" if self._settings.compression == "none" else None
            self._large = make_producer(
                self._settings, linger_ms=0, message_bytes_max=UNPACKED_BYTES_MAX, compression=compression
            )
        return self._large

    def _on_delivery(self, error: KafkaError | None, _: Message) -> None:
        if error is not None and self._failure is None:
            self._failure = error


def _telling(on_refused: Callable[[KafkaError], object]) -> Callable[[KafkaError | None, Message], None]:
    def on_delivery(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            on_refused(error)

    return on_delivery
