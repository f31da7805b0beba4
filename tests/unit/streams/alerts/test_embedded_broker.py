"""The topics of alerts on the embedded broker: it makes topics of several partitions, and knows no times of records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka import Producer

from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.alerts.alert_events import COMMENTED, EVENTS_TOPIC, ConsoleEvent, EventWriter, alert_subject
from paywarden.streams.alerts.alert_records import ACKNOWLEDGEMENTS_TOPIC, Acknowledgement
from paywarden.streams.alerts.feed import AlertFeed, FeedRecord
from paywarden.streams.alerts.samples import DECISIONS_TOPIC, DecisionSampler
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from tests.patience import PATIENCE_S
from tests.worlds.drift.alerts_on_topics import NOW_MS
from tests.worlds.stream.decision_records import decision

IDS = LocalSchemaIds()


@pytest.fixture(scope="module")
def kafka() -> Iterator[KafkaSettings]:
    broker = EmbeddedBroker()
    yield KafkaSettings(bootstrap=broker.bootstrap)
    broker.close()


def test_every_act_of_people_is_read(kafka: KafkaSettings) -> None:
    """Acts whose keys led to another partition than the first were never seen, while the page said that they were."""
    writer = EventWriter(kafka, IDS)
    for number in range(5):
        writer.write(ConsoleEvent(alert_subject(f"a{number}"), COMMENTED, "anna", NOW_MS, {"note": "seen"}))
        writer.write(Acknowledgement(f"a{number}", NOW_MS, "anna"))
    records: list[FeedRecord] = []
    with closing(AlertFeed(kafka, IDS)) as feed:
        feed.start({})
        batch = feed.read()
        while not batch.is_at_end:
            records += batch.records
            batch = feed.read()
        records += batch.records
    for topic in (EVENTS_TOPIC, ACKNOWLEDGEMENTS_TOPIC):
        assert [one.offset for one in records if one.topic == topic] == list(range(5))


def test_decisions_between_two_times_are_found(kafka: KafkaSettings) -> None:
    encoder = Encoder(DECISIONS_TOPIC, IDS.id_of(DECISIONS_TOPIC))
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for number in range(9):
        value = encoder.encode(decision(f"p{number}", decided_time_ms=NOW_MS + 10 * number))
        producer.produce(DECISIONS_TOPIC, value, partition=1)
    assert producer.flush(PATIENCE_S) == 0
    with closing(DecisionSampler(kafka, IDS)) as sampler:
        found = [one["payment_id"] for one in sampler.between(NOW_MS + 15, NOW_MS + 50)]
        # The times of the first and the last record, of none, and of all.
        for first, last, wanted in ((0, 0, 0), (0, 1, 1), (80, 81, 1), (81, 99, 0), (-9, 999, 9), (-9, -1, 0)):
            assert len(sampler.between(NOW_MS + first, NOW_MS + last)) == wanted, (first, last)
    assert found == ["p2", "p3", "p4"]
