"""The log of rollouts on its topic: each event once, however often it is published, and never the salt."""

from __future__ import annotations

import json

from paywarden.models.rollout.judgement import Finding
from paywarden.models.rollout.rollout import EventKind
from paywarden.schemas.avro import Decoder, Encoder, LocalSchemaIds
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import make_consumer, records_to_end
from paywarden.streams.rollouts.topic import ROLLOUTS_TOPIC, publish, rollout_records
from tests.patience import PATIENCE_S
from tests.unit.models.rollout.test_rollout import event, look, start_of

IDS = LocalSchemaIds()
EVENTS = [event(EventKind.STARTED, start=start_of()), event(EventKind.READY, 1), look(Finding.HARM, 2)]


def test_a_record_says_where_the_rollout_was_and_keeps_the_salt() -> None:
    encoder, decoder = Encoder(ROLLOUTS_TOPIC, IDS.id_of(ROLLOUTS_TOPIC)), Decoder(ROLLOUTS_TOPIC, IDS)
    read = [decoder.decode(encoder.encode(record)) for record in rollout_records(EVENTS)]
    assert [(one["number"], one["phase"], one["share"], one["finding"]) for one in read] == [
        (1, "pending", 0.0, None),
        (2, "running", 0.1, None),
        (3, "rolled_back", 0.0, "harm"),
    ]
    assert json.loads(read[0]["event"])["start"]["plan"]["alpha"] == 0.05
    assert all(start_of().salt not in one["event"] for one in read)


def test_an_event_is_published_once_and_what_is_no_record_hinders_nothing() -> None:
    broker = EmbeddedBroker()
    kafka = KafkaSettings(bootstrap=broker.bootstrap)
    sender = Sender(kafka, linger_ms=0)
    sender.send(ROLLOUTS_TOPIC, b"nothing", key=b"r-0", partition=0)
    sender.flush(PATIENCE_S)
    told: list[str] = []
    assert [publish(kafka, IDS, EVENTS[:count], told.append) for count in (2, 2, 3)] == [2, 0, 1]
    assert told == []
    consumer = make_consumer(kafka, group_id="test")
    batches = list(records_to_end(consumer, ROLLOUTS_TOPIC, [0]))
    consumer.close()
    broker.close()
    assert len([record for records in batches for record in records]) == 4
