"""The simulated cluster behaves as the real one where our code relies on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaException, TopicPartition

from tests.simulation.cluster.broker import Broker
from tests.simulation.cluster.consumer import GroupConsumer
from tests.simulation.cluster.logs import Entry
from tests.simulation.cluster.producers import TransactionalProducer
from tests.simulation.world import Actor, World


class Cluster:
    """A broker with the topics `in` (two partitions) and `out`, and a world to run processes in."""

    def __init__(self) -> None:
        self.world = World(1)
        self.world.suspend_share = 0.0
        self.broker = Broker(self.world)
        self.broker.create("in", 2)
        self.broker.create("out", 1)

    def run(self, work: Callable[[Actor], object], seconds: float = 60.0) -> Actor:
        """Run a process until it has ended."""
        actor = self.world.start("process", "host", work)
        assert self.world.run_until(lambda: actor.has_ended, seconds, look_every_s=0.1)
        return actor

    def append(self, value: bytes, partition: int = 0) -> None:
        self.broker.append(("in", partition), Entry(b"k", value, 0))

    def values(self) -> list[bytes | None]:
        return [entry.value for _, _, entry in self.broker.records("out")]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.world.end()


def member(cluster: Cluster, actor: Actor) -> tuple[GroupConsumer, list[tuple[str, int]]]:
    """Returns a member of a group, and its list of assignments and revocations."""
    consumer = GroupConsumer(cluster.broker, actor, "group", 6000)
    told: list[tuple[str, int]] = []

    def assigned(client: Any, partitions: list[TopicPartition]) -> None:
        client.incremental_assign(partitions)
        told.extend(("assign", place.partition) for place in partitions)

    def left(_: Any, partitions: list[TopicPartition]) -> None:
        told.extend(("lose", place.partition) for place in partitions)

    consumer.subscribe(["in"], on_assign=assigned, on_revoke=left, on_lost=left)
    return consumer, told


def test_records_of_an_open_or_aborted_transaction_are_not_read(cluster: Cluster) -> None:
    def work(actor: Actor) -> None:
        producer = TransactionalProducer(cluster.broker, actor, "t", 10_000)
        producer.init_transactions(1)
        for value, end in ((b"a", producer.abort_transaction), (b"b", producer.commit_transaction)):
            producer.begin_transaction()
            producer.produce("out", value, key=b"k")
            producer.flush(1)
            assert value not in cluster.values()
            end(1)
        cluster.world.pause(1)

    cluster.run(work)
    assert cluster.values() == [b"b"]


def test_a_newer_producer_fences_the_earlier_one_and_aborts_its_transaction(cluster: Cluster) -> None:
    def work(actor: Actor) -> None:
        earlier = TransactionalProducer(cluster.broker, actor, "t", 10_000)
        earlier.init_transactions(1)
        earlier.begin_transaction()
        earlier.produce("out", b"a", key=b"k")
        earlier.flush(1)
        later = TransactionalProducer(cluster.broker, actor, "t", 10_000)
        # The markers of the earlier transaction may take a moment.
        while True:
            try:
                later.init_transactions(0.05)
                break
            except KafkaException:
                continue
        with pytest.raises(KafkaException) as raised:
            earlier.commit_transaction(1)
        assert raised.value.args[0].fatal()

    cluster.run(work)
    assert cluster.values() == []


def test_a_transaction_that_takes_too_long_is_given_up(cluster: Cluster) -> None:
    def work(actor: Actor) -> None:
        producer = TransactionalProducer(cluster.broker, actor, "t", 10_000)
        producer.init_transactions(1)
        producer.begin_transaction()
        producer.produce("out", b"a", key=b"k")
        cluster.world.pause(11)
        with pytest.raises(KafkaException) as raised:
            producer.commit_transaction(1)
        assert raised.value.args[0].fatal()

    cluster.run(work)
    assert cluster.values() == []


def test_two_members_share_the_partitions_and_no_one_reads_for_two(cluster: Cluster) -> None:
    owned: dict[str, set[int]] = {}

    def work(actor: Actor) -> None:
        consumer, told = member(cluster, actor)
        until = cluster.world.now + 5
        while cluster.world.now < until:
            consumer.consume(10, 0.1)
        owned[str(len(owned))] = {n for kind, n in told if kind == "assign"} - {n for k, n in told if k == "lose"}

    other = cluster.world.start("other", "host", work)
    cluster.run(work)
    cluster.world.run_until(lambda: other.has_ended, 10)
    assert sorted(map(len, owned.values())) == [1, 1]
    assert set.union(*owned.values()) == {0, 1}


def test_a_frozen_member_loses_its_partitions_and_cannot_commit(cluster: Cluster) -> None:
    cluster.append(b"a")

    def work(actor: Actor) -> None:
        consumer, told = member(cluster, actor)
        consumer.consume(10, 1)
        cluster.world.freeze(actor.life, 20)
        cluster.world.seam("goes on")
        with pytest.raises(KafkaException):
            consumer.commit(offsets=[TopicPartition("in", 0, 1)], asynchronous=False)
        consumer.consume(10, 1)
        assert told[:4] == [("assign", 0), ("assign", 1), ("lose", 0), ("lose", 1)]

    actor = cluster.run(work)
    assert actor.outcome == "ended", cluster.world.failure
    assert cluster.broker.group("group").committed == {}


def test_a_topic_made_anew_has_another_id_and_no_committed_offsets(cluster: Cluster) -> None:
    cluster.append(b"a")
    cluster.broker.group("group").committed["in", 0] = 1
    before = cluster.broker.topics["in"].topic_id
    old = cluster.broker.recreate("in")
    assert [log.end for log in old.logs] == [1, 0]
    assert [log.end for log in cluster.broker.topics["in"].logs] == [0, 0]
    assert cluster.broker.topics["in"].topic_id != before
    assert cluster.broker.group("group").committed == {}
