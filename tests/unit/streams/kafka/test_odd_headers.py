"""Records whose headers have names that are not UTF-8, on the embedded broker: each reader of topics goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing

import pytest

from paywarden.schemas.avro import LocalSchemaIds
from paywarden.streams.dead_letters.writer import NO_HEADERS, DeadLetters, Letter, LetterReader
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.embedded_broker import EmbeddedBroker
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.reading import Record, make_consumer, records_to_end
from tests.patience import PATIENCE_S
from tests.services.servers.odd_headers import produce_odd


@pytest.fixture(scope="module")
def settings() -> Iterator[KafkaSettings]:
    broker = EmbeddedBroker()
    yield KafkaSettings(bootstrap=broker.bootstrap)
    broker.close()


def read(settings: KafkaSettings, topic: str) -> list[Record]:
    with closing(make_consumer(settings, group_id="test")) as consumer:
        return [record for records in records_to_end(consumer, topic, [0]) for record in records]


def test_records_with_odd_headers_are_read_with_key_and_value(settings: KafkaSettings) -> None:
    # Many: the interpreter calls a method another way once it has called it a few times, and that way is not safe.
    sent = [(b"k%d" % number, b"v%d" % number, number % 2 == 1) for number in range(200)]
    asyncio.run(produce_odd(settings.bootstrap, "payments", *sent))
    records = read(settings, "payments")
    assert [(record.key, record.value, record.headers is None) for record in records] == sent
    assert list(records[0].headers or ()) == [("trace", b"1")]


def test_a_dead_letter_without_its_headers_says_so_and_has_the_rest(settings: KafkaSettings) -> None:
    asyncio.run(produce_odd(settings.bootstrap, "outcomes", (b"p1", b"no outcome", True)))
    (record,) = read(settings, "outcomes")
    ids, sender = LocalSchemaIds(), Sender(settings, linger_ms=0)
    DeadLetters(sender, settings, ids).send(record, "label: is not known", 7)
    sender.flush(PATIENCE_S)
    with closing(LetterReader(settings, ids)) as reader:
        (letter,) = reader.all()
    assert isinstance(letter, Letter)
    assert (letter.record.key, letter.record.value, letter.record.headers) == (b"p1", b"no outcome", [])
    assert (letter.record.topic, letter.record.offset) == ("outcomes", record.offset)
    assert letter.reason == f"label: is not known{NO_HEADERS}"
