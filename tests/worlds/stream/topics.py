"""Helpers for tests of the stream: send records as a payment system does, and compare the results."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from paywarden.features.datasets.simulator import simulate
from paywarden.features.history.history import history_of_tables
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.aerospike.store import AerospikeSettings, AerospikeStore
from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.streams.kafka.admin import end_offsets, partitions_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.kafka.reading import Record, make_consumer, records_to_end
from paywarden.streams.kafka.topic_names import repartition_topic
from paywarden.streams.profiles.progress.watermarks import PREFIX
from tests.patience import PATIENCE_S
from tests.services.product.processes import wait_until
from tests.worlds.stream.packed import without_sources

ENTITIES = ("card", "merchant", "device")


class Topics:
    """Writes payments and outcomes as payment systems do."""

    def __init__(self, settings: KafkaSettings) -> None:
        ids = LocalSchemaIds()
        self._settings = settings
        self._producer: Producer = make_producer(settings, linger_ms=5)
        self._payments = Encoder("payments", ids.id_of("payments"))
        self._outcomes = Encoder("outcomes", ids.id_of("outcomes"))

    def send_payment(self, row: dict[str, Any]) -> None:
        self._send("payments", self._payments.encode(row), row["card_id"].encode())

    def send_outcome(self, row: dict[str, Any]) -> None:
        self._send("outcomes", self._outcomes.encode(row), row["payment_id"].encode())

    def send_payments(self, rows: Iterable[dict[str, Any]]) -> None:
        """Send all payments. Returns when they are acknowledged."""
        for row in rows:
            self.send_payment(row)
        self.flush()

    def send_outcomes(self, rows: Iterable[dict[str, Any]]) -> None:
        """Send all outcomes. Returns when they are acknowledged."""
        for row in rows:
            self.send_outcome(row)
        self.flush()

    def _send(self, topic: str, value: bytes, key: bytes) -> None:
        while True:
            try:
                self._producer.produce(self._settings.topic(topic), value, key=key)
            except BufferError:
                # On a busy machine the broker accepts records more slowly than the test makes them.
                self._producer.poll(0.1)
            else:
                return

    def send_bytes(self, topic: str, value: bytes | None, key: bytes) -> None:
        self._producer.produce(self._settings.topic(topic), value, key=key, headers=[("trace", b"\x00\x01")])

    def flush(self) -> None:
        assert self._producer.flush(120) == 0


def letter(settings: KafkaSettings, topic: str, reason: str, failed_time_ms: int) -> bytes:
    """Returns a dead letter of ours, as it is on its topic."""
    ids = LocalSchemaIds()
    record: dict[str, Any] = {
        "topic": settings.topic(topic),
        "partition": 0,
        "offset": 7,
        "key": b"card-1",
        "value": b"secret",
        "reason": reason,
        "failed_time_ms": failed_time_ms,
    }
    return Encoder("dead-letters", ids.id_of("dead-letters")).encode(record)


def small_world() -> tuple[pa.Table, pa.Table]:
    return simulate(cards=60, days=20, seed=3)


def batch_profiles(payments: pa.Table, outcomes: pa.Table) -> dict[bytes, bytes]:
    """Returns the profiles that the batch path makes of a history."""
    engine = FeatureEngine()
    history = history_of_tables(payments, outcomes)
    passage = PointInTimeReplay(history, engine, load_rates())
    for _ in passage.chunks():
        pass
    passage.finish()
    return {
        f"{name}:{identity}".encode(): state
        for entity, name in enumerate(engine.plan.entity_names)
        for identity, state in zip(getattr(history, name).names.to_pylist(), passage.profiles[entity], strict=True)
        if state is not None
    }


def read_store(path: Path) -> dict[bytes, bytes]:
    """Returns the profiles by their keys."""
    store = LmdbStore.from_settings(LmdbSettings(path=str(path)), readonly=True)
    found = {key: value for entity in ENTITIES for key, value in store.scan(entity)}
    store.close()
    return found


def read_aerospike(address: str) -> dict[bytes, bytes]:
    """Returns the profiles of a server at `host:port` by their keys."""
    store = AerospikeStore(AerospikeSettings(hosts=(address,)))
    found = {key: value for entity in ENTITIES for key, value in store.scan(entity)}
    store.close()
    return found


def read_changelog(settings: KafkaSettings) -> dict[bytes, bytes]:
    """Returns the last state of each key that is not erased."""
    return {key: state for key, state in read_last(settings).items() if state is not None}


def read_last(settings: KafkaSettings) -> dict[bytes, bytes | None]:
    """Returns the last record of each key of the changelog, as compaction leaves it: its state, or None if erased."""
    decoder = Decoder("profiles", LocalSchemaIds())
    last: dict[bytes, bytes | None] = {}
    for record in read_topic(settings, "profiles"):
        assert record.key is not None
        if not record.key.startswith(PREFIX):
            last[record.key] = None if record.value is None else decoder.decode(record.value)["state"]
    return last


def read_topic(settings: KafkaSettings, name: str) -> list[Record]:
    """Returns all records that are on a topic now."""
    with closing(make_consumer(settings, group_id="reader")) as consumer:
        batches = records_to_end(consumer, settings.topic(name), partitions_of(settings, name))
        return [record for batch in batches for record in batch]


class Lag:
    """Asks how many payments and outcomes a group has not committed: with one client, however often it is asked.

    It keeps to the partitions that there are when it is made.
    """

    def __init__(self, settings: KafkaSettings, group: str) -> None:
        self._consumer: Consumer = make_consumer(settings, group_id=group)
        self._partitions = {settings.topic(name): partitions_of(settings, name) for name in ("payments", "outcomes")}

    def ask(self) -> int:
        return sum(
            _behind(self._consumer, topic, end_offsets(self._consumer, topic, partitions))
            for topic, partitions in self._partitions.items()
        )

    def close(self) -> None:
        self._consumer.close()


def lag(settings: KafkaSettings, group: str) -> int:
    """Returns the number of payments and outcomes that the group has not committed."""
    with closing(Lag(settings, group)) as behind:
        return behind.ask()


def wait_until_left(
    settings: KafkaSettings,
    group: str,
    count: int,
    what: str,
    *,
    timeout_s: float = PATIENCE_S,
    every_s: float = 0.05,
) -> None:
    """Wait until the group has not committed at most this many payments and outcomes."""
    with closing(Lag(settings, group)) as behind:
        wait_until(lambda: behind.ask() <= count, what, timeout_s=timeout_s, every_s=every_s)


def wait_until_worked_in(
    settings: KafkaSettings,
    group: str,
    what: str = "all",
    timeout_s: float = PATIENCE_S,
    profile_set: str = "",
    entities: Iterable[str] = ENTITIES,
) -> None:
    """Wait until every record has been read, and every event that it caused is in its profile."""
    wait_until_left(settings, group, 0, f"{what} worked in", timeout_s=timeout_s, every_s=0.1)
    # Frames that only report progress never stop. The frames that are there now are enough.
    consumer: Consumer = make_consumer(settings, group_id=group)
    names = [repartition_topic(entity, profile_set) for entity in entities]
    ends = {n: end_offsets(consumer, settings.topic(n), partitions_of(settings, n)) for n in names}
    wait_until(
        lambda: sum(_behind(consumer, settings.topic(name), of_topic) for name, of_topic in ends.items()) == 0,
        f"events of {what} worked in",
        timeout_s=timeout_s,
        every_s=0.1,
    )
    consumer.close()


def _behind(consumer: Consumer, topic: str, ends: Mapping[int, int]) -> int:
    committed = _committed(consumer, [TopicPartition(topic, partition) for partition in ends])
    return sum(max(0, ends[place.partition] - max(0, place.offset)) for place in committed)


def _committed(consumer: Consumer, wanted: list[TopicPartition]) -> list[TopicPartition]:
    """Returns the committed offsets. Retries while a young broker still looks for the group's coordinator."""
    for _ in range(50):
        try:
            return consumer.committed(wanted, timeout=PATIENCE_S)
        except KafkaException:
            time.sleep(0.2)
    raise AssertionError("Kafka does not report the committed offsets")


def assert_profiles_equal(got: dict[bytes, bytes], wanted: dict[bytes, bytes]) -> None:
    assert got.keys() == wanted.keys()
    differing = [key for key in wanted if without_sources(got[key]) != without_sources(wanted[key])]
    assert not differing, f"{len(differing)} of {len(wanted)} profiles differ"
