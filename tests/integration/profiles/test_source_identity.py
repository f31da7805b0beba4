"""Topics that are deleted and created again, or lose records, on a real Kafka: nothing is dropped without a word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from click.testing import CliRunner, Result
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry

from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.lmdb import LmdbSettings
from paywarden.features.stores.lmdb_sets import LmdbSets
from paywarden.features.stores.memory import MemoryStore
from paywarden.features.stores.profile_sets import LiveSet, ProfileSets
from paywarden.ops import wiring
from paywarden.ops.cli import cli
from paywarden.schemas.avro import LocalSchemaIds
from paywarden.schemas.errors import Misconfigured
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX
from paywarden.schemas.settings import read_source
from paywarden.scoring.state.mirror_file import MirrorSettings, MirrorView
from paywarden.streams.companion.companion import FillSource
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.source_register import BESIDE_SOURCES_KEY, SOURCES_KEY, SourceChanged, SourceRegister
from paywarden.streams.kafka.topic_names import repartition_topic
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from paywarden.streams.maintenance.accept_source import SourceReader, accept, states
from paywarden.streams.maintenance.add_partitions import members_of
from paywarden.streams.profiles.pipeline import Pipeline
from paywarden.streams.profiles.stream_settings import StreamSettings, stream_metrics
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.in_process import running
from tests.services.product.processes import is_ready, wait_until
from tests.worlds.stream.topics import (
    ENTITIES,
    Topics,
    assert_profiles_equal,
    batch_profiles,
    small_world,
    wait_until_worked_in,
)

NAMES = ["payments", "outcomes", *map(repartition_topic, ENTITIES)]


class World:
    """A store, and the workers that fill it one after the other."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings, self.store, self.registry = settings, MemoryStore(), CollectorRegistry()
        self.clients = KafkaClients.of(settings)
        self.group = f"{settings.topic_prefix}identity"
        self.stream = StreamSettings(group_id=self.group, session_timeout_ms=6000, past_ms_max=TIME_BOUND_MS_MAX)
        self.metrics = stream_metrics(self.stream, FeatureEngine().plan.entity_names, self.registry)
        names = {settings.topic(name): name for name in NAMES}
        register = SourceRegister(self.store, SOURCES_KEY, names)
        self.readers = [SourceReader("profiles", self.group, register, NAMES)]
        create_topics(settings, TopicSettings(partitions=2, repartition_partitions=2), ENTITIES)

    def worker(self) -> Pipeline:
        return Pipeline(
            clients=self.clients,
            settings=self.stream,
            store=self.store,
            engine=FeatureEngine(),
            rates=load_rates(),
            ids=LocalSchemaIds(),
            metrics=self.metrics,
        )

    def fails(self) -> str:
        """Run a worker until it fails; returns the error's words."""
        with pytest.raises(SourceChanged) as error:
            self.worker().run(Event())
        return str(error.value)

    @contextmanager
    def running(self) -> Iterator[list[BaseException]]:
        """Run a worker inside the block; yields the errors that end it."""
        errors: list[BaseException] = []
        stop, worker = Event(), self.worker()

        def run() -> None:
            try:
                worker.run(stop)
            except SourceChanged as error:
                errors.append(error)

        thread = Thread(target=run)
        thread.start()
        try:
            yield errors
        finally:
            stop.set()
            thread.join()

    def work_in(self) -> None:
        with self.running() as errors:
            wait_until_worked_in(self.settings, self.group)
            assert not errors

    def make_anew(self, name: str) -> None:
        admin, topic = AdminClient({"bootstrap.servers": self.settings.bootstrap}), self.settings.topic(name)
        admin.delete_topics([topic])[topic].result()
        wait_until(lambda: topic not in admin.list_topics(timeout=30).topics, "the topic is deleted", every_s=0.05)
        create_topics(self.settings, TopicSettings(partitions=2, repartition_partitions=2), ENTITIES)
        wait_until(lambda: topic in admin.list_topics(timeout=30).topics, "the topic is known", every_s=0.05)

    def profiles(self) -> dict[bytes, bytes]:
        return {key: value for entity in ENTITIES for key, value in self.store.scan(entity)}


def halves() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows = small_world()[0].slice(0, 600).to_pylist()
    return rows[:300], rows[300:]


def test_a_topic_made_anew_stops_the_worker_until_it_is_accepted(settings: KafkaSettings) -> None:
    """Its first payments have the offsets of payments that the profiles contain, and would be dropped as replays."""
    world, topics = World(settings), Topics(settings)
    before, after = halves()
    topics.send_payments(before)
    with world.running() as errors:
        wait_until_worked_in(settings, world.group)
        world.make_anew("payments")
        # A producer that has lost the old topic needs a new client to find the new one at once.
        Topics(settings).send_payments(after)
        wait_until(lambda: bool(errors), "the worker has noticed", every_s=0.05)
    line = world.fails()
    assert "deleted and created again" in line
    assert "`paywarden admin source --accept payments`" in line
    assert "\n" not in line
    assert_profiles_equal(
        world.profiles(), batch_profiles(small_world()[0].slice(0, 300), small_world()[1].slice(0, 0))
    )
    (accepted,) = accept(world.clients, world.readers, "payments")
    assert accepted.problem
    assert not any(state.problem for state in states(world.clients, world.readers))
    world.work_in()
    assert_profiles_equal(
        world.profiles(), batch_profiles(small_world()[0].slice(0, 600), small_world()[1].slice(0, 0))
    )
    # The next time is no different: offsets of the second generation are not those of the third.
    world.make_anew("payments")
    assert "deleted and created again" in world.fails()


def test_records_that_expired_before_they_were_read_are_counted(settings: KafkaSettings) -> None:
    world, topics = World(settings), Topics(settings)
    before, after = halves()
    topics.send_payments(before)
    world.work_in()
    topics.send_payments(after)
    # As if retention had overtaken a worker that was away.
    topic = settings.topic("payments")
    places = [TopicPartition(topic, partition, 0) for partition in (0, 1)]
    ends = {p.partition: world.clients.consumer(group_id="ends").get_watermark_offsets(p)[1] for p in places}
    for answer in world.clients.admin.delete_records(
        [TopicPartition(topic, partition, end) for partition, end in ends.items()]
    ).values():
        answer.result()
    world.work_in()
    name = "paywarden_stream_expired_records_total"
    assert world.registry.get_sample_value(name, {"topic": topic}) == 300


def test_a_changelog_made_anew_fills_the_mirror_anew(tmp_path: Path, settings: KafkaSettings) -> None:
    """Records of the old changelog that the companion had not read are only in the store."""
    world, topics = World(settings), Topics(settings)
    before, after = halves()
    fill = FillSource(look=lambda: LiveSet("", 0, None), open_store=lambda _: world.store)
    with Deployment(tmp_path, settings.bootstrap, settings.topic_prefix) as deployment:
        source = read_source(str(deployment.config))

        def mirrored() -> dict[bytes, bytes | None]:
            with wiring.companion(source, lambda _: None, fill=fill) as companion, running(companion):
                wait_until(lambda: not companion.health.problems(), "the mirror is complete", every_s=0.05)
            with closing(MirrorView(MirrorSettings(path=str(deployment.mirror), size_mb=256))) as mirror:
                return dict(mirror.read(world.profiles()))

        topics.send_payments(before)
        with world.running():
            wait_until_worked_in(settings, world.group)
            assert mirrored() == world.profiles()
            topics.send_payments(after)
            wait_until_worked_in(settings, world.group)
        world.make_anew("profiles")
        with world.running():
            assert mirrored() == world.profiles()


def test_the_commands_show_and_accept_changed_topics(tmp_path: Path, settings: KafkaSettings) -> None:
    with Deployment(tmp_path, settings.bootstrap, settings.topic_prefix) as deployment:
        deployment.create_topics()
        sets = LmdbSets(LmdbSettings(path=str(deployment.store)))
        known = {name: settings.topic(name) for name in ("payments", "outcomes", "decisions")}
        with closing(sets.open("")) as store:
            register = SourceRegister(
                store, SOURCES_KEY, {known["payments"]: "payments", known["outcomes"]: "outcomes"}
            )
            register.check({known["payments"]: "old-1", known["outcomes"]: "old-2"})
        with closing(sets.open_beside()) as store:
            SourceRegister(store, BESIDE_SOURCES_KEY, {known["decisions"]: "decisions"}).check(
                {known["decisions"]: "old-3"}
            )
        stream = deployment.start("stream")
        assert stream.process.wait(timeout=PATIENCE_S) == 1
        line = stream.log.read_text(encoding="utf-8").strip().splitlines()[-1]
        assert line.startswith(f"paywarden: topic {known['decisions']}: it was deleted and created again")
        shown = json.loads(deployment.run("admin", "source", "--json").stdout)
        changed = {state["topic"] for state in shown if state["problem"]}
        assert changed == set(known.values())
        done = deployment.run("admin", "source", "--accept", "payments", "outcomes", "decisions")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            f"{known['payments']} is accepted for profiles: generation 1",
            f"{known['outcomes']} is accepted for profiles: generation 1",
            f"{known['decisions']} is accepted for counts: generation 1",
        ]
        again = deployment.run("admin", "source", "--accept", "payments")
        assert again.returncode == 1
        assert (
            again.stderr.strip() == f"paywarden: topic {known['payments']} has not changed: there is nothing to accept"
        )
        started = deployment.start("stream")
        address = started.first_line()
        wait_until(lambda: is_ready(address), "the stream is ready", every_s=0.1)
        wait_until_worked_in(settings, f"{settings.topic_prefix}stream")
        assert started.stop() == 0


def test_a_topic_is_not_accepted_while_a_worker_runs(settings: KafkaSettings) -> None:
    world = World(settings)
    with world.running():
        # Empty topics are worked in before the worker has joined its group.
        wait_until(lambda: members_of(world.clients.admin, world.group) > 0, "the worker has joined", every_s=0.1)
        world.readers[0].register.note_cut(settings.topic("payments"), "partition 0 was read to offset 9 and ends at 4")
        with pytest.raises(Misconfigured, match=r"1 workers are in group .*: stop all stream workers first"):
            accept(world.clients, world.readers, "payments")


def test_another_cluster_gets_the_topics_of_a_rebuilt_profile_set(tmp_path: Path, settings: KafkaSettings) -> None:
    """`topics create` made those of the first set alone, and the message of each command said to run it again."""
    with Deployment(tmp_path, settings.bootstrap, settings.topic_prefix) as deployment:
        stores = wiring.set_stores(read_source(str(deployment.config)))
        with closing(ProfileSets(stores.open_register())) as sets:
            sets.create("b2", now_ms=1)
            sets.finish_swap(sets.begin_swap(sets.read(), "b2"))
        stores.open("b2").close()
        stores.open_beside().close()

        def run(*arguments: str) -> Result:
            return CliRunner().invoke(cli, ["--config", str(deployment.config), *arguments])

        assert run("topics", "create").exit_code == 0
        first = settings.topic("repartition-card.b2")
        assert f"topic {first} does not exist: run `paywarden topics create --live-set`" in str(
            run("admin", "source").exception
        )
        made = run("topics", "create", "--live-set")
        assert made.output.split() == sorted(settings.topic(repartition_topic(name, "b2")) for name in ENTITIES)
        assert first in run("admin", "source").output
        # The fault is reported before anything is accepted.
        refused = str(run("admin", "source", "--accept", "payments", "repartition-cart").exception)
        assert refused.startswith(
            "no offsets of a topic repartition-cart are stored; wanted one of decisions, outcomes"
        )
        # The name of the first set's topic stands for that of the live one.
        assert f"topic {first} has not changed" in str(run("admin", "source", "--accept", "repartition-card").exception)
