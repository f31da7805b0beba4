"""Show which topics stored offsets belong to, and accept a topic that has changed (streams/kafka/source_register.py).

Two groups read topics and store offsets of them:

    the workers of the live set    payments, outcomes, repartition-…    offsets in profiles and records of payments
    the workers that count         decisions, outcomes                  offsets in counts and in the join of outcomes

To accept a topic:

1. See that no worker is in the group.
2. Commit the begin of each partition for the group: the topic as it is now is read from there.
3. Enter the topic's id with the next generation.

A fault: killed between 2 and 3, the workers still refuse the topic, and the same command does both again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from paywarden.schemas.errors import Misconfigured
from paywarden.streams.kafka.admin import retry_until_leader
from paywarden.streams.kafka.client import REACH_TIMEOUT_S
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.source_register import SourceEntry, SourceRegister, problem_of
from paywarden.streams.kafka.topic_identity import embedded_cluster, topic_ids
from paywarden.streams.maintenance.add_partitions import members_of

_EARLIEST = OffsetSpec.earliest()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class SourceReader:
    """A consumer group that stores offsets. `names`: its topics, without prefix. `whose` names the data it keeps."""

    whose: str
    group: str
    register: SourceRegister
    names: Sequence[str]


@dataclass(frozen=True)
class SourceState:
    """A topic as one reader knows it, and its present id. `problem` is empty if the reader may read it."""

    topic: str
    whose: str
    entry: SourceEntry
    id: str
    problem: str


def states(clients: KafkaClients, readers: Iterable[SourceReader]) -> list[SourceState]:
    """Returns all topics of all readers. Raises BrokerUnavailable, Misconfigured, StoreUnavailable."""
    found = []
    for reader in readers:
        ids = topic_ids(clients.admin, map(clients.topic, reader.names))
        known = reader.register.read()
        for name in reader.names:
            topic = clients.topic(name)
            entry = known.get(topic, SourceEntry(""))
            found.append(SourceState(topic, reader.whose, entry, ids[topic], problem_of(entry, ids[topic])))
    return found


def require_read(readers: Iterable[SourceReader], names: Iterable[str]) -> None:
    """Raise Misconfigured for a topic, without prefix, whose offsets no reader stores."""
    read = {name for reader in readers for name in reader.names}
    for name in names:
        if name not in read:
            raise Misconfigured(f"no offsets of a topic {name} are stored; wanted one of {', '.join(sorted(read))}")


def accept(clients: KafkaClients, readers: Sequence[SourceReader], name: str) -> list[SourceState]:
    """Accept the topic `name`, without prefix, as it is now; returns its former states.

    Raises Misconfigured if nobody reads such a topic, if it has not changed, or while workers run; BrokerUnavailable
    and StoreUnavailable, after which the same call goes on.
    """
    topic = clients.topic(name)
    accepted = []
    require_read(readers, [name])
    for reader in [reader for reader in readers if name in reader.names]:
        (state,) = states(clients, [SourceReader(reader.whose, reader.group, reader.register, [name])])
        if not state.problem:
            continue
        # The embedded broker has no groups to ask about, and has lost their offsets with the topics.
        if not embedded_cluster(clients.admin):
            _require_empty(clients.admin, reader.group)
            _begin_again(clients.admin, reader.group, topic, clients.partitions(name))
        reader.register.accept({topic: state.id})
        accepted.append(state)
    if not accepted:
        raise Misconfigured(f"topic {topic} has not changed: there is nothing to accept")
    return accepted


def _require_empty(admin: AdminClient, group: str) -> None:
    if count := members_of(admin, group):
        raise Misconfigured(f"{count} workers are in group {group}: stop all stream workers first")


def _begin_again(admin: AdminClient, group: str, topic: str, partitions: Sequence[int]) -> None:
    begins = retry_until_leader(lambda: _begins(admin, topic, partitions), f"where {topic} begins")
    offsets = [TopicPartition(topic, partition, offset) for partition, offset in begins.items()]
    request = ConsumerGroupTopicPartitions(group, offsets)

    def commit() -> None:
        (answer,) = admin.alter_consumer_group_offsets([request], request_timeout=REACH_TIMEOUT_S).values()
        for place in answer.result().topic_partitions:
            if place.error is not None:
                raise KafkaException(place.error)

    retry_until_leader(commit, f"that group {group} begins {topic} again")


def _begins(admin: AdminClient, topic: str, partitions: Sequence[int]) -> Mapping[int, int]:
    answers = admin.list_offsets(
        {TopicPartition(topic, partition): _EARLIEST for partition in partitions}, request_timeout=REACH_TIMEOUT_S
    )
    return {place.partition: int(answer.result().offset) for place, answer in answers.items()}
