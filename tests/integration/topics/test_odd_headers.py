"""Headers whose names are not UTF-8, on a real Kafka: the stream, its agents, archive and histories go on."""

from __future__ import annotations

import asyncio
from contextlib import closing

from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.dead_letters.writer import NO_HEADERS, Letter, LetterReader
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.topic_rows import RowBuilder
from paywarden.streams.kafka.topic_rows import read_topic as topic_rows
from paywarden.streams.profiles.events import record_key
from tests.services.product.deployment import Deployment
from tests.services.product.processes import is_ready, samples, wait_until
from tests.services.servers.odd_headers import produce_odd
from tests.worlds.stream.topics import read_topic, small_world


def test_every_reader_of_a_topic_goes_on_past_odd_headers(deployment: Deployment, settings: KafkaSettings) -> None:
    ids = LocalSchemaIds()
    payments, outcomes = (table.to_pylist() for table in small_world()[:2])
    encoded = Encoder("payments", ids.id_of("payments")).encode(payments[0])
    # A payment that is good but for its header, one that is not, and the same of outcomes.
    sent = {
        "payments": [(b"k", encoded, True), (b"k", b"no payment", True)],
        "outcomes": [
            (b"k", Encoder("outcomes", ids.id_of("outcomes")).encode(outcomes[0]), True),
            (b"k", b"none", True),
        ],
        "decisions": [(b"k", b"no decision", True)],
    }
    for topic, records in sent.items():
        asyncio.run(produce_odd(settings.bootstrap, settings.topic(topic), *records))
    stream = deployment.start("stream")
    address = stream.first_line()
    wait_until(lambda: is_ready(address), "the stream is ready", every_s=0.1)
    wait_until(lambda: len(read_topic(settings, "dead-letters")) == 3, "the unusable records are letters", every_s=0.3)
    # Faust's agent counts the letters of the whole cluster.
    name = "paywarden_dead_letters_total"
    wait_until(lambda: samples(address).get((name, "payments", "record")) == 1, "the letters are counted", every_s=0.2)
    assert stream.stop() == 0
    with closing(LmdbStore.from_settings(LmdbSettings(path=str(deployment.store)), readonly=True)) as store:
        assert store.read([record_key(payments[0]["payment_id"])])[0] is not None
    with closing(LetterReader(settings, ids)) as reader:
        letters = [found for found in reader.all() if isinstance(found, Letter) and found.reason.endswith(NO_HEADERS)]
    wanted = [settings.topic("outcomes")] * 2 + [settings.topic("payments")]
    assert sorted(found.record.topic for found in letters) == wanted
    assert {found.record.value for found in letters} >= {b"no payment", b"none"}
    # Archive and histories read topics by this way.
    rows = topic_rows(settings, RowBuilder("payments", ids), since_ms=None, until_ms=None)
    assert (len(rows.table), len(rows.undecoded)) == (1, 1)
