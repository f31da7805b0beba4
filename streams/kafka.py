"""How Paywarden talks to Kafka: the settings, and clients with every option that matters spelled out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from schemas.errors import BrokerUnavailable, Misconfigured

_log = logging.getLogger(__name__)

# A topic and a partition of it.
Place: TypeAlias = tuple[str, int]

# How long a broker may take to answer at start before that is an error.
REACH_TIMEOUT_S = 5.0
# Kafka's own default is 1 MiB; our topics keep to it, and the dead letters of such records need more.
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
# Brokers measure what is on the wire, clients what it unpacks to: a record of megabytes may have come in kilobytes, and
# its letter must go the same way. Under what a producer's queue holds, or it would wait for room for ever.
UNPACKED_BYTES_MAX = 200_000_000
# What a broker says, and the client finds, while a partition's leader changes; then it is asked again this soon.
_LEADER_ERRORS = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
    }
)
_LEADER_AGAIN_S = 0.1
# Reading a topic to its end: how long nothing may come, and how many records at once. Dead letters are large.
READ_TIMEOUT_S = 30.0
READ_BATCH = 200
# The same where records are small: payments, outcomes, decisions.
RANGE_BATCH = 5_000


COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")
# How their names begin.
_INTERNAL_TOPICS = ("profiles", "repartition-")
# zlib's quickest: on decisions it takes less than half the time of its usual level, and makes a tenth more bytes.
_GZIP_LEVEL = 1


@dataclass(frozen=True)
class KafkaSettings:
    """Where Kafka is and how to log in. Empty means not used."""

    bootstrap: str = "127.0.0.1:9092"
    security_protocol: str = "plaintext"
    sasl_mechanism: str = ""
    sasl_username: str = ""
    sasl_password: str = field(default="", repr=False)
    ssl_ca_location: str = ""
    ssl_certificate_location: str = ""
    ssl_key_location: str = ""
    ssl_key_password: str = field(default="", repr=False)
    # Put before every topic's name, so that several deployments can share a cluster.
    topic_prefix: str = ""
    # How our producers compress: none, gzip, snappy, lz4 or zstd. Every Kafka client reads gzip without a plug-in.
    compression: str = "gzip"
    # The same on `profiles` and `repartition-…`, which only Paywarden reads. They carry most bytes, and gzip there
    # would halve what a stream worker gets done.
    internal_compression: str = "lz4"
    # Whether the agents of `paywarden stream` check the checksums of what they read. The embedded broker, which is for
    # demonstrations, writes the markers of transactions with a wrong one: false there, and nowhere else.
    check_crcs: bool = True

    def __post_init__(self) -> None:
        """Raises Misconfigured."""
        for name in ("compression", "internal_compression"):
            value = getattr(self, name)
            if value not in COMPRESSIONS:
                raise Misconfigured(f"[kafka] {name}: wanted one of {', '.join(COMPRESSIONS)}, got {value!r}")

    def compression_of(self, topic: str) -> str:
        """How records of a topic, by its name on the cluster, are compressed."""
        is_internal = topic.removeprefix(self.topic_prefix).startswith(_INTERNAL_TOPICS)
        return self.internal_compression if is_internal else self.compression

    def topic(self, name: str) -> str:
        """The topic's name on the cluster."""
        return self.topic_prefix + name

    def connection(self) -> dict[str, Any]:
        """librdkafka's options for reaching the cluster."""
        named = {
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password,
            "ssl.ca.location": self.ssl_ca_location,
            "ssl.certificate.location": self.ssl_certificate_location,
            "ssl.key.location": self.ssl_key_location,
            "ssl.key.password": self.ssl_key_password,
        }
        options: dict[str, Any] = {name: value for name, value in named.items() if value}
        options["bootstrap.servers"] = self.bootstrap
        options["client.id"] = "paywarden"
        options["logger"] = _log
        # Reconnecting within a second keeps freshness when a broker restarts.
        options["reconnect.backoff.max.ms"] = 1000
        return options


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
        **_compressing(compression or settings.compression),
        # A dead letter holds a whole record of another topic, and more.
        "message.max.bytes": message_bytes_max,
        "queue.buffering.max.messages": 200_000,
        "queue.buffering.max.kbytes": 256 * 1024,
        # The Java clients' partitioner, so that all producers agree where a key lives.
        "partitioner": "murmur2_random",
    }
    with _configured():
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
        **_compressing(settings.compression),
        "message.max.bytes": MESSAGE_BYTES_MAX,
        "queue.buffering.max.messages": 200_000,
        "queue.buffering.max.kbytes": 256 * 1024,
        "partitioner": "murmur2_random",
    }
    with _configured():
        return Producer(options)


def _compressing(compression: str) -> dict[str, Any]:
    """librdkafka's options."""
    options: dict[str, Any] = {"compression.type": compression}
    if compression == "gzip":
        options["compression.level"] = _GZIP_LEVEL
    return options


# Names and values in order; a name may come more than once.
Headers: TypeAlias = Sequence[tuple[str, bytes | None]]


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
        headers: Headers = (),
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


def make_consumer(settings: KafkaSettings, *, group_id: str, session_timeout_ms: int = 10_000) -> Consumer:
    """A consumer that commits only what it is told to and says when it has reached a partition's end."""
    options = {
        **settings.connection(),
        "group.id": group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "enable.partition.eof": True,
        "isolation.level": "read_committed",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": session_timeout_ms,
        "fetch.wait.max.ms": FETCH_WAIT_MS,
        "queued.max.messages.kbytes": 64 * 1024,
        "allow.auto.create.topics": True,
    }
    with _configured():
        return Consumer(options)


# Who leads a partition is remembered for so long, and by default for 15 minutes: all that while, after a broker's
# restart, questions about the ends of its partitions are refused for naming an old leader epoch.
_LEADERS_AGE_MS_MAX = 5000

# The broker answers a fetch that has nothing after this long; what a consumer knows is never older.
FETCH_WAIT_MS = 100


def make_admin(settings: KafkaSettings) -> AdminClient:
    """A client for topics and metadata."""
    with _configured():
        return AdminClient({**settings.connection(), "metadata.max.age.ms": _LEADERS_AGE_MS_MAX})


def require_broker(settings: KafkaSettings) -> None:
    """Raises BrokerUnavailable, in one line, unless a broker answers."""
    try:
        make_admin(settings).list_topics(timeout=REACH_TIMEOUT_S)
    except KafkaException as error:
        raise BrokerUnavailable(f"no Kafka broker answers at {settings.bootstrap}: {reason_of(error)}") from error


def partitions_of(settings: KafkaSettings, topic: str) -> list[int]:
    """The partitions of a topic. Raises BrokerUnavailable, or Misconfigured when there is no such topic."""
    try:
        found = make_admin(settings).list_topics(settings.topic(topic), timeout=REACH_TIMEOUT_S)
    except KafkaException as error:
        raise BrokerUnavailable(f"no Kafka broker answers at {settings.bootstrap}: {reason_of(error)}") from error
    metadata = found.topics.get(settings.topic(topic))
    if metadata is None or metadata.error is not None or not metadata.partitions:
        raise Misconfigured(f"topic {settings.topic(topic)} does not exist: run `paywarden topics create`")
    return sorted(metadata.partitions)


def topics_of(settings: KafkaSettings) -> set[str]:
    """The topics there are on the cluster, under their full names. Raises BrokerUnavailable."""
    try:
        return set(make_admin(settings).list_topics(timeout=REACH_TIMEOUT_S).topics)
    except KafkaException as error:
        raise BrokerUnavailable(f"no Kafka broker answers at {settings.bootstrap}: {reason_of(error)}") from error


def reason_of(error: KafkaException) -> str:
    """librdkafka's own words for what went wrong."""
    inner = error.args[0] if error.args else error
    return inner.str() if isinstance(inner, KafkaError) else str(inner)


_Answer = TypeVar("_Answer")


def when_led(ask: Callable[[], _Answer], what: str) -> _Answer:
    """What Kafka answers; asked again while a partition gets a leader, as one of a young topic or in an election.

    `what` is asked for, as in "where payments ends". Raises BrokerUnavailable.
    """
    deadline = time.monotonic() + REACH_TIMEOUT_S
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _LEADER_ERRORS or time.monotonic() > deadline:
                raise BrokerUnavailable(f"Kafka does not say {what}: {reason_of(error)}") from error
            time.sleep(_LEADER_AGAIN_S)


def watermarks(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """The offset of the first record of a partition and the one after its last. Raises BrokerUnavailable."""
    place = TopicPartition(topic, partition)
    first, end = when_led(
        lambda: consumer.get_watermark_offsets(place, timeout=REACH_TIMEOUT_S), f"where {topic} begins and ends"
    )
    return int(first), int(end)


def end_offsets(consumer: Consumer, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """The offset after the last record of each partition, asked from the broker. Raises BrokerUnavailable."""
    return {number: watermarks(consumer, topic, number)[1] for number in partitions}


_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]


def ask_end_offsets(
    admin: AdminClient, places: Iterable[Place], isolation: IsolationLevel = IsolationLevel.READ_COMMITTED
) -> dict[Place, Future[Any]]:
    """As `end_offsets`, of all partitions in one request that is not waited for: each answer has an `offset`.

    Unless `isolation` says so, what a transaction has not committed is not counted. An answer that fails raises
    KafkaException.
    """
    wanted = {TopicPartition(*place): _LATEST for place in places}
    asked = admin.list_offsets(wanted, isolation_level=isolation, request_timeout=REACH_TIMEOUT_S)
    return {(place.topic, place.partition): answer for place, answer in asked.items()}


def end_offsets_of(admin: AdminClient, topic: str, partitions: Iterable[int]) -> dict[int, int] | None:
    """As `ask_end_offsets`, waited for; None when the broker does not say now."""
    try:
        return _answered_ends(admin, topic, partitions, IsolationLevel.READ_COMMITTED)
    except KafkaException as error:
        _log.warning("Kafka does not say where %s ends: %s", topic, reason_of(error))
        return None


def stable_end_offsets(admin: AdminClient, topic: str, partitions: Collection[int]) -> dict[int, int]:
    """As `end_offsets`, without what a transaction has not committed. Raises BrokerUnavailable."""
    level = IsolationLevel.READ_COMMITTED
    return when_led(lambda: _answered_ends(admin, topic, partitions, level), f"where {topic} ends")


def written_end_offsets(admin: AdminClient, topic: str, partitions: Collection[int]) -> dict[int, int]:
    """As `end_offsets`, open transactions included. Raises BrokerUnavailable."""
    level = IsolationLevel.READ_UNCOMMITTED
    return when_led(lambda: _answered_ends(admin, topic, partitions, level), f"where {topic} ends")


def _answered_ends(
    admin: AdminClient, topic: str, partitions: Iterable[int], isolation: IsolationLevel
) -> dict[int, int]:
    asked = ask_end_offsets(admin, ((topic, number) for number in partitions), isolation)
    return {partition: answer.result().offset for (_, partition), answer in asked.items()}


class Record(NamedTuple):
    """A record as it was read. `timestamp_ms` is Kafka's own, 0 where the broker set none.

    A tuple: the stream makes one for each payment, in a third of the time a dataclass takes.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class Consumed:
    """What one call to `consume` gave: records in order, and the partitions read to their end after them.

    `ended` has the offset that the next record of such a partition will have. `is_all`: the client had heard of nothing
    more when the call ended.
    """

    records: list[Record]
    ended: dict[Place, int]
    is_all: bool


def consume(consumer: Consumer, count_max: int, timeout_s: float) -> Consumed:
    """What is there, at most `count_max` records, waited for at most `timeout_s`.

    Raises BrokerUnavailable for an error that does not pass; the client retries passing ones by itself.
    """
    messages = consumer.consume(count_max, timeout=timeout_s)
    consumed = Consumed([], {}, is_all=len(messages) < count_max)
    for message in messages:
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF and topic is not None and partition is not None:
                consumed.ended[topic, partition] = offset or 0
            else:
                _check_passing(error)
            continue
        assert topic is not None
        assert partition is not None
        assert offset is not None
        # The end that was reached before this record is none any more.
        consumed.ended.pop((topic, partition), None)
        consumed.records.append(
            Record(
                topic,
                partition,
                offset,
                _as_bytes(message.key()),
                _as_bytes(message.value()),
                max(0, message.timestamp()[1]),
                _headers(message),
            )
        )
    return consumed


def records_to_end(consumer: Consumer, topic: str, partitions: Iterable[int]) -> Iterator[list[Record]]:
    """What a topic holds, from its beginning to its end as of now, in batches. Joins no group.

    Raises BrokerUnavailable when nothing more comes before the end.
    """
    ends = end_offsets(consumer, topic, partitions)
    consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in ends])
    left = {partition for partition, end in ends.items() if end > 0}
    deadline = time.monotonic() + READ_TIMEOUT_S
    while left:
        consumed = consume(consumer, READ_BATCH, 0.5)
        records = [record for record in consumed.records if record.offset < ends[record.partition]]
        if records:
            yield records
            # The caller's own time is none that Kafka took.
            deadline = time.monotonic() + READ_TIMEOUT_S
        # An end need not be a record's: what was compacted or expired leaves none behind.
        left -= {partition for _, partition in consumed.ended}
        left -= {record.partition for record in consumed.records if record.offset + 1 >= ends[record.partition]}
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"Kafka did not give the end of {topic} in {READ_TIMEOUT_S:g} s")


def offsets_at(consumer: Consumer, topic: str, ends: Mapping[int, int], time_ms: int) -> dict[int, int]:
    """Of each partition the first offset whose record has Kafka's own time `time_ms` or later; else its end in `ends`.

    Raises BrokerUnavailable.
    """

    def ask() -> list[TopicPartition]:
        asked = [TopicPartition(topic, partition, time_ms) for partition in ends]
        answered = consumer.offsets_for_times(asked, timeout=REACH_TIMEOUT_S)
        for place in answered:
            if place.error is not None:
                raise KafkaException(place.error)
        return answered

    found = when_led(ask, f"what of {topic} arrived when")
    return {place.partition: place.offset if place.offset >= 0 else ends[place.partition] for place in found}


def records_between(consumer: Consumer, topic: str, partition: int, offsets: range) -> Iterator[list[Record]]:
    """What a partition holds at these offsets, in batches. Joins no group. They must lie before its end.

    Raises BrokerUnavailable when nothing more comes before the last.
    """
    consumer.assign([TopicPartition(topic, partition, offsets.start)])
    deadline = time.monotonic() + READ_TIMEOUT_S
    next_offset = offsets.start
    while next_offset < offsets.stop:
        consumed = consume(consumer, RANGE_BATCH, 0.5)
        records = [one for one in consumed.records if one.partition == partition and one.offset in offsets]
        if consumed.records:
            next_offset = max(next_offset, consumed.records[-1].offset + 1)
        # The last offsets may be of what no reader sees: a transaction's marks, or what was compacted.
        next_offset = max(next_offset, consumed.ended.get((topic, partition), 0))
        if records:
            yield records
            deadline = time.monotonic() + READ_TIMEOUT_S
        if time.monotonic() > deadline:
            raise BrokerUnavailable(f"Kafka did not give offset {next_offset} of {topic} in {READ_TIMEOUT_S:g} s")


def _headers(message: Message) -> list[tuple[str, bytes | None]]:
    headers = message.headers() or []
    pairs = headers.items() if isinstance(headers, dict) else headers
    return [(str(pair[0]), _as_bytes(pair[1])) for pair in pairs]


def _as_bytes(content: str | bytes | None) -> bytes | None:
    return content.encode() if isinstance(content, str) else content


def _check_passing(error: KafkaError) -> None:
    if error.fatal() or error.code() in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED):
        raise BrokerUnavailable(f"Kafka refuses: {error.str()}")
    _log.warning("Kafka: %s", error.str())


@contextmanager
def _configured() -> Iterator[None]:
    """librdkafka refuses options it cannot use when a client is made."""
    try:
        yield
    except KafkaException as error:
        raise Misconfigured(f"kafka: {reason_of(error)}") from error
