"""A store that is away or slow, on a real Kafka: the stream stops with bounded memory and goes on without a loss."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Event, Thread

import pyarrow as pa
import pytest
from confluent_kafka.cimpl import NewTopic

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.aerospike.store import AerospikeSettings, AerospikeStore
from paywarden.schemas.avro import LocalSchemaIds
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.group_consumer import BatchConsumer
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.kafka.reading import make_consumer
from paywarden.streams.profiles.pipeline import Pipeline
from paywarden.streams.profiles.settings import StreamSettings
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import get, is_ready, samples, wait_until
from tests.services.servers.kafka import KafkaServer
from tests.standin.aerospike_server import Fault, StandIn
from tests.worlds.stream.topics import (
    Topics,
    assert_profiles_equal,
    batch_profiles,
    lag,
    read_aerospike,
    read_changelog,
    small_world,
    wait_until_worked_in,
)


def test_partitions_lost_during_a_hold_are_read_when_they_come_back(
    kafka: KafkaServer, settings: KafkaSettings, topic_prefix: str
) -> None:
    """The client keeps a pause over assignments, so a partition that came back once stayed unread for ever."""
    topic = settings.topic("numbers")
    kafka.create_topics(NewTopic(topic, num_partitions=4, replication_factor=1))
    producer = make_producer(settings, linger_ms=0)
    for number in range(40):
        producer.produce(topic, b"x", partition=number % 4)
    assert producer.flush(PATIENCE_S) == 0
    group = f"{topic_prefix}group"
    first = BatchConsumer(make_consumer(settings, group_id=group, session_timeout_ms=6000))
    first.subscribe([topic])
    taken: list[tuple[int, int]] = []

    def take(consumer: BatchConsumer) -> int:
        records = consumer.take(100, 0.05).records
        taken.extend((record.partition, record.offset) for record in records)
        return len(records)

    wait_until(lambda: take(first) >= 0 and len(taken) == 40, "the first has all records")
    first.hold()
    second = BatchConsumer(make_consumer(settings, group_id=group, session_timeout_ms=6000))
    second.subscribe([topic])

    def is_lost() -> bool:
        second.take(1, 0.0)
        return not first.wait(0.05)

    wait_until(is_lost, "a partition of the batch has gone")
    first.release()
    first.abandon()
    wait_until(lambda: take(first) + take(second) >= 0 and len(second.places) == 2, "the second has its share")
    gone = set(second.places)
    # The worker leaves without a commit, so every record is still to be read.
    second.close()
    taken.clear()
    wait_until(lambda: take(first) >= 0 and len(first.places) == 4, "all are the first's again")
    moved = {(partition, offset) for _, partition in gone for offset in range(10)}
    wait_until(lambda: take(first) >= 0 and moved <= set(taken), "the records of the lost partitions are read again")
    first.close()


GROUP = "stream"
OVERLOAD = 18


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as running:
        yield running


@pytest.fixture
def deployment(tmp_path: Path, settings: KafkaSettings, server: StandIn) -> Iterator[Deployment]:
    address, prefix = settings.bootstrap, settings.topic_prefix
    with Deployment(tmp_path, address, prefix, stream_batch_max=200, aerospike=server.address) as made:
        made.create_topics()
        yield made


def counted(target: str, name: str) -> float:
    """Returns a counter of /metrics, summed over all its labels."""
    return sum(value for key, value in samples(target).items() if key[0] == name)


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def assert_all_is_worked_in(
    settings: KafkaSettings, server: StandIn, group: str, payments: pa.Table, nothing: pa.Table
) -> None:
    wait_until_worked_in(settings, group)
    stored = read_aerospike(server.address)
    assert_profiles_equal(stored, batch_profiles(payments, nothing))
    wait_until(lambda: read_changelog(settings) == stored, "the changelog equals the store")


def test_a_store_lost_under_load_stops_the_stream_without_a_loss(
    deployment: Deployment, settings: KafkaSettings, server: StandIn
) -> None:
    payments, outcomes = small_world()
    rows, group = payments.to_pylist(), f"{settings.topic_prefix}{GROUP}"
    stream = deployment.start("stream")
    target = stream.first_line()
    readiness = f"{target}/readyz"
    topics = Topics(settings)
    topics.send_payments(rows[:300])
    wait_until_worked_in(settings, group)
    wait_until(lambda: is_ready(target), "ready")
    before_mb = resident_mb(stream.pid)
    server.stop()
    topics.send_payments(rows[300:])
    wait_until(lambda: b"the store does not take batches: Aerospike at" in get(readiness)[2], "it lacks the store")
    assert get(readiness)[0] == 503
    behind = lag(settings, group)
    assert behind == len(rows) - 300
    for _ in range(3):
        topics.send_payments(rows[:300])  # duplicates of the first 300
    time.sleep(3)
    assert lag(settings, group) == behind + 900
    assert get(readiness)[0] == 503
    assert resident_mb(stream.pid) < before_mb + 150
    server.start()
    wait_until(lambda: is_ready(target), "ready again")
    assert_all_is_worked_in(settings, server, group, payments, outcomes.slice(0, 0))
    assert counted(target, "paywarden_stream_duplicates_total") == 900
    assert stream.stop() == 0


def test_if_a_worker_joins_during_a_hold_the_held_batch_is_abandoned(
    deployment: Deployment, settings: KafkaSettings, server: StandIn
) -> None:
    del deployment  # the fixture makes the topics
    payments, outcomes = small_world()
    group = f"{settings.topic_prefix}{GROUP}"
    # Opened before the store goes away.
    with ExitStack() as stack:
        first, second = (stack.enter_context(a_pipeline(settings, server, group)) for _ in range(2))
        stop = Event()
        threads = [Thread(target=worker.run, args=(stop,)) for worker in (first, second)]
        try:
            threads[0].start()
            wait_until(lambda: not first.problems(), "the first worker has joined")
            server.faults.add(Fault.refuse(OVERLOAD), times=1_000_000)
            Topics(settings).send_payments(payments.to_pylist())
            wait_until(lambda: bool(first.problems()), "on hold")
            threads[1].start()
            wait_until(lambda: first.metrics.abandoned._value.get() >= 1, "abandoned")
            # Both workers retry in vain for a while, and partitions may move once more.
            time.sleep(2)
            server.faults.clear()
            assert_all_is_worked_in(settings, server, group, payments, outcomes.slice(0, 0))
            # The second one may still be taking partitions over.
            wait_until(lambda: first.problems() == second.problems() == [], "both are ready")
            assert first.metrics.duplicates._value.get() == second.metrics.duplicates._value.get() == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@contextmanager
def a_pipeline(settings: KafkaSettings, server: StandIn, group: str) -> Iterator[Pipeline]:
    with closing(AerospikeStore(AerospikeSettings(hosts=(server.address,)))) as store:
        yield Pipeline(
            clients=KafkaClients.of(settings),
            settings=StreamSettings(
                group_id=group,
                batch_max=200,
                batch_wait_ms=5,
                session_timeout_ms=6000,
                past_ms_max=TIME_BOUND_MS_MAX,
            ),
            store=store,
            engine=FeatureEngine(),
            rates=load_rates(),
            ids=LocalSchemaIds(),
        )


def test_a_slow_store_causes_no_retries_and_no_rebalance(
    deployment: Deployment, settings: KafkaSettings, server: StandIn
) -> None:
    payments, outcomes = small_world()
    part = payments.slice(0, 800)
    deployment.configure("aerospike", "total_timeout_ms = 60000\n")
    deployment.configure_internally("aerospike", socket_timeout_ms=30000)
    stream = deployment.start("stream")
    target = stream.first_line()
    wait_until(lambda: is_ready(target), "ready")
    # Shorter than the timeout of one call, longer in all than a session allows.
    server.faults.add(Fault.delay(0.3), times=40)
    Topics(settings).send_payments(part.to_pylist())
    assert_all_is_worked_in(settings, server, f"{settings.topic_prefix}{GROUP}", part, outcomes.slice(0, 0))
    assert counted(target, "paywarden_stream_store_retries_total") == 0
    assert counted(target, "paywarden_stream_abandoned_batches_total") == 0
    assert stream.stop() == 0
    log = stream.log.read_text(encoding="utf-8")
    assert "rebalance" not in log
    assert "not committed" not in log
