"""Questions about topics and their offsets: which partitions there are, and where they begin and end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from paywarden.schemas.errors import BrokerUnavailable, Misconfigured
from paywarden.streams.kafka.client import REACH_TIMEOUT_S, KafkaSettings, PartitionId, named_options, reason_of

_log = logging.getLogger(__name__)
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


# Who leads a partition is remembered for so long, and by default for 15 minutes: all that while, after a broker's
# restart, questions about the ends of its partitions are refused for naming an old leader epoch.
_LEADERS_AGE_MS_MAX = 5000


def make_admin(settings: KafkaSettings) -> AdminClient:
    """A client for topics and metadata."""
    with named_options():
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


_Answer = TypeVar("_Answer")


def retry_until_leader(ask: Callable[[], _Answer], what: str) -> _Answer:
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
    first, end = retry_until_leader(
        lambda: consumer.get_watermark_offsets(place, timeout=REACH_TIMEOUT_S), f"where {topic} begins and ends"
    )
    return int(first), int(end)


def end_offsets(consumer: Consumer, topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """The offset after the last record of each partition, asked from the broker. Raises BrokerUnavailable."""
    return {number: watermarks(consumer, topic, number)[1] for number in partitions}


_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]


def ask_end_offsets(
    admin: AdminClient, places: Iterable[PartitionId], isolation: IsolationLevel = IsolationLevel.READ_COMMITTED
) -> dict[PartitionId, Future[Any]]:
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
    return retry_until_leader(lambda: _answered_ends(admin, topic, partitions, level), f"where {topic} ends")


def written_end_offsets(admin: AdminClient, topic: str, partitions: Collection[int]) -> dict[int, int]:
    """As `end_offsets`, open transactions included. Raises BrokerUnavailable."""
    level = IsolationLevel.READ_UNCOMMITTED
    return retry_until_leader(lambda: _answered_ends(admin, topic, partitions, level), f"where {topic} ends")


def _answered_ends(
    admin: AdminClient, topic: str, partitions: Iterable[int], isolation: IsolationLevel
) -> dict[int, int]:
    asked = ask_end_offsets(admin, ((topic, number) for number in partitions), isolation)
    return {partition: answer.result().offset for (_, partition), answer in asked.items()}


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

    found = retry_until_leader(ask, f"what of {topic} arrived when")
    return {place.partition: place.offset if place.offset >= 0 else ends[place.partition] for place in found}
