"""Create, extend and delete topics, with the retention that each of them needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.cimpl import NewPartitions, NewTopic

from paywarden.schemas.avro import TOPICS
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured, PaywardenError
from paywarden.streams.kafka.admin import CORRECT_ADDRESS, make_admin, unreached_brokers, wait_until_known
from paywarden.streams.kafka.client import MESSAGE_BYTES_MAX, REACH_TIMEOUT_S, KafkaSettings, reason_of
from paywarden.streams.kafka.schemas.remembered_schemas import SCHEMAS_TOPIC
from paywarden.streams.kafka.topic_identity import embedded_cluster
from paywarden.streams.kafka.topic_names import CURSORS_TOPIC, repartition_topic

_DAY_MS = 86_400_000
_NO_ANSWER = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError.REQUEST_TIMED_OUT)
# Kafka keeps a dead letter past its days until its segment is closed and every letter in it is old. The note that a
# letter was retried must outlive the letter, so it is kept this much longer.
_RETRIED_DAYS_MORE = 30
# These topics have few records, and their readers need them in one order over all keys.
_ONE_PARTITION = (
    "catalogues", CURSORS_TOPIC, SCHEMAS_TOPIC, "model-registry",
    "drift-alerts", "drift-acknowledgements", "console-events", "outcome-metrics", "verdicts",
    "dead-letters", "dead-letters-retried",
)  # fmt: skip


@dataclass(frozen=True)
class TopicSettings:
    """Partitions of new topics, and the retention of their records."""

    # For payments, outcomes, profiles and decisions. A profile stores an offset for each partition of the first two.
    # Clients send a request for each partition that they have a record for: at low rates requests are the largest cost.
    partitions: int = 6
    # For each repartition topic: this many workers can share the profiles of one kind of entity. Each batch writes to
    # all partitions, a few requests at a time, so more partitions than workers cost freshness.
    repartition_partitions: int = 3
    replication: int = 1
    payments_days: int = 100
    decisions_days: int = 100
    dead_letters_days: int = 30
    # For drift alerts, people's acts on them, outcome metrics and verdicts, which are few. An alert is open
    # as long as its cause.
    drift_days: int = 400
    # Workers read events within a second. All of them may be down for this long without a loss.
    repartition_days: int = 7


def create_topics(
    kafka: KafkaSettings, settings: TopicSettings, entities: Sequence[str], profile_set: str = ""
) -> list[str]:
    """Create the missing topics, with a repartition topic for each of `entities`; returns the full names created.

    With `profile_set` also that set's own repartition topics. Raises BrokerUnavailable or Misconfigured.
    """
    return _create(kafka, wanted_topics(kafka, settings, entities, profile_set))


def wanted_topics(
    kafka: KafkaSettings, settings: TopicSettings, entities: Sequence[str], profile_set: str = ""
) -> list[NewTopic]:
    """Returns all topics as `create_topics` makes them, with a repartition topic for each of `entities`."""
    sets = dict.fromkeys(("", profile_set))
    repartition = [repartition_topic(entity, name) for name in sets for entity in entities]
    names = [*TOPICS, CURSORS_TOPIC, SCHEMAS_TOPIC, *repartition]
    return [_new_topic(kafka.topic(name), name, settings) for name in names]


def _create(kafka: KafkaSettings, topics: Sequence[NewTopic]) -> list[str]:
    created = []
    # The client must live until the answers are in.
    admin = make_admin(kafka)
    if embedded_cluster(admin):
        raise Misconfigured(
            f"the broker at {kafka.bootstrap} is an embedded broker (`paywarden broker`), which cannot create topics "
            "for clients. It has them from its start: nothing needs to be created there"
        )
    away, brokers = unreached_brokers(admin)
    if away and len(away) == brokers:
        raise _not_reached(kafka, away)
    for name, future in admin.create_topics(list(topics), operation_timeout=30, request_timeout=15).items():
        try:
            future.result()
            created.append(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                if away and error.args[0].code() in _NO_ANSWER:
                    raise _not_reached(kafka, away) from error
                raise _refused(kafka, name, error, "cannot be created") from error
    wait_until_known(admin, created)
    return sorted(created)


def _not_reached(kafka: KafkaSettings, away: Sequence[str]) -> BrokerUnavailable:
    """Returns the error for a cluster that answers at `bootstrap` and has brokers elsewhere."""
    return BrokerUnavailable(f"Kafka answers at {kafka.bootstrap}, but {'; '.join(away)}: {CORRECT_ADDRESS}")


def _refused(kafka: KafkaSettings, name: str, error: KafkaException, what: str) -> PaywardenError:
    if error.args[0].code() in (KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION):
        return Misconfigured(
            f"the broker at {kafka.bootstrap} answers, but it cannot create or change topics for clients"
        )
    if error.args[0].code() in _NO_ANSWER:
        return BrokerUnavailable(f"no Kafka broker answers at {kafka.bootstrap}: {reason_of(error)}")
    return Misconfigured(f"topic {name} {what}: {reason_of(error)}")


def create_repartition_topics(kafka: KafkaSettings, counts: Mapping[str, int], replication: int) -> None:
    """Create the repartition topics in `counts` with that many partitions, unless they exist.

    Raises BrokerUnavailable or Misconfigured.
    """
    settings = TopicSettings(replication=replication)
    topics = [
        NewTopic(
            kafka.topic(name), num_partitions=count, replication_factor=replication, config=_config(name, settings)
        )
        for name, count in counts.items()
    ]
    _create(kafka, topics)


def add_repartition_partitions(kafka: KafkaSettings, counts: Mapping[str, int]) -> None:
    """Give repartition topics more partitions. They must hold no unread events, because keys change partitions.

    Raises BrokerUnavailable or Misconfigured.
    """
    additions = [NewPartitions(kafka.topic(name), count) for name, count in counts.items()]
    admin = make_admin(kafka)
    for name, future in admin.create_partitions(additions, operation_timeout=30, request_timeout=15).items():
        try:
            future.result()
        except KafkaException as error:
            raise _refused(kafka, name, error, "cannot be given more partitions") from error


def delete_repartition_topics(kafka: KafkaSettings, names: Sequence[str]) -> dict[str, str]:
    """Delete repartition topics; returns the reason by full name for each topic that may still exist.

    Raises Misconfigured when no client can be made.
    """
    reasons = {}
    admin = make_admin(kafka)
    full_names = [kafka.topic(name) for name in names]
    for name, future in admin.delete_topics(full_names, operation_timeout=30, request_timeout=REACH_TIMEOUT_S).items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                reasons[name] = reason_of(error)
    return reasons


def _new_topic(full_name: str, name: str, settings: TopicSettings) -> NewTopic:
    return NewTopic(
        full_name,
        num_partitions=_partition_count(name, settings),
        replication_factor=settings.replication,
        config=_config(name, settings),
    )


def _partition_count(name: str, settings: TopicSettings) -> int:
    if name in _ONE_PARTITION:
        return 1
    return settings.partitions if name in TOPICS else settings.repartition_partitions


def _config(name: str, settings: TopicSettings) -> dict[str, str]:
    return {
        **_cleanup(name, settings),
        "min.insync.replicas": str(in_sync_replicas(settings.replication)),
        # The clock of the broker: ages and watermarks must not depend on the clocks of producers.
        "message.timestamp.type": "LogAppendTime",
    }


def in_sync_replicas(replication: int) -> int:
    """Returns how many brokers must have a record before its producer gets an acknowledgement (acks=all).

    All but one: a topic stays writable while one broker is down. With a replication of 3, an acknowledged record is
    therefore on at least two brokers. With 2 it may be on one only, while the other is down, and is lost with that one.
    """
    return max(1, replication - 1)


def _cleanup(name: str, settings: TopicSettings) -> dict[str, str]:
    if name == "profiles":
        # Keeps the newest state of each entity for ever. A tombstone stays for a day, long enough for every mirror.
        return {"cleanup.policy": "compact", "delete.retention.ms": str(_DAY_MS), "min.cleanable.dirty.ratio": "0.2"}
    if name == "model-registry":
        # Every entry is needed to check those behind it.
        return {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    if name in ("catalogues", SCHEMAS_TOPIC):
        return {"cleanup.policy": "compact"}
    if name == CURSORS_TOPIC:
        # A companion reads the whole topic at its start, and every transaction writes to it. Small segments that are
        # compacted early keep it short. Transaction markers stay as long as tombstones.
        return {
            "cleanup.policy": "compact",
            "min.cleanable.dirty.ratio": "0.01",
            "segment.bytes": str(4 * 1024 * 1024),
            "segment.ms": "600000",
            "delete.retention.ms": "60000",
        }
    if name == "dead-letters-retried":
        kept_ms = (settings.dead_letters_days + _RETRIED_DAYS_MORE) * _DAY_MS
        return {"cleanup.policy": "compact,delete", "retention.ms": str(kept_ms)}
    days = {
        "dead-letters": settings.dead_letters_days,
        "decisions": settings.decisions_days,
        "drift-alerts": settings.drift_days,
        "drift-acknowledgements": settings.drift_days,
        "console-events": settings.drift_days,
        "outcome-metrics": settings.drift_days,
        "shadow-decisions": settings.decisions_days,
        "verdicts": settings.drift_days,
    }
    kept_days = days.get(name, settings.payments_days if name in TOPICS else settings.repartition_days)
    kept = {"cleanup.policy": "delete", "retention.ms": str(kept_days * _DAY_MS)}
    if name == "dead-letters":
        kept["max.message.bytes"] = str(MESSAGE_BYTES_MAX)
    return kept
