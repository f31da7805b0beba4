"""Random declarations through a real Kafka, a real schema registry, the mirror and the endpoint: the same bits.

    payments, outcomes ─Avro─► topics ─► stream ─► store ─► changelog ─► companion ─► mirror ─► HTTP endpoint: vectors
            └──────────────► files ─► point-in-time pass, as training and replay make it: profiles, vectors
            └──────────────► plain features, from the list of events: vectors

Each declaration has fields, entities and features of its own (tests/worlds/stream/declarations.py). Then two payments
come that nobody has seen. The endpoint scores each of them on top of the same past, in JSON and in protobuf.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from paywarden.features.catalogue.attributes import Attribute, identity_column
from paywarden.features.catalogue.checks import columns_of
from paywarden.features.history.history import read_history, write_history
from paywarden.features.history.point_in_time import PointInTimeReplay
from paywarden.features.profiles.engine import FeatureEngine
from paywarden.features.stores.memory import MemoryStore
from paywarden.features.stores.profile_sets import LiveSet
from paywarden.models.policy.policy import Policy, PolicySettings, flags_of
from paywarden.schemas.avro import Encoder
from paywarden.schemas.payment_fields import TIME_BOUND_MS_MAX, Band, EmailDomain, Form
from paywarden.schemas.request_proto import request_class
from paywarden.scoring.engine import chunk_frame
from paywarden.scoring.engine.batching.batcher import AdmissionSettings
from paywarden.scoring.engine.model_chain import ModelChain
from paywarden.scoring.engine.scorer import PaymentScorer
from paywarden.scoring.metrics.shared_metrics import MetricsRegistry
from paywarden.scoring.metrics.worker_metrics import ScoringMetrics
from paywarden.scoring.requests import fast_requests
from paywarden.scoring.requests.validation import RequestLimits
from paywarden.scoring.state.identity_index import index_of
from paywarden.scoring.state.mirror_file import MirrorSettings
from paywarden.scoring.state.outbox import OutboxSettings
from paywarden.streams.companion.companion import Companion, CompanionSettings, FillSource, HostFiles
from paywarden.streams.kafka.admin import topics_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.producers import make_producer
from paywarden.streams.kafka.schemas.registry import RegistrySchemaIds, RegistrySettings
from paywarden.streams.kafka.schemas.remembered_schemas import KafkaRememberedSchemas
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from paywarden.streams.profiles.pipeline import Pipeline
from paywarden.streams.profiles.stream_settings import StreamSettings, stream_metrics
from tests.oracles.step_decoder import StepDecoder
from tests.parity.comparison import differing
from tests.parity.features_worlds import RATES
from tests.services.product.in_process import running
from tests.services.product.processes import wait_until
from tests.services.servers.kafka import KafkaServer
from tests.services.servers.registry import RegistryServer
from tests.worlds.endpoint.http_world import Served
from tests.worlds.small.even_chain import EvenChain, KeptEntries
from tests.worlds.stream.declarations import (
    KINDS,
    Declaration,
    DeclaredPayment,
    column_types,
    declarations,
    declared_payments,
    heard_histories,
)
from tests.worlds.stream.packed import without_sources
from tests.worlds.stream.topics import wait_until_worked_in

DECLARATIONS = 11
KINDS_EACH = 4
PROBES = 2
MINUTE_MS = 60_000


@dataclass(frozen=True)
class World:
    """A declaration, what was heard of its payments, and payments that come after all that."""

    declaration: Declaration
    heard: Sequence[tuple[DeclaredPayment, int | None]]
    probes: Sequence[DeclaredPayment]

    @property
    def past(self) -> list[DeclaredPayment]:
        return [payment for payment, weight in self.heard if weight is None]

    @property
    def outcomes(self) -> list[dict[str, Any]]:
        """Returns the outcomes in the order in which they become known."""
        return [
            {"payment_id": payment.values["payment_id"], "outcome_time_ms": known_ms, "label": label, "source": None}
            for payment, known_ms, label in self._labels()
        ]

    def _labels(self) -> list[tuple[DeclaredPayment, int, str]]:
        latest_ms, labels = 0, []
        for payment, weight in self.heard:
            # A label becomes known with the payment before it, and no later than the payment behind it.
            latest_ms = max(latest_ms, payment.time_ms)
            if weight is not None:
                labels.append((payment, latest_ms, "fraud" if weight > 0 else "genuine"))
        return labels


@st.composite
def worlds(draw: st.DrawFn, kinds: Sequence[str]) -> World:
    declaration = draw(declarations(fields_max=10, entities_max=4, features_max=8, kinds=kinds, hops_max=3))
    heard = draw(heard_histories(declaration, count_min=6, count_max=16))
    last_ms = max(payment.time_ms for payment, _ in heard)
    drawn = draw(declared_payments(declaration, count_min=PROBES, count_max=PROBES))
    probes = []
    for number, payment in enumerate(drawn):
        time_ms = last_ms + 1 + draw(st.integers(0, 2 * 24 * 60)) * MINUTE_MS
        values = {**payment.values, "payment_id": f"probe{number}", "event_time_ms": time_ms}
        # A request does not say whether its payment is declined.
        probes.append(DeclaredPayment({key: value for key, value in values.items() if key != "declined"}))
    return World(declaration, heard, probes)


def drawn_worlds() -> list[World]:
    """Returns DECLARATIONS different worlds, the same ones in every run, with every kind of field among them."""
    drawn = []
    for number in range(DECLARATIONS):
        kinds = [KINDS[(number * KINDS_EACH + place) % len(KINDS)] for place in range(KINDS_EACH)]
        # A domain is that of an e-mail address.
        drawn.append(drawn_world(number, ["email", *kinds] if "domain" in kinds else kinds))
    assert len({world.declaration.engine.plan.digest for world in drawn}) == DECLARATIONS
    return drawn


def drawn_world(number: int, kinds: Sequence[str]) -> World:
    drawn: list[World] = []

    @seed(number)
    @settings(max_examples=2, phases=[Phase.generate], database=None, derandomize=False)
    @given(world=worlds(kinds))
    def draw(world: World) -> None:
        drawn.append(world)

    draw()
    # The first one that is drawn is always the smallest there is.
    return drawn[-1]


def test_the_drawn_declarations_have_every_kind_of_field_each_kind_as_key_and_in_features() -> None:
    drawn = [world.declaration for world in drawn_worlds()]
    assert {kind_of(one) for declaration in drawn for one in declaration.payment.attributes} == set(KINDS)
    keys = {name for declaration in drawn for _, names in declaration.entities for name in names}
    of_keys = {kind_of(one) for declaration in drawn for one in declaration.payment.attributes if one.name in keys}
    assert of_keys >= {"text", "bin", "email", "network"}
    used = set[str]()
    for declaration in drawn:
        columns = set[int]().union(*(columns_of(feature.value) for feature in declaration.catalogue.features))
        used |= {
            kind_of(one)
            for one in declaration.payment.attributes
            if {one.column, identity_column(one.column)} & columns
        }
    assert used == set(KINDS)


def kind_of(one: Attribute) -> str:
    """Returns the word that declares an attribute."""
    if isinstance(one.derived, Band):
        return "band"
    if one.field is None:
        return "domain" if isinstance(one.derived, EmailDomain) else "network"
    if one.field.unit == "degrees":
        return "coordinates"
    if one.field.among:
        return "category"
    words = {Form.ID: "text", Form.EMAIL: "email", Form.INSTANT: "time"}
    return words.get(one.field.form) or one.field.form.name.lower()


def test_random_declarations_give_the_same_bits_through_every_process(
    kafka: KafkaServer, registry: RegistryServer, tmp_path: Path
) -> None:
    drawn = drawn_worlds()
    clusters = []
    for world in drawn:
        clusters.append(KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=f"r{uuid.uuid4().hex[:8]}-"))
        names = world.declaration.engine.plan.entity_names
        create_topics(clusters[-1], TopicSettings(partitions=1, repartition_partitions=1), names)
    # The broker hears of a topic from the controller, a moment after it is made.
    made = {cluster.topic("schemas") for cluster in clusters}
    wait_until(lambda: made <= topics_of(clusters[0]), "the broker knows all topics", every_s=0.1)
    # Most of the time is waiting for Kafka, so they wait together.
    with ThreadPoolExecutor(len(drawn)) as pool:
        folders = [tmp_path / str(number) for number in range(len(drawn))]
        all_stored = list(pool.map(through_kafka, clusters, repeat(registry), drawn, folders))
    for world, stored, folder in zip(drawn, all_stored, folders, strict=True):
        declaration = world.declaration
        _, profiles = point_in_time(declaration, world.past, world.outcomes, folder / "past")
        assert stored == profiles, declaration
        for probe, scored in zip(world.probes, at_the_endpoint(declaration, world.probes, folder), strict=True):
            heard = [*world.heard, (probe, None)]
            wanted = declaration.plain_vectors(heard)
            trained, _ = point_in_time(declaration, [*world.past, probe], world.outcomes, folder / "with")
            for found in (trained[-1:], *scored):
                assert list(differing(declaration.engine.plan.names, found, wanted[-1:])) == [], declaration


def point_in_time(
    declaration: Declaration, payments: Sequence[DeclaredPayment], outcomes: Sequence[Mapping[str, Any]], folder: Path
) -> tuple[np.ndarray, dict[bytes, bytes]]:
    """Returns the vectors, in order of time, and the profiles that are left, of a history in files."""
    fields = declaration.fields
    columns = {
        name: pa.array([payment.values.get(name) for payment in payments], kind)
        for name, kind in column_types(fields).items()
    }
    kinds = [("payment_id", pa.string()), ("outcome_time_ms", pa.int64()), ("label", pa.string())]
    table = pa.Table.from_pylist(list(outcomes), pa.schema([*kinds, ("source", pa.string())]))
    write_history(folder, pa.table(columns), table, fields)
    passage = PointInTimeReplay(read_history(folder, fields), declaration.engine, RATES)
    vectors = np.concatenate([chunk.vectors.copy() for chunk in passage.chunks()])
    passage.finish()
    profiles = {
        key: without_sources(state)
        for column, states in zip(passage.entities, passage.profiles, strict=True)
        for key, state in zip(column.store_keys(), states, strict=True)
        if state is not None
    }
    return vectors, profiles


def through_kafka(kafka: KafkaSettings, registry: RegistryServer, world: World, folder: Path) -> dict[bytes, bytes]:
    """Send what was heard, and work it in; returns the stored profiles. A companion copies them to the mirror."""
    declaration, store = world.declaration, MemoryStore()
    names = declaration.engine.plan.entity_names
    ids = RegistrySchemaIds(
        RegistrySettings(url=registry.url),
        KafkaRememberedSchemas(kafka),
        topic_prefix=kafka.topic_prefix,
        topics=("payments", "outcomes", "profiles", "decisions", "dead-letters"),
        fields=declaration.fields,
    )
    group = f"{kafka.topic_prefix}stream"
    stream = StreamSettings(group_id=group, past_ms_max=TIME_BOUND_MS_MAX, progress_every_ms=200)
    with closing(ids):
        worker = Pipeline(
            clients=KafkaClients.of(kafka),
            settings=stream,
            store=store,
            # An engine belongs to one thread.
            engine=FeatureEngine(declaration.catalogue),
            rates=RATES,
            ids=ids,
            metrics=stream_metrics(stream, names, CollectorRegistry()),
        )
        companion = Companion(
            clients=KafkaClients.of(kafka),
            settings=CompanionSettings(fill_from_store=False, stop_timeout_s=2),
            files=HostFiles(
                mirror_of(folder),
                OutboxSettings(directory=str(folder / "outbox")),
                index=index_of(declaration.engine.plan),
            ),
            ids=ids,
            entities=names,
            fill=FillSource(look=lambda: LiveSet("", 0, None), open_store=lambda _: store),
        )
        with running(companion), running(worker):
            payments, outcomes = ([one.values for one in world.past], world.outcomes)
            for topic, records in (("payments", payments), ("outcomes", outcomes)):
                send(kafka, ids, topic, records)
                wait_until_worked_in(kafka, group, entities=names)
            stored = {key: without_sources(state) for name in names for key, state in store.scan(name)}
            wait_until(
                lambda: companion.profiles_applied >= len(stored) and not companion.health.problems(),
                "the companion has copied all profiles",
                every_s=0.05,
            )
            # Progress that is behind all changes: every change before it is in the mirror.
            behind_ms = companion.health.complete_to_ms
            wait_until(lambda: companion.health.complete_to_ms > behind_ms, "progress is copied", every_s=0.05)
    return stored


def send(kafka: KafkaSettings, ids: RegistrySchemaIds, topic: str, records: Sequence[Mapping[str, Any]]) -> None:
    producer = make_producer(kafka, linger_ms=5)
    encoder = Encoder(topic, ids.id_of(topic), schema=ids.current_schema(topic))
    for record in records:
        producer.produce(kafka.topic(topic), encoder.encode(dict(record)), key=record["payment_id"].encode())
    assert producer.flush(120) == 0


def mirror_of(folder: Path) -> MirrorSettings:
    return MirrorSettings(path=str(folder / "mirror"), size_mb=16)


def at_the_endpoint(
    declaration: Declaration, probes: Sequence[DeclaredPayment], folder: Path
) -> list[list[np.ndarray]]:
    """Returns for each probe its vectors as the endpoint scored them: asked in JSON, and in protobuf."""
    for warm_up in (fast_requests.warm_up, chunk_frame.warm_up):
        warm_up()
    engine, outbox = FeatureEngine(declaration.catalogue), KeptEntries()
    engine.warm_up()
    plan = engine.plan
    limits = RequestLimits(past_ms_max=TIME_BOUND_MS_MAX, future_ms_max=TIME_BOUND_MS_MAX)
    intake = StepDecoder(plan, RATES, limits)
    scorer = PaymentScorer(
        engine=engine,
        intake=intake,
        models=cast(ModelChain, EvenChain()),
        policy=Policy(PolicySettings(), review_at=0.9, decline_at=0.95),
        mirror=mirror_of(folder),
        outbox=outbox,
        metrics=ScoringMetrics.declare(
            MetricsRegistry(), flags=flags_of(plan.entity_names), entities=plan.entity_names
        ),
    )
    unhurried = AdmissionSettings(deadline_ms=60_000, wait_ms_max=60_000)
    served = Served(scorer=scorer, intake=intake, admission=unhurried)
    try:
        with served.connected() as client:
            for probe in probes:
                message = request_class(declaration.fields)(**probe.values)
                for kind, body in (
                    ("json", json.dumps(probe.values).encode()),
                    ("x-protobuf", message.SerializeToString()),
                ):
                    head = f"POST /v1/score HTTP/1.1\r\nHost: h\r\nContent-Type: application/{kind}\r\n"
                    reply = client.ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                    assert reply.status == 200, reply.body
    finally:
        served.begin_stop()
        served.join()
    vectors = [np.frombuffer(entry.vector, dtype="<f4")[np.newaxis] for entry in outbox.entries]
    return [vectors[2 * number : 2 * number + 2] for number in range(len(probes))]
