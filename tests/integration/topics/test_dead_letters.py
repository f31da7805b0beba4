"""Dead letters on a real Kafka: shown, sent back and worked in. Each record comes back with the same bytes."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from paywarden.features.datasets.simulator import simulate
from paywarden.features.stores.lmdb import LmdbSettings, LmdbStore
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.streams.dead_letters.writer import DeadLetters
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender, make_producer
from paywarden.streams.kafka.reading import Record
from paywarden.streams.profiles.events import record_key
from tests.patience import PATIENCE_S
from tests.services.product.deployment import Deployment
from tests.services.product.processes import wait_until
from tests.worlds.stream.topics import read_topic

IDS = LocalSchemaIds()


def produce(settings: KafkaSettings, name: str, value: bytes | None, **more: Any) -> None:
    producer: Producer = make_producer(settings, linger_ms=0)
    producer.produce(settings.topic(name), value, **more)
    assert producer.flush(PATIENCE_S) == 0


def send_letters(settings: KafkaSettings, *records: Record) -> None:
    sender = Sender(settings, linger_ms=0)
    letters = DeadLetters(sender, settings, IDS)
    for record in records:
        letters.send(record, "payment_id: is broken", 1_700_000_000_000)
    sender.flush(PATIENCE_S)


def command(deployment: Deployment, *arguments: str) -> tuple[int, str, str]:
    done = deployment.run("admin", "dead-letters", *arguments)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def shown(deployment: Deployment, *arguments: str) -> dict[str, Any]:
    code, said, logged = command(deployment, "--json", *arguments)
    assert code == 0, logged
    found: dict[str, Any] = json.loads(said)
    return found


def stored(deployment: Deployment, key: bytes) -> bytes | None:
    if not (deployment.store / "data.mdb").exists():
        return None
    with closing(LmdbStore.from_settings(LmdbSettings(path=str(deployment.store)), readonly=True)) as store:
        (value,) = store.read([key])
        return value


def test_a_payment_from_the_future_is_retried_once_it_is_allowed(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    payment = simulate(cards=2, days=3, seed=3)[0].to_pylist()[0]
    payment = {**payment, "event_time_ms": int(time.time() * 1000) + 3_600_000, "card_id": "4000123412341235"}
    value = Encoder("payments", IDS.id_of("payments")).encode(payment)
    produce(settings, "payments", value, key=payment["card_id"], headers=[("trace", b"\x00\x01"), ("trace", None)])
    stream = deployment.start("stream")
    wait_until(lambda: len(read_topic(settings, "dead-letters")) == 1, "there is a letter", every_s=0.3)

    # A retry before the cause is fixed gives another letter, which says that it is a retry.
    assert command(deployment, "--retry", "0-0")[0] == 0
    wait_until(lambda: len(read_topic(settings, "dead-letters")) == 2, "it has failed again", every_s=0.3)
    assert stream.stop() == 0
    first, second = shown(deployment)["letters"]
    assert (first["retry_count"], second["retry_count"]) == (0, 1)
    assert first["retried_time_ms"] >= first["failed_time_ms"]
    assert second["retried_time_ms"] is None
    assert second["reason"].startswith("event_time_ms: ")

    # The operator fixes the cause: clocks may be two hours ahead.
    deployment.configure("stream", "future_ms_max = 7_200_000\n")
    deployment.start("stream")
    code, said, logged = command(deployment, "--retry", "--all")
    assert code == 0, logged
    assert said.splitlines()[0].split() == ["sent", "1"]
    assert said.splitlines()[1].split()[:3] == ["retried", "before", "1"]
    key = record_key(payment["payment_id"])
    # The stream keeps a payment's record before it writes the payment's profiles.
    card = b"card:4000123412341235"
    wait_until(lambda: stored(deployment, card) is not None, "the payment is worked in", every_s=0.3)
    assert stored(deployment, key) is not None

    # All three are the same record, in the partition that its key decides.
    records = read_topic(settings, "payments")
    assert [(record.partition, record.key, record.value) for record in records] == [
        (records[0].partition, b"4000123412341235", value)
    ] * 3
    assert [list(record.headers or ()) for record in records] == [
        [("trace", b"\x00\x01"), ("trace", None)],
        [("trace", b"\x00\x01"), ("trace", None), ("paywarden-retry-of", b"0-0"), ("paywarden-retry-count", b"1")],
        [("trace", b"\x00\x01"), ("trace", None), ("paywarden-retry-of", b"0-1"), ("paywarden-retry-count", b"2")],
    ]
    assert len(read_topic(settings, "dead-letters")) == 2


def test_retrying_a_late_outcome_works_it_in_and_twice_changes_nothing(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    payment = simulate(cards=2, days=3, seed=3)[0].to_pylist()[0]
    outcome = {
        "payment_id": payment["payment_id"],
        "label": "fraud",
        "outcome_time_ms": payment["event_time_ms"] + 1000,
    }
    outcome_value = Encoder("outcomes", IDS.id_of("outcomes")).encode(outcome)
    produce(settings, "outcomes", outcome_value, key=payment["payment_id"])
    deployment.start("stream")
    wait_until(lambda: len(read_topic(settings, "dead-letters")) == 1, "there is a letter", every_s=0.3)
    value = Encoder("payments", IDS.id_of("payments")).encode(payment)
    produce(settings, "payments", value, key=payment["card_id"])
    card, key = f"card:{payment['card_id']}".encode(), record_key(payment["payment_id"])
    wait_until(lambda: stored(deployment, card) is not None, "the payment is worked in", every_s=0.3)
    before = stored(deployment, card)
    assert command(deployment, "--retry", "0-0")[0] == 0
    wait_until(lambda: stored(deployment, card) != before, "the outcome is worked in", every_s=0.3)
    labelled, noted = stored(deployment, card), stored(deployment, key)
    assert command(deployment, "--retry", "0-0", "--again")[1].split()[:2] == ["sent", "1"]
    # This record lies behind the second one in its partition. If it is worked in, so is the second.
    produce(settings, "outcomes", b"garbage", key=payment["payment_id"])
    wait_until(lambda: len(read_topic(settings, "dead-letters")) == 2, "all is worked in", every_s=0.3)
    assert (stored(deployment, card), stored(deployment, key)) == (labelled, noted)


def odd_records(settings: KafkaSettings) -> list[Record]:
    topic = settings.topic("payments")
    headers = [("a", b"1"), ("a", None), ("", b""), ("ä€", b"\x00\xff"), ("a", b"1")]
    return [
        Record(topic, 0, 1, None, None, 0, []),
        Record(topic, 0, 2, b"", b"", 5, []),
        Record(topic, 0, 3, b"\x00k", b"\xff\x00not avro", 5, headers),
        Record(topic, 0, 4, b"k", None, 5, [("trace", None)]),
        Record(topic, 0, 5, None, b"v", 5, [("trace", b"")]),
    ]


def test_letters_that_cannot_go_back_are_named_and_the_rest_is_sent(
    deployment: Deployment, settings: KafkaSettings
) -> None:
    good = odd_records(settings)[4]
    foreign = Record("other-payments", 0, 1, b"4000123412341235", b"v", 5, [])
    worn = Record(good.topic, 0, 9, b"k", b"v", 5, [("paywarden-retry-count", b"5")])
    produce(settings, "dead-letters", b"\xff damaged", key=b"4000123412341235")
    produce(settings, "dead-letters", None, key=b"4000123412341235")
    send_letters(settings, foreign, worn, good)
    code, said, logged = command(deployment, "--retry", "--all")
    assert code == 1
    assert logged.strip() == "paywarden: 4 dead letters were refused"
    lines = said.splitlines()
    assert [line.split()[-1] for line in lines[:3]] == ["1", "0", "4"]
    assert any(line.startswith("  0-0: the letter itself is damaged: wrong magic byte") for line in lines)
    assert any(line.startswith("  0-1: the letter itself is damaged: too short") for line in lines)
    assert any(line.startswith("  0-2: it came from other-payments, and this deployment's") for line in lines)
    assert any(line.startswith("  0-3: it has failed after 5 retries") for line in lines)
    assert "4000" not in said + logged
    (record,) = read_topic(settings, "payments")
    assert (record.key, record.value) == (None, b"v")
    assert command(deployment, "--retry", "0-3", "--again")[0] == 0
    counts = [dict(record.headers or ()).get("paywarden-retry-count") for record in read_topic(settings, "payments")]
    assert sorted(map(str, counts)) == [str(b"1"), str(b"6")]


def test_show_lists_the_newest_letters_without_their_content(
    deployment: Deployment, settings: KafkaSettings, tmp_path: Path
) -> None:
    topic = settings.topic("payments")
    records = [Record(topic, 1, offset, b"4000123412341235", b"secret", 5, [("x", b"secret")]) for offset in range(4)]
    send_letters(settings, *records)
    produce(settings, "dead-letters", b"\xffsecret", key=b"4000123412341235")
    code, said, logged = command(deployment)
    assert code == 0, logged
    assert "4000123412341235" not in said
    assert "secret" not in said
    assert f"{topic}/1/3" in said
    assert "damaged letter: wrong magic byte" in said
    assert said.splitlines()[-1] == "5 dead letters, 0 of them retried"
    found = shown(deployment, "--topic", "payments", "--reason", "IS BROKEN", "--limit", "2")
    assert found["count"] == 4
    assert [letter["letter_id"] for letter in found["letters"]] == ["0-2", "0-3"]
    assert found["summary"] == [{"topic": topic, "reason": "payment_id: is broken", "count": 4}]
    assert [letter["letter_id"] for letter in shown(deployment, "--since", "1h")["letters"]] == ["0-4"]
    assert shown(deployment, "--topic", "outcomes")["count"] == 0

    folder = tmp_path / "bytes"
    shown(deployment, "0-4", "0-1", "--bytes", str(folder))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        "0-1.key": b"4000123412341235",
        "0-1.value": b"secret",
        "0-4.damaged": b"\xffsecret",
    }
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
