"""A declaration with every kind of field through a real Kafka and a real schema registry.

    payments in Avro ─► stream ─► profiles = those of the archive = those of files with the addresses themselves

No e-mail address reaches a profile, a key, a frame, the changelog or an archive.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry

from paywarden.features.catalogue import fields as words
from paywarden.features.catalogue.attributes import Attribute, Condition, ip
from paywarden.features.catalogue.entity import Catalogue, Entity
from paywarden.features.catalogue.identity import LAPTOP_KEY, IdentityKey
from paywarden.features.history.history import History, history_of_tables
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.profiles.money import load_rates
from paywarden.features.stores.memory import MemoryStore
from paywarden.schemas.avro import Decoder, Encoder
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.archive.archive import Archiver
from paywarden.streams.archive.topic_history import archived_rows, history_of_rows
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.kafka.schemas.registry import RegistrySchemaIds, RegistrySettings
from paywarden.streams.kafka.schemas.remembered_schemas import KafkaRememberedSchemas
from paywarden.streams.kafka.topic_names import repartition_topic
from paywarden.streams.kafka.topic_rows import KafkaTopic
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from paywarden.streams.profiles.pipeline import Pipeline
from paywarden.streams.profiles.settings import StreamSettings, stream_metrics
from tests.services.product.in_process import running
from tests.services.servers.registry import RegistryServer
from tests.worlds.stream.declarations import column_types
from tests.worlds.stream.packed import without_sources
from tests.worlds.stream.topics import read_topic, wait_until_worked_in

KEY = IdentityKey.of_bytes(b"of this test's  ")
MAIL, DELIVERY = words.email("mail", 5), words.address("delivery", 4)
CUSTOMER, PRODUCT = words.text("customer", 1, required=True, personal=True), words.category("product", 2, ["book"])
ISSUER, BILLING = words.bin_number("issuer", 3), words.country("billing", 6)
DAYS, WEIGHT = words.integer("days", 7, unit="days", least=0), words.decimal("weight", 8, unit="kg", least=0, most=99)
TIP, OPENED, GIFT = words.money("tip", 9), words.time("opened", 10), words.flag("gift", 11)
NEAR, DOMAIN = words.network("near", 14, of=ip), words.email_domain("domain", 15, of=MAIL)
PAYMENT = words.Payment(
    CUSTOMER, PRODUCT, ISSUER, DELIVERY, MAIL, BILLING, DAYS, WEIGHT, TIP, OPENED, GIFT, words.coordinates("home", 12),
    NEAR, DOMAIN,
)  # fmt: skip
KEYS: dict[str, str | tuple[str, ...]] = {
    "card": "card_id", "customer": "customer", "mail": "mail", "near": "near", "pair": ("issuer", "domain"),
}  # fmt: skip
ENTITIES = tuple(Entity(name, key=key) for name, key in KEYS.items())
NAMES = tuple(entity.name for entity in ENTITIES)
QUESTIONS: tuple[Condition | Attribute, ...] = (
    GIFT,
    WEIGHT >= 1.5,
    DAYS < 30,
    TIP >= 100,
    PRODUCT == "book",
    BILLING == "DE",
    OPENED >= 1_700_000_000_000,
)
FEATURES = [
    feature
    for entity in ENTITIES
    for feature in (
        *(entity.count(f"{entity.name}_{n}", "1d", where=where) for n, where in enumerate(QUESTIONS)),
        entity.fraud_count(f"{entity.name}_frauds", "1d", delay="", where=WEIGHT >= 1.5),
        *(entity.distinct(f"{entity.name}_{of.name}", of, "1d") for of in (CUSTOMER, MAIL, DOMAIN, NEAR, DELIVERY)),
    )
]
CATALOGUE = Catalogue(ENTITIES, FEATURES, PAYMENT)


def payments(last_ms: int) -> list[dict[str, Any]]:
    return [
        {
            "payment_id": f"p{n}", "event_time_ms": last_ms - 40 + n, "card_id": f"k{n % 3}", "merchant_id": "m",
            "ip": ("192.0.2.7", "2001:db8::7", None)[n % 3], "amount_minor": 100 + n,
            "currency": ("EUR", "JPY")[n % 2], "customer": f"customer-{n % 4}", "product": ("book", "toy", None)[n % 3],
            "issuer": ("411111", None)[n % 2], "delivery": ("10.0.0.1", "::1")[n % 2],
            "mail": ("ann@example.com", "Ann@Example.COM", "bob@example.org", None)[n % 4],
            "billing": ("DE", "FR")[n % 2], "days": n, "weight": n / 8, "tip": (7 * n, None)[n % 2],
            "opened": last_ms - n * 86_400_000, "gift": n % 2 == 0, "home_latitude": 48.1, "home_longitude": -n / 7,
        }
        for n in range(40)
    ]  # fmt: skip


@pytest.fixture
def ids(settings: KafkaSettings, registry: RegistryServer) -> Iterator[RegistrySchemaIds]:
    create_topics(settings, TopicSettings(partitions=2, repartition_partitions=2), NAMES)
    made = RegistrySchemaIds(
        RegistrySettings(url=registry.url),
        KafkaRememberedSchemas(settings),
        topic_prefix=settings.topic_prefix,
        topics=("payments", "outcomes", "profiles", "dead-letters"),
        fields=PAYMENT.fields,
    )
    with closing(made):
        yield made


def send(settings: KafkaSettings, ids: RegistrySchemaIds, topic: str, records: Iterable[dict[str, Any]]) -> None:
    producer = make_producer(settings, linger_ms=5)
    encoder = Encoder(topic, ids.id_of(topic), schema=ids.current_schema(topic))
    for record in records:
        producer.produce(settings.topic(topic), encoder.encode(record), key=record["payment_id"].encode())
    assert producer.flush(120) == 0


def profiles_of(engine: FeatureEngine, history: History) -> dict[bytes, bytes]:
    passage = PointInTimeReplay(history, engine, load_rates())
    for _ in passage.chunks():
        pass
    passage.finish()
    return {
        key: without_sources(state)
        for column, states in zip(passage.entities, passage.profiles, strict=True)
        for key, state in zip(column.store_keys(), states, strict=True)
        if state is not None
    }


def test_declared_fields_are_the_same_in_the_stream_in_archives_and_in_files(
    settings: KafkaSettings, ids: RegistrySchemaIds, tmp_path: Path
) -> None:
    engine, store = FeatureEngine(CATALOGUE, KEY), MemoryStore()
    rows = payments(time.time_ns() // 1_000_000 - 1_000)
    frauds = [
        {"payment_id": row["payment_id"], "outcome_time_ms": row["event_time_ms"] + 60, "label": "fraud"}
        for row in rows[::3]
    ]
    stream = StreamSettings(group_id=f"{settings.topic_prefix}stream")
    worker = Pipeline(
        clients=KafkaClients.of(settings),
        settings=stream,
        store=store,
        engine=engine,
        rates=load_rates(),
        ids=ids,
        metrics=stream_metrics(stream, engine.plan.entity_names, CollectorRegistry()),
    )
    with running(worker):
        send(settings, ids, "payments", [*rows, {**rows[0], "payment_id": "without", "customer": None}])
        wait_until_worked_in(settings, stream.group_id, entities=NAMES)
        send(settings, ids, "outcomes", frauds)
        wait_until_worked_in(settings, stream.group_id, entities=NAMES)
    stored = {key: state for name in NAMES for key, state in store.scan(name)}
    assert len({key.partition(b":")[0] for key in stored}) == len(ENTITIES)

    letters = [
        Decoder("dead-letters", ids).decode(record.value or b"") for record in read_topic(settings, "dead-letters")
    ]
    assert [letter["reason"].split(";")[0] for letter in letters] == ["customer: is missing or empty"]

    for topic in ("payments", "outcomes"):
        with closing(KafkaTopic(settings, topic)) as source:
            archiver = Archiver(source, ids, topic, tmp_path, fields=PAYMENT.fields, key=KEY)
            archiver.run(archiver.wanted(None, None), Event(), lambda _: None)
    archived = archived_rows(tmp_path, fields=PAYMENT.fields, key=KEY)
    of_archive, left_out = history_of_rows(*archived, fields=PAYMENT.fields)
    assert list(left_out.counts) == ["payments that the stream refuses: customer is missing"]
    found = {key: without_sources(state) for key, state in stored.items()}
    assert found == profiles_of(engine, of_archive)
    assert found == profiles_of(engine, history_of_tables(*tables_of(rows, frauds), PAYMENT.fields))

    with pytest.raises(Misconfigured, match="another identity key made its hashes of e-mail addresses"):
        archived_rows(tmp_path, fields=PAYMENT.fields, key=LAPTOP_KEY)
    names = ("profiles", *(repartition_topic(name, "") for name in NAMES))
    records = [record for name in names for record in read_topic(settings, name)]
    kept = [*stored, *stored.values(), *(part for record in records for part in (record.key, record.value) if part)]
    kept += [value for _, value in store.scan("payment")]
    kept.append(repr(archived[0].table.to_pylist()).encode())
    assert not any(word in part.lower() for part in kept for word in (b"ann@", b"example"))


def tables_of(rows: list[dict[str, Any]], frauds: list[dict[str, Any]]) -> tuple[pa.Table, pa.Table]:
    kinds = column_types(PAYMENT.fields)
    table = pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()})
    outcomes = pa.Table.from_pylist(frauds).append_column("source", pa.nulls(len(frauds), pa.string()))
    return table, outcomes
