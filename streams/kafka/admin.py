"""Ask a cluster about its topics: which partitions they have, and the offsets where these begin and end.

payments/0    offsets 120 … 979    `watermarks` returns (120, 980): the first record, and the one after the last
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from paywarden.schemas.errors import BrokerUnavailable, Misconfigured
from paywarden.streams.kafka.client import REACH_TIMEOUT_S, KafkaSettings, PartitionId, named_options, reason_of
from paywarden.streams.kafka.topic_names import missing_topic

_log = logging.getLogger(__name__)
# Errors that last only while a partition changes its leader, or a group its coordinator, as on a cluster without
# any group. The question is repeated after `_LEADER_AGAIN_S`.
_LEADER_ERRORS = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    }
)
_LEADER_AGAIN_S = 0.1
# Kafka takes a broker for dead after 9 s (`broker.session.timeout.ms`), and only then elects other leaders.
_LEADER_TIMEOUT_S = 20.0


# The timeout of a plain connection to a broker, and how many are tried at once.
CONNECT_TIMEOUT_S = 5.0
_CONNECTIONS_AT_ONCE = 16

# The client caches partition leaders for this long; its default is 15 minutes. After a broker restarts, the broker
# refuses questions about the ends of its partitions until the cache has expired: they name an old leader epoch.
_LEADERS_AGE_MS_MAX = 5000


def make_admin(settings: KafkaSettings) -> AdminClient:
    """Returns a client for topics and metadata. Raises Misconfigured for options that it refuses."""
    with named_options():
        return AdminClient({**settings.connection(), "metadata.max.age.ms": _LEADERS_AGE_MS_MAX})


def require_broker(settings: KafkaSettings) -> None:
    """Raises BrokerUnavailable, in one line, unless a broker answers."""
    try:
        make_admin(settings).list_topics(timeout=REACH_TIMEOUT_S)
    except KafkaException as error:
        raise BrokerUnavailable(f"no Kafka broker answers at {settings.bootstrap}: {reason_of(error)}") from error


# The advice for a broker that announces a wrong address.
CORRECT_ADDRESS = "correct advertised.listeners of that broker, or DNS and the way to it"


def unreached_brokers(admin: AdminClient) -> tuple[list[str], int]:
    """Returns a line about each broker that cannot be reached at its announced address, and the number of brokers.

    Clients find a cluster at `bootstrap`, and then go where its brokers say that they are (`advertised.listeners`).
    Raises BrokerUnavailable.
    """
    try:
        cluster = admin.list_topics(timeout=REACH_TIMEOUT_S).brokers.values()
    except KafkaException as error:
        raise BrokerUnavailable(f"no Kafka broker answers: {reason_of(error)}") from error
    places = [(str(broker.host), int(broker.port)) for broker in cluster]
    return list(_unreached(places)), len(places)


def _unreached(places: Collection[tuple[str, int]]) -> Iterator[str]:
    with ThreadPoolExecutor(min(len(places), _CONNECTIONS_AT_ONCE) or 1) as threads:
        for (host, port), reason in zip(places, threads.map(_unreachable, places), strict=True):
            if reason:
                yield f"a broker says that it is at {host}:{port}, where this host does not reach it ({reason})"


def _unreachable(place: tuple[str, int]) -> str:
    """Returns why no connection can be made; empty if one can."""
    try:
        socket.create_connection(place, timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def partitions_of(settings: KafkaSettings, topic: str) -> list[int]:
    """Returns the partitions of a topic. Raises BrokerUnavailable, or Misconfigured if the topic does not exist."""
    return partitions_in(make_admin(settings), settings, topic)


def partitions_in(admin: AdminClient, settings: KafkaSettings, topic: str) -> list[int]:
    """Like `partitions_of`, asked through a client that the caller has already."""
    full_name = settings.topic(topic)

    def ask() -> list[int]:
        try:
            metadata = admin.list_topics(full_name, timeout=REACH_TIMEOUT_S).topics.get(full_name)
        except KafkaException as error:
            raise BrokerUnavailable(f"no Kafka broker answers at {settings.bootstrap}: {reason_of(error)}") from error
        if metadata is not None and metadata.error is not None and metadata.error.code() in _LEADER_ERRORS:
            raise KafkaException(metadata.error)
        if metadata is None or metadata.error is not None or not metadata.partitions:
            raise Misconfigured(missing_topic(full_name))
        return sorted(metadata.partitions)

    return retry_until_leader(ask, f"which partitions {full_name} has")


def wait_until_known(admin: AdminClient, names: Collection[str], timeout_s: float = _LEADER_TIMEOUT_S) -> None:
    """Wait until the broker names the partitions of topics that were created a moment ago, for `timeout_s` at most.

    The controller says that it has created a topic. The brokers learn of it a moment later, and until then they answer
    that there is no such topic. Raises BrokerUnavailable.
    """
    deadline = time.monotonic() + timeout_s
    while names:
        try:
            listed = admin.list_topics(timeout=REACH_TIMEOUT_S).topics
        except KafkaException as error:
            raise BrokerUnavailable(f"Kafka does not list its topics: {reason_of(error)}") from error
        names = [name for name in names if name not in listed or listed[name].error or not listed[name].partitions]
        if names and time.monotonic() > deadline:
            raise BrokerUnavailable(f"Kafka has created topic {min(names)}, and does not list it {timeout_s:g} s later")
        if names:
            time.sleep(_LEADER_AGAIN_S)


def topics_of(settings: KafkaSettings) -> set[str]:
    """Returns the full names of the topics on the cluster. Raises BrokerUnavailable."""
    try:
        return set(make_admin(settings).list_topics(timeout=REACH_TIMEOUT_S).topics)
    except KafkaException as error:
        raise BrokerUnavailable(f"no Kafka broker answers at {settings.bootstrap}: {reason_of(error)}") from error


_Answer = TypeVar("_Answer")


def retry_until_leader(ask: Callable[[], _Answer], what: str, timeout_s: float = _LEADER_TIMEOUT_S) -> _Answer:
    """Returns Kafka's answer. Asks again while a partition has no leader: the topic is new, or an election runs.

    `what` names the question in the error, as in "where payments ends". Raises BrokerUnavailable.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _LEADER_ERRORS or time.monotonic() > deadline:
                raise BrokerUnavailable(f"Kafka does not say {what}: {reason_of(error)}") from error
            time.sleep(_LEADER_AGAIN_S)


def watermarks(consumer: Consumer, topic: str, partition: int) -> tuple[int, int]:
    """Returns the offsets of a partition's first record and after its last record. Raises BrokerUnavailable."""
    place = TopicPartition(topic, partition)
    first, end = retry_until_leader(
        lambda: consumer.get_watermark_offsets(place, timeout=REACH_TIMEOUT_S), f"where {topic} begins and ends"
    )
    return int(first), int(end)


def end_offsets(consumer: Consumer, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Asks the broker for the offset after the last record of each partition. Raises BrokerUnavailable."""
    return {number: watermarks(consumer, topic, number)[1] for number in partitions}


_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]


def ask_end_offsets(
    admin: AdminClient,
    places: Iterable[PartitionId],
    isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
    spec: OffsetSpec = _LATEST,
) -> dict[PartitionId, Future[Any]]:
    """Starts one request for the ends of all partitions and returns futures; each result has an `offset`.

    By default records of open transactions do not count; `isolation` can include them. Another `spec` asks for other
    offsets. A failed answer raises KafkaException from its future.
    """
    specs = {TopicPartition(*place): spec for place in places}
    answers = admin.list_offsets(specs, isolation_level=isolation, request_timeout=REACH_TIMEOUT_S)
    return {(place.topic, place.partition): answer for place, answer in answers.items()}


def end_offsets_of(
    admin: AdminClient,
    topic: str,
    partitions: Iterable[int],
    isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
) -> dict[int, int] | None:
    """Like `ask_end_offsets`, but waits for the answers; None if the broker does not answer now."""
    try:
        return _answered_ends(admin, topic, partitions, isolation)
    except KafkaException as error:
        _log.warning("Kafka does not say where %s ends: %s", topic, reason_of(error))
        return None


def stable_end_offsets(admin: AdminClient, topic: str, partitions: Collection[int]) -> dict[int, int]:
    """Like `end_offsets`, without the records of open transactions. Raises BrokerUnavailable."""
    level = IsolationLevel.READ_COMMITTED
    return retry_until_leader(lambda: _answered_ends(admin, topic, partitions, level), f"where {topic} ends")


def written_end_offsets(admin: AdminClient, topic: str, partitions: Collection[int]) -> dict[int, int]:
    """Like `end_offsets`, with the records of open transactions. Raises BrokerUnavailable."""
    level = IsolationLevel.READ_UNCOMMITTED
    return retry_until_leader(lambda: _answered_ends(admin, topic, partitions, level), f"where {topic} ends")


def _answered_ends(
    admin: AdminClient, topic: str, partitions: Iterable[int], isolation: IsolationLevel
) -> dict[int, int]:
    answers = ask_end_offsets(admin, ((topic, number) for number in partitions), isolation)
    return {partition: answer.result().offset for (_, partition), answer in answers.items()}


def offsets_at(consumer: Consumer, topic: str, ends: Mapping[int, int], time_ms: int) -> dict[int, int]:
    """Returns for each partition the first offset whose record has Kafka's timestamp `time_ms` or later.

    A partition without such a record gets its end from `ends`. Raises BrokerUnavailable.
    """

    def ask() -> list[TopicPartition]:
        questions = [TopicPartition(topic, partition, time_ms) for partition in ends]
        answers = consumer.offsets_for_times(questions, timeout=REACH_TIMEOUT_S)
        for place in answers:
            if place.error is not None:
                raise KafkaException(place.error)
        return answers

    answers = retry_until_leader(ask, f"which records of {topic} arrived when")
    return {place.partition: place.offset if place.offset >= 0 else ends[place.partition] for place in answers}
