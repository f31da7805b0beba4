"""A challenger's decisions on a real broker: each live decision has a partner there, and the report joins them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from paywarden.features.profiles.money import load_rates
from paywarden.models.metrics.costs import CostSettings
from paywarden.models.rollout.shadow import SHADOW_TOPIC
from paywarden.ops.wiring import shadow_tables
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.settings import Source
from paywarden.streams.companion.cursors import HostIdentity
from paywarden.streams.companion.shipment import ShippingOptions
from paywarden.streams.companion.shipping import shipper_of
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.clients import KafkaClients
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from paywarden.streams.shadow.report import shadow_report
from paywarden.streams.shadow.shadow_evaluation import ShadowEvaluator
from paywarden.streams.shadow.shadow_settings import ShadowSettings
from tests.services.product.processes import wait_until
from tests.services.servers.kafka import KafkaServer
from tests.unit.streams.shadow.test_evaluation import FakeSource, World


@pytest.fixture
def kafka_settings(kafka: KafkaServer, topic_prefix: str) -> KafkaSettings:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix=topic_prefix)
    create_topics(settings, TopicSettings(partitions=2), [])
    return settings


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for writer in made.writers.values():
        writer.close()


def test_each_live_decision_has_a_partner_on_the_topic_and_in_the_report(
    world: World, kafka_settings: KafkaSettings
) -> None:
    clients, ids = KafkaClients.of(kafka_settings), LocalSchemaIds()
    evaluator = ShadowEvaluator(
        "b-42",
        FakeSource(["b1"]),
        outbox=world.outbox,
        settings=replace(ShadowSettings(), batch_wait_ms=1, cpu_share_max=1.0),
        sender=clients.sender(linger_ms=5),
        topic=clients.topic(SHADOW_TOPIC),
        encoder=Encoder(SHADOW_TOPIC, ids.id_of(SHADOW_TOPIC)),
    )
    evaluator.look_around()
    world.decide(*(f"p{number}" for number in range(300)))
    stop = Event()

    def tell(status: dict[str, Any]) -> None:
        if status["evaluated"] == 300 and status["waiting_bytes"] == 0:
            stop.set()

    evaluator.run(stop, tell)
    # The companion ships all decisions, that of before the challenger began among them.
    identity = HostIdentity(Path(world.outbox.directory))
    encoder = Encoder("decisions", ids.id_of("decisions"))
    shipper = shipper_of(world.outbox, clients, identity, encoder=encoder, options=ShippingOptions())

    def is_shipped() -> bool:
        shipper.find_workers()
        shipper.advance()
        return shipper.shipped == 301

    wait_until(is_shipped, "all decisions are shipped")
    identity.close()
    kafka = {"bootstrap": kafka_settings.bootstrap, "topic_prefix": kafka_settings.topic_prefix}
    shadow, decisions, outcomes = shadow_tables(Source({"kafka": kafka}, {}), None, None, None)
    assert (len(shadow), len(decisions), len(outcomes)) == (300, 301, 0)
    assert sorted(shadow["decision_id"].to_pylist()) == sorted(f"d-p{number}" for number in range(300))
    # The outbox of this test has no currencies, which every payment has.
    decisions = decisions.set_column(decisions.column_names.index("currency"), "currency", [["EUR"] * 301])
    made = shadow_report(shadow, decisions, outcomes, rates=load_rates(), costs=CostSettings())
    (pair,) = made.pairs
    assert (pair.comparison.payments, made.without_decision) == (300, 0)
    assert pair.comparison.agreement.payments == [[0, 0, 300], [0, 0, 0], [0, 0, 0]]
