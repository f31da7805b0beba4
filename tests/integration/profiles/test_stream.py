"""The stream on a real Kafka: profiles equal the batch path's. Kills lose no payment and count none twice."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from confluent_kafka.cimpl import NewTopic
from prometheus_client import CollectorRegistry

from paywarden.features.catalogue.attributes import row_of
from paywarden.features.history.history import history_of_tables
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import Events, FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.base import TtlS
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.avro import Decoder, LocalSchemaIds
from paywarden.schemas.errors import BrokerUnavailable
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX
from paywarden.streams.kafka.admin import partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.profiles.pipeline import Pipeline
from paywarden.streams.profiles.progress.watermarks import CLAIM_KEY
from paywarden.streams.profiles.stream_settings import PipelineOptions, PipelineTiming, StreamSettings, stream_metrics
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.in_process import remembered_clients, running
from tests.services.product.processes import wait_until
from tests.services.servers.kafka import KafkaServer
from tests.worlds.stream.packed import sources_of, without_sources
from tests.worlds.stream.topics import (
    ENTITIES,
    Topics,
    assert_profiles_equal,
    batch_profiles,
    lag,
    read_changelog,
    read_store,
    read_topic,
    small_world,
    wait_until_left,
    wait_until_worked_in,
)
from tests.worlds.stream.transactions import left_open


@pytest.fixture
def deployment(tmp_path: Path, settings: KafkaSettings) -> Iterator[Deployment]:
    with Deployment(tmp_path, settings.bootstrap, settings.topic_prefix, stream_batch_max=300) as deployed:
        deployed.create_topics()
        yield deployed


def test_profiles_equal_the_batch_path_and_the_changelog_equals_the_store(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    world = small_world()
    payments, outcomes = (table.to_pylist() for table in world)
    topics = Topics(settings)
    topics.send_payments(payments)
    stream = deployment.start("stream")
    group = f"{settings.topic_prefix}stream"
    wait_until_worked_in(settings, group, "payments")
    topics.send_outcomes(outcomes)
    wait_until_worked_in(settings, group, "outcomes")
    assert stream.stop() == 0
    stored = read_store(deployment.store)
    assert_profiles_equal(stored, batch_profiles(*world))
    assert read_changelog(settings) == stored


def test_an_outcome_read_together_with_its_payment_waits_for_it(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    """As after a pause: both topics are full before the stream starts."""
    world = small_world()
    topics = Topics(settings)
    topics.send_payments(world[0].to_pylist())
    topics.send_outcomes(world[1].to_pylist())
    stream = deployment.start("stream")
    wait_until_worked_in(settings, f"{settings.topic_prefix}stream")
    assert stream.stop() == 0
    assert_profiles_equal(read_store(deployment.store), batch_profiles(*world))
    assert values(settings, "dead-letters") == []


def claims(settings: KafkaSettings) -> list[int]:
    """Returns the moments up to which the stream has claimed that profiles are complete."""
    decoder = Decoder("profiles", LocalSchemaIds())
    told = [record.value for record in read_topic(settings, "profiles") if record.key == CLAIM_KEY and record.value]
    return [decoder.decode(value)["complete_to_time_ms"] for value in told]


def test_what_stands_behind_a_strangers_open_transaction_is_waited_for(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    """Its outcomes became dead letters, and mirrors counted as complete without its payments."""
    world = small_world()
    deployment.configure_internally("stream", stall_timeout_s=4)
    topics = Topics(settings)
    with left_open(settings, "payments", partitions_of(settings, "payments")):
        began_ms = time.time_ns() // 1_000_000
        topics.send_payments(world[0].to_pylist())
        topics.send_outcomes(world[1].to_pylist())
        stream = deployment.start("stream")
        wait_until(lambda: "open transaction" in stream.log.read_text(encoding="utf-8"), "it says what holds it up")
        assert values(settings, "dead-letters") == []
        assert [moment for moment in claims(settings) if moment > began_ms] == []
    wait_until_worked_in(settings, f"{settings.topic_prefix}stream")
    wait_until(lambda: any(moment > began_ms for moment in claims(settings)), "profiles are complete", every_s=0.5)
    assert stream.stop() == 0
    assert_profiles_equal(read_store(deployment.store), batch_profiles(*world))
    assert values(settings, "dead-letters") == []
    assert "has stalled" not in stream.log.read_text(encoding="utf-8")


def test_kill_9_at_any_moment_loses_no_payment_and_counts_none_twice(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    world = small_world()
    payments, outcomes = (table.to_pylist() for table in world)
    topics = Topics(settings)
    group = f"{settings.topic_prefix}stream"
    moments = random.Random(5)
    third = len(payments) // 3
    for part in (payments[:third], payments[third : 2 * third], payments[2 * third :]):
        topics.send_payments(part)
        left = lag(settings, group)
        stream = deployment.start("stream")
        # A random moment between the first batch and the end of the last.
        wait_until_left(settings, group, left - 1, "a batch is committed")
        time.sleep(moments.uniform(0, 0.2))
        stream.kill()
    stream = deployment.start("stream")
    wait_until_worked_in(settings, group, "payments")
    topics.send_outcomes(outcomes)
    wait_until_left(settings, group, len(outcomes) - 1, "some outcomes are worked in", every_s=0.02)
    stream.kill()
    stream = deployment.start("stream")
    wait_until_worked_in(settings, group, "outcomes")
    stream.stop()
    stored = read_store(deployment.store)
    assert_profiles_equal(stored, batch_profiles(*world))
    assert read_changelog(settings) == stored


def test_reading_a_whole_topic_again_changes_nothing(deployment: Deployment, settings: KafkaSettings) -> None:
    """The offsets are lost and the store is kept: the longest possible repetition."""
    all_payments, outcomes = small_world()
    payments = all_payments.slice(0, 500)
    topics = Topics(settings)
    for row in payments.to_pylist():
        topics.send_payment(row)
        # A producer retried without idempotence: the same payment under another offset.
        topics.send_payment(row)
    topics.flush()
    group = f"{settings.topic_prefix}stream"
    first = deployment.start("stream")
    wait_until_worked_in(settings, group, "payments")
    assert first.stop() == 0
    before = read_store(deployment.store)
    deployment.config.write_text(
        deployment.config.read_text(encoding="utf-8").replace(group, f"{group}-again"), encoding="utf-8"
    )
    second = deployment.start("stream")
    wait_until_worked_in(settings, f"{group}-again")
    assert second.stop() == 0
    assert read_store(deployment.store) == before
    assert_profiles_equal(before, batch_profiles(payments, outcomes.slice(0, 0)))


def test_unusable_records_become_whole_dead_letters_and_the_stream_runs(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    payments, outcomes = (table.to_pylist() for table in small_world())
    topics = Topics(settings)
    garbage = b"\xff\x00not avro"
    topics.send_bytes("payments", garbage, b"k1")
    topics.send_bytes("payments", None, b"k2")
    topics.send_payment({**payments[0], "payment_id": "odd", "currency": "XXX"})
    topics.send_payment({**payments[0], "payment_id": "late", "event_time_ms": 2**52})
    topics.send_outcome({**outcomes[0], "payment_id": "nobody-knows"})
    topics.send_payment(payments[0])
    topics.flush()
    stream = deployment.start("stream")
    wait_until_worked_in(settings, f"{settings.topic_prefix}stream")
    assert stream.stop() == 0
    assert f"card:{payments[0]['card_id']}".encode() in read_store(deployment.store)
    decoder = Decoder("dead-letters", LocalSchemaIds())
    letters = {letter["reason"]: letter for letter in map(decoder.decode, values(settings, "dead-letters"))}
    assert len(letters) == 5
    (magic,) = [letter for reason, letter in letters.items() if "magic byte" in reason]
    assert magic["value"] == garbage
    assert magic["key"] == b"k1"
    assert magic["headers"] == [{"name": "trace", "value": b"\x00\x01"}]
    assert magic["topic"] == settings.topic("payments")
    assert any(reason.startswith("currency: ") for reason in letters)
    assert any(reason.startswith("event_time_ms: ") for reason in letters)
    assert any("no value" in reason for reason in letters)
    assert any("payment that is not known" in reason for reason in letters)
    assert payments[0]["card_id"] not in stream.log.read_text(encoding="utf-8")


def test_the_largest_possible_record_becomes_a_whole_dead_letter(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    """The letter is larger than the record, and must not stop the stream for ever."""
    topics = Topics(settings)
    # Random bytes: compressible values would be small on the wire.
    garbage = random.Random(1).randbytes(1_048_000)
    topics.send_bytes("payments", garbage, b"k")
    topics.flush()
    stream = deployment.start("stream")
    wait_until_worked_in(settings, f"{settings.topic_prefix}stream")
    assert stream.stop() == 0
    (letter,) = map(Decoder("dead-letters", LocalSchemaIds()).decode, values(settings, "dead-letters"))
    assert letter["value"] == garbage


def test_a_record_that_the_broker_refuses_ends_the_stream_uncommitted(
    tmp_path: Path, kafka: KafkaServer, settings: KafkaSettings
) -> None:
    name = settings.topic("dead-letters")
    kafka.create_topics(NewTopic(name, num_partitions=1, replication_factor=1, config={"max.message.bytes": "150"}))
    with Deployment(tmp_path, kafka.bootstrap, settings.topic_prefix) as deployment:
        deployment.create_topics()
        topics = Topics(settings)
        topics.send_bytes("payments", random.Random(1).randbytes(500), b"k")
        topics.flush()
        stream = deployment.start("stream")
        assert stream.process.wait(timeout=PATIENCE_S) == 1
        assert stream.log.read_text(encoding="utf-8").strip().splitlines()[-1].startswith("paywarden: Kafka refused")
        assert lag(settings, f"{settings.topic_prefix}stream") == 1


def values(settings: KafkaSettings, name: str) -> list[bytes]:
    return [record.value for record in read_topic(settings, name) if record.value is not None]


def test_a_client_that_silently_stops_reading_ends_the_worker(deployment: Deployment, settings: KafkaSettings) -> None:
    """As after a short fencing of the broker. The test pauses partitions, and the worker does not know."""
    del deployment  # the fixture makes the topics
    payments, outcomes = small_world()
    topics, group = Topics(settings), f"{settings.topic_prefix}stalled"
    kafka, clients = remembered_clients(settings)
    engine, store = FeatureEngine(), MemoryStore()

    def worker() -> Pipeline:
        return Pipeline(
            clients=kafka,
            settings=StreamSettings(
                group_id=group, session_timeout_ms=6000, stall_timeout_s=4, past_ms_max=TIME_BOUND_MS_MAX
            ),
            store=store,
            engine=engine,
            rates=load_rates(),
            ids=LocalSchemaIds(),
        )

    half = len(payments) // 2
    topics.send_payments(payments.slice(0, half).to_pylist())
    with ThreadPoolExecutor(1) as threads:
        stalled = threads.submit(worker().run, Event())
        wait_until_worked_in(settings, group)
        clients[0].pause([place for place in clients[0].assignment() if place.partition != 0])
        topics.send_payments(payments.slice(half).to_pylist())
        topics.send_outcomes(outcomes.to_pylist())
        with pytest.raises(BrokerUnavailable, match="has stalled on"):
            stalled.result(PATIENCE_S)
    with running(worker()):
        wait_until_worked_in(settings, group)
    stored = {key: value for entity in ENTITIES for key, value in store.scan(entity)}
    assert_profiles_equal(stored, batch_profiles(payments, outcomes))
    assert read_changelog(settings) == stored


@pytest.mark.parametrize("wrong_ms", [-3_600_000, 3_600_000])
def test_a_worker_with_another_time_than_the_broker_waits(
    deployment: Deployment, settings: KafkaSettings, wrong_ms: int
) -> None:
    """A payment of now would be from the future for a host that is an hour behind."""
    del deployment  # the fixture makes the topics
    engine, registry, wrong = FeatureEngine(), CollectorRegistry(), [wrong_ms]
    worker = Pipeline(
        clients=KafkaClients.of(settings),
        settings=StreamSettings(group_id="clocks", session_timeout_ms=6000),
        store=MemoryStore(),
        engine=engine,
        rates=load_rates(),
        ids=LocalSchemaIds(),
        metrics=stream_metrics(StreamSettings(), engine.plan.entity_names, registry),
        options=PipelineOptions(timing=PipelineTiming(now_ms=lambda: time.time_ns() // 1_000_000 + wrong[0])),
    )
    topics, rows = Topics(settings), small_world()[0].slice(0, 20).to_pylist()

    def pay(rows: Sequence[dict[str, Any]]) -> None:
        topics.send_payments([{**row, "event_time_ms": time.time_ns() // 1_000_000} for row in rows])

    with running(worker):
        wait_until(lambda: "the broker's" in " ".join(worker.problems()), "the worker waits")
        pay(rows)
        wrong[0] = 0
        wait_until(lambda: not worker.problems(), "the worker goes on")
        wait_until_worked_in(settings, "clocks")
    assert abs(registry.get_sample_value("paywarden_stream_clock_ahead_seconds") or 0.0) < 10
    assert registry.get_sample_value("paywarden_stream_payments_total") == 20
    assert read_topic(settings, "dead-letters") == []


class Contested(MemoryStore):
    """Another worker writes the first card's profile between the stream's read and its write."""

    def __init__(self, other: bytes) -> None:
        super().__init__()
        self._other = other
        self.contested: bytes | None = None

    def write(self, values: Mapping[bytes, bytes], *, ttl_s: TtlS, versions: Mapping[bytes, int] | None = None) -> None:
        """Let any write of the stream come too late once."""
        card = next((key for key in values if key.startswith(b"card:")), None)
        if card is not None and self.contested is None:
            self.contested = card
            super().write({card: self._other}, ttl_s=0)
        super().write(values, ttl_s=ttl_s, versions=versions)


def test_a_concurrent_write_is_kept_and_nothing_is_counted_twice(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    """After a rebalance, the old owner may still have a batch in progress."""
    del deployment  # the fixture makes the topics
    payments, _ = small_world()
    rows = payments.slice(0, 200).to_pylist()
    engine = FeatureEngine()
    one = np.ones(1, dtype=np.int64)
    events = Events(np.array([0, 1]), np.zeros(1, np.uint8), 0 * one, one, 126 * one, 5 * one, -one)
    attributes = np.array([row_of({}, event_time_ms=rows[0]["event_time_ms"] - 1, amount=777, amount_minor=777)])
    other = engine.apply(0, events, attributes, [None], engine.new_slots(0)).states[0]
    store = Contested(other)
    topics = Topics(settings)
    topics.send_payments(rows)
    registry = CollectorRegistry()
    worker = Pipeline(
        clients=KafkaClients.of(settings),
        settings=StreamSettings(group_id="contested", past_ms_max=TIME_BOUND_MS_MAX),
        store=store,
        engine=engine,
        rates=load_rates(),
        ids=LocalSchemaIds(),
        metrics=stream_metrics(StreamSettings(), engine.plan.entity_names, registry),
    )
    with running(worker):
        wait_until_worked_in(settings, "contested")
    assert store.contested is not None
    assert registry.get_sample_value("paywarden_stream_payments_total") == 200
    assert registry.get_sample_value("paywarden_stream_duplicates_total") == 0
    assert registry.get_sample_value("paywarden_stream_store_conflicts_total") == 1
    profiles = dict(store.scan("card"))
    assert sources_of(profiles[store.contested])[126] == 5
    history = history_of_tables(payments.slice(0, 200), small_world()[1].slice(0, 0))
    passage = PointInTimeReplay(history, engine, load_rates())
    for _ in passage.chunks():
        pass
    wanted = dict(zip(passage.entities[0].store_keys(), passage.profiles[0], strict=True))
    for key, state in profiles.items():
        if key != store.contested:
            assert without_sources(state) == without_sources(wanted[key] or b"")
