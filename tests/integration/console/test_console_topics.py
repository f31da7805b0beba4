"""The console and the terminal on a real Kafka: both see what either writes, and nothing is lost by a kill."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from paywarden.ops.cli import cli
from paywarden.ops.console.audit_log import AuditHead, audit_log
from paywarden.ops.console.audit_page import publish_head
from paywarden.ops.console.database import ConsoleDatabase
from paywarden.ops.console.inbox.alert_reader import AlertReader
from paywarden.ops.console.inbox.alert_store import TABLES, AlertStore
from paywarden.ops.times import now_ms
from paywarden.schemas.avro import Encoder, LocalSchemaIds
from paywarden.schemas.errors import Misconfigured
from paywarden.streams.alerts.alert_events import COMMENTED, ConsoleEvent, EventWriter, alert_subject
from paywarden.streams.alerts.alert_records import ALERTS_TOPIC, Acknowledgement
from paywarden.streams.alerts.feed import AlertFeed
from paywarden.streams.alerts.samples import DECISIONS_TOPIC, DecisionSampler
from paywarden.streams.kafka.client import KafkaSettings
from paywarden.streams.kafka.producers import Sender
from paywarden.streams.kafka.topics import TopicSettings, create_topics
from tests.patience import PATIENCE_S
from tests.services.product.processes import wait_until
from tests.services.servers.kafka import KafkaServer
from tests.worlds.drift.alerts_on_topics import NOW_MS, alert_record
from tests.worlds.stream.decision_records import decision


def test_console_and_terminal_share_events_and_a_restart_loses_none(kafka: KafkaServer, tmp_path: Path) -> None:
    settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix="console.")
    create_topics(settings, TopicSettings(partitions=1, repartition_partitions=1), ["card"])
    ids = LocalSchemaIds()
    encoder, sender = Encoder(ALERTS_TOPIC, ids.id_of(ALERTS_TOPIC)), Sender(settings, linger_ms=0)
    for number in range(3):
        record = alert_record(number)
        sender.send(settings.topic(ALERTS_TOPIC), encoder.encode(record), key=str(record["alert_id"]).encode())
    decisions = Encoder(DECISIONS_TOPIC, ids.id_of(DECISIONS_TOPIC))
    for number, country in enumerate(["BR", "BR", "US"]):
        one = decision(f"p{number}", country=country, model_version="model-1")
        sender.send(settings.topic(DECISIONS_TOPIC), decisions.encode(one), key=b"p")
    sender.flush(PATIENCE_S)
    with closing(DecisionSampler(settings, ids)) as sampler:
        brazil, now = alert_record(1), now_ms()
        sampled = sampler.sample(brazil, now - 600_000, now + 600_000)
        assert sorted(one["payment_id"] for one in sampled) == ["p0", "p1"]
        assert sampler.sample(brazil, now - 7_200_000, now - 3_600_000) == []

    database = ConsoleDatabase(tmp_path / "console.sqlite", TABLES)
    store = AlertStore(database)
    reader = AlertReader(store, lambda: AlertFeed(settings, ids), lambda: EventWriter(settings, ids))

    def reading() -> tuple[threading.Event, threading.Thread]:
        stop = threading.Event()
        thread = threading.Thread(target=reader.run, args=(stop,))
        thread.start()
        return stop, thread

    stop, thread = reading()
    wait_until(lambda: not reader.missing() and store.count({}, NOW_MS) == 3, "three alerts are known")
    reader.write(
        [
            Acknowledgement("alert-00001", NOW_MS, "anna"),
            ConsoleEvent(alert_subject("alert-00001"), COMMENTED, "anna", NOW_MS, {"note": "a release"}),
        ]
    )
    found = store.find("alert-00001")
    assert found is not None
    assert (found[0].acknowledged_by, found[0].comments) == ("anna", 1)
    stop.set()
    thread.join()

    # The terminal writes while no console runs; a new console with an empty database, and one that goes on, agree.
    environment = {
        "PAYWARDEN_KAFKA_BOOTSTRAP": settings.bootstrap,
        "PAYWARDEN_KAFKA_TOPIC_PREFIX": settings.topic_prefix,
    }
    terminal = CliRunner().invoke(
        cli, ["drift", "note", "alert-00001", "--to", "ben", "--by", "carl"], env=environment, catch_exceptions=False
    )
    assert terminal.exit_code == 0, terminal.output
    status = CliRunner().invoke(cli, ["drift", "status", "--json"], env=environment, catch_exceptions=False)
    assert '"by": "anna"' in status.output
    stop, thread = reading()
    other_store = AlertStore(ConsoleDatabase(tmp_path / "other.sqlite", TABLES))
    other = AlertReader(other_store, lambda: AlertFeed(settings, ids), lambda: EventWriter(settings, ids))
    other_thread = threading.Thread(target=other.run, args=(stop,))
    other_thread.start()
    wait_until(lambda: all(_assigned(one) == "ben" for one in (store, other_store)), "both know what the terminal did")
    _check_audit_on_topic(tmp_path / "audit", lambda event: reader.write([event]), environment)
    rows = store.page({}, NOW_MS, limit=9), other_store.page({}, NOW_MS, limit=9)
    assert rows[0] == rows[1]
    stop.set()
    thread.join()
    other_thread.join()
    database.close()


def _check_audit_on_topic(
    folder: Path, publish: Callable[[ConsoleEvent], object], environment: Mapping[str, str]
) -> None:
    """A log that was put back with its own head is found by what the topic has of it."""
    log = audit_log(folder)
    log.record("anna", "viewed", "payment:1", {}, 1)
    older = {path: path.read_bytes() for path in folder.glob("audit.jsonl*")}
    log.record("anna", "viewed", "payment:2", {}, 2)
    publish_head(log, publish, AuditHead(), NOW_MS)
    command = ["admin", "audit", "--log", str(log.path), "--topic"]
    assert CliRunner().invoke(cli, command, env=environment, catch_exceptions=False).exit_code == 0
    for path, content in older.items():
        path.write_bytes(content)
    assert CliRunner().invoke(cli, command[:-1], env=environment, catch_exceptions=False).exit_code == 0
    with pytest.raises(Misconfigured, match="line 2 that was remembered"):
        CliRunner().invoke(cli, command, env=environment, catch_exceptions=False)


def _assigned(store: AlertStore) -> str:
    found = store.find("alert-00001")
    return "" if found is None else found[0].assigned_to
