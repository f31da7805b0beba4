"""More partitions for the repartition topics.

A checksum spreads keys over partitions, so more partitions move keys. Take a key with event 7 unread in its old
partition: event 8 arrives in the new partition and is applied first. The profile then takes event 7 for one that it
already contains, and loses it. Therefore no event may be on its way:

1. Stop all workers.
2. Drain the topics: `paywarden stream --drain`.
3. Add partitions.

A worker that reads a frame for another number of partitions stops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from paywarden.features.stores.profile_sets import LiveSet
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured
from paywarden.streams.kafka.admin import end_offsets, make_admin, partitions_of, retry_until_leader
from paywarden.streams.kafka.client import REACH_TIMEOUT_S, KafkaSettings, reason_of
from paywarden.streams.kafka.reading import make_consumer
from paywarden.streams.kafka.topic_names import repartition_topic
from paywarden.streams.kafka.topics import add_repartition_partitions

# A cluster without any group yet first makes the topic that it keeps groups in.
_GROUP_TIMEOUT_S = 30.0


def add_partitions(
    kafka: KafkaSettings, group_of: Callable[[str], str], entities: Sequence[str], live: LiveSet, count: int
) -> list[str]:
    """Give the live set's repartition topics `count` partitions; returns the topics that had fewer.

    Raises Misconfigured while workers run, events are on their way, or a topic has more partitions already.
    """
    if live.next is not None:
        raise Misconfigured("another profile set is being swapped in: end that first")
    group = group_of(live.name)
    names = [repartition_topic(entity, live.name) for entity in entities]
    partitions = {name: partitions_of(kafka, name) for name in names}
    for name, there in partitions.items():
        if len(there) > count:
            raise Misconfigured(f"topic {kafka.topic(name)} has {len(there)} partitions: Kafka cannot remove any")
    members = members_of(make_admin(kafka), group)
    if members:
        raise Misconfigured(f"{members} workers are in group {group}: stop them, then run `paywarden stream --drain`")
    consumer: Consumer = make_consumer(kafka, group_id=group)
    try:
        for name, there in partitions.items():
            topic = kafka.topic(name)
            ends = end_offsets(consumer, topic, there)
            committed = consumer.committed([TopicPartition(topic, p) for p in there], timeout=REACH_TIMEOUT_S)
            unread = sum(max(0, ends[place.partition] - max(0, place.offset)) for place in committed)
            if unread:
                raise Misconfigured(f"{unread} records of {topic} are not processed: run `paywarden stream --drain`")
    except KafkaException as error:
        raise BrokerUnavailable(f"Kafka does not give the committed offsets: {reason_of(error)}") from error
    finally:
        consumer.close()
    additions = {name: count for name, there in partitions.items() if len(there) < count}
    if additions:
        add_repartition_partitions(kafka, additions)
    return sorted(kafka.topic(name) for name in additions)


def members_of(admin: AdminClient, group: str) -> int:
    """Returns how many workers are in a group; 0 for one that never was. Raises BrokerUnavailable."""

    def ask() -> int:
        return len(admin.describe_consumer_groups([group], request_timeout=_GROUP_TIMEOUT_S)[group].result().members)

    return retry_until_leader(ask, f"who is in group {group}", _GROUP_TIMEOUT_S)
